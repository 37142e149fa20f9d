"""`steelyard attach`: follow a job that runs already; and how `run` attends what it has submitted: a job, a gang, an array.

A job belongs to Steelyard from the moment it is accepted: losing this command, or the server for a while, does not end it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from steelyard.cli.attend import POLL_S, START, Cursor, Detached, Interrupts, stream
from steelyard.cli.follow import Followers, Printer, Stream
from steelyard.cli.job_logs import find_end, list_elements, make_streams, poll_job, rest_after, write_taken
from steelyard.cli.job_text import Look, render_bar, render_counts, render_used
from steelyard.cli.output import Progress, say
from steelyard.cli.patience import Patience, make_patience
from steelyard.cli.session import home_option, new_key, open_client, quote
from steelyard.clock import Clock, SystemClock
from steelyard.errors import Refused, SteelyardError, Unreachable
from steelyard.wire.api import JobStop, JobView, LogChunk
from steelyard.wire.http import ApiClient

#: Ctrl-C lets the command clean up for as long as it likes; the second Ctrl-C is the one that kills
INTERRUPT_GRACE_S = 3600.0
#: elements of an array that are named at its end
NAMED_MAX = 10
#: of an array's progress
BAR_WIDTH = 24
#: how often progress is told where nobody looks
PROGRESS_S = 10.0
#: of Steelyard itself
REFUSED = 125

ATTACH_HELP = """Follow a running job: its output from now on, and its exit code.

Ctrl-C is forwarded to the job (twice: the job is killed), Ctrl-\\ leaves it running. The exit code is the job's own; 125 means
that Steelyard refused or failed. Of an array its progress is shown, and the exit code is the highest.

\b
Examples:
  steelyard attach 17
  steelyard attach --all 17
