"""`steelyard proof`: what a job really got, beside what it asked for."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from steelyard.cli.output import COLOURS, person_looks, print_json, print_table, say
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, json_option, open_client, quote
from steelyard.model.proof import Proof


class ProofShown(msgspec.Struct, frozen=True):
    """The shape of `proof --json`."""

    state: str
    asked: dict[str, object]
    got: dict[str, object]
    differences: tuple[str, ...]
    #: worth knowing, and promised by nobody
    notes: tuple[str, ...]


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


def _value(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "memory_bytes" and isinstance(value, int):
        return render_bytes(value)
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value) or ("common" if name == "cpus" else "none")
    return str(value)
