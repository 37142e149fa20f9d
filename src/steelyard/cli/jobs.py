"""`steelyard ps | logs | stop | proof`: what jobs there are, what they wrote, ending them, and what they really got."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from steelyard.cli.output import COLOURS, person_looks, print_json, print_table, say, show_time
from steelyard.cli.quantities import parse_seconds, parse_signal, render_bytes
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.errors import NotFound
from steelyard.model.proof import Proof
from steelyard.wire.api import JobStop, JobView, LogChunk
from steelyard.wire.http import ApiClient

POLL_S = 20.0


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


class ProofShown(msgspec.Struct, frozen=True):
    """The shape of `proof --json`."""

    state: str
    asked: dict[str, object]
    got: dict[str, object]
    differences: tuple[str, ...]
    #: worth knowing, and promised by nobody
    notes: tuple[str, ...]


PS_HELP = """List jobs, the newest last.

\b
Examples:
  steelyard ps
  steelyard ps --json | jq '.[] | select(.state == "RUNNING")'
"""


@click.command(help=PS_HELP, short_help="List jobs.")
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most that many, the newest."
)
@home_option
@json_option
def ps(limit: int, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        jobs = client.fetch(list[JobView], "GET", "/v1/jobs", params={"limit": limit})
    if as_json:
        print_json([JobRow(j.id, j.name, j.state, j.reason, j.exit_code, j.submitted_at, j.started_at, j.ended_at) for j in jobs])
        return
    print_table(
        ("id", "name", "state", "reason", "exit", "submitted", "started", "ended"),
        [
            (
                j.id,
                j.name,
                j.state,
                j.reason or "",
                _text(j.exit_code),
                show_time(j.submitted_at),
                show_time(j.started_at),
                show_time(j.ended_at),
            )
            for j in jobs
        ],
        "No jobs. `steelyard run -- CMD` starts one.",
    )


LOGS_HELP = """Print what a job or function wrote: its output on stdout, its errors on stderr.

\b
Examples:
  steelyard logs 17
  steelyard logs -f hello
"""


@click.command(help=LOGS_HELP, short_help="Print what a job or function wrote.")
@click.argument("job_or_function")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended, or until Ctrl-C.")
@home_option
def logs(job_or_function: str, follow: bool, home: Path | None) -> None:
    from steelyard.cli.attend import write_chunk

    with open_client(home) as client:
        path = _find_logs(client, job_or_function)
        stdout_offset, stderr_offset = 0, 0
        while True:
            wait_s = POLL_S if follow else 0.0
            params: dict[str, str | int | float] = {
                "stdout_offset": stdout_offset,
                "stderr_offset": stderr_offset,
                "wait_s": wait_s,
            }
            chunk = client.fetch(LogChunk, "GET", path, params=params, wait_s=wait_s)
            write_chunk(chunk)
            stdout_offset, stderr_offset = chunk.stdout_offset, chunk.stderr_offset
            if chunk.ended or (not follow and not chunk.stdout and not chunk.stderr):
                return


STOP_HELP = """Stop a job: the signal now, SIGKILL after the grace.

\b
Examples:
  steelyard stop 17
  steelyard stop --signal INT --grace 60s 17
"""


@click.command(help=STOP_HELP, short_help="Stop a job.")
@click.argument("job")
@click.option("--signal", "signal_name", default="TERM", show_default=True, help="Name or number of the signal.")
@click.option("--grace", default="10s", show_default=True, help="Time until SIGKILL.")
@home_option
def stop(job: str, signal_name: str, grace: str, home: Path | None) -> None:
    body = JobStop(parse_signal(signal_name), parse_seconds(grace))
    with open_client(home) as client:
        view = client.fetch(JobView, "POST", f"/v1/jobs/{quote(job)}/stop", body=body, key=new_key())
    click.echo(f"{view.id} {view.state}")


PROOF_HELP = """Show what a job asked for beside what it got, read back from the kernel.

MATCH: it got it. DRIFTED: it had it, and somebody changed it since. PARTIAL: some of it can't be enforced or read here.
UNKNOWN: it can't be said.

\b
Examples:
  steelyard proof 17
  steelyard proof 17 --json | jq .state
"""


@click.command(help=PROOF_HELP, short_help="Show what a job asked for beside what it got.")
@click.argument("job")
@home_option
@json_option
def proof(job: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        shown = client.fetch(Proof, "GET", f"/v1/jobs/{quote(job)}/proof")
    if as_json:
        print_json(ProofShown(shown.state.value, shown.asked, shown.got, shown.differences, shown.notes))
        return
    state = shown.state.value
    click.echo(click.style(state, fg=COLOURS.get(state)) if person_looks() else state)
    names = list(dict.fromkeys([*shown.asked, *shown.got]))
    print_table(
        ("what", "asked", "got"),
        [(name, _value(name, shown.asked.get(name)), _value(name, shown.got.get(name))) for name in names],
        "Nothing is known about it.",
    )
    for sentence in (*shown.differences, *(f"Note: {note}" for note in shown.notes)):
        say(sentence)


def _find_logs(client: ApiClient, name: str) -> str:
    """The log's address: a job of that id, else a function of that name."""
    try:
        client.call("GET", f"/v1/jobs/{quote(name)}")
    except NotFound:
        try:
            client.call("GET", f"/v1/functions/{quote(name)}")
        except NotFound:
            raise NotFound(
                f"There is no job and no function {name!r}. `steelyard ps` and `steelyard functions` list them."
            ) from None
        return f"/v1/functions/{quote(name)}/logs"
    return f"/v1/jobs/{quote(name)}/logs"


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _value(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "memory_bytes" and isinstance(value, int):
        return render_bytes(value)
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value) or ("common" if name == "cpus" else "none")
    return str(value)
