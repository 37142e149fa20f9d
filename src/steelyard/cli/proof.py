"""`steelyard proof`: what a job, or each replica of a function, really got, beside what it asked for."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from steelyard.cli.inside import check_which, names_job
from steelyard.cli.output import COLOURS, person_looks, print_json, print_table, say
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, json_option, open_client, quote
from steelyard.errors import NotFound
from steelyard.model.proof import Proof, ReplicaProof


class ProofShown(msgspec.Struct, frozen=True):
    """The shape of `proof --json`."""

    state: str
    asked: dict[str, object]
    got: dict[str, object]
    differences: tuple[str, ...]
    #: worth knowing, and promised by nobody
    notes: tuple[str, ...]


class ReplicaShown(msgspec.Struct, frozen=True):
    """The shape of an element of `proof FUNCTION --json`."""

    replica: str
    revision: int
    #: starting, serving, retiring; trial: a new revision is tried
    phase: str
    #: of a pool; "" for the home's own
    machine: str
    proof: ProofShown


PROOF_HELP = """Show what a job, or each replica of a function, asked for beside what it got, read back from the kernel.

MATCH: it got it. DRIFTED: it had it, and somebody changed it since. PARTIAL: some of it can't be enforced or read here.
UNKNOWN: it can't be said.

\b
Examples:
  steelyard proof 17
  steelyard proof 17 --json | jq .state
  steelyard proof hello --replica 6464f7e1a2c35
"""


@click.command(help=PROOF_HELP, short_help="Show what a job or a function asked for beside what it got.")
@click.option("--replica", metavar="ID", default="", help="Only of this replica of a function, by its id or how that ends.")
@click.argument("name", metavar="JOB|FUNCTION")
@home_option
@json_option
def proof(replica: str, name: str, home: Path | None, as_json: bool) -> None:
    check_which(name, None, replica)
    with open_client(home) as client:
        if not names_job(name):
            _show_replicas(name, replica, client.fetch(list[ReplicaProof], "GET", f"/v1/functions/{quote(name)}/proof"), as_json)
            return
        shown = client.fetch(Proof, "GET", f"/v1/jobs/{quote(name)}/proof")
    if as_json:
        print_json(_shape(shown))
        return
    _show(shown)


def _show_replicas(name: str, replica: str, found: list[ReplicaProof], as_json: bool) -> None:
    if replica:
        there = ", ".join(each.replica for each in found) or "none"
        found = [each for each in found if each.replica == replica or each.replica.endswith(f".{replica}")]
        if not found:
            raise NotFound(f"There is no replica {replica}. Those that are there: {there}.")
    if as_json:
        print_json([ReplicaShown(each.replica, each.revision, each.state, each.machine, _shape(each.proof)) for each in found])
        return
    if not found:
        click.echo(f"{name} sleeps, and what sleeps has nothing. Wake it, with a request or `steelyard exec {name} -- true`.")
    for each in found:
        click.echo(f"{each.replica} {f'on {each.machine} ' if each.machine else ''}{each.state} ", nl=False)
        _show(each.proof)


def _shape(shown: Proof) -> ProofShown:
    return ProofShown(shown.state.value, shown.asked, shown.got, shown.differences, shown.notes)


def _show(shown: Proof) -> None:
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


def _value(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "memory_bytes" and isinstance(value, int):
        return render_bytes(value)
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value) or ("common" if name == "cpus" else "none")
    return str(value)
