"""`steelyard stop`: end jobs, whole arrays, or all of one's own that are in a state."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from steelyard.cli.output import print_table, say
from steelyard.cli.ps import COLUMNS, make_cells
from steelyard.cli.quantities import parse_seconds, parse_signal
from steelyard.cli.session import find_settings, home_option, new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import Refused, SteelyardError
from steelyard.wire.api import JobStop, JobView
from steelyard.wire.http import ApiClient

#: jobs, or whole arrays, that one command may stop by their state
ALL_MAX = 10_000

STOP_HELP = """Stop jobs: the signal now, SIGKILL after the grace.

Of an array all elements are stopped. With --state only what is in these states is stopped; without JOBS all your own jobs are
meant, which is asked about first. A job that has ended stays as it is.

\b
Examples:
  steelyard stop 17
  steelyard stop --signal INT --grace 60s 12 13 14_3
  steelyard stop --state QUEUED 12
  steelyard stop --state QUEUED -y
"""


@click.command(help=STOP_HELP, short_help="Stop jobs.")
@click.argument("jobs", nargs=-1)
@click.option("--signal", "signal_name", default="TERM", show_default=True, help="Name or number of the signal.")
@click.option("--grace", default="10s", show_default=True, help="Time until SIGKILL.")
@click.option("--state", "-s", "states", help="Only what is in these states, such as QUEUED or RUNNING,QUEUED.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@home_option
def stop(jobs: tuple[str, ...], signal_name: str, grace: str, states: str | None, yes: bool, home: Path | None) -> None:
    if not jobs and states is None:
        raise Refused("Name the jobs to stop, or --state for all of your own in these states.", code="nothing-named")
    only = () if states is None else tuple(word.strip() for word in states.split(","))
    body = JobStop(parse_signal(signal_name), parse_seconds(grace), only)
    with open_client(home) as client:
        named = jobs or _find_own(client, home, states or "", yes)
        failed: list[SteelyardError] = []
        for job in named:
            try:
                view = client.fetch(JobView, "POST", f"/v1/jobs/{quote(job)}/stop", body=body, key=new_key())
                click.echo(f"{view.id} {view.state}")
            except SteelyardError as err:
                if len(named) == 1:
                    raise
                say(f"steelyard: {job}: {err.public}")
                failed.append(err)
    if failed:
        raise type(failed[0])(f"{len(failed)} of {len(named)} could not be stopped; the others are.")


def _find_own(client: ApiClient, home: Path | None, states: str, yes: bool) -> list[str]:
    """All of this user's in these states; Refused, where that is not what the person wants."""
    user = find_settings(home)[1].admin_user
    params: dict[str, str | int | float] = {"state": states, "user": user, "fold": "true", "limit": ALL_MAX}
    found = client.fetch(list[JobView], "GET", "/v1/jobs", params=params)
    if not found:
        say(f"{user} has no jobs in {states.upper()}.")
    elif not yes:
        if not sys.stdin.isatty():
            raise Refused(
                f"This would stop {len(found)} jobs or arrays, and nobody is there to be asked: say -y. Nothing was stopped.",
                code="not-confirmed",
            )
        print_table(COLUMNS, make_cells(found, SystemClock().now_us()), "")
        if not click.confirm(f"Stop what is {states.upper()} of these {len(found)}?", err=True):
            raise Refused("Nothing was stopped.", code="not-confirmed")
    return [job.id for job in found]
