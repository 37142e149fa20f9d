"""`steelyard ps`: what jobs there are. An array is one row, unless all its elements are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from steelyard.cli.batch_progress import render_duration
from steelyard.cli.job_text import age_s, elapsed_s, render_asks, render_counts, render_span
from steelyard.cli.output import person_looks, print_json, print_table
from steelyard.cli.session import home_option, json_option, open_client
from steelyard.clock import SystemClock
from steelyard.wire.api import JobView

COLUMNS = ("id", "name", "state", "exit", "asks", "elapsed", "age", "reason")
#: stays on one line however narrow the terminal is
KEEP = ("id", "state", "exit", "elapsed", "age")
#: a longer name is cut where a person looks
NAME_MAX = 20


class JobRow(msgspec.Struct, frozen=True):
    """The shape of `ps --json`."""

    id: str
    name: str
    state: str
    reason: str | None
    exit_code: int | None
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    detail: str
    project: str
    owner: str
    account: str
    priority: int
    #: all its ranks together
    cores: float
    memory_bytes: int | None
    gpus: int
    ranks: int
    restarts: int
    array: str | None
    array_index: int | None
    #: of a pool; "" for the home's own, and while it waits
    machine: str
    pool: str
    #: of an array: state -> elements in it
    elements: dict[str, int] | None


PS_HELP = """List jobs, the newest last.

An array is one row that counts its elements; --all-elements lists each of them.

\b
Examples:
  steelyard ps
  steelyard ps --state RUNNING,QUEUED --account lab
  steelyard ps --all-elements
  steelyard ps --json | jq '.[] | select(.state == "RUNNING")'
"""


@click.command(help=PS_HELP, short_help="List jobs.")
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most that many, the newest."
)
@click.option("--state", "-s", help="Only jobs in these states, such as RUNNING,QUEUED.")
@click.option("--user", "-u", help="Only this user's jobs.")
@click.option("--account", "-A", help="Only jobs of this account, and of those below it.")
@click.option("--all-elements", "-e", is_flag=True, help="A row for each element of an array.")
@home_option
@json_option
def ps(
    limit: int, state: str | None, user: str | None, account: str | None, all_elements: bool, home: Path | None, as_json: bool
) -> None:
    asked = {"state": state, "user": user, "account": account}
    params: dict[str, str | int | float] = {name: value for name, value in asked.items() if value is not None}
    params |= {"limit": limit} if all_elements else {"limit": limit, "fold": "true"}
    with open_client(home) as client:
        jobs = client.fetch(list[JobView], "GET", "/v1/jobs", params=params)
    if as_json:
        print_json([make_row(job) for job in jobs])
        return
    chosen = any(value is not None for value in asked.values())
    print_table(
        COLUMNS,
        make_cells(jobs, SystemClock().now_us(), NAME_MAX if person_looks() else None),
        "No such jobs." if chosen else "No jobs. `steelyard run -- CMD` starts one.",
        keep=KEEP,
    )


def make_row(job: JobView) -> JobRow:
    return JobRow(**{name: getattr(job, name) for name in JobRow.__struct_fields__})


def make_cells(jobs: Sequence[JobView], now_us: int, name_max: int | None = None) -> list[tuple[str, ...]]:
    """Rows under `COLUMNS`. `age` is since it was submitted. Pure."""
    return [
        (
            job.id,
            job.name if name_max is None or len(job.name) <= name_max else f"{job.name[: name_max - 1]}…",
            job.state,
            "" if job.exit_code is None else str(job.exit_code),
            f"{render_asks(job)} on {job.machine}" if job.machine else render_asks(job),
            "" if (run_s := elapsed_s(job, now_us)) is None else render_span(run_s),
            render_duration(age_s(job.submitted_at, now_us)),
            render_counts(job.elements) if job.elements is not None else "" if job.reason in (None, "exited") else job.reason,
        )
        for job in jobs
    ]
