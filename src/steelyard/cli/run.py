"""`steelyard run`: a command as a job, or a function of an app for this once.

A job belongs to Steelyard from the moment it is accepted: losing this command, or the server for a while, does not end it.
Submitting is repeated with one Idempotency-Key, so that a lost answer never makes two jobs. A function is `run_function.py`'s.
"""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from steelyard.cli.job_options import job_options, make_spec
from steelyard.cli.session import home_option, new_key, open_client
from steelyard.errors import Refused
from steelyard.model.image import is_reference

RUN_HELP = """Run a command as a job, or a function of an app.

`-- CMD` is a job. The exit code is the command's own; 125 means that Steelyard refused or failed. Ctrl-C is forwarded (twice: the
job is killed), Ctrl-\\ leaves the job running. --cpus is a share of the cores that jobs have in common; --exclusive takes whole
cores for this job alone. With --tasks-per-node the command runs once per rank, all or none, and lines come behind the rank that
wrote them. Of an array its progress is shown, and the exit code is the highest.

FILE.py[:NAME], without a `--` before it, is a function, a Class.method or a @app.local_entrypoint of the app in FILE.py. The app
is deployed for this once: what it writes is shown on stderr, the result on stdout, and at the end all of it is deleted. Words
behind it are its arguments, read by its annotations; `--help` there shows them. The exit code is 1 when it raises. Of the options
--cpus, --memory, --gpus, --timing, --env, --secret, --volume, --as-root, --image, --python and --json apply, before the file.

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
  steelyard run --image docker://python:3.12-slim -- python -c 'print("hi")'
  steelyard run --volume data:/data -- python prepare.py
  steelyard run hello.py:greet --name Ada --loud
  steelyard run --cpus 4 --json stats.py:summarise data.csv --top 3
"""

#: a Python file, and perhaps what of it
_FUNCTION = re.compile(r".*\.py(:.*)?")
#: options that mean something for a function too
_FOR_FUNCTIONS = (
    *("cpus", "memory", "gpus", "timing", "env", "secrets", "volumes", "as_root", "image"),
    *("home", "python", "as_json"),
)
#: options that mean nothing for a job
_NOT_FOR_JOBS = ("python", "as_json")
_META = __name__


class RunCommand(click.Command):
    """Words behind a function are its arguments, whatever they look like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not any(map(_FUNCTION.fullmatch, args)):
            return super().parse_args(ctx, args)
        first = self._find_first(ctx, args)
        if first is None or args[first - 1 : first] == ["--"] or not _FUNCTION.fullmatch(args[first]):
            return super().parse_args(ctx, args)
        ctx.meta[_META] = args[first], tuple(args[first + 1 :])
        # the command's own argument is there, for click
        return super().parse_args(ctx, [*args[:first], "--", args[first]])

    def _find_first(self, ctx: click.Context, args: list[str]) -> int | None:
        """Where the first word is that is no option, and no option's value. None where options are wrong, or there is none."""
        parser = self.make_parser(ctx)
        parser.allow_interspersed_args = False
        try:
            opts, _, _ = parser.parse_args(list(args))
        except click.UsageError:
            return None
        # an argument takes all the words that are left; without any, what click answers is of no use
        left: Any = opts.get("command")
        return len(args) - len(left) if isinstance(left, tuple | list) and left else None


@click.command(
    cls=RunCommand,
    help=RUN_HELP,
    short_help="Run a command as a job, or a function of an app.",
    context_settings={"ignore_unknown_options": False},
    options_metavar="[OPTIONS]",
)
@job_options
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and return.")
@click.option("--python", type=click.Path(), help="Of a function: interpreter of its environment [default: this one].")
@click.option("--json", "as_json", is_flag=True, help="Of a function: print the result as JSON.")
@home_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="{-- CMD... | FILE.py[:NAME] [ARGS]...}")
@click.pass_context
def run(
    ctx: click.Context,
    detach: bool,
    python: str | None,
    as_json: bool,
    home: Path | None,
    command: tuple[str, ...],
    array: str | None,
    project: str,
    **asked: Any,
) -> None:
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and name != "command"]
    if _META in ctx.meta:
        target, words = ctx.meta[_META]
        _refuse(given, set(given) - set(_FOR_FUNCTIONS), "is for jobs: a function says so in its decorator, or can't have it")
        from steelyard.cli.run_function import run_function

        sys.exit(run_function(home, target, words, python, as_json, {name: asked[name] for name in given if name in asked}))
    if not command and not is_reference(asked["image"]):
        raise click.UsageError("Say what to run: `-- CMD`, FILE.py:NAME, or an image that has a command of its own (--image).")
    _refuse(given, set(_NOT_FOR_JOBS), "is for functions (FILE.py:NAME without `--` before it)")
    _run_job(detach, home, command, array, project, asked)


def _refuse(given: list[str], unfit: set[str], why: str) -> None:
    for name in given:
        if name in unfit:
            spelt = {"as_json": "json", "errors": "error", "secrets": "secret", "volumes": "volume"}
            option = spelt.get(name, name).replace("_", "-")
            raise Refused(f"--{option} {why}. Nothing was started.", code="unfit-option")


def _run_job(
    detach: bool, home: Path | None, command: tuple[str, ...], array: str | None, project: str, asked: dict[str, Any]
) -> None:
    # imported here: a function needs none of it
    from steelyard.cli.patience import make_patience
    from steelyard.clock import SystemClock
    from steelyard.wire.api import JobSubmit, JobView

    clock = SystemClock()
    spec = make_spec(command, asked, _here(), datetime.fromtimestamp(clock.now_us() / 1e6, UTC))
    with open_client(home) as client:
        if is_reference(spec.image) and not detach and not spec.direct:
            from steelyard.cli.container_image import fetch_ahead, login_among

            fetch_ahead(client, spec.image, login_among(spec.secrets), clock, spec.pool)
        patience = make_patience(home, clock)
        key, body = new_key(), JobSubmit(spec, array, project)
        job = patience.call(lambda: client.fetch(JobView, "POST", "/v1/jobs", body=body, key=key), "submitting the job")
        if detach:
            click.echo(job.id)
            return
        from steelyard.cli.attach import attend

        sys.exit(attend(client, patience, job, clock))


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise Refused("The folder this was called in no longer exists. Change to another one.", code="cwd-gone") from None
