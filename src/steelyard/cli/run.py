"""`steelyard run`: submit a job, stream what it writes, forward Ctrl-C, answer with its exit code.

The job belongs to Steelyard from the moment it is accepted: losing this command, or the server for a while, does not end it.
Submitting is repeated with one Idempotency-Key, so that a lost answer never makes two jobs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

import click

from steelyard.cli.output import say
from steelyard.cli.programs import SUPERVISOR, lives, load_record
from steelyard.cli.quantities import parse_bytes
from steelyard.cli.session import find_paths, home_option, new_key, open_client
from steelyard.clock import Clock, SystemClock
from steelyard.errors import Refused, SteelyardError, Unreachable
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.job import JobSpec, Resources
from steelyard.model.timing import Timing
from steelyard.wire.api import JobStop, JobSubmit, JobView, LogChunk
from steelyard.wire.http import ApiClient

T = TypeVar("T")

#: how long a submit and a log stream outlive an absent server
AWAY_S = 120.0
#: one long poll
POLL_S = 20.0
#: Ctrl-C lets the command clean up for as long as it likes; the second Ctrl-C is the one that kills
INTERRUPT_GRACE_S = 3600.0
#: passed on from the caller, so that the command is found and speaks the caller's language
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TERM")

RUN_HELP = """Run a command as a job, with its output and exit code.

The exit code is the command's own; 125 means that Steelyard refused or failed. Ctrl-C is forwarded (twice: the job is killed).
--cpus is a share of the cores that jobs have in common; --exclusive takes whole cores for this job alone.

\b
Examples:
  steelyard run -- python train.py
  steelyard run --cpus 2 --exclusive --memory 4GB -- ./solver input.dat
  steelyard run --gpus H100:4 --nics 4 --cpus 16 --timing dedicated -- torchrun --nproc-per-node 4 train.py
  steelyard run --timing realtime --max-wakeup-us 200 -- ./controller
  steelyard run --detach --name nightly --env SEED=7 -- make all
"""


@click.command(
    help=RUN_HELP,
    short_help="Run a command as a job, with its output and exit code.",
    context_settings={"ignore_unknown_options": False},
)
@click.option(
    "--cpus", type=float, default=1.0, show_default=True, help="Cores: a share in common, or whole ones with --exclusive."
)
@click.option("--exclusive", is_flag=True, help="Whole physical cores that nobody else runs on.")
@click.option(
    "--timing",
    type=click.Choice([timing.value for timing in Timing]),
    default=Timing.BEST_EFFORT.value,
    show_default=True,
    help="How punctual: `dedicated` takes whole cores, `realtime` also comes first on them.",
)
@click.option(
    "--max-wakeup-us", type=int, metavar="N", help="Watch that nothing on its cores wakes later than this, in microseconds."
)
@click.option("--gpus", metavar="DEMAND", help="GPUs, for example 2, H100:4, A100:80GB:2, 24GB..40GB, H100:0.5 or A100:1g.10gb.")
@click.option("--nics", type=click.IntRange(0, 256), default=0, help="Network cards near the GPUs.")
@click.option("--preemptible", is_flag=True, help="Give way: run only on what everything else leaves idle.")
@click.option("--memory", help="Memory limit, for example 4GB [default: none].")
@click.option("--name", help="A name for people [default: the command's].")
@click.option(
    "--env", "env", multiple=True, metavar="K=V", help="Set a variable (K alone takes the caller's value). May be repeated."
)
@click.option("--as-root", is_flag=True, help="Run as root (only for the admin of a Steelyard that root started).")
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and return.")
@home_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def run(
    cpus: float,
    exclusive: bool,
    timing: str,
    max_wakeup_us: int | None,
    gpus: str | None,
    nics: int,
    preemptible: bool,
    memory: str | None,
    name: str | None,
    env: tuple[str, ...],
    as_root: bool,
    detach: bool,
    home: Path | None,
    command: tuple[str, ...],
) -> None:
    spec = JobSpec(
        name=name or os.path.basename(command[0]) or command[0],
        argv=command,
        cwd=_here(),
        env={key: os.environ[key] for key in PASSED_ON if key in os.environ} | parse_env(env),
        resources=Resources(
            cpus=cpus,
            memory_bytes=parse_bytes(memory) if memory else None,
            exclusive=exclusive,
            timing=Timing(timing),
            max_wakeup_us=max_wakeup_us,
            preemptible=preemptible,
            gpus=parse_gpu_demand(gpus) if gpus else None,
            nics=nics,
        ),
        as_root=as_root,
    )
    paths, clock = find_paths(home), SystemClock()
    with open_client(home) as client:
        patience = Patience(clock, lambda: lives(load_record(paths, SUPERVISOR)))
        key = new_key()
        job = patience.call(
            lambda: client.fetch(JobView, "POST", "/v1/jobs", body=JobSubmit(spec), key=key), "submitting the job"
        )
        if detach:
            click.echo(job.id)
            return
        sys.exit(attend(client, patience, job.id))


def parse_env(pairs: tuple[str, ...]) -> dict[str, str]:
    """K=V sets, K alone takes the caller's value (nothing where the caller has none)."""
    env: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or "\0" in pair:
            raise Refused(f"{pair!r} is no variable. Write --env NAME=VALUE.", code="bad-env")
        if equals:
            env[key] = value
        elif key in os.environ:
            env[key] = os.environ[key]
    return env


