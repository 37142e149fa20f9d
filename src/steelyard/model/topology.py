"""What is wired to what inside one machine? One document, whatever read it: sysfs, hwloc, NVML, NCCL's XML or a `topo -m` matrix.

Built by the readers of `host/topology/`, merged there by PCI address, read by placement, `topo`, health and drift. Holds no
serial numbers and no MACs. A source that does not know a fact leaves it None; nothing is guessed. All bandwidths are gigabits per
second in one direction, at the link's nominal rate.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.cores import Cache, Core, NumaNode


class PathClass(StrEnum):
    """How two devices reach each other, as `nvidia-smi topo -m` names it. From the nearest to the farthest."""

    #: bonded NVLinks, directly or through NVSwitches
    NV = "NV"
    #: AMD's links between GPUs
    XGMI = "XGMI"
    #: NVLink chip to chip, between a GPU and its own CPU
    C2C = "C2C"
    #: at most one PCIe bridge or switch
    PIX = "PIX"
    #: several PCIe bridges, none of them the CPU's
    PXB = "PXB"
    #: across a CPU's host bridge
    PHB = "PHB"
    #: across host bridges of one NUMA node
    NODE = "NODE"
    #: across NUMA nodes
    SYS = "SYS"


class Pair(msgspec.Struct, frozen=True):
    """The best path between two devices, GPU or NIC. Symmetric; each pair stands once, `a` before `b` in the document's order."""

    a: str
    b: str
    path: PathClass
    #: bonded NVLinks or xGMI links; 0 for a path over PCIe, or where the source gives no count
    links: int = 0
    #: Gbit/s in one direction; None where the source does not tell
    gbps: float | None = None

    @property
    def class_name(self) -> str:
        """`NV12`, `XGMI`, `PIX`: what people and JSON see. One xGMI link, or an unknown number, is plain `XGMI`."""
        if self.path is PathClass.NV or (self.path is PathClass.XGMI and self.links > 1):
            return f"{self.path.value}{self.links or '#'}"
        return self.path.value


class MigInstance(msgspec.Struct, frozen=True):
    """A part of a GPU that the hardware keeps apart."""

    #: `MIG-…`, what CUDA_VISIBLE_DEVICES takes; None where the source hides it
    uuid: str | None
    #: `1g.10gb`; None where it can't be told
    profile: str | None
    memory_bytes: int | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None


class Gpu(msgspec.Struct, frozen=True):
    #: PCI address `0000:0f:00.0`, lower case; with `/1`, `/2` for further partitions of one PCI device; `GPU0` in a bare matrix
    id: str
    #: `NVIDIA H100 80GB HBM3`; "" where the source does not tell
    name: str = ""
    #: `NVIDIA`, `AMD`, `Intel`; "" where unknown
    vendor: str = ""
    memory_bytes: int | None = None
    pci: str | None = None
    #: the driver's own number; never used to choose
    index: int | None = None
    #: what CUDA_VISIBLE_DEVICES takes; shown only when asked for
    uuid: str | None = None
    numa_node: int | None = None
    #: CPUs that the source calls near; () where it does not tell
    cpus: tuple[int, ...] = ()
    #: whether MIG is on; None where the GPU has none or the source does not tell
    mig: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    #: its link to PCIe at full speed with the lanes that are in use (an idle GPU lowers its speed, not its lanes)
    pcie_gbps: float | None = None
    #: lanes in use and lanes it could use; health and drift look at them
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    #: NVLinks or xGMI links in all that are up; None where the source does not tell
    links: int | None = None
    #: CUDA compute capability x 10 (`90`) or AMD's gfx number (`gfx942`)
    architecture: str | None = None
    #: the bridge or root that it hangs on: an id in `bridges`
    parent: str | None = None


class Port(msgspec.Struct, frozen=True):
    """One port of a network card."""

    #: `mlx5_0`, or `mlx5_0:1` where one device has several
    name: str
    gbps: float | None = None
    #: `InfiniBand`, `Ethernet`, `Slingshot`; None where unknown
    link: str | None = None
    #: False: the source says that it is down
    up: bool | None = None


class Nic(msgspec.Struct, frozen=True):
    """One PCI function of a network card, with its ports."""

    #: PCI address, or the matrix's own name (`mlx5_0`, `NIC0`)
    id: str
    #: `mlx5_0` or `eth0`: the name that UCX and NCCL take
    name: str = ""
    pci: str | None = None
    ports: tuple[Port, ...] = ()
    #: whether it can do RDMA; None where the source does not tell
    rdma: bool | None = None
    numa_node: int | None = None
    pcie_gbps: float | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    parent: str | None = None

    @property
    def gbps(self) -> float | None:
        """All its ports together."""
        known = [port.gbps for port in self.ports if port.gbps is not None]
        return sum(known) if known else None


class Nvme(msgspec.Struct, frozen=True):
    id: str
    name: str = ""
    pci: str | None = None
    size_bytes: int | None = None
    numa_node: int | None = None
    pcie_gbps: float | None = None
    parent: str | None = None


class BridgeKind(StrEnum):
    #: a CPU's PCIe root
    HOST = "host"
    #: a PCIe-to-PCIe bridge: a root port, or a port of a switch
    PCIE = "pcie"


class Bridge(msgspec.Struct, frozen=True):
    """An inner node of the PCIe tree."""

    #: PCI address, or `host0` for a root without one
    id: str
    kind: BridgeKind
    #: None for a root
    parent: str | None = None
    #: its link towards the root
    pcie_gbps: float | None = None
    #: of a root: where it is attached
    numa_node: int | None = None


class SwitchKind(StrEnum):
    PCIE = "pcie"
    NVSWITCH = "nvswitch"


class Switch(msgspec.Struct, frozen=True):
    """A chip that joins devices: a PCIe switch (by its upstream port) or an NVSwitch."""

    id: str
    kind: SwitchKind


class Topology(msgspec.Struct, frozen=True):
    #: what it was read from: `hwloc XML v2 (file.xml)`, in order of trust
    sources: tuple[str, ...] = ()
    packages: int | None = None
    numa_nodes: tuple[NumaNode, ...] = ()
    #: online physical cores; where `smt_known` is False each logical CPU stands alone
    cores: tuple[Core, ...] = ()
    smt_known: bool = True
    caches: tuple[Cache, ...] = ()
    memory_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    nvme: tuple[Nvme, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    switches: tuple[Switch, ...] = ()
    #: GPU-GPU, GPU-NIC and NIC-NIC; complete where the source tells paths at all
    pairs: tuple[Pair, ...] = ()
    #: NUMA distances as the firmware gives them, row by row in the order of `numa_nodes`; () where unknown
    numa_distances: tuple[tuple[int, ...], ...] = ()
    #: the NUMA nodes that are only a GPU's own memory
    gpu_memory_nodes: tuple[int, ...] = ()
    #: sentences: what sources disagree about, what was cut off, what must not be trusted
    notes: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        return sum(len(core.cpus) for core in self.cores)
