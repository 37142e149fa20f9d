"""Are the agents there, and what do they say? The server's end of their WebSockets; the only place that knows connections.

One agent per machine: the one that connects last wins, the one before is closed. Whoever connects gets its machine's newest
assignment at once. Machines are named as plans name them (`Machine.place`). The home's own agent says itself which machine it is
on; one of a pool is on the machine that it was let in as, whatever it says. Nothing here decides: reports go to
`control/reports.py`, assignments come from `control/assignment.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from steelyard.api.auth import Peer
from steelyard.api.views import AGENT_LOST_S
from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, JOBS, PLACES, POOLS, REPORTS
from steelyard.control.reports import greet
from steelyard.errors import SteelyardError, Unreachable
from steelyard.model.function import Function
from steelyard.model.ids import OWN_MACHINE, MachineId
from steelyard.model.image import is_reference, parse_image
from steelyard.model.machine import Machine
from steelyard.store import Store
from steelyard.wire import WIRE_VERSION
from steelyard.wire.agent import Answer, Ask, Assignment, Hello, Report, ReportAck, encode
from steelyard.wire.assignments import AssignmentWriter
from steelyard.wire.reports import FrameReader

_log = logging.getLogger("steelyard.agents")

#: an agent that does not answer a question for this long is treated as silent
ASK_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 10.0
#: questions an agent may have open; more means that it is stuck
ASKS_MAX = 1024
#: close codes: RFC 6455, and the private range
_BAD_FRAME, _RESTARTING, _REPLACED, _BAD_VERSION, _GONE = 1007, 1012, 4001, 4002, 4003


class Socket(Protocol):
    """What is needed of a WebSocket. Raises ConnectionError when the peer is gone."""

    async def receive_bytes(self) -> bytes:
        """The next frame; empty for a text frame, which nothing of ours sends."""
        ...

    async def send_bytes(self, data: bytes) -> None: ...
    async def close(self, code: int) -> None: ...


class _Connection:
    """Outgoing frames of one agent, in order; of assignments only the newest."""

    def __init__(self) -> None:
        #: the report that the loop took last
        self.applying: Report | None = None
        self.closing: int | None = None
        self.asked: dict[int, asyncio.Future[Answer]] = {}
        self._frames: deque[bytes] = deque()
        self._assignment: Assignment | None = None
        self._writer = AssignmentWriter()
        self._wanted = asyncio.Event()

    def push(self, frame: ReportAck | Ask) -> None:
        self._frames.append(encode(frame))
        self._wanted.set()

    def offer(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._wanted.set()

    def shut(self, code: int) -> None:
        self.closing = code
        self._wanted.set()

    async def write(self, socket: Socket) -> None:
        """Until `shut`: returns then, so that the reader is ended too."""
        while self.closing is None:
            if self._assignment is not None:
                frame, self._assignment = self._writer.encode(self._assignment), None
            elif self._frames:
                frame = self._frames.popleft()
            else:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            await socket.send_bytes(frame)


class _Line:
    """What is known of the agent of one machine, connected or not."""

    def __init__(self, now_ns: int) -> None:
        self.connection: _Connection | None = None
        self.assignment: Assignment | None = None
        self.report: Report | None = None
        self.silent_since_ns = now_ns

    def offer(self, assignment: Assignment) -> None:
        self.assignment = assignment
        if self.connection is not None:
            self.connection.offer(assignment)

    def hold(self) -> _Connection:
        """A new connection takes the place of the one before."""
        if self.connection is not None:
            self.connection.shut(_REPLACED)
        self.connection = _Connection()
        # a report of an earlier connection was complete then; the next one of this is newer
        self.report = None
        if self.assignment is not None:
            self.connection.offer(self.assignment)
        return self.connection


class AgentHub:
    """Implements `control.AgentLink`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._poke: Callable[..., None] = lambda *names: None
        self._began_ns = clock.mono_ns()
        self._lines: dict[MachineId, _Line] = {}
        self._ask_id = 0
        self._stopping = False

    def attach(self, poke: Callable[..., None]) -> None:
        """Whom to poke when an agent spoke (the driver's loops need the hub first)."""
        self._poke = poke

    def connected(self, machine: MachineId = OWN_MACHINE) -> bool:
        line = self._lines.get(machine)
        return line is not None and line.connection is not None

    def lost(self, machine: MachineId = OWN_MACHINE) -> bool:
        """Silent for so long that its last word is no longer shown as the state of its work."""
        line = self._lines.get(machine)
        since_ns = self._began_ns if line is None else line.silent_since_ns
        return not self.connected(machine) and self._clock.mono_ns() - since_ns > AGENT_LOST_S * 1e9

    def lost_any(self, machines: Iterable[MachineId]) -> bool:
        return any(self.lost(machine) for machine in machines)

    def lost_of(self, function: Function) -> bool:
        """Are all lost that could tell how it is? Of one in a pool those that its requests go to."""
        machines = (function.targets or [place.machine for place in function.places]) if function.spec.pool else [OWN_MACHINE]
        return bool(machines) and all(self.lost(machine) for machine in machines)

    def newest_reports(self) -> dict[MachineId, Report]:
        found: dict[MachineId, Report] = {}
        for machine, line in self._lines.items():
            if line.connection is not None:
                line.connection.applying = line.report
            if line.report is not None:
                found[machine] = line.report
        return found

    def acknowledge(self, machine: MachineId, report: Report) -> None:
        line = self._lines.get(machine)
        if line is None:
            return
        if line.report is report:
            line.report = None
        # numbers belong to one connection: an agent that came back counts its own
        if line.connection is not None and line.connection.applying is report:
            line.connection.push(ReportAck(report.seq))

    def offer(self, machine: MachineId, assignment: Assignment) -> None:
        self._line(machine).offer(assignment)

    def holds(self, machine: MachineId, assignment: Assignment) -> bool:
        line = self._lines.get(machine)
        return line is not None and line.assignment is assignment

    def names_secret(self, machine: MachineId, owner: str, name: str) -> bool:
        """Does what the agent was told last name it, for work of that owner?"""
        line = self._lines.get(machine)
        assignment = None if line is None else line.assignment
        return assignment is not None and any((each.owner, each.name) == (owner, name) for each in assignment.secrets)

    def names_image(self, machine: MachineId, uid: int, image: str) -> bool:
        """The same for an image, by its id or its full reference."""
        line = self._lines.get(machine)
        assignment = None if line is None else line.assignment
        work = () if assignment is None else (*assignment.jobs, *assignment.functions)
        named = (each.spec.image for each in work if each.owner.uid == uid and each.spec.image)
        return any(image == (parse_image(each).text if is_reference(each) else each) for each in named)

    def drop(self, machine: MachineId) -> None:
        """The machine is gone for good, and whoever still speaks for it is not heard any more."""
        line = self._lines.pop(machine, None)
        if line is not None and line.connection is not None:
            line.connection.shut(_GONE)

    async def ask(
        self,
        what: str,
        workload: str,
        stream: str = "stdout",
        offset: int = 0,
        body: bytes = b"",
        margin: int = 0,
        machine: MachineId = OWN_MACHINE,
    ) -> Answer:
        """Raises Unreachable when the machine's agent is not there or does not answer in time."""
        line = self._lines.get(machine)
        connection = None if line is None else line.connection
        if connection is None:
            raise Unreachable("The machine's agent is not connected; it knows the answer. Try again.", code="agent-unreachable")
        if len(connection.asked) >= ASKS_MAX:
            raise Unreachable("The machine's agent has too many questions open. Try again.", code="agent-busy")
        self._ask_id += 1
        question = Ask(self._ask_id, what, workload, stream, offset, body=body, margin=margin)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        connection.asked[question.id] = future
        connection.push(question)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await future
        except TimeoutError as err:
            raise Unreachable("The machine's agent did not answer in time. Try again.", code="agent-unreachable") from err
        finally:
            connection.asked.pop(question.id, None)

    async def ask_each(self, what: str, workload: str, machines: Iterable[MachineId]) -> list[Answer]:
        """The same of several machines. Raises Unreachable when one of them does not answer."""
        return await asyncio.gather(*(self.ask(what, workload, machine=machine) for machine in machines))

    def _line(self, machine: MachineId) -> _Line:
        if machine not in self._lines:
            self._lines[machine] = _Line(self._clock.mono_ns())
        return self._lines[machine]

    def stop(self) -> None:
        """The server ends: agents are told to come back, and none is let in any more."""
        self._stopping = True
        for line in self._lines.values():
            if line.connection is not None:
                line.connection.shut(_RESTARTING)

    async def serve(self, socket: Socket, peer: Peer | None = None) -> None:
        """One accepted connection, until it ends; `peer`: of an agent of a pool. Never raises for what the peer does."""
        try:
            hello = await self._receive_hello(socket)
        except (TimeoutError, ConnectionError, msgspec.MsgspecError) as err:
            _log.warning("an agent did not say hello: %s", err)
            await _close(socket, _BAD_FRAME)
            return
        if not WIRE_VERSION - 1 <= hello.wire_version <= WIRE_VERSION + 1:
            _log.error("an agent speaks wire version %d, this server %d", hello.wire_version, WIRE_VERSION)
            await _close(socket, _BAD_VERSION)
            return
        machine = _name_machine(hello.machine, peer)
        line = self._line(machine.place)
        try:
            restarted = await greet(self._store, machine, self._clock.now_us())
        except SteelyardError as err:
            _log.error("an agent could not be greeted: %s %s", err.public, err.detail)
            # it may be stored all the same, and the next hello says nothing new then
            line.assignment = None
            await _close(socket, _RESTARTING)
            return
        if restarted:
            _log.warning("machine %s restarted", machine.id)
            # what was assigned before may name attempts that the machine's first report gives up
            line.assignment = None
        await self._hold(socket, machine, line)

    async def _hold(self, socket: Socket, machine: Machine, line: _Line) -> None:
        if self._stopping or self._lines.get(machine.place) is not line:
            await _close(socket, _RESTARTING if self._stopping else _GONE)
            return
        connection = line.hold()
        self._poke(JOBS, ASSIGNMENT, PLACES, *((POOLS,) if machine.pool else ()))
        reader = asyncio.create_task(self._read(socket, machine, line, connection))
        writer = asyncio.create_task(connection.write(socket))
        try:
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                err = task.exception()
                if isinstance(err, msgspec.MsgspecError):
                    _log.error("the agent sent a frame that can't be read: %s", err)
                    connection.closing = _BAD_FRAME
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            for future in connection.asked.values():
                if not future.done():
                    future.set_exception(Unreachable("The machine's agent went away. Try again.", code="agent-unreachable"))
            if line.connection is connection:
                line.connection = None
                line.silent_since_ns = self._clock.mono_ns()
            if connection.closing is not None:
                await _close(socket, connection.closing)

    async def _receive_hello(self, socket: Socket) -> Hello:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            frame = FrameReader().decode(await socket.receive_bytes())
        if not isinstance(frame, Hello):
            raise msgspec.ValidationError("the first frame is not a Hello")
        return frame

    async def _read(self, socket: Socket, machine: Machine, line: _Line, connection: _Connection) -> None:
        reader = FrameReader()
        while True:
            frame = reader.decode(await socket.receive_bytes())
            if line.connection is not connection:
                return
            match frame:
                case Report():
                    line.report = frame if frame.machine == machine.id else msgspec.structs.replace(frame, machine=machine.id)
                    self._poke(REPORTS)
                case Answer():
                    future = connection.asked.get(frame.id)
                    if future is not None and not future.done():
                        future.set_result(frame)
                case Hello():
                    raise msgspec.ValidationError("a second Hello")


def _name_machine(machine: Machine, peer: Peer | None) -> Machine:
    if peer is None:
        return msgspec.structs.replace(machine, pool="")
    return msgspec.structs.replace(machine, id=peer.machine, pool=peer.pool)


async def _close(socket: Socket, code: int) -> None:
    # the peer may be gone already, which is what closing wants
    with contextlib.suppress(Exception):
        await socket.close(code)
