"""`steelyard run`: submit a job, stream what it writes, forward Ctrl-C, answer with its exit code.

The job belongs to Steelyard from the moment it is accepted: losing this command, or the server for a while, does not end it.
Submitting is repeated with one Idempotency-Key, so that a lost answer never makes two jobs.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from steelyard.cli.attach import attend, make_patience
from steelyard.cli.job_options import job_options, make_spec
from steelyard.cli.session import home_option, new_key, open_client
from steelyard.clock import SystemClock
from steelyard.errors import Refused
from steelyard.wire.api import JobSubmit, JobView

RUN_HELP = """Run a command as a job, with its output and exit code.

The exit code is the command's own; 125 means that Steelyard refused or failed. Ctrl-C is forwarded (twice: the job is killed),
Ctrl-\\ leaves the job running. --cpus is a share of the cores that jobs have in common; --exclusive takes whole cores for this
job alone. With --tasks-per-node the command runs once per rank, all or none, and lines come behind the rank that wrote them.
Of an array its progress is shown, and the exit code is the highest.

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
    with open_client(home) as client:
        patience = make_patience(home, clock)
        key, body = new_key(), JobSubmit(spec, array, project)
        job = patience.call(lambda: client.fetch(JobView, "POST", "/v1/jobs", body=body, key=key), "submitting the job")
        if detach:
            click.echo(job.id)
            return
        sys.exit(attend(client, patience, job, clock))


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise Refused("The folder this was called in no longer exists. Change to another one.", code="cwd-gone") from None
