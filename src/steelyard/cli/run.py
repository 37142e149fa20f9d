"""`steelyard run`: submit a job, stream what it writes, forward Ctrl-C, answer with its exit code.

The job belongs to Steelyard from the moment it is accepted: losing this command, or the server for a while, does not end it.
Submitting is repeated with one Idempotency-Key, so that a lost answer never makes two jobs.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from steelyard.cli.attend import POLL_S, Patience, stream
from steelyard.cli.job_options import job_options, make_spec
from steelyard.cli.output import say
from steelyard.cli.programs import SUPERVISOR, lives, load_record
from steelyard.cli.session import find_paths, home_option, new_key, open_client
from steelyard.clock import SystemClock
from steelyard.errors import Refused, SteelyardError, Unreachable
from steelyard.wire.api import JobStop, JobSubmit, JobView, LogChunk
from steelyard.wire.http import ApiClient

#: Ctrl-C lets the command clean up for as long as it likes; the second Ctrl-C is the one that kills
INTERRUPT_GRACE_S = 3600.0

RUN_HELP = """Run a command as a job, with its output and exit code.

The exit code is the command's own; 125 means that Steelyard refused or failed. Ctrl-C is forwarded (twice: the job is killed).
--cpus is a share of the cores that jobs have in common; --exclusive takes whole cores for this job alone. With
--tasks-per-node the command runs once per rank, all or none.

\b
Examples:
  steelyard run -- python train.py
  steelyard run --cpus 2 --exclusive --memory 4GB -- ./solver input.dat
  steelyard run --gpus H100:4 --nics 4 --cpus 16 --timing dedicated -- torchrun --nproc-per-node 4 train.py
  steelyard run --timing realtime --max-wakeup-us 200 -- ./controller
  steelyard run --detach --name nightly --env SEED=7 -- make all
  steelyard run --tasks-per-node 4 --gpus 1 --launcher torchrun --retry error:3 -- train.py
  steelyard run -d --array 0-99%8 --max-duration 1h --requeue -- ./sweep
  steelyard run -d --after ok:12,any:13 --scratch 20GB --output out/%j.txt -- ./merge
"""


@click.command(
    help=RUN_HELP,
    short_help="Run a command as a job, with its output and exit code.",
    context_settings={"ignore_unknown_options": False},
)
@job_options
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and return.")
@home_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def run(detach: bool, home: Path | None, command: tuple[str, ...], array: str | None, project: str, **asked: Any) -> None:
    clock = SystemClock()
    spec = make_spec(command, asked, _here(), datetime.fromtimestamp(clock.now_us() / 1e6, UTC))
    paths = find_paths(home)
    with open_client(home) as client:
        patience = Patience(clock, lambda: lives(load_record(paths, SUPERVISOR)))
        key, body = new_key(), JobSubmit(spec, array, project)
        job = patience.call(lambda: client.fetch(JobView, "POST", "/v1/jobs", body=body, key=key), "submitting the job")
        if detach:
            click.echo(job.id)
            return
        sys.exit(attend(client, patience, job.id))


def attend(client: ApiClient, patience: Patience, job: str) -> int:
    """Stream until the job has ended; its exit code."""
    try:
        chunk, first_signal = stream(
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
