"""How are machines wired to each other? Hosts and their ports, leaf and spine switches, NVLink domains, blocks.

Built by the readers of `host/fabric/`, read by placement across machines. Holds no serial numbers; a GUID is a switch's id only
where the source gives no usable name. A source that does not know a fact leaves it None or (); nothing is guessed. Bandwidths
are gigabits per second in one direction, at the link's nominal rate.
"""

from __future__ import annotations

import re

import msgspec


class FabricPort(msgspec.Struct, frozen=True):
    """Where one port of a host is plugged in."""

    #: id of the switch it hangs on: an id in `Fabric.switches`
    leaf: str
    #: `mlx5_5`, `HCA-6`: as the source names it; "" where it tells hosts only
    device: str = ""
    #: port of that device, from 1
    number: int = 1
    #: from 0; ports of one rail meet on their own leaves; None where the fabric is not built in rails or it can't be told
    rail: int | None = None
    gbps: float | None = None


class FabricHost(msgspec.Struct, frozen=True):
    name: str
    #: () where only its NVLink domain or block is known
    ports: tuple[FabricPort, ...] = ()

    @property
    def rails(self) -> frozenset[int]:
        return frozenset(port.rail for port in self.ports if port.rail is not None)


class FabricSwitch(msgspec.Struct, frozen=True):
    #: the name that people gave it; its GUID only where it has none
    id: str
    #: 1: leaf, has hosts; 2: spine; 3: core; 0: no host below it is known
    level: int


class FabricLink(msgspec.Struct, frozen=True):
    """All cables between two switches, or what a tree file calls parent and child."""

    a: str
    b: str
    #: cables
    count: int = 1
    #: of one cable; None where the source does not tell
    gbps: float | None = None


class HostGroup(msgspec.Struct, frozen=True):
    """Hosts that belong together: an NVLink domain or a block."""

    id: str
    hosts: tuple[str, ...]


class Fabric(msgspec.Struct, frozen=True):
    #: what it was read from: `ibnetdiscover (file.out)`
    sources: tuple[str, ...] = ()
    hosts: tuple[FabricHost, ...] = ()
    switches: tuple[FabricSwitch, ...] = ()
    links: tuple[FabricLink, ...] = ()
    #: NVLink domains: hosts whose GPUs reach each other over NVLink; () where the source does not tell
    domains: tuple[HostGroup, ...] = ()
    #: Slurm's blocks, in their order
    blocks: tuple[HostGroup, ...] = ()
    #: Slurm's BlockSizes: the first is the size of one block, the others are how many hosts of neighbouring blocks go together
    block_sizes: tuple[int, ...] = ()
    #: sentences: what was left out, what must not be trusted
    notes: tuple[str, ...] = ()


def name_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts `n2` before `n10`, and any text at all."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name[:500])
    return (*((0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts), (2, 0, name))
