"""`steelyard machine`: what is this machine? Observed directly, so that it works before and without any Steelyard."""

from __future__ import annotations

import shutil

import click

from steelyard.cli.output import print_json
from steelyard.cli.session import json_option

MACHINE_HELP = """Show this machine: cores, caches, NUMA, memory, devices, bare metal or guest, and what can be isolated.

Works without a running Steelyard.

\b
Examples:
  steelyard machine
  steelyard machine --json | jq .isolation
"""


@click.command(help=MACHINE_HELP, short_help="Show this machine: cores, memory, devices, isolation.")
@json_option
def machine(as_json: bool) -> None:
    from steelyard.cli.machine_text import render_machine
    from steelyard.host.machine import observe_machine

    seen = observe_machine()
    if as_json:
        print_json(seen)
    else:
        click.echo(render_machine(seen, shutil.get_terminal_size((100, 24)).columns))
