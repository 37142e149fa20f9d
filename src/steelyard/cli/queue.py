"""`steelyard queue | why | hold | release | priority`: who starts next, what stands in the way, and changing the order."""

from __future__ import annotations

import re
from pathlib import Path

import click

from steelyard.cli.job_text import render_asks
from steelyard.cli.output import COLOURS, person_looks, print_json, print_table, say, show_time
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.wire.api import JobPriority, JobView, QueueView, WhyView
from steelyard.wire.scaling import FunctionWhyView

QUEUE_HELP = """List waiting jobs in the order in which they start, with an estimate of when.

Strict priority first, then fair share, then age. A job without a position may not start yet, whatever is free: it is held, waits
for another job or for its time. An estimate needs --max-duration on what runs; without, nobody can tell.

\b
Examples:
  steelyard queue
  steelyard queue --json | jq '.[0].starts_at'
"""


@click.command(help=QUEUE_HELP, short_help="List waiting jobs, with position and estimated start.")
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most that many, the first."
)
@home_option
@json_option
def queue(limit: int, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        rows = client.fetch(list[QueueView], "GET", "/v1/queue", params={"limit": limit})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("#", "id", "name", "account", "prio", "asks", "starts", "waits for"),
        [
            (
                "" if row.position is None else str(row.position),
                row.job.id,
                row.job.name,
                row.job.account,
                str(row.job.priority),
                render_asks(row.job),
                show_time(row.starts_at) or "unknown",
                f"{row.job.reason or ''}: {row.job.detail}" if row.job.detail else row.job.reason or "",
            )
            for row in rows
        ],
        "Nothing waits.",
    )


WHY_HELP = """Say why a job waits, or why a function has as many replicas as it has.

Of a job: every reason, and the smallest changes that would start it now. Each change was tried: the scheduler was asked again
with it, and said yes.

Of a function: what was seen at the last look, which rule decided with which numbers, what bounds it, and what changed lately.

\b
Examples:
  steelyard why 41
  steelyard why 41 --json | jq -r '.changes[].text'
  steelyard why embed
"""

#: as they are written on the command line, array elements too; anything else names a function
_JOB = re.compile(r"(j-)?\d+([_.].+)?")


@click.command(help=WHY_HELP, short_help="Say why a job waits, or a function has so many replicas.")
@click.argument("name", metavar="JOB|FUNCTION")
@home_option
@json_option
def why(name: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        if not _JOB.fullmatch(name):
            told = client.fetch(FunctionWhyView, "GET", f"/v1/functions/{quote(name)}/why")
            print_json(told) if as_json else _print_function(told)
            return
        shown = client.fetch(WhyView, "GET", f"/v1/jobs/{quote(name)}/why")
    if as_json:
        print_json(shown)
        return
    state = click.style(shown.state, fg=COLOURS.get(shown.state)) if person_looks() else shown.state
    place = "" if shown.position is None else f", number {shown.position} in the queue"
    start = f", starts about {show_time(shown.starts_at)}" if shown.starts_at else ""
    click.echo(f"{shown.id} {state}{place}{start}")
    nothing = f"Nothing stands in its way. `steelyard job {shown.id}` shows how it is."
    print_table(("node", "reason", "what stands in the way"), [(r.node, r.reason, r.detail) for r in shown.reasons], nothing)
    if shown.changes:
        click.echo("\nIt would start now with one of these (each was tried):")
    for change in shown.changes:
        click.echo(f"  - {change.text}")


def _print_function(shown: FunctionWhyView) -> None:
    state = click.style(shown.state, fg=COLOURS.get(shown.state)) if person_looks() else shown.state
    where = f" on {', '.join(shown.machines)}" if shown.machines else ""
    click.echo(f"{shown.name} {state}{where}" + (f" {shown.reason}" if shown.reason else ""))
    if shown.detail.strip():
        click.echo(f"  {shown.detail.strip().splitlines()[-1]}")
    for revision in shown.revisions:
        starting = f", {revision.starting} starting" if revision.starting else ""
        on = f" on {revision.machine}" if revision.machine else ""
        click.echo(f"revision {revision.revision}{on}: {revision.serving} serving{starting}. {revision.text}")
    for lowered in shown.isolation:
        click.echo(lowered)
    rows = [
        (show_time(step.at), str(revision.revision), f"{step.before} -> {step.after}", step.text)
        for revision in shown.revisions
        for step in revision.changes
    ]
    print_table(("at", "revision", "replicas", "because"), sorted(rows), "Nothing has changed since it was deployed.")


HOLD_HELP = """Keep a waiting job, or an array's waiting elements, from starting.

\b
Examples:
  steelyard hold 41
"""


@click.command(help=HOLD_HELP, short_help="Keep a waiting job from starting.")
@click.argument("job")
@home_option
def hold(job: str, home: Path | None) -> None:
    _post(home, job, "hold")


RELEASE_HELP = """Let a held job start when its turn comes.

\b
Examples:
  steelyard release 41
"""


@click.command(help=RELEASE_HELP, short_help="Let a held job start when its turn comes.")
@click.argument("job")
@home_option
def release(job: str, home: Path | None) -> None:
    _post(home, job, "release")


PRIORITY_HELP = """Give a job another priority, 0 to 100: higher ones start first.

\b
Examples:
  steelyard priority 41 80
"""


@click.command(help=PRIORITY_HELP, short_help="Give a job another priority.")
@click.argument("job")
@click.argument("priority", type=click.IntRange(0, 100))
@home_option
def priority(job: str, priority: int, home: Path | None) -> None:
    _post(home, job, "priority", JobPriority(priority))


def _post(home: Path | None, job: str, what: str, body: JobPriority | None = None) -> None:
    with open_client(home) as client:
        view = client.fetch(JobView, "POST", f"/v1/jobs/{quote(job)}/{what}", body=body, key=new_key())
    click.echo(f"{view.id} {view.state}" + (f" {view.reason}" if view.reason else ""))
    if what == "hold" and view.state != "QUEUED":
        say(f"{view.id} does not wait any more, so there is nothing to hold. `steelyard stop` ends it.")