"""


@click.command(help=ATTACH_HELP, short_help="Follow a running job, and answer with its exit code.")
@click.argument("job")
@click.option("--all", "whole", is_flag=True, help="Show first what it wrote before.")
@home_option
def attach(job: str, whole: bool, home: Path | None) -> None:
    clock = SystemClock()
    with open_client(home) as client:
        view = client.fetch(JobView, "GET", f"/v1/jobs/{quote(job)}")
        words = f"steelyard: attached to {view.id}, which is {view.state}. Ctrl-C is forwarded, Ctrl-\\ leaves it running."
        if view.ended_at is not None:
            words = f"steelyard: {view.id} has ended already: {view.state}. `steelyard logs {view.id}` shows what it wrote."
        sys.exit(attend(client, make_patience(home, clock), view, clock, whole=whole, words=words))


def attend(
    client: ApiClient, patience: Patience, job: JobView, clock: Clock, *, whole: bool = True, words: str | None = None
) -> int:
    """Stream until it has ended; its exit code, or 0 when the person let go of it. `whole`: from its first output on; otherwise
    from now on. `words` are said when nothing that it writes will be missed any more."""
    interrupts = Interrupts(make_stop(client, patience, job.id), leave=True)
    try:
        ranks = (None,) if job.log_streams == 1 else range(job.log_streams)
        begins = [START] * len(ranks)
        if not whole and job.elements is None:
            begins = [patience.call(lambda at=rank: find_end(client, job.id, at), "its output") for rank in ranks]
        if words is not None:
            say(words)
        if job.elements is not None:
            return _attend_array(client, patience, job, interrupts, clock)
        if job.log_streams == 1:
            chunk = stream(patience, lambda cursor: poll_job(client, job.id, cursor, POLL_S), interrupts, begins[0])
        else:
            chunk = _attend_gang(make_streams(client, patience, job), begins, interrupts)
    except Detached:
        say(f"\nsteelyard: let go of {job.id}, which goes on. `steelyard attach {job.id}` follows it again.")
        return 0
    except Unreachable:
        raise SteelyardError(
            f"Steelyard has been away too long. Job {job.id} was accepted and goes on without us: `steelyard logs -f "
            f"{job.id}` when it is back."
        ) from None
    finally:
        interrupts.restore()
    code = conclude(chunk, job, interrupts.first_signal)
    if sys.stderr.isatty():
        _say_used(client, patience, job.id)
    return code


def _attend_gang(streams: Sequence[Stream], begins: Sequence[Cursor], interrupts: Interrupts) -> LogChunk:
    """The last chunk of one of them: the end of any says how the whole gang went."""
    followers, printer, last = Followers(), Printer(len(str(len(streams) - 1))), list[LogChunk]()
    for each, begin in zip(streams, begins, strict=True):
        followers.add(each, begin)
    while followers.open:
        interrupts.forward()
        if interrupts.wait_for(lambda: followers.wait(POLL_S)):
            last = write_taken(followers, printer) or last
    return last[-1]


def _attend_array(client: ApiClient, patience: Patience, job: JobView, interrupts: Interrupts, clock: Clock) -> int:
    """Tells its progress; the highest exit code of its elements."""
    progress, pause, person, told_ns = Progress(), threading.Event(), sys.stderr.isatty(), clock.mono_ns()
    path = f"/v1/jobs/{quote(job.id)}"

    def look() -> JobView:
        return client.fetch(JobView, "GET", path)

    try:
        while True:
            interrupts.forward()
            began_ns = clock.mono_ns()
            job = patience.call(look, "its progress")
            if job.ended_at is not None:
                break
            now_ns = clock.mono_ns()
            if person or now_ns - told_ns > PROGRESS_S * 1e9:
                bar = f"{render_bar(job.elements or {}, BAR_WIDTH, Look(colour=True))} " if person else ""
                progress.show(f"{job.id}: {bar}{render_counts(job.elements or {})}")
                told_ns = now_ns
            rest_s = rest_after(now_ns - began_ns)
            interrupts.wait_for(lambda rest_s=rest_s: pause.wait(rest_s))
    finally:
        progress.clear()
    say(f"steelyard: {job.id}: {render_counts(job.elements or {})}")
    failed = list_elements(client, job.id, "FAILED,STOPPED")
    for each in failed[:NAMED_MAX]:
        say(f"steelyard: {each.id} {each.state}: {each.detail or each.reason or ''}")
    if len(failed) > NAMED_MAX:
        say(f"steelyard: and {len(failed) - NAMED_MAX} more; `steelyard job {job.id}` lists them.")
    if interrupts.first_signal and job.exit_code is None:
        return 128 + interrupts.first_signal
    return max(job.exit_code or 0, *(REFUSED if each.exit_code is None else each.exit_code for each in failed), 0)


def make_stop(client: ApiClient, patience: Patience, job: str) -> Callable[[int, int], None]:
    """Forwards a signal to the job; the second is the one that kills."""

    def stop(signum: int, told: int) -> None:
        if told == 1:
            say(f"\nsteelyard: {signal.Signals(signum).name} is forwarded to job {job}; once more kills it")
        body, key = JobStop(signum, 0.0 if signum == signal.SIGKILL else INTERRUPT_GRACE_S), new_key()
        try:
            patience.call(lambda: client.fetch(JobView, "POST", f"/v1/jobs/{quote(job)}/stop", body=body, key=key), "the stop")
        except Refused as err:
            # it ended in the meantime; the stream will say how
            say(f"steelyard: {err.public}")

    return stop


def conclude(chunk: LogChunk, job: JobView, first_signal: int) -> int:
    if first_signal and chunk.exit_code is None:
        # it never ran: what a shell says of a command that a signal ended
        return 128 + first_signal
    if chunk.reason == "oom-killed":
        say(f"steelyard: job {job.id} was ended by the kernel at its memory limit. {chunk.detail}")
    elif chunk.exit_code and chunk.detail and (job.ranks > 1 or not _is_plain(chunk)):
        # which of its ranks it was, or what it lacked
        say(f"steelyard: {chunk.detail}")
    if chunk.exit_code is not None:
        return chunk.exit_code
    if chunk.state == "SUCCEEDED":
        return 0
    raise SteelyardError(f"Job {job.id} is {chunk.state} ({chunk.reason or 'no reason known'}). {chunk.detail}".strip())


def _is_plain(chunk: LogChunk) -> bool:
    """Is no more to say than what its exit code says?"""
    from steelyard.lifecycle.attempt import explain_end
    from steelyard.model.reason import Reason

    if chunk.reason not in (Reason.EXITED_NONZERO, Reason.KILLED_BY_SIGNAL):
        return False
    code = chunk.exit_code or 0
    return chunk.detail == explain_end(Reason(chunk.reason), code - 128, code)


def _say_used(client: ApiClient, patience: Patience, job: str) -> None:
    """What it made of what it had, for a person."""
    view = patience.call(lambda: client.fetch(JobView, "GET", f"/v1/jobs/{quote(job)}"), "its end")
    if used := render_used(view, view.usage):
        say(click.style(f"steelyard: {view.id} {used}", dim=True))
