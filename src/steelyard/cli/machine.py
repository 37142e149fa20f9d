"""`steelyard machine`: what is this machine? Observed directly, so that it works before and without any Steelyard."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from steelyard.cli.output import print_json
from steelyard.cli.session import json_option

if TYPE_CHECKING:
    from steelyard.model.machine import Machine

MACHINE_HELP = """Show this machine: cores, caches, NUMA, memory, devices, bare metal or guest, and what can be isolated.

Works without a running Steelyard.

\b
Examples:
  steelyard machine
  steelyard machine --json | jq .isolation
  steelyard machine --cdi nvidia > /etc/cdi/nvidia.json
"""


@click.command(help=MACHINE_HELP, short_help="Show this machine: cores, memory, devices, isolation.")
@click.option(
    "--cdi",
    type=click.Choice(("nvidia", "amd", "intel")),
    help="Print a CDI specification of that maker's GPUs instead, for other container runtimes.",
)
@json_option
def machine(cdi: str | None, as_json: bool) -> None:
    if cdi is not None:
        _print_specification({"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}[cdi])
        return
    from steelyard.cli.machine_text import render_machine
    from steelyard.host.machine import observe_machine

    seen = observe_machine()
    if any(device.kind == "gpu" for device in seen.devices):
        seen = _add_sources(seen)
    if as_json:
        print_json(seen)
    else:
        click.echo(render_machine(seen, shutil.get_terminal_size((100, 24)).columns))


def _print_specification(maker: str) -> None:
    """Raises Refused."""
    from steelyard.errors import Refused
    from steelyard.host.cdi import CdiReader
    from steelyard.host.topology.observe import observe_topology
    from steelyard.lifecycle.cdi_write import make_specification, render_specification

    made = make_specification(maker, observe_topology(), CdiReader().observe())
    if isinstance(made, str):
        raise Refused(f"{made}. There is nothing to print.", code="no-devices-here")
    click.echo(render_specification(made))


def _add_sources(machine: Machine) -> Machine:
    """With what would bring each of its GPUs into containers."""
    import msgspec

    from steelyard.errors import SteelyardError
    from steelyard.host.cdi import CdiReader
    from steelyard.host.topology.observe import observe_topology
    from steelyard.lifecycle.health_inside import find_source

    try:
        topology = observe_topology()
    except (SteelyardError, OSError, ValueError):
        return machine  # `check` says it
    facts = CdiReader().observe()
    told = {gpu.pci: find_source(gpu, topology, facts) for gpu in topology.gpus}
    return msgspec.structs.replace(
        machine,
        devices=tuple(
            msgspec.structs.replace(device, detail=f"{device.detail}, in containers by {told[device.pci][0]}".lstrip(", "))
            if device.kind == "gpu" and device.pci in told and told[device.pci][1]
            else device
            for device in machine.devices
        ),
    )
