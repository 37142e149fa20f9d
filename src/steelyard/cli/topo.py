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
  steelyard topo --from lstopo.xml topo-m.txt --svg machine.svg
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
        help="Read a recorded machine; several files about one machine may follow.",
    )(command)


def take_files(files: tuple[Path, ...], words: tuple[str, ...]) -> tuple[Path, ...]:
    """`--from a b` as people write it: the words after the option's own are files too."""
    for word in words:
        if not Path(word).exists():
            raise Refused(f"There is no file {word!r}. --from takes files that exist.", code="no-such-file")
    return (*files, *map(Path, words))


@click.command(help=TOPO_HELP, short_help="Show how a machine is wired, and the paths between its devices.")
@click.argument("words", nargs=-1, metavar="[NODE]")
@from_option
@fabric_option
@click.option("--matrix", is_flag=True, help="Show the path of every pair of GPUs and network cards.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT", help="Write a picture.")
@click.option("--identifiers", is_flag=True, help="With --json: show UUIDs too.")
@home_option
@json_option
def topo(
    words: tuple[str, ...],
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

    files, fabric = take_files(files, words if files else ()), take_files(fabric, words if fabric and not files else ())
    node = words[0] if words and not files and not fabric else None
    if node and len(words) > 1:
        raise Refused("Name one node. Files are given with --from.", code="two-nodes")
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
    from steelyard.wire.node_api import NodeDetail

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
