"""What is a replica that was forked before anybody asked for it, and how is it given its order?

The spare has the fork, its page faults, a warm-up request and its event loop behind it and sleeps in one receive call. The
template passes the agent's packet on as it came, descriptors included. When the template goes away unasked, the spare ends
with 0.
"""

from __future__ import annotations

import os
import time
from typing import Any

from .join import reseed_numpy
from .packets import Connection, Packet, receive, send
from .serve import Machinery, warm_up


class Order:
    """What one fork packet asks for: a replica. ValueError when the descriptors are not those announced."""

    def __init__(self, packet: Packet) -> None:
        asked = packet.asked
        announced = 4 + int(asked.get("cgroups", 0))
        if len(packet.fds) != announced:
            raise ValueError(f"{len(packet.fds)} descriptors came, {announced} were announced")
        self.listener, self.page, self.stdout, self.stderr = packet.fds[:4]
        self.cgroups = packet.fds[4:]
        self.cpus = list(map(int, asked.get("cpus", ())))
        self.private = bool(asked.get("private", False))
        #: what the replica has yet to import (see grow.py); None where the template has it
        self.revision: dict[str, Any] | None = asked.get("revision")
        #: CLOCK_MONOTONIC when a spare got it; 0 for a replica forked for this order
        self.alive_ns = 0


class Spare:
    """The template's side. `pid` is a child of the template's parent."""

    def __init__(self, pid: int, start_time: int, connection: Connection) -> None:
        self.pid = pid
        self.start_time = start_time
        self._connection = connection

    def hand_over(self, packet: Packet) -> bool:
        """False when the spare is gone: then nobody has the order."""
        try:
            send(self._connection, packet.data, packet.fds)
        except OSError:
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Without an order it ends."""
        self._connection.close()


def wait_for_order(connection: Connection, machinery: Machinery) -> Order:
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
