"""What has a workload written since the given offsets? A long poll: it answers when there is data, when no more will come, or
when the wait is over.

The agent is asked (logs are files on its machine). While a client waits the agent is asked again every 50 ms, slower when nothing
comes; a commit that ends the job wakes the wait at once, so that short jobs are answered without any poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from steelyard.agent.job_files import JobFiles
from steelyard.api.secrets import make_redactor
from steelyard.api.services import Services
from steelyard.api.submission import one_job, parse_job_id
from steelyard.api.views import asked_machine, function_view, job_view
from steelyard.control.watch import wait_for
from steelyard.errors import NotFound, Refused, SteelyardError, Unreachable
from steelyard.lifecycle.redaction import Redactor
from steelyard.model.function import Function
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName, MachineId, name_logs
from steelyard.model.job import Job
from steelyard.model.reason import Reason
from steelyard.store import Tx
from steelyard.wire.agent import LOG_READ_MAX, Answer, ExecState
from steelyard.wire.api import LogChunk

POLL_FIRST_S = 0.05
POLL_MAX_S = 0.25
#: of files on a cluster, which two processes read each time
POLL_DIRECT_S = 0.5
STREAMS = ("stdout", "stderr")
#: how long a wait is at most; clients ask again
WAIT_MAX_S = 60.0


class Source(msgspec.Struct, frozen=True):
    """Whose log it is, as of one reading of the store."""

    #: what the agent calls it; None when nothing was ever started
    workload: str | None
    #: of a job: whose log it is
    attempt: int
    #: no process of it will write any more
    ended: bool
    exit_code: int | None
    state: str
    reason: str | None
    detail: str
    #: what is hidden of it; None: nothing
    hide: Redactor | None = None
    #: this log is complete, although the job goes on
    over: bool = False
    #: what it wrote is not told
    silent: bool = False
    #: of a job in the queue of a cluster, as of that attempt: its files are there
    direct: Job | None = None
    #: whose agent has it
    machine: MachineId = OWN_MACHINE


async def follow_job(
    services: Services, job: str, rank: int | None, attempt: int | None, offsets: tuple[int, int], wait_s: float
) -> LogChunk:
    """`attempt`: whose offsets they are (None: the newest's). What is unread of an earlier attempt's log comes first, then the
    logs of those after it from their starts. Refuses a rank that the job does not have."""

    async def read() -> Source:
        row, hide = await services.store.read(lambda tx: _job_and_secrets(tx, services, job))
        view = job_view(row, services.hub.lost_any(row.machines), services.jobs.why(row.id))
        workload, direct = log_of(row, rank), row if row.spec.direct else None
        state = (row.state.terminal, row.exit_code, view.state, view.reason, view.detail)
        return Source(workload, row.attempt, *state, hide, direct=direct, machine=row.find_machine(rank or 0))

    now = await read()
    row = await services.store.read(lambda tx: one_job(tx, job))
    for earlier in range(attempt or now.attempt, now.attempt):
        then = msgspec.structs.replace(row, attempt=earlier)
        direct = then if row.spec.direct else None
        of = {"workload": log_of(then, rank), "attempt": earlier, "direct": direct, "machine": then.find_machine(rank or 0)}
        source = msgspec.structs.replace(now, ended=False, over=True, **of)
        try:
            left = await _read_both(services, source, offsets)
        except Unreachable:
            if wait_s <= 0:
                raise
            return _empty(source, offsets, silent=True)
        if left.stdout or left.stderr:
            return left
        offsets = (0, 0)
    return await _follow(services, f"job/{parse_job_id(job)}", read, offsets, wait_s, now.attempt)


def log_of(job: Job, rank: int | None) -> str | None:
    """What the agent calls the log of a rank; None before its first attempt."""
    streams = job.spec.log_streams
    if rank is not None and rank >= streams:
        has = "one log for all its processes" if streams == 1 else f"ranks 0 to {streams - 1}"
        raise Refused(f"Job {job.id} has {has}; there is no rank {rank}.", code="no-such-rank")
    if not job.attempt:
        return None
    return job.attempt_id if not job.spec.logs_by_rank else f"{job.attempt_id}.{rank or 0}"


def find_exec(job: Job, name: str) -> tuple[str, MachineId]:
    """What its machine calls a command inside a job, and which machine that is: on several, `x1@2` is `x1` of the third."""
    own, _, node = name.partition("@")
    return own, job.machines[min(int(node or 0), len(job.machines) - 1)]


async def follow_exec(services: Services, job: str, name: str, offsets: tuple[int, int], wait_s: float) -> LogChunk:
    """Of a command inside the job."""

    async def read() -> Source:
        row, hide = await services.store.read(lambda tx: _job_and_secrets(tx, services, job))
        name_there, machine = find_exec(row, name)
        return await _exec_source(services, f"{row.attempt_id}-{name_there}", hide, machine)

    return await _follow(services, f"job/{parse_job_id(job)}", read, offsets, wait_s)


async def follow_visit(
    services: Services, function: str, place: tuple[str, MachineId], name: str, offsets: tuple[int, int], wait_s: float
) -> LogChunk:
    """Of a command inside a replica, by its id and machine. Of a deleted function nobody knows what is to be hidden: then only
    its end is told."""

    async def read() -> Source:
        found = await services.store.read(lambda tx: _function_and_secrets(tx, services, function))
        replica, machine = place
        source = await _exec_source(services, f"{replica}-{name}", None if found is None else found[1], machine)
        return msgspec.structs.replace(source, silent=found is None)

    return await _follow(services, f"function/{function}", read, offsets, wait_s)


async def _exec_source(services: Services, workload: str, hide: Redactor | None, machine: MachineId) -> Source:
    try:
        answer = await services.hub.ask("exec-state", workload, machine=machine)
    except Unreachable:
        if machine != OWN_MACHINE and await services.store.read(lambda tx: tx.machine(machine)) is None:
            text = f"Its machine {machine} is gone, and the command with it."
            return Source(workload, 0, True, None, "ENDED", Reason.NODE_LOST.value, text, hide, silent=True, machine=machine)
        # its output can't be read either, and what is read of that says so
        return Source(workload, 0, False, None, "UNKNOWN", Reason.AGENT_UNREACHABLE.value, "")
    if answer.error:
        raise NotFound(answer.error)
    state = msgspec.json.decode(answer.data, type=ExecState)
    phase = "ENDED" if state.ended else "RUNNING"
    return Source(workload, 0, state.ended, state.exit_code, phase, None, state.detail, hide, machine=machine)


async def follow_function(services: Services, name: str, offsets: tuple[int, int], wait_s: float) -> LogChunk:
    def load(tx: Tx) -> Source:
        found = _function_and_secrets(tx, services, name)
        if found is None:
            raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
        view = function_view(found[0], services.settings, services.hub.lost_of(found[0]))
        state = (view.state, view.reason, view.detail)
        return Source(name_logs(name), 0, False, None, *state, found[1], machine=asked_machine(found[0]))

    async def read() -> Source:
        return await services.store.read(load)

    return await _follow(services, f"function/{name}", read, offsets, wait_s)


def _function_and_secrets(tx: Tx, services: Services, name: str) -> tuple[Function, Redactor | None] | None:
    row = tx.function(DEFAULT_PROJECT, FunctionName(name))
    if row is None:
        return None
    # all its revisions write to the same log
    uses = {use for each in tx.revisions(DEFAULT_PROJECT, row.name) for use in each.spec.secrets}
    return row, make_redactor(tx, services.box, row.owner, uses)


async def _follow(
    services: Services,
    subject: str,
    read: Callable[[], Awaitable[Source]],
    offsets: tuple[int, int],
    wait_s: float,
    attempt: int = 0,
) -> LogChunk:
    """`attempt`: whose offsets they are; 0: they are the start of any."""
    deadline_ns = services.clock.mono_ns() + int(wait_s * 1e9)
    poll_s = POLL_FIRST_S
    with services.watch.subscribe(subject) as news:
        while True:
            # the state is read before the log: what a job that had ended by then wrote is all in the log
            source = await read()
            if attempt and source.attempt != attempt:
                # another attempt has begun meanwhile; the client asks again, and says whose offsets it has
                return _empty(msgspec.structs.replace(source, attempt=attempt, ended=False), offsets)
            left_s = (deadline_ns - services.clock.mono_ns()) / 1e9
            over = left_s <= 0 or services.watch.stopping
            try:
                chunk = await _read_both(services, source, offsets)
            except Unreachable:
                if wait_s <= 0:
                    raise
                # a client that follows shall survive a restart of the agent: it gets nothing, and asks again
                chunk = _empty(source, offsets, silent=True)
            moved = (chunk.stdout_offset, chunk.stderr_offset)
            if chunk.stdout or chunk.stderr or chunk.ended:
                return chunk
            if source.hide is not None and moved > offsets:
                offsets = moved  # all of it was the middle of what is hidden
                continue
            if over:
                return chunk
            if source.direct is not None:
                poll_s = POLL_DIRECT_S
            if await wait_for(news, min(left_s, poll_s if source.workload else left_s)):
                poll_s = POLL_FIRST_S
            else:
                poll_s = min(POLL_MAX_S, poll_s * 1.5)


async def _read_both(services: Services, source: Source, offsets: tuple[int, int]) -> LogChunk:
    if source.workload is None or source.silent:
        return _empty(source, offsets)
    if source.direct is not None:
        asked = (_read_direct(services, source.direct, stream, at) for stream, at in zip(STREAMS, offsets, strict=True))
    else:
        margin = 0 if source.hide is None else source.hide.margin
        workload = source.workload
        left = await _find_left(services, source.machine)
        asked = (
            services.hub.ask("log", workload, stream, at, margin=margin, machine=source.machine)
            if left is None
            else _read_left(left, workload, stream, at, margin)
            for stream, at in zip(STREAMS, offsets, strict=True)
        )
    out, err = await asyncio.gather(*asked)
    # a full answer means that there may be more behind it; a log that was never written is an error, and empty
    more = len(out.data) >= LOG_READ_MAX or len(err.data) >= LOG_READ_MAX
    ended = source.ended and not more
    (stdout, stdout_next), (stderr, stderr_next) = _show(source, out), _show(source, err)
    return LogChunk(
        stdout=stdout,
        stderr=stderr,
        stdout_offset=offsets[0] if out.error else stdout_next,
        stderr_offset=offsets[1] if err.error else stderr_next,
        ended=ended,
        exit_code=source.exit_code if ended else None,
        state=source.state,
        reason=source.reason,
        detail=source.detail,
        attempt=source.attempt,
    )


async def _find_left(services: Services, machine: MachineId) -> JobFiles | None:
    """What the work of a machine of a pool left; None while the machine is there: its agent knows more."""
    if machine == OWN_MACHINE or await services.store.read(lambda tx: tx.machine(machine)) is not None:
        return None
    engine = services.find_engine()
    folder = None if engine is None else engine.find_pilot_outputs(machine)
    if folder is None:
        text = f"The machine {machine} is gone, and what its work wrote lies where this one can't read it: on the storage of "
        raise NotFound(f"{text}`steelyard cluster attach`, in the folder of {machine}.", code="log-elsewhere")
    return JobFiles(folder)


async def _read_left(files: JobFiles, workload: str, stream: str, offset: int, margin: int) -> Answer:
    try:
        piece = await asyncio.to_thread(files.read_output, workload, stream, offset, LOG_READ_MAX, margin)
    except SteelyardError as err:
        return Answer(0, error=err.public)
    return Answer(0, piece.data, piece.next_offset, "", piece.gap, piece.before, piece.after, piece.cut)


async def _read_direct(services: Services, job: Job, stream: str, offset: int) -> Answer:
    engine = services.find_engine()
    if engine is None:
        raise Unreachable("No cluster is attached any more, so its files can't be read. `steelyard cluster attach` does that.")
    data = await engine.read_log(job, stream, offset, LOG_READ_MAX)
    return Answer(0, data, offset + len(data))


def _show(source: Source, answer: Answer) -> tuple[bytes, int]:
    """What of it is given out, and where the next read begins: before what may become something to hide."""
    if source.hide is None:
        return answer.gap + answer.data, answer.next_offset
    begin, end = len(answer.before), len(answer.before) + len(answer.data)
    window = b"".join((answer.before, answer.data, answer.after))
    shown = source.hide.show(window, begin, end, over=source.ended or source.over or answer.cut)
    return answer.gap + shown.data, answer.next_offset - (len(answer.data) - shown.used)


def _job_and_secrets(tx: Tx, services: Services, job: str) -> tuple[Job, Redactor | None]:
    row = one_job(tx, job)
    return row, make_redactor(tx, services.box, row.owner, row.spec.secrets)


def _empty(source: Source, offsets: tuple[int, int], silent: bool = False) -> LogChunk:
    ended = source.ended and not silent
    return LogChunk(
        stdout=b"",
        stderr=b"",
        stdout_offset=offsets[0],
        stderr_offset=offsets[1],
        ended=ended,
        exit_code=source.exit_code if ended else None,
        state=source.state,
        reason=Reason.AGENT_UNREACHABLE.value if silent else source.reason,
        detail="the machine's agent is not connected; its logs can't be read now" if silent else source.detail,
        attempt=source.attempt,
    )
