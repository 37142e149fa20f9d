"""`steelyard job`: all of a job on one page."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import msgspec

from steelyard.cli.job_logs import list_elements
from steelyard.cli.job_text import Look, render_array, render_job, render_used
from steelyard.cli.output import person_looks, print_json
from steelyard.cli.session import home_option, json_option, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import Conflict, SteelyardError
from steelyard.model.usage import Usage
from steelyard.wire.api import EventView, JobView
from steelyard.wire.http import ApiClient

#: elements that did not end well, at most
FAILED_MAX = 50


class JobShown(msgspec.Struct, frozen=True):
    """The shape of `job --json`."""

    job: JobView
    #: of an array there is none
    events: list[EventView]
    #: of the running attempt so far, or of the last one in all
    usage: Usage | None
    #: "used 1.2 of 8 cores, ..."; null while nothing is known
    efficiency: str | None
    #: elements of an array that did not end well, the first so many
    failed: list[JobView]


JOB_HELP = """Show all of a job: what it asked for and got, its states with reasons, what it used.

Of an array its elements are counted, and those that did not end well are listed.

\b
Examples:
  steelyard job 17
  steelyard job 12_3
  steelyard job 17 --json | jq '.events[] | select(.state != null)'
"""


@click.command(help=JOB_HELP, short_help="Show all of a job: what it asked, got, did and used.")
@click.argument("job")
@home_option
@json_option
def job(job: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        view = client.fetch(JobView, "GET", f"/v1/jobs/{quote(job)}")
        if view.elements is None:
            events = client.fetch(list[EventView], "GET", f"/v1/jobs/{quote(job)}/events")
            usage, failed = _find_usage(client, view), list[JobView]()
        else:
            events, usage = list[EventView](), None
            failed = list_elements(client, view.id, "FAILED,STOPPED,UNKNOWN")[:FAILED_MAX]
    now_us = SystemClock().now_us()
    if as_json:
        print_json(JobShown(view, events, usage, render_used(view, usage, now_us) or None, failed))
        return
    look = Look(shutil.get_terminal_size().columns, person_looks())
    text = render_array(view, failed, now_us, look) if view.elements else render_job(view, events, usage, now_us, look)
    click.echo(text)


def _find_usage(client: ApiClient, view: JobView) -> Usage | None:
    """None where nothing ran yet, or nobody can tell now: that is no reason not to show the rest."""
    if view.ended_at is not None or not view.attempt:
        return view.usage
    try:
        return client.fetch(Usage, "GET", f"/v1/jobs/{quote(view.id)}/usage")
    except Conflict:
        return view.usage
    except SteelyardError as err:
        click.echo(f"steelyard: what it uses can't be told now: {err.public}", err=True)
        return view.usage
