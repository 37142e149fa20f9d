"""`steelyard run`: submit a job, stream what it writes, forward Ctrl-C, answer with its exit code.

The job belongs to Steelyard from the moment it is accepted: losing this command, or the server for a while, does not end it.
Submitting is repeated with one Idempotency-Key, so that a lost answer never makes two jobs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from steelyard.cli.attend import POLL_S, Patience, attend
from steelyard.cli.output import say
from steelyard.cli.programs import SUPERVISOR, lives, load_record
from steelyard.cli.quantities import parse_bytes
from steelyard.cli.session import find_paths, home_option, new_key, open_client
from steelyard.clock import SystemClock
from steelyard.errors import Refused, SteelyardError, Unreachable
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.job import JobSpec, Resources
from steelyard.model.timing import Timing
from steelyard.wire.api import JobStop, JobSubmit, JobView, LogChunk
from steelyard.wire.http import ApiClient

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
  steelyard run --scratch 20GB --io-max 200MB -- sh -c 'sort -T $TMPDIR big.txt > out.txt'
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
@click.option(
    "--scratch", metavar="SIZE", help="A private folder of that size on the fastest local disk, gone when the job ends."
)
@click.option("--io-max", metavar="SIZE", help="At most that much a second from local disks, and to them, for example 100MB.")
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
    scratch: str | None,
    io_max: str | None,
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
            scratch_bytes=parse_bytes(scratch) if scratch else None,
            io_max_bytes_s=parse_bytes(io_max) if io_max else None,
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
        sys.exit(_attend(client, patience, job.id))


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


def _attend(client: ApiClient, patience: Patience, job: str) -> int:
    """Stream until the job has ended; its exit code."""
    try:
        chunk, first_signal = attend(
            patience, lambda offsets: _poll(client, job, offsets), lambda signum, told: _stop(client, patience, job, signum, told)
        )
    except Unreachable:
        raise SteelyardError(
            f"Steelyard has been away too long. Job {job} was accepted and goes on without us: `steelyard logs -f "
            f"{job}` when it is back."
        ) from None
    if first_signal and chunk.exit_code is None:
        # it never ran: what a shell says of a command that a signal ended
        return 128 + first_signal
    return _conclude(chunk, job)


def _poll(client: ApiClient, job: str, offsets: tuple[int, int]) -> LogChunk:
    params = {"stdout_offset": offsets[0], "stderr_offset": offsets[1], "wait_s": POLL_S}
    return client.fetch(LogChunk, "GET", f"/v1/jobs/{job}/logs", params=params, wait_s=POLL_S)


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
