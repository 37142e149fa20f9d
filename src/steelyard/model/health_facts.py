"""What did we read that tells about health? Filled by the readers of `host/health/`, judged by `lifecycle/health.py`.

None always means that it could not be read; why stands in `unread`. Holds no serial numbers, no GUIDs and no MACs.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class LogKind(StrEnum):
    XID = "xid"
    SXID = "sxid"
    OOM = "oom-kill"
    HARDWARE = "hardware-error"
    PCIE = "pcie-error"
    DISK = "disk-error"
    LOCKUP = "lockup"
    CRASH = "kernel-crash"
    SEGFAULT = "nccl-segfault"
    PEERMEM = "peermem"
    GPU_LOST = "gpu-lost"
    THERMAL = "thermal"


class LogEvent(msgspec.Struct, frozen=True):
    """All lines of one kind about one device with one code in one log, counted."""

    kind: LogKind
    #: PCI address in the topology's way, a block device's name, or "" where the line names none
    device: str = ""
    #: Xid or SXid number
    code: int | None = None
    #: of an SXid line: whether the driver itself calls it fatal
    fatal: bool | None = None
    #: what the line says beyond that, in a word: `corrected`, `memory-limit`; "" for nothing
    detail: str = ""
    count: int = 1
    #: seconds on the log's own clock of first and last line; comparable within one log only
    first_s: float | None = None
    last_s: float | None = None
    #: number of the last line: the kernel's own where the log has it, else by place in the file
    sequence: int = 0
    #: the last line, shortened
    text: str = ""


class Log(msgspec.Struct, frozen=True):
    #: `kernel log`, or the file's name
    source: str
    lines: int
    events: tuple[LogEvent, ...] = ()
    #: number of the newest line of all
    newest: int = 0
    #: lines that were left out because there were too many, or the log's start has been overwritten
    dropped: int = 0


class PortFact(msgspec.Struct, frozen=True):
    """One InfiniBand (or RoCE) port."""

    #: `mlx5_0`
    device: str
    port: int
    #: lower case: active, init, armed, down
    state: str | None
    #: lower case: linkup, polling, disabled, sleep, …
    physical: str | None
    gbps: float | None
    #: `InfiniBand` or `Ethernet`
    link: str | None = None
    #: `MT4129`, PCI device id: only cards of one model are compared
    model: str = ""
    pci: str | None = None
    #: error counters by the kernel's or perfquery's name
    counters: dict[str, int] = {}


class InterfaceFact(msgspec.Struct, frozen=True):
    """One network interface of a physical card, or a bond of them."""

    name: str
    #: `up`, `down`, `unknown`…
    operstate: str | None = None
    mbps: int | None = None
    mtu: int | None = None
    #: the bond or bridge that it belongs to
    master: str | None = None
    infiniband: bool = False
    pci: str | None = None
    #: what the machine's own network configuration asks for
    mtu_configured: int | None = None
    #: the configuration says that it has to be up
    wanted: bool = False


class PciFact(msgspec.Struct, frozen=True):
    pci: str
    #: gpu, nic, nvme, switch, other
    kind: str
    width: int | None
    width_max: int | None
    gigatransfers: float | None
    gigatransfers_max: float | None


class EccFact(msgspec.Struct, frozen=True):
    #: `mc0`, or a GPU's PCI address
    subject: str
    corrected: int | None
    uncorrected: int | None
    #: GPUs: rows waiting for a reset to be remapped; None where not told
    pending: bool | None = None
    remap_failed: bool | None = None


class MemoryNodeFact(msgspec.Struct, frozen=True):
    id: int
    cpus: int
    memory_bytes: int
    hugepages: int | None = None


class DimmFact(msgspec.Struct, frozen=True):
    """The memory slots as firmware lists them."""

    slots: int
    filled: int
    #: module size in bytes -> how many
    sizes: dict[int, int] = {}


class DiskFact(msgspec.Struct, frozen=True):
    name: str
    #: of a mounted file system
    mount: str | None = None
    size_bytes: int | None = None
    free_bytes: int | None = None
    read_only: bool | None = None
    #: NVMe controller state: live, resetting, dead…
    state: str | None = None
    #: NVMe critical warning bits, percentage of life used, media errors
    critical_warning: int | None = None
    life_used_percent: int | None = None
    media_errors: int | None = None


class SelFact(msgspec.Struct, frozen=True):
    """One record of the management controller's event log."""

    #: hexadecimal in the log
    record: int
    at: str
    sensor: str
    event: str
    asserted: bool


class PlatformFact(msgspec.Struct, frozen=True):
    """Kernel, clocks and settings of the machine."""

    kernel: str | None = None
    #: "bare metal", "guest", "unknown" and the evidence
    virtualisation: str | None = None
    virtualisation_detail: str = ""
    steal_percent: float | None = None
    #: sentences about control groups that are missing; None: not looked at
    cgroups_missing: tuple[str, ...] | None = None
    cgroups: str = ""
    clocksource: str | None = None
    clocksources: tuple[str, ...] = ()
    clock_synced: bool | None = None
    clock_offset_us: int | None = None
    #: governor -> how many CPUs; empty: the machine has none (guests); None: not looked at
    governors: dict[str, int] | None = None
    nodes: tuple[MemoryNodeFact, ...] = ()
    numa_balancing: bool | None = None
    hugepages_total: int | None = None
    hugepages_free: int | None = None
    transparent_hugepages: str | None = None
    iommu_groups: int | None = None
    cmdline: str | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    #: events of CPU throttling since boot; None where the CPU does not count them
    throttled: int | None = None
    #: names of crash records left in pstore; None: not readable
    crash_records: tuple[str, ...] | None = None
    #: program -> found
    packages: dict[str, bool] | None = None
    offline_cpus: tuple[int, ...] | None = None
    dimms: DimmFact | None = None


class Unread(msgspec.Struct, frozen=True):
    """A check that could not look."""

    check: str
    subject: str
    #: one sentence
    reason: str


class HealthFacts(msgspec.Struct, frozen=True):
    logs: tuple[Log, ...] = ()
    ports: tuple[PortFact, ...] = ()
    interfaces: tuple[InterfaceFact, ...] = ()
    pci: tuple[PciFact, ...] = ()
    ecc: tuple[EccFact, ...] = ()
    disks: tuple[DiskFact, ...] = ()
    sel: tuple[SelFact, ...] | None = None
    platform: PlatformFact | None = None
    unread: tuple[Unread, ...] = ()

    def __add__(self, other: HealthFacts) -> HealthFacts:
        """Two looks at one machine."""
        return HealthFacts(
            logs=self.logs + other.logs,
            ports=self.ports + other.ports,
            interfaces=self.interfaces + other.interfaces,
            pci=self.pci + other.pci,
            ecc=self.ecc + other.ecc,
            disks=self.disks + other.disks,
            sel=other.sel if self.sel is None else self.sel + (other.sel or ()),
            platform=other.platform or self.platform,
            unread=self.unread + other.unread,
        )
