"""`steelyard shell`: a job that is a shell, with this terminal as its own; or a shell inside a job or function that is there."""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from steelyard.cli.attach import conclude, make_stop
from steelyard.cli.attend import END, POLL_S, Interrupts
from steelyard.cli.exec import HUNG_UP, execute
from steelyard.cli.inside import check_which, inside_options
from steelyard.cli.job_logs import poll_job
from steelyard.cli.job_options import default_options, job_options, make_spec
from steelyard.cli.output import Progress, say, show_time
from steelyard.cli.patience import Patience, make_patience
from steelyard.cli.session import home_option, new_key, open_client, quote
from steelyard.cli.terminal import attend_terminal, observe_terminal
from steelyard.clock import Clock, SystemClock
from steelyard.errors import Refused
from steelyard.wire.api import JobSubmit, JobView, LogChunk, WhyView
from steelyard.wire.http import ApiClient

#: while it starts, and while it waits in the queue
LOOK_S, LOOK_QUEUED_S = 0.05, 1.0
#: what there is, the better one first
SHELL = "command -v bash >/dev/null 2>&1 && exec bash; exec sh"

#: ours, and those of a job's that mean something for one
_OPTIONS = (
    *("cpus", "exclusive", "timing", "gpus", "nics", "memory", "scratch", "volumes", "io_max", "priority", "account", "project"),
    *(
        "max_duration",
        "image",
        "network",
        "name",
        "env",
        "secrets",
        "as_root",
        "command",
        "rank",
        "replica",
        "home",
        "inside",
        "pool",
    ),
)

SHELL_HELP = """Start a job with a shell in it, and be in it; or enter a running job or a function.

The job waits for its place as any (its position is shown; Ctrl-C gives up), and ends with the shell. Your terminal is the
shell's: every key goes there, and `~.` at the beginning of a line hangs up, which ends it. With JOB the shell runs inside that
job, as `exec -t` runs it, and the job goes on; with FUNCTION inside a replica, which is woken if need be. The exit code is the
shell's; 125 means that Steelyard refused or failed.

\b
Examples:
  steelyard shell
  steelyard shell --image docker://python:3.12 --cpus 4 --memory 8GB --volume data:/data
  steelyard shell --gpus 1 -c 'python3 -i model.py'
  steelyard shell j-000012
  steelyard shell hello
"""


@click.command(help=SHELL_HELP, short_help="Start a job with a shell in it, or enter what runs.")
@job_options
@click.option("--command", "-c", metavar="TEXT", help="Run that by `sh -c` in the place of a shell [default: bash, or sh].")
@inside_options
@home_option
@click.argument("inside", metavar="[JOB|FUNCTION]", required=False)
@click.pass_context
def shell(
    ctx: click.Context,
    command: str | None,
    rank: int | None,
    replica: str,
    home: Path | None,
    inside: str | None,
    project: str,
    **asked: Any,
) -> None:
    argv = ("sh", "-c", command or SHELL)
    if inside is not None:
        check_which(inside, rank, replica)
        for name in (*asked, "project"):
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = name.removesuffix("s") if name in ("secrets", "volumes") else name
                raise Refused(
                    f"--{option.replace('_', '-')} is for a new job, and {inside} is there already.", code="unfit-option"
                )
        with open_client(home) as client:
            sys.exit(execute(client, home, inside, argv, rank=rank, replica=replica, tty=True))
    if rank is not None or replica:
        raise Refused("--rank and --replica are for what is there already: name it.", code="unfit-option")
    clock, terminal = SystemClock(), observe_terminal()
    spec = make_spec(argv, {**default_options(), **asked}, _here(), datetime.fromtimestamp(clock.now_us() / 1e6, UTC))
    spec = msgspec.structs.replace(spec, name=asked["name"] or "shell", terminal=terminal)
    with open_client(home) as client:
        if spec.image:
            from steelyard.cli.container_image import fetch_ahead, login_among

            fetch_ahead(client, spec.image, login_among(spec.secrets), clock, spec.pool)
        patience, key = make_patience(home, clock), new_key()
        body = JobSubmit(spec, None, project)
        made = patience.call(lambda: client.fetch(JobView, "POST", "/v1/jobs", body=body, key=key), "submitting the job")
        sys.exit(_Shell(client, patience, made.id, clock).run())


shell.params = [each for each in shell.params if each.name in _OPTIONS]


class _Shell:
    def __init__(self, client: ApiClient, patience: Patience, job: str, clock: Clock) -> None:
        self._client, self._patience, self._job, self._clock = client, patience, job, clock
        self._path = f"/v1/jobs/{quote(job)}"

    def run(self) -> int:
        """The shell's exit code."""
        job, signalled = self._wait()
        whole = True
        if job.attempt and not signalled:
            try:
                whole = attend_terminal(
                    lambda offset: self._client.dial(f"{self._path}/terminal", {"offset": offset}), self._patience, self._clock
                )
            except Refused:
                # it never came to that, and its state says why; or it was taken away
                if not self._look().ended_at:
                    raise
        if not whole:
            say(f"steelyard: hung up; job {self._job} is told so (SIGHUP), and ends unless it goes on without a terminal.")
            return HUNG_UP
        return conclude(self._read_end(), job, signalled)

    def _wait(self) -> tuple[JobView, int]:
        """Until it runs, or has ended; and the signal that came meanwhile, which ends it."""
        interrupts = Interrupts(make_stop(self._client, self._patience, self._job))
        progress, pause = Progress(), threading.Event()
        try:
            while True:
                interrupts.forward()
                job = self._look()
                if job.state not in ("QUEUED", "STARTING") or (interrupts.first_signal and job.ended_at):
                    return job, interrupts.first_signal
                queued = job.state == "QUEUED"
                if queued:
                    progress.show(self._explain())
                rest_s = LOOK_QUEUED_S if queued else LOOK_S
                interrupts.wait_for(lambda rest_s=rest_s: pause.wait(rest_s))
        finally:
            progress.clear()
            interrupts.restore()

    def _explain(self) -> str:
        """Where it stands in the queue."""
        why = self._patience.call(lambda: self._client.fetch(WhyView, "GET", f"{self._path}/why"), "its place in the queue")
        place = "" if why.position is None else f", number {why.position} in the queue"
        start = f", starts about {show_time(why.starts_at)}" if why.starts_at else ""
        reason = f": {why.reasons[0].detail}" if why.reasons else ""
        return f"{self._job} waits{place}{start}{reason}"

    def _look(self) -> JobView:
        return self._patience.call(lambda: self._client.fetch(JobView, "GET", self._path), "the shell")

    def _read_end(self) -> LogChunk:
        def poll() -> LogChunk:
            return poll_job(self._client, self._job, END, POLL_S)

        while not (chunk := self._patience.call(poll, "its exit code")).ended:
            pass
        return chunk


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise Refused("The folder this was called in no longer exists. Change to another one.", code="cwd-gone") from None
