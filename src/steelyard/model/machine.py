"""What is this machine? The small inventory that placement, the CLI and the demo read."""

from __future__ import annotations

import msgspec

from steelyard.model.cores import Cache, Core, NumaNode
from steelyard.model.ids import OWN_MACHINE, FunctionName, MachineId
from steelyard.model.job import Plan
from steelyard.model.topology import Topology


class Device(msgspec.Struct, frozen=True):
    """A GPU, NIC or disk. Never carries serials or MACs."""

    #: "gpu", "nic", "nvme", "disk"
    kind: str
    name: str
    #: PCI address where it has one
    pci: str | None = None
    numa_node: int | None = None
    detail: str = ""


class Isolation(msgspec.Struct, frozen=True):
    """What the kernel enforces here, and why not where it doesn't."""

    #: "v1", "v2", "hybrid" or "none"
    cgroups: str
    cpuset: bool
    memory: bool
    own_uid: bool
    no_new_privs: bool
    #: sentences: what could not be isolated and what to do about it
    missing: tuple[str, ...] = ()


class HeldPlan(msgspec.Struct, frozen=True):
    """Cores and devices that an older revision of a function, or a deleted one, has until its last request is answered."""

    function: str
    plan: Plan


class Machine(msgspec.Struct, frozen=True):
    id: MachineId
    boot_id: str
    hostname: str
    kernel: str
    cpu_model: str
    cores: tuple[Core, ...]
    caches: tuple[Cache, ...]
    numa_nodes: tuple[NumaNode, ...]
    memory_bytes: int
    devices: tuple[Device, ...]
    #: "bare metal", "guest" or "unknown", with the evidence in `virtualisation_detail`
    virtualisation: str
    virtualisation_detail: str
    isolation: Isolation
    #: how it is wired; None from an agent that could not read it
    topology: Topology | None = None
    #: what the agent reports as out of use: devices, memory nodes (`numa:0`) or `node`. Nothing new is placed on them
    blocked: tuple[str, ...] = ()
    #: devices that nothing new may use together
    blocked_pairs: tuple[tuple[str, str], ...] = ()
    #: what revisions that are no longer the newest still run on, as their agent reports it
    held: tuple[HeldPlan, ...] = ()
    #: of a pool's: functions that have left it, and still answer there what was begun before
    finishing: tuple[FunctionName, ...] = ()
    #: "" for the home's own
    pool: str = ""
    #: of a pool's: IP address and port at which its gateway hears the home's
    gateway: str = ""
    #: of a pool's: URL at which work on it finds the home's gateway
    home_gateway: str = ""
    #: why nothing new is placed on it, for people; written by whoever takes it back. "": it takes work
    draining: str = ""
    #: of a pool's: machines that a batch system gave together have the same, and its own launcher reaches across them; "" where
    #: it came alone
    allocation: str = ""
    #: which of these it is, in the batch system's order
    allocation_place: int = 0

    @property
    def place(self) -> MachineId:
        """What plans name it by (`Plan.machine`)."""
        return self.id if self.pool else OWN_MACHINE

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))
