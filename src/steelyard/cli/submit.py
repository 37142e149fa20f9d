"""`steelyard submit`: a script that was written for sbatch, as it is. The server reads it; `--test-only` reads it here and shows
what was understood."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from steelyard.api.sbatch_script import Submission, read_script
from steelyard.api.sbatch_text import SCRIPT_MAX_BYTES
from steelyard.cli.attach import attend
from steelyard.cli.job_options import (
    name_image,
    parse_uses,
    parse_volumes,
    pool_option,
    secret_option,
    volume_option,
)
from steelyard.cli.output import print_json, print_table, say
from steelyard.cli.patience import make_patience
from steelyard.cli.session import home_option, json_option, new_key, open_client
from steelyard.clock import SystemClock
from steelyard.errors import Refused
from steelyard.runtime.slurm.getopt import NONE, Given, NotUnderstood, Option
from steelyard.runtime.slurm.sbatch import clean
from steelyard.runtime.slurm.sbatch_table import read_sbatch
from steelyard.wire.api import JobView, ScriptSubmit, ScriptSubmitted

SUBMIT_HELP = """Submit a script that was written for sbatch.

SBATCH OPTIONS are sbatch's own (-N1, --time=10, ...) and win over #SBATCH lines. What is understood but not acted on is named on
stderr; an option that nobody knows is refused. Without SCRIPT it is read from standard input.

\b
Examples:
  steelyard submit train.sh
  steelyard submit --time=2:00:00 -c 4 train.sh data.csv
  steelyard submit --test-only train.sh
  steelyard submit --volume data:/data train.sh
  steelyard submit --image docker://python:3.12 train.sh
  steelyard submit --direct -N2 -n8 mpi.sh
  steelyard submit --pool train --array=0-9 train.sh
  steelyard submit --wait --wrap 'make -j4'
  next=$(steelyard submit --parsable --dependency=afterok:$first next.sh)
"""
_VALUED = ("home", "secret", "volume", "image", "pool")
_OWN = (Option("json", "", NONE), Option("direct", "", NONE), *map(Option, _VALUED))
#: what this command does itself
_OURS = {*_VALUED, "json", "direct", "test-only", "parsable", "wait", "quiet", "help", "usage"}


class SubmitCommand(click.Command):
    """Reads sbatch's options as sbatch does; click gets our own, and the script with its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            given, at = read_sbatch(list(args), _OWN)
        except NotUnderstood as err:
            raise Refused(f"The command line: {err}. Nothing was submitted.", code="unknown-option") from None
        ctx.meta[__name__] = tuple(each.text for each in given if each.option.name not in _OURS)
        own = [_as_click(each) for each in given if each.option.name in _OURS]
        return super().parse_args(ctx, [*own, "--", *args[at:]])


def _as_click(given: Given) -> str:
    if given.option.name in _VALUED:
        return given.text
    return "--help" if given.option.name == "usage" else f"--{given.option.name}"


@click.command(cls=SubmitCommand, help=SUBMIT_HELP, short_help="Submit a script that was written for sbatch.",
               options_metavar="[OPTIONS] [SBATCH OPTIONS]")  # fmt: skip
@click.option("--test-only", is_flag=True, help="Submit nothing: print what was understood and what is ignored.")
@click.option("--parsable", is_flag=True, help="Print the id alone.")
@click.option("--wait", "-W", is_flag=True, help="Return when the job has ended, with its exit code.")
@click.option("--quiet", "-Q", is_flag=True, help="Don't name what is ignored.")
@click.option("--image", default="", metavar="IMAGE", help="Run it in an image of `steelyard image ls`, or in a container: "
              "registry.host/path:tag, docker://name:tag, oci:/path or docker-archive:/path.")  # fmt: skip
@click.option("--direct", is_flag=True, help="Through Slurm's own queue, on the cluster of `steelyard cluster attach`, with the "
              "options that say how large it is as they are.")  # fmt: skip
@pool_option
@secret_option
@volume_option
@home_option
@json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SCRIPT [ARGS]...]")
@click.pass_context
def submit(
    ctx: click.Context,
    test_only: bool,
    parsable: bool,
    wait: bool,
    quiet: bool,
    image: str,
    direct: bool,
    pool: str,
    secrets: tuple[str, ...],
    volumes: tuple[str, ...],
    home: Path | None,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    options: tuple[str, ...] = ctx.meta[__name__]
    script, name = _read(words, wrapped=any(option.startswith("--wrap=") for option in options))
    given = name_image(image, _here()), parse_volumes(volumes), parse_uses(secrets)
    data = ScriptSubmit(script, _here(), words[1:], options, clean(os.environ), name, *given, direct, pool)
    if test_only:
        _show(read_script(data, SystemClock().now_us()), as_json)
        return
    clock = SystemClock()
    with open_client(home) as client:
        patience, key = make_patience(home, clock), new_key()
        answer = patience.call(
            lambda: client.fetch(ScriptSubmitted, "POST", "/v1/scripts", body=data, key=key), "submitting the script"
        )
        for sentence in () if quiet or as_json else answer.ignored:
            say(f"steelyard: {sentence}")
        if as_json:
            print_json(answer)
        else:
            click.echo(answer.id if parsable else f"Submitted batch job {answer.id}")
        sys.stdout.flush()
        if wait:
            job = patience.call(lambda: client.fetch(JobView, "GET", f"/v1/jobs/{answer.id}"), "its output")
            sys.exit(attend(client, patience, job, clock))


def _read(words: tuple[str, ...], wrapped: bool) -> tuple[str, str]:
    """The script's text and its name."""
    if wrapped:
        if words:
            raise Refused(
                f"--wrap takes the place of a script, and {words[0]!r} is one: give one or the other.", code="bad-script"
            )
        return "", "wrap"
    file = words[0] if words else "-"
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(SCRIPT_MAX_BYTES + 1)
        else:
            with open(file, "rb") as script:
                raw = script.read(SCRIPT_MAX_BYTES + 1)
        return raw.decode(), "sbatch" if file == "-" else os.path.basename(file)
    except OSError as err:
        raise Refused(f"{file} can't be read: {err.strerror}. Nothing was submitted.", code="no-script") from None
    except UnicodeDecodeError:
        raise Refused(f"{file} is no text (UTF-8). Submit a script; nothing was submitted.", code="bad-script") from None


def _show(submission: Submission, as_json: bool) -> None:
    if as_json:
        print_json(submission)
        return
    rows = [(each.option, each.value, each.becomes, each.where) for each in submission.understood]
    print_table(("option", "value", "becomes", "given on"), rows, "No options were given: one core, no time limit.")
    for sentence in submission.ignored:
        say(f"steelyard: {sentence}")


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise Refused("The folder this was called in no longer exists. Change to another one.", code="cwd-gone") from None
