"""`steelyard status`: programs, addresses, and whether all of it answers. Works while nothing runs (and says so with exit code
3)."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from steelyard import __version__
from steelyard.cli.output import COLOURS, person_looks, print_json, print_table
from steelyard.cli.programs import PROGRAM_NAMES, SUPERVISOR, find_program, lives, load_record
from steelyard.cli.quantities import render_bytes
from steelyard.cli.readiness import ask_missing
from steelyard.cli.session import find_settings, home_option, json_option, read_token
from steelyard.clock import SystemClock
from steelyard.config import Paths
from steelyard.errors import SteelyardError, Unreachable
from steelyard.host.proc import rss_bytes
from steelyard.wire.http import ApiClient


class ProgramStatus(msgspec.Struct, frozen=True):
    name: str
    pid: int | None
    rss_bytes: int | None
    #: running, restarting (the supervisor is about to start it), stopped
    state: str


class Status(msgspec.Struct, frozen=True):
    """The shape of `status --json`. `state`: running, degraded (something does not answer), stopped."""

    state: str
    api_url: str
    gateway_url: str
    version: str
    programs: list[ProgramStatus]


STATUS_HELP = """Show programs, addresses and whether all is well.

Exit code 0 when Steelyard answers, 3 when it does not.

\b
Examples:
  steelyard status
  steelyard status --json | jq .gateway_url
"""


@click.command(help=STATUS_HELP, short_help="Show programs, addresses and whether all is well.")
@home_option
@json_option
def status(home: Path | None, as_json: bool) -> None:
    paths, settings = find_settings(home)
    programs = observe_programs(paths)
    ca_file = Path(settings.tls_cert) if settings.tls_cert else None
    with ApiClient(settings.api_url, read_token(paths.admin_token), ca_file=ca_file) as client:
        missing = ask_missing(settings, client)
    if all(program.state == "stopped" for program in programs):
        state = "stopped"
    else:
        state = "degraded" if missing or any(program.state != "running" for program in programs) else "running"
    shown = Status(state, settings.api_url, settings.gateway_url, __version__, programs)
    if as_json:
        print_json(shown)
    else:
        _print(shown, paths, missing)
    if state == "stopped":
        raise Unreachable(f"Steelyard at {paths.home} is not running. `steelyard up` starts it.")
    if any("API" in sentence for sentence in missing):
        raise Unreachable(f"Not all answers: {'; '.join(missing)}. Work that runs goes on. {paths.program_logs} says more.")


def observe_programs(paths: Paths) -> list[ProgramStatus]:
    """The supervisor and its programs, as the kernel has them now."""
    clock = SystemClock()
    supervised = lives(load_record(paths, SUPERVISOR))
    seen: list[ProgramStatus] = []
    for name in (SUPERVISOR, *PROGRAM_NAMES):
        try:
            record = find_program(paths, name, clock)
        except PermissionError as err:
            raise SteelyardError(f"{paths.home} can't be read by this user.") from err
        if record is not None:
            seen.append(ProgramStatus(name, record.pid, rss_bytes(record.pid), "running"))
        else:
            seen.append(ProgramStatus(name, None, None, "restarting" if supervised else "stopped"))
    return seen


def _print(shown: Status, paths: Paths, missing: list[str]) -> None:
    state = click.style(shown.state, fg=COLOURS.get(shown.state)) if person_looks() else shown.state
    click.echo(f"Steelyard {shown.version}: {state}{' (' + '; '.join(missing) + ')' if missing else ''}")
    click.echo(f"API      {shown.api_url}\nGateway  {shown.gateway_url}\nHome     {paths.home}\n")
    print_table(
        ("program", "pid", "memory", "state"),
        [(p.name, "" if p.pid is None else str(p.pid), render_bytes(p.rss_bytes), p.state) for p in shown.programs],
        "",
    )
