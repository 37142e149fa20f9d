"""Routes that join a command line to something on the machine, byte by byte: terminals, ports and files inside jobs and replicas.

The agent opens what is wanted and dials back; from then on frames pass both ways unread (`wire/streams.py` says what is in them).
Nothing is stored, and nothing is kept when the server ends: whoever was joined comes back and asks anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import WebSocket, websocket

from steelyard.api.agents import AgentHub
from steelyard.api.auth import STREAM_PATH
from steelyard.api.logs import find_exec
from steelyard.api.problems import make_problem, status_of
from steelyard.api.services import Services, services_of
from steelyard.api.submission import one_job
from steelyard.api.visits import find_place, find_visited
from steelyard.errors import Conflict, Refused, SteelyardError, Unreachable
from steelyard.model.ids import OWN_MACHINE, AttemptId, MachineId, WorkloadId
from steelyard.model.job import Job, JobState
from steelyard.wire.streams import OPEN_S, OPENED, CopyStream, PortStream, StreamStart, TerminalStream, Wanted

_log = logging.getLogger("steelyard.streams")

Socket = WebSocket[Any, Any, Any]
#: that a server has at a time
STREAMS_MAX = 1000
#: close codes: RFC 6455
_DONE, _RESTARTING, _REFUSED = 1000, 1012, 1008


class StreamDesk:
    """Where both ends of a stream meet."""

    def __init__(self, hub: AgentHub) -> None:
        self._hub = hub
        #: name -> who waits for the agent's end of it, and what tells the agent's end that all is over
        self._waiting: dict[str, asyncio.Future[tuple[Socket, asyncio.Event]]] = {}
        self._open = 0
        self._stopping = asyncio.Event()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """The server ends: so do all streams."""
        self._stopping.set()

    async def join(self, socket: Socket, what: Wanted, machine: MachineId) -> None:
        """An accepted caller, until it or what it wants on that machine has gone. Raises SteelyardError when there is nothing to
        join it to."""
        if self._open >= STREAMS_MAX:
            raise Refused(f"{STREAMS_MAX} streams are open already. Try again when one has ended.", code="busy")
        self._open += 1
        name = secrets.token_urlsafe(24)
        met: asyncio.Future[tuple[Socket, asyncio.Event]] = asyncio.get_running_loop().create_future()
        self._waiting[name] = met
        try:
            answer = await self._hub.ask("stream", "", body=msgspec.json.encode(StreamStart(name, what)), machine=machine)
            if answer.error:
                raise Conflict(answer.error, code="stream-refused")
            try:
                async with asyncio.timeout(OPEN_S):
                    other, over = await met
            except TimeoutError as err:
                raise Unreachable("The machine's agent did not come back. Try again.", code="agent-unreachable") from err
            try:
                await socket.send({"type": "websocket.send", "text": OPENED, "bytes": None})
                await self._carry(socket, other)
            finally:
                over.set()
        finally:
            self._open -= 1
            self._waiting.pop(name, None)

    async def meet(self, socket: Socket, name: str) -> None:
        """The agent's end, accepted, until the stream is over."""
        met = self._waiting.pop(name, None)
        if met is None or met.done():
            return
        over = asyncio.Event()
        met.set_result((socket, over))
        await over.wait()

    async def _carry(self, one: Socket, other: Socket) -> None:
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(_pump(one, other)), asyncio.create_task(_pump(other, one))]
        tasks.append(asyncio.create_task(self._stopping.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: Socket, target: Socket) -> None:
    """Until the source has gone. That the target has is no reason to end: what that sent may still be on its way."""
    while (event := await source.receive())["type"] == "websocket.receive":
        with contextlib.suppress(RuntimeError, OSError):
            await target.send({"type": "websocket.send", "bytes": event.get("bytes"), "text": event.get("text")})


async def _serve(socket: Socket, services: Services, on: Job | MachineId | SteelyardError, what: Wanted | SteelyardError) -> None:
    """`on`: the machine, or the job whose machine it is."""
    await socket.accept()
    try:
        if isinstance(on, SteelyardError):
            raise on
        if isinstance(what, SteelyardError):
            raise what
        await services.streams.join(socket, what, on.machine if isinstance(on, Job) else on)
    except SteelyardError as err:
        if err.detail:
            _log.error("%s: %s %s", socket.url.path, err.public, err.detail)
        with contextlib.suppress(RuntimeError, OSError):
            text = make_problem(status_of(err), err.code, err.public).decode()
            await socket.send({"type": "websocket.send", "text": text, "bytes": None})
            await socket.close(_REFUSED)
        return
    with contextlib.suppress(RuntimeError, OSError):
        await socket.close(_RESTARTING if services.streams.stopping else _DONE)


async def _find(services: Services, job: str) -> Job | SteelyardError:
    try:
        return await services.store.read(lambda tx: one_job(tx, job))
    except SteelyardError as err:
        return err


@websocket("/v1/jobs/{job:str}/terminal")
async def job_terminal(socket: Socket, job: str, offset: int = 0) -> None:
    """The terminal of a job that has one, from a byte of its output on."""
    services = services_of(socket)
    row = await _find(services, job)
    what = row if isinstance(row, SteelyardError) else TerminalStream(WorkloadId(row.attempt_id), offset)
    await _serve(socket, services, row, what)


@websocket("/v1/jobs/{job:str}/exec/{name:str}/terminal")
async def exec_terminal(socket: Socket, job: str, name: str, offset: int = 0) -> None:
    """The terminal of a command inside a job."""
    services = services_of(socket)
    row = await _find(services, job)
    if isinstance(row, SteelyardError):
        await _serve(socket, services, row, row)
        return
    own, machine = find_exec(row, name)
    await _serve(socket, services, machine, TerminalStream(WorkloadId(f"{row.attempt_id}-{own}"), offset))


@websocket("/v1/jobs/{job:str}/ports/{port:int}")
async def job_port(socket: Socket, job: str, port: int, rank: int | None = None) -> None:
    """A new connection to a port inside the job."""
    services = services_of(socket)
    row = await _find(services, job)
    if isinstance(row, SteelyardError):
        await _serve(socket, services, row, row)
        return
    what: Wanted | SteelyardError = PortStream(row.attempt_id, port, row.find_rank(rank))
    if row.state not in (JobState.RUNNING, JobState.STOPPING):
        what = Conflict(f"Job {row.id} is {row.state}: nothing in it listens.", code="not-running")
    await _serve(socket, services, row.find_machine(rank or 0), what)


@websocket("/v1/jobs/{job:str}/files")
async def job_files(socket: Socket, job: str, path: str, name: str | None = None, rank: int | None = None) -> None:
    """Files out of the job; or into it, named `name` where `path` is a folder."""
    services = services_of(socket)
    row = await _find(services, job)
    if isinstance(row, SteelyardError):
        await _serve(socket, services, row, row)
        return
    what: Wanted | SteelyardError = CopyStream(row.attempt_id, path, name, row.find_rank(rank))
    if row.state not in (JobState.RUNNING, JobState.STOPPING):
        what = Conflict(f"Job {row.id} is {row.state}: its files are reached while it runs.", code="not-running")
    await _serve(socket, services, row.find_machine(rank or 0), _check_path(what))


def _check_path(what: Wanted | SteelyardError) -> Wanted | SteelyardError:
    if isinstance(what, CopyStream):
        path, name = what.path, what.name
        if not path or "\0" in path or (name is not None and (name in ("", ".", "..") or "/" in name or "\0" in name)):
            return Refused("That can't be the path of a file.", code="bad-path")
    return what


@websocket("/v1/functions/{function:str}/replicas/{replica:str}/exec/{name:str}/terminal")
async def visit_terminal(socket: Socket, function: str, replica: str, name: str, offset: int = 0) -> None:
    """The terminal of a command inside a replica."""
    await _serve_visit(socket, function, replica, lambda id_: TerminalStream(WorkloadId(f"{id_}-{name}"), offset))


@websocket("/v1/functions/{function:str}/replicas/{replica:str}/ports/{port:int}")
async def visit_port(socket: Socket, function: str, replica: str, port: int) -> None:
    """A new connection to a port inside the replica."""
    await _serve_visit(socket, function, replica, lambda id_: PortStream(AttemptId(id_), port))


@websocket("/v1/functions/{function:str}/replicas/{replica:str}/files")
async def visit_files(socket: Socket, function: str, replica: str, path: str, name: str | None = None) -> None:
    """Files out of the replica; or into it, named `name` where `path` is a folder."""
    await _serve_visit(socket, function, replica, lambda id_: CopyStream(AttemptId(id_), path, name))


async def _serve_visit(socket: Socket, function: str, replica: str, make: Callable[[str], Wanted]) -> None:
    """`make`: what is wanted, by the replica's own id."""
    services = services_of(socket)
    what: Wanted | SteelyardError
    machine = OWN_MACHINE
    try:
        await find_visited(services, function, replica)
        id_, machine = await find_place(services, function, replica)
        what = _check_path(make(id_))
    except SteelyardError as err:
        what = err
    await _serve(socket, services, machine, what)


@websocket(STREAM_PATH + "/{name:str}")
async def agent_end(socket: Socket, name: str) -> None:
    await socket.accept()
    await services_of(socket).streams.meet(socket, name)
    with contextlib.suppress(RuntimeError, OSError):
        await socket.close(_DONE)


STREAM_ROUTES = (
    job_terminal,
    exec_terminal,
    job_port,
    job_files,
    visit_terminal,
    visit_port,
    visit_files,
    agent_end,
)
