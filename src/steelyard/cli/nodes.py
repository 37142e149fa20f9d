"""`steelyard nodes | devices`: which machines work for Steelyard, what devices they have, and who uses them."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from steelyard.cli.output import print_json, print_table
from steelyard.cli.session import home_option, json_option, open_client
from steelyard.model import words
from steelyard.model.topology import Gpu, Nic, Nvme
from steelyard.wire.node_api import NodeDetail, NodeView


class DeviceRow(msgspec.Struct, frozen=True):
    """The shape of `devices --json`."""

    node: str
    #: gpu, nic or nvme
    kind: str
    id: str
    name: str
    numa_node: int | None
    memory_bytes: int | None
    gbps: float | None
    #: `free`, `in use`, or `out of use`: `steelyard check` says why
    state: str
    #: a job or function; null when there is none
    used_by: str | None


NODES_HELP = """List the nodes: the machines whose agents work for this Steelyard, those of pools too.

\b
Examples:
  steelyard nodes
  steelyard nodes --json | jq '.[] | select(.state != "READY")'
"""


@click.command(help=NODES_HELP, short_help="List nodes.")
@home_option
@json_option
def nodes(home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        found = client.fetch(list[NodeView], "GET", "/v1/nodes")
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "pool", "machine", "state", "cores", "threads", "memory", "gpus", "nics", "kind", "kernel", "why"),
        [
            (
                node.name,
                node.pool,
                node.id if node.pool else "",
                node.state,
                str(node.cores),
                str(node.threads),
                words.size(node.memory_bytes),
                str(node.gpus),
                str(node.nics),
                node.virtualisation,
                node.kernel,
                node.detail,
            )
            for node in found
        ],
        "No node has reported yet. `steelyard status` says whether the agent runs.",
    )


DEVICES_HELP = """List GPUs, network cards and NVMe disks of the nodes, and who uses each.

\b
Examples:
  steelyard devices
  steelyard devices --json | jq '.[] | select(.kind == "gpu" and .state == "free")'
"""


@click.command(help=DEVICES_HELP, short_help="List GPUs, network cards and disks, and who uses them.")
@click.argument("node", required=False)
@home_option
@json_option
def devices(node: str | None, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        names = [node] if node else [row.id for row in client.fetch(list[NodeView], "GET", "/v1/nodes")]
        found = [client.fetch(NodeDetail, "GET", f"/v1/nodes/{name}") for name in names]
    rows = [row for detail in found for row in list_devices(detail)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("node", "kind", "id", "name", "numa", "memory", "gb/s", "state", "used by"),
        [
            (
                row.node,
                row.kind,
                row.id,
                row.name,
                "" if row.numa_node is None else str(row.numa_node),
                words.size(row.memory_bytes) if row.memory_bytes else "",
                f"{row.gbps:g}" if row.gbps else "",
                row.state,
                row.used_by or "",
            )
            for row in rows
        ],
        "These nodes have no GPU, no network card and no NVMe disk that is known.",
    )


def list_devices(detail: NodeDetail) -> list[DeviceRow]:
    topology = detail.machine.topology
    if topology is None:
        return []

    def row(kind: str, device: Gpu | Nic | Nvme, name: str, memory_bytes: int | None, gbps: float | None) -> DeviceRow:
        user = detail.used.get(device.id)
        state = "out of use" if device.id in detail.machine.blocked else "in use" if user else "free"
        return DeviceRow(detail.node.name, kind, device.id, name, device.numa_node, memory_bytes, gbps, state, user)

    return [
        *(row("gpu", gpu, gpu.name or gpu.vendor, gpu.memory_bytes, None) for gpu in topology.gpus),
        *(row("nic", nic, nic.name, None, nic.gbps) for nic in topology.nics),
        *(row("nvme", disk, disk.name, None, None) for disk in topology.nvme),
    ]
