"""`steelyard schedules`: jobs that are submitted, and functions that are called, by the clock."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from steelyard.cli.job_options import job_options, make_spec
from steelyard.cli.job_text import render_span
from steelyard.cli.output import print_json, print_table
from steelyard.cli.quantities import parse_seconds
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import Refused
from steelyard.wire.api import SchedulePut, ScheduleView
from steelyard.wire.http import ApiClient


class ScheduleRow(msgspec.Struct, frozen=True):
    """The shape of `schedules --json`."""

    name: str
    cron: str
    timezone: str
    paused: bool
    next_at: str | None
    last_job: str | None
    last_state: str | None
    #: of the job; empty where a function is called
    command: tuple[str, ...]
    function: str | None
    every_s: float | None
    last_call: str | None


SCHEDULES_HELP = """List, create and delete schedules: jobs that are submitted, and functions that are called, by the clock.

A time that passes while Steelyard is down is made up for when it is back; of several, only the newest. A function is not called
while its call before has not ended. Functions that declare `schedule=` bring their schedule along and take it away again.

\b
Examples:
  steelyard schedules
  steelyard schedules create nightly --cron "0 3 * * *" --timezone Europe/Berlin -- make report
  steelyard schedules create refresh --every 5m --function news-refresh
  steelyard schedules pause nightly
  steelyard schedules delete nightly
"""


@click.group(
    help=SCHEDULES_HELP, short_help="List, create and delete schedules of jobs and functions.", invoke_without_command=True
)
@home_option
@json_option
@click.pass_context
def schedules(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    ctx.obj = home
    if ctx.invoked_subcommand is not None:
        return
    with open_client(home) as client:
        found = client.fetch(list[ScheduleView], "GET", "/v1/schedules")
    if as_json:
        print_json([_make_row(view) for view in found])
        return
    print_table(
        ("name", "when", "timezone", "next", "last", "state", "starts"),
        [
            (
                s.name,
                s.cron or f"every {render_span(s.every_s or 0)}",
                s.timezone if s.cron else "",
                render_next(s),
                s.last_job or s.last_call or "",
                s.last_state or "",
                f"function {s.function}" if s.spec is None else " ".join(s.spec.argv)[:60],
            )
            for s in found
        ],
        "No schedules. `steelyard schedules create NAME --cron ...` makes one.",
    )


CREATE_HELP = """Make a schedule, or change the one of that name. It begins with the next time that the cron line names.

The five fields are minute, hour, day of the month, month and weekday, in the time zone given; --every counts from now. A job gets
the folder and the variables of this call, as `steelyard run` would pass them on; a function is called without arguments.

\b
Examples:
  steelyard schedules create nightly --cron "0 3 * * *" -- make report
  steelyard schedules create probe --cron "*/15 8-18 * * MON-FRI" --timezone Europe/Berlin --max-duration 5m -- ./probe
  steelyard schedules create refresh --every 5m --function news-refresh
"""


@schedules.command("create", help=CREATE_HELP)
@click.argument("schedule", metavar="NAME")
@click.option("--cron", default="", metavar="LINE", help='Five fields, for example "0 3 * * *".')
@click.option("--every", metavar="DURATION", help="Instead of --cron: a period, such as 90s or 5m.")
@click.option("--function", metavar="NAME", help="Instead of a command: the function to call.")
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="Whose clock is meant, such as Europe/Berlin.")
@job_options
@home_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.pass_context
def create_schedule(
    ctx: click.Context,
    schedule: str,
    cron: str,
    every: str | None,
    function: str | None,
    timezone: str,
    home: Path | None,
    command: tuple[str, ...],
    **asked: Any,
) -> None:
    if bool(cron) is (every is not None):
        raise Refused("Say when, with one of --cron and --every.", code="bad-schedule")
    if bool(command) is (function is not None):
        raise Refused("Say what, with a command after -- or with --function.", code="bad-schedule")
    if asked["array"] or asked["project"] != "default":
        raise Refused(
            "A schedule submits single jobs of the default project. Leave out --array and --project.", code="bad-schedule"
        )
    now = datetime.fromtimestamp(SystemClock().now_us() / 1e6, UTC)
    spec = make_spec(command, asked, os.getcwd(), now) if command else None
    with open_client(home or ctx.obj) as client:
        body = SchedulePut(cron, spec, timezone, function, None if every is None else parse_seconds(every))
        view = client.fetch(ScheduleView, "PUT", f"/v1/schedules/{quote(schedule)}", body=body, key=new_key())
    click.echo(f"{view.name}: next at {render_next(view)}")


@schedules.command(
    "delete",
    help="Delete a schedule; what it started goes on.\n\n\b\nExamples:\n  steelyard schedules delete nightly\n",
)
@click.argument("name")
@home_option
@click.pass_context
def delete_schedule(ctx: click.Context, name: str, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        client.call("DELETE", f"/v1/schedules/{quote(name)}", key=new_key())
    click.echo(f"{name} deleted")


@schedules.command(
    "pause",
    help="Start nothing until the schedule is resumed.\n\n\b\nExamples:\n  steelyard schedules pause nightly\n",
)
@click.argument("name")
@home_option
@click.pass_context
def pause_schedule(ctx: click.Context, name: str, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        _post(client, name, "pause")
    click.echo(f"{name} paused")


@schedules.command(
    "resume",
    help="Go on with the next time; the times since the pause are gone.\n\n\b\nExamples:\n  steelyard schedules resume nightly\n",
)
@click.argument("name")
@home_option
@click.pass_context
def resume_schedule(ctx: click.Context, name: str, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        view = _post(client, name, "resume")
    click.echo(f"{name} resumed: next at {render_next(view)}")


def _post(client: ApiClient, name: str, what: str) -> ScheduleView:
    return client.fetch(ScheduleView, "POST", f"/v1/schedules/{quote(name)}/{what}", key=new_key())


def _make_row(s: ScheduleView) -> ScheduleRow:
    command = () if s.spec is None else s.spec.argv
    return ScheduleRow(
        s.name, s.cron, s.timezone, s.paused, s.next_at, s.last_job, s.last_state, command, s.function, s.every_s, s.last_call
    )  # fmt: skip


def render_next(view: ScheduleView) -> str:
    if view.paused:
        return "paused"
    return f"{view.next_at[:16].replace('T', ' ')}Z" if view.next_at else "never"
