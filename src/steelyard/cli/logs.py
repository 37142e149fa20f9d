"""`steelyard logs`: what a job, a rank of it, an array or a function wrote."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli.attend import FIRST, POLL_S, START, Cursor, cursor_after, write_chunk
from steelyard.cli.follow import Followers, Printer
from steelyard.cli.function_logs import poll_function
from steelyard.cli.job_logs import follow_array, make_streams, poll_job, print_array, print_streams, write_taken
from steelyard.cli.output import say
from steelyard.cli.patience import Patience, make_patience
from steelyard.cli.session import home_option, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import NotFound, Refused
from steelyard.wire.api import JobView
from steelyard.wire.http import ApiClient

LOGS_HELP = """Print what a job or function wrote: its output on stdout, its errors on stderr.

Of a gang whose ranks have logs of their own, and of an array, each line comes behind the rank or element that wrote it: `[3] `.
One log alone is passed on byte for byte. Of a job that was started again the newest attempt's log is shown.

\b
Examples:
  steelyard logs 17
  steelyard logs -f hello
  steelyard logs -f --rank 0 17
  steelyard logs 12_3
  steelyard logs --all-attempts 17
"""


@click.command(help=LOGS_HELP, short_help="Print what a job or function wrote.")
@click.argument("job_or_function")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended, or until Ctrl-C.")
@click.option("--all-attempts", "-a", is_flag=True, help="Begin with the first attempt, not with the newest.")
@click.option("--rank", type=click.IntRange(0), help="Of a gang: what this rank wrote, and no other.")
@home_option
def logs(job_or_function: str, follow: bool, all_attempts: bool, rank: int | None, home: Path | None) -> None:
    clock, begin = SystemClock(), FIRST if all_attempts else START
    with open_client(home) as client:
        job = _find_job(client, job_or_function)
        if job is None:
            if rank is not None:
                raise Refused(f"{job_or_function} is a function: it has no ranks.", code="no-such-rank")
            _print_function(client, job_or_function, follow)
            return
        patience = make_patience(home, clock)
        if job.elements is not None:
            if rank is not None:
                raise Refused(f"{job.id} is an array: name one of its elements, such as {job.id}_0.", code="array-not-element")
            if follow:
                follow_array(client, patience, job.id, clock, begin)
            else:
                print_array(client, patience, job.id, begin)
            return
        _say_where(job)
        if rank is not None or job.log_streams == 1:
            _print_one(client, patience, job, rank, follow, begin)
        elif follow:
            _follow_ranks(client, patience, job, begin)
        else:
            print_streams(make_streams(client, patience, job), begin)


def _find_job(client: ApiClient, name: str) -> JobView | None:
    """A job of that id; None: a function is meant."""
    try:
        return client.fetch(JobView, "GET", f"/v1/jobs/{quote(name)}")
    except NotFound:
        try:
            client.call("GET", f"/v1/functions/{quote(name)}")
        except NotFound:
            raise NotFound(
                f"There is no job and no function {name!r}. `steelyard ps` and `steelyard functions` list them."
            ) from None
    return None


def _say_where(job: JobView) -> None:
    """Output that goes to files is shown all the same, as far as it can be read; the files outlive it."""
    if job.stdout is not None and job.stderr in (None, job.stdout):
        say(f"steelyard: its output goes to {job.stdout}")
    else:
        for name, file in (("output goes", job.stdout), ("errors go", job.stderr)):
            if file is not None:
                say(f"steelyard: its {name} to {file}")


def _print_one(client: ApiClient, patience: Patience, job: JobView, rank: int | None, follow: bool, begin: Cursor) -> None:
    cursor = begin
    while True:
        wait_s = POLL_S if follow else 0.0
        at = cursor
        chunk = patience.call(lambda at=at, wait_s=wait_s: poll_job(client, job.id, at, wait_s, rank), "its output")
        write_chunk(chunk)
        cursor = cursor_after(chunk)
        if chunk.ended or (not follow and cursor == at):
            return


def _follow_ranks(client: ApiClient, patience: Patience, job: JobView, begin: Cursor) -> None:
    followers, printer = Followers(), Printer(len(str(job.log_streams - 1)))
    for each in make_streams(client, patience, job):
        followers.add(each, begin)
    while followers.open:
        if followers.wait(POLL_S):
            write_taken(followers, printer)


def _print_function(client: ApiClient, name: str, follow: bool) -> None:
    cursor, wait_s = START, POLL_S if follow else 0.0
    while True:
        chunk = poll_function(client, name, cursor, wait_s)
        write_chunk(chunk)
        cursor = cursor_after(chunk)
        if chunk.ended or (not follow and not chunk.stdout and not chunk.stderr):
            return
