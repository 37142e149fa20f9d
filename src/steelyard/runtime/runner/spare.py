"""What is a replica that was forked before anybody asked for it, and how is it given its order?

The spare has the fork, its page faults, a warm-up request and its event loop behind it and sleeps in one receive call. The
template passes the agent's packet on as it came, descriptors included. When the template goes away unasked, the spare ends
with 0.
"""

from __future__ import annotations

import array
import json
import os
import socket
import time
from typing import Any

from .join import reseed_numpy
from .serve import Machinery, warm_up

#: of one packet either way: a whole environment fits
PACKET_MAX = 180_000
FDS_MAX = 64


class Packet:
    """One packet from the agent and the descriptors that came with it."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.data = data
        self.fds = fds
        self._asked: Any = None

    @property
    def asked(self) -> dict[str, Any]:
        """ValueError when it is no JSON object."""
        if self._asked is None:
            self._asked = json.loads(self.data.decode())
        if not isinstance(self._asked, dict):
            raise ValueError("not a JSON object")
        return self._asked

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class Order:
    """What one fork packet asks for: a replica. ValueError when the descriptors are not those announced."""

    def __init__(self, packet: Packet) -> None:
        asked = packet.asked
        announced = 4 + int(asked.get("cgroups", 0))
        if len(packet.fds) != announced:
            raise ValueError(f"{len(packet.fds)} descriptors came, {announced} were announced")
        self.listener, self.page, self.stdout, self.stderr = packet.fds[:4]
        self.cgroups = packet.fds[4:]
        self.cpus = [int(cpu) for cpu in asked.get("cpus", ())]
        self.private = bool(asked.get("private", False))
        #: what the replica has yet to import (see grow.py); None where the template has it
        self.revision: dict[str, Any] | None = asked.get("revision")
        #: CLOCK_MONOTONIC when a spare got it; 0 for a replica forked for this order
        self.alive_ns = 0


class Spare:
    """The template's side. `pid` is a child of the template's parent."""

    def __init__(self, pid: int, start_time: int, connection: socket.socket) -> None:
        self.pid = pid
        self.start_time = start_time
        self._connection = connection

    def hand_over(self, packet: Packet) -> bool:
        """False when the spare is gone: then nobody has the order."""
        try:
            socket.send_fds(self._connection, [packet.data], packet.fds)
        except OSError:
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Without an order it ends."""
        self._connection.close()


def receive(connection: socket.socket) -> Packet | None:
    """The next packet; None at the end of the connection. BlockingIOError when a non-blocking one has nothing."""
    try:
        data, ancillary, _, _ = connection.recvmsg(PACKET_MAX, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError:
        return None
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) // 4 * 4])
    return Packet(data, fds.tolist()) if data else None


def wait_for_order(connection: socket.socket, machinery: Machinery) -> Order:
    """The spare's side, right after the fork. Ends the process when the template has gone."""
    reseed_numpy()
    warm_up(machinery)
    machinery.open_loop()
    packet = receive(connection)
    alive_ns = time.monotonic_ns()
    if packet is None:
        os._exit(0)
    connection.close()
    order = Order(packet)
    order.alive_ns = alive_ns
    return order
