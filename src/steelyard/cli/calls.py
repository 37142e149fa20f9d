"""`steelyard calls`: durable calls of functions, as `.spawn()`, `steelyard call --spawn` and schedules make them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from steelyard.cli.job_text import age_s, render_span
from steelyard.cli.output import print_json, print_table, say, show_time
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.config import write_file
from steelyard.errors import Refused
from steelyard.wire.api import EventView
from steelyard.wire.call_frames import CONTENT_TYPE
from steelyard.wire.function_api import CallView
from steelyard.wire.http import ApiClient

COLUMNS = ("id", "function", "state", "attempt", "took", "age", "reason")
KEEP = ("id", "state", "took", "age")
#: one long poll
POLL_S = 30.0


class CallShown(msgspec.Struct, frozen=True):
    """The shape of `calls show --json`."""

    call: CallView
    events: list[EventView]


CALLS_HELP = """List durable calls, the newest last; show, cancel them, or get their results.

They are made by `.spawn()`, by `steelyard call --spawn` and by schedules, are carried out at least once whatever is restarted
meanwhile, and are kept for seven days after their end.

\b
Examples:
  steelyard calls
  steelyard calls --function embed --state RUNNING,QUEUED
  steelyard calls show c-5f1d0a92c3e4
  steelyard calls result c-5f1d0a92c3e4 --wait
  steelyard calls --json | jq '.[] | select(.state == "FAILED") | .detail'
"""


@click.group(help=CALLS_HELP, short_help="List, show and cancel durable calls.", invoke_without_command=True)
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most that many, the newest."
)
@click.option("--state", "-s", help="Only calls in these states, such as RUNNING,QUEUED.")
@click.option("--function", "-f", metavar="NAME", help="Only calls of this function.")
@home_option
@json_option
@click.pass_context
def calls(ctx: click.Context, limit: int, state: str | None, function: str | None, home: Path | None, as_json: bool) -> None:
    ctx.obj = home
    if ctx.invoked_subcommand is not None:
        return
    params: dict[str, str | int | float] = {"limit": limit}
    params |= {name: value for name, value in (("state", state), ("function", function)) if value is not None}
    with open_client(home) as client:
        found = client.fetch(list[CallView], "GET", "/v1/calls", params=params)
    if as_json:
        print_json(found)
        return
    now_us = SystemClock().now_us()
    print_table(
        COLUMNS,
        [
            (
                call.id,
                _target(call),
                call.state,
                str(call.attempt),
                _took(call, now_us),
                render_span(age_s(call.submitted_at, now_us)),
                call.reason or "",
            )
            for call in found
        ],
        "No such calls." if len(params) > 1 else "No calls. `.spawn()` in Python makes one.",
        keep=KEEP,
    )


@calls.command(
    "show",
    help="Show a call, what became of it and why.\n\n\b\nExamples:\n  steelyard calls show c-5f1d0a92c3e4\n",
)
@click.argument("call")
@home_option
@json_option
@click.pass_context
def show_call(ctx: click.Context, call: str, home: Path | None, as_json: bool) -> None:
    with open_client(home or ctx.obj) as client:
        view = client.fetch(CallView, "GET", f"/v1/calls/{quote(call)}")
        events = client.fetch(list[EventView], "GET", f"/v1/calls/{quote(call)}/events")
    if as_json:
        print_json(CallShown(view, events))
        return
    result = "none" if view.result_bytes is None else f"{render_bytes(view.result_bytes)}, {view.result_type or 'of no type'}"
    lines = [
        ("function", _target(view) + (f", by the schedule {view.schedule}" if view.schedule else "")),
        ("state", view.state + (f", {view.reason}" if view.reason else "")),
        ("detail", view.detail),
        ("input", render_bytes(view.input_bytes)),
        ("result", result),
        ("kept until", "" if view.kept_until is None else show_time(view.kept_until)),
    ]
    click.echo(view.id)
    for name, text in lines:
        if text:
            click.echo(f"  {name:<11} {text}")
    for event in events:
        click.echo(f"  {show_time(event.at)}  {event.text}")


RESULT_HELP = """Print a call's result, or write it to a file.

What Python functions answered to `.spawn()` is a pickled object: `steelyard.FunctionCall.from_id(ID).get()` reads it. Exit code 0
when the call succeeded, 1 when it failed (what it answered is printed all the same, where there is anything).

\b
Examples:
  steelyard calls result c-5f1d0a92c3e4
  steelyard calls result c-5f1d0a92c3e4 --wait --output answer.json
"""


@calls.command("result", help=RESULT_HELP)
@click.argument("call")
@click.option("--wait", is_flag=True, help="Wait until the call has ended.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write it here.")
@home_option
@click.pass_context
def call_result(ctx: click.Context, call: str, wait: bool, output: Path | None, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        view = _wait(client, call) if wait else client.fetch(CallView, "GET", f"/v1/calls/{quote(call)}")
        if output is None and view.result_type.partition(";")[0] == CONTENT_TYPE:
            raise Refused(
                f"The result of {view.id} is a Python object: steelyard.FunctionCall.from_id({view.id!r}).get() reads it. "
                "--output writes its bytes to a file.",
                code="result-is-pickled",
            )
        body = client.call("GET", f"/v1/calls/{quote(call)}/result")
    if output is not None:
        write_file(output, body, 0o666 & ~_umask())
        say(f"{output}: {render_bytes(len(body))}")
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    ctx.exit(0 if view.state == "SUCCEEDED" else 1)


@calls.command(
    "cancel",
    help="Cancel a call: waiting, it is not carried out; running, it is broken off.\n\n\b\nExamples:\n"
    "  steelyard calls cancel c-5f1d0a92c3e4\n",
)
@click.argument("call", nargs=-1, required=True)
@home_option
@click.pass_context
def cancel_call(ctx: click.Context, call: tuple[str, ...], home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        for each in call:
            view = client.fetch(CallView, "POST", f"/v1/calls/{quote(each)}/cancel", key=new_key())
            click.echo(f"{view.id} {view.state}")


def _wait(client: ApiClient, call: str) -> CallView:
    while True:
        view = client.fetch(CallView, "GET", f"/v1/calls/{quote(call)}", params={"wait_s": POLL_S}, wait_s=POLL_S)
        if view.ended_at is not None:
            return view


def _target(call: CallView) -> str:
    return f"{call.function}.{call.method}" if call.method else call.function


def _took(call: CallView, now_us: int) -> str:
    """Of the last attempt."""
    if call.started_at is None:
        return ""
    since_us = now_us if call.ended_at is None else now_us - round(age_s(call.ended_at, now_us) * 1e6)
    return render_span(age_s(call.started_at, since_us))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