class Patience:
    """Calls again while the server is away, for a bounded time; at once gives up where nobody is there to bring it back."""

    def __init__(self, clock: Clock, supervised: Callable[[], bool]) -> None:
        self._clock = clock
        self._supervised = supervised
        self._pause = threading.Event()

    def call(self, attempt: Callable[[], T], what: str) -> T:
        deadline_ns: int | None = None
        while True:
            try:
                return attempt()
            except Unreachable as err:
                if deadline_ns is None:
                    deadline_ns = self._clock.mono_ns() + int(AWAY_S * 1e9)
                    if self._supervised():
                        say(f"steelyard: the server is away; {what} goes on when it is back")
                if not self._supervised() or self._clock.mono_ns() > deadline_ns:
                    raise err
                self._pause.wait(0.1)


class Interrupts:
    """Turns the first SIGINT or SIGTERM into that signal for the job and the second into SIGKILL. Only a wait is broken off by
    it, so that no output is lost or printed twice."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self._waiting = False
        self._previous = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.pending.append(signum)
        if self._waiting:
            raise KeyboardInterrupt

    def wait_for(self, blocking: Callable[[], T]) -> T | None:
        """The result, or None when a signal came first."""
        try:
            self._waiting = True
            if self.pending:
                return None
            return blocking()
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False

    def restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


def attend(client: ApiClient, patience: Patience, job: str) -> int:
    """Stream until the job has ended; its exit code."""
    interrupts = Interrupts()
    offsets = (0, 0)
    told, first_signal = 0, 0
    try:
        while True:
            while interrupts.pending:
                signum = interrupts.pending.pop(0)
                told += 1
                first_signal = first_signal or signum
                _stop(client, patience, job, signum if told == 1 else signal.SIGKILL, told)
            chunk = interrupts.wait_for(lambda at=offsets: patience.call(lambda: _poll(client, job, at), "its output"))
            if chunk is None:
                continue
            offsets = (chunk.stdout_offset, chunk.stderr_offset)
            write_chunk(chunk)
            if chunk.ended and told and chunk.exit_code is None:
                # it never ran: what a shell says of a command that a signal ended
                return 128 + first_signal
            if chunk.ended:
                return _conclude(chunk, job)
    except Unreachable:
        raise SteelyardError(
            f"Steelyard has been away too long. Job {job} was accepted and goes on without us: `steelyard logs -f "
            f"{job}` when it is back."
        ) from None
    finally:
        interrupts.restore()


def _poll(client: ApiClient, job: str, offsets: tuple[int, int]) -> LogChunk:
    params = {"stdout_offset": offsets[0], "stderr_offset": offsets[1], "wait_s": POLL_S}
    return client.fetch(LogChunk, "GET", f"/v1/jobs/{job}/logs", params=params, wait_s=POLL_S)


def write_chunk(chunk: LogChunk) -> None:
    """Both streams to where they belong, byte for byte."""
    for data, stream in ((chunk.stdout, sys.stdout.buffer), (chunk.stderr, sys.stderr.buffer)):
        if data:
            stream.write(data)
            stream.flush()


def _stop(client: ApiClient, patience: Patience, job: str, signum: int, told: int) -> None:
    if told == 1:
        say(f"\nsteelyard: {signal.Signals(signum).name} is forwarded to job {job}; once more kills it")
    grace_s = 0.0 if signum == signal.SIGKILL else INTERRUPT_GRACE_S
    key = new_key()
    try:
        patience.call(
            lambda: client.fetch(JobView, "POST", f"/v1/jobs/{job}/stop", body=JobStop(signum, grace_s), key=key), "the stop"
        )
    except Refused as err:
        # it ended in the meantime; the stream will say how
        say(f"steelyard: {err.public}")


def _conclude(chunk: LogChunk, job: str) -> int:
    if chunk.reason == "oom-killed":
        say(f"steelyard: job {job} was ended by the kernel at its memory limit. {chunk.detail}")
    if chunk.exit_code is not None:
        return chunk.exit_code
    if chunk.state == "SUCCEEDED":
        return 0
    raise SteelyardError(f"Job {job} is {chunk.state} ({chunk.reason or 'no reason known'}). {chunk.detail}".strip())


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise Refused("The folder this was called in no longer exists. Change to another one.", code="cwd-gone") from None
