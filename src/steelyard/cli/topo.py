"""`steelyard topo`: how is a machine wired? This one, a node of Steelyard, or one that was recorded in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from steelyard.cli.fabric import fabric_option, load_fabric, render_fabric
from steelyard.cli.output import print_json, say
from steelyard.cli.session import home_option, json_option, open_client
from steelyard.errors import EdgeFailed, NotFound, Refused

if TYPE_CHECKING:
    from steelyard.model.topology import Topology

TOPO_HELP = """Show how a machine is wired: NUMA nodes, PCIe switches, GPUs, network cards, and the paths between them.

Without NODE it is this machine, without any running Steelyard. --from reads recorded ones: hwloc XML, NCCL or RCCL topology XML,
nvidia-smi topo -m, nvidia-smi -q [-x], rocm-smi --showtopo, or a folder (or tar) with /sys and /proc. Several files about one
machine are joined by PCI address, and what they disagree about is said.

Bandwidths are Gbit/s in one direction, at the links' nominal rate.

\b
Examples:
  steelyard topo
  steelyard topo --matrix
  steelyard topo --from lstopo.xml --from topo-m.txt --svg machine.svg
  steelyard topo --fabric topology.conf
  steelyard topo --json | jq '.pairs[] | select(.class == "SYS")'
"""


def from_option(command: click.decorators.FC) -> click.decorators.FC:
    """`--from FILE`, on every command that takes a recorded machine."""
    return click.option(
        "--from",
        "files",
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        metavar="FILE",
        help="Read a recorded machine; may be repeated for several files about one machine.",
    )(command)


@click.command(help=TOPO_HELP, short_help="Show how a machine is wired, and the paths between its devices.")
@click.argument("node", required=False)
@from_option
@fabric_option
@click.option("--matrix", is_flag=True, help="Show the path of every pair of GPUs and network cards.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT", help="Write a picture.")
@click.option("--identifiers", is_flag=True, help="With --json: show UUIDs too.")
@home_option
@json_option
def topo(
    node: str | None,
    files: tuple[Path, ...],
    fabric: tuple[Path, ...],
    matrix: bool,
    svg: Path | None,
    identifiers: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    from steelyard.cli.topology_json import make_json
    from steelyard.cli.topology_text import render_matrix, render_topology

    if sum(map(bool, (node, files, fabric))) > 1:
        raise Refused("NODE, --from and --fabric name different things. Give one of them.", code="two-machines")
    if fabric:
        found = load_fabric(fabric)
        print_json(found) if as_json else click.echo(render_fabric(found))
        return
    topology, used = find_topology(node, files, home)
    if svg is not None:
        _write_svg(svg, topology, used, node or (files[0].name if files else "this machine"))
    if as_json:
        print_json(make_json(topology, used, identifiers))
    elif matrix:
        click.echo(render_matrix(topology))
    elif svg is None:
        click.echo(render_topology(topology, used))


def find_topology(node: str | None, files: tuple[Path, ...], home: Path | None) -> tuple[Topology, dict[str, str]]:
    """(the machine's wiring, device id or `cpu:N` -> who uses it)."""
    from steelyard.host.topology.observe import observe_topology
    from steelyard.host.topology.read import read_topology
    from steelyard.wire.api import NodeDetail

    if files:
        return read_topology(files), {}
    if node is None:
        return observe_topology(Path("/")), {}
    with open_client(home) as client:
        detail = client.fetch(NodeDetail, "GET", f"/v1/nodes/{node}")
    if detail.machine.topology is None:
        raise NotFound(f"The agent of {node} could not read how its machine is wired; its log says why.", code="no-topology")
    return detail.machine.topology, detail.used


def _write_svg(file: Path, topology: Topology, used: dict[str, str], title: str) -> None:
    from steelyard.cli.topology_svg import render_svg

    try:
        file.write_text(render_svg(topology, used, title))
    except OSError as err:
        raise EdgeFailed(f"The picture can't be written to {file}: {err.strerror}.") from err
    say(f"Wrote {file}.")
