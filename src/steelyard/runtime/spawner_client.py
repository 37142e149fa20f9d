"""How does the agent talk to the spawner? One non-blocking SOCK_SEQPACKET connection on the agent's event loop.

Carries requests and answers, nothing more: it never retries, never reconnects and decides nothing. When the connection ends,
`closed` is set, waiting starts fail with Unreachable (they may or may not run: adopt() tells), and the agent connects again. A
spawner with another `instance` is a new one, without sockets and children; handing sockets over again is the agent's duty.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from steelyard.errors import EdgeFailed, Unreachable
from steelyard.model.ids import WorkloadId
from steelyard.runtime.procstat import observe_process
from steelyard.wire import spawn as wire

CONNECT_TIMEOUT_S = 10.0


class SpawnerClient:
    """`on_exit` is called on the event loop, for every exit, after its record is on disk."""

    def __init__(self, socket_path: Path, on_exit: Callable[[wire.Exited], None]) -> None:
        self._path = socket_path
        self._on_exit = on_exit
        self._sock: socket.socket | None = None
        self._starts: dict[WorkloadId, asyncio.Future[wire.Spawned]] = {}
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._held: dict[str, int] = {}
        self._children: list[tuple[WorkloadId, int, int]] = []
        self._listed: asyncio.Future[None] | None = None
        self.closed = asyncio.Event()
        self.closed.set()
        #: `<pid>:<start time>` of the spawner at the other end, and that start time; kept after the connection ended
        self.instance = ""
        self.start_time = 0

    @property
    def connected(self) -> bool:
        return self._sock is not None

    def serves(self, instance: str) -> bool:
        """It is this very spawner that is connected now."""
        return self.connected and self.instance == instance

    async def connect(self) -> tuple[dict[str, int], wire.Running]:
        """Held sockets by name (the caller owns the descriptors) and every child that has no exit record yet."""
        await self.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(self._path))
            pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError as err:
            sock.close()
            raise Unreachable(f"the spawner does not answer on {self._path}: {err.strerror}", code="spawner-unreachable") from err
        stat = observe_process(pid)
        self.start_time = stat.start_time if stat else 0
        self.instance = f"{pid}:{self.start_time}"
        self._sock = sock
        self._held, self._children = {}, []
        self.closed.clear()
        loop = asyncio.get_running_loop()
        self._listed = loop.create_future()
        loop.add_reader(sock, self._on_readable)
        self._send(wire.ListHeld())
        try:
            await asyncio.wait_for(self._listed, CONNECT_TIMEOUT_S)
        except (TimeoutError, asyncio.CancelledError, Unreachable) as err:
            self._end("it did not answer")
            for fd in self._held.values():
                os.close(fd)
            if isinstance(err, TimeoutError):
                raise Unreachable(f"the spawner on {self._path} did not answer in {CONNECT_TIMEOUT_S:.0f} s") from err
            raise
        finally:
            self._listed = None
        return self._held, wire.Running(tuple(self._children))

    async def spawn(self, request: wire.Spawn, fds: Sequence[int] = (), cgroup_fds: Sequence[int] = ()) -> wire.Spawned:
        """Returns once exec succeeded. EdgeFailed(start-failed): nothing runs. Unreachable: it may run. Descriptors stay the
        caller's."""
        if len(fds) != len(request.fds) or len(fds) + len(cgroup_fds) > wire.FDS_MAX:
            raise EdgeFailed(f"{request.workload} not started: {len(fds)} descriptors do not fit", code="start-failed")
        if request.workload in self._starts:
            raise EdgeFailed(f"{request.workload} not started: it is being started already", code="start-failed")
        request = msgspec.structs.replace(request, cgroups=len(cgroup_fds))
        if len(wire.encode(request)) > wire.PACKET_MAX:
            raise EdgeFailed(
                f"{request.workload} not started: its arguments and environment are larger than {wire.PACKET_MAX} bytes",
                code="start-failed",
            )
        answer: asyncio.Future[wire.Spawned] = asyncio.get_running_loop().create_future()
        self._starts[request.workload] = answer
        try:
            self._send(request, (*fds, *cgroup_fds))
            return await answer
        finally:
            del self._starts[request.workload]

    def claim(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        """A template forked this child; its exit belongs to this workload, even when it has ended already. May be repeated."""
        self._send(wire.Claim(workload, pid, start_time))

    def hold_socket(self, name: str, fd: int) -> None:
        self._send(wire.HoldSocket(name), (fd,))

    def drop_socket(self, name: str) -> None:
        self._send(wire.DropSocket(name))

    async def close(self) -> None:
        """What was asked for before is still sent to the socket where it fits; nothing is waited for."""
        self._end("this agent closed the connection")

    def _send(self, message: wire.ToSpawner, fds: Sequence[int] = ()) -> None:
        if self._sock is None:
            raise Unreachable("the spawner is not connected", code="spawner-unreachable")
        data = wire.encode(message)
        if not self._outbox and self._push(self._sock, data, fds):
            return
        if self._sock is None:
            raise Unreachable("the spawner closed the connection", code="spawner-unreachable")
        # copies, because the caller may close its own at once
        self._outbox.append((data, [os.dup(fd) for fd in fds]))
        asyncio.get_running_loop().add_writer(self._sock, self._on_writable)

    def _push(self, sock: socket.socket, data: bytes, fds: Sequence[int]) -> bool:
        try:
            if fds:
                socket.send_fds(sock, [data], list(fds))
            else:
                sock.send(data)
        except BlockingIOError:
            return False
        except OSError as err:
            self._end(err.strerror or str(err))
            return False
        return True

    def _on_writable(self) -> None:
        while self._sock is not None and self._outbox:
            data, fds = self._outbox[0]
            if not self._push(self._sock, data, fds):
                return
            self._outbox.popleft()
            for fd in fds:
                os.close(fd)
        if self._sock is not None:
            asyncio.get_running_loop().remove_writer(self._sock)

    def _on_readable(self) -> None:
        while self._sock is not None:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, wire.PACKET_MAX, 1, socket.MSG_CMSG_CLOEXEC)
                message = wire.decode_from_spawner(data) if data else None
            except BlockingIOError:
                return
            except (OSError, msgspec.MsgspecError) as err:
                self._end(str(err))
                return
            if message is None:
                self._end("the spawner closed the connection")
                return
            self._take(message, fds)

    def _take(self, message: wire.FromSpawner, fds: list[int]) -> None:
        match message:
            case wire.Held(name):
                self._held[name] = fds[0]
            case wire.Running(children):
                self._children += children
                if len(children) < wire.RUNNING_MAX and self._listed is not None and not self._listed.done():
                    self._listed.set_result(None)
            case wire.Spawned(workload):
                answer = self._starts.get(workload)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case wire.SpawnFailed(workload, step, error):
                answer = self._starts.get(workload)
                if answer is not None and not answer.done():
                    answer.set_exception(EdgeFailed(f"{workload} not started: {step}: {error}", code="start-failed", detail=step))
            case wire.Exited():
                self._on_exit(message)

    def _end(self, why: str) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.remove_writer(sock)
        sock.close()
        for _, fds in self._outbox:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._outbox.clear()
        lost = Unreachable(f"connection to the spawner lost: {why}", code="spawner-unreachable")
        for answer in self._starts.values():
            if not answer.done():
                answer.set_exception(lost)
        if self._listed is not None and not self._listed.done():
            self._listed.set_exception(lost)
        self.closed.set()
