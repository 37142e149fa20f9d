"""Which machines should be one Slurm cluster, and what is known of each? What `cluster up` reads, sees and plans with."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.topology import Topology


class HostEntry(msgspec.Struct, frozen=True):
    """One line of hosts.yaml."""

    #: the host's own name, as `hostname -s` answers there; also Slurm's NodeName
    name: str
    #: where SSH and Slurm reach it; "" is its name
    address: str = ""
    #: "" is whoever runs the command, or what ~/.ssh/config says
    user: str = ""
    port: int = 22
    features: tuple[str, ...] = ()
    #: () are the partitions that every host is in
    partitions: tuple[str, ...] = ()
    #: kept from jobs; None: chosen by the size of the machine
    reserve_bytes: int | None = None


class ClusterSpec(msgspec.Struct, frozen=True):
    """hosts.yaml as a whole, also kept in the home for `cluster add` and `remove`."""

    hosts: tuple[HostEntry, ...]
    name: str = "steelyard"
    #: the host that runs slurmctld; it is a node as well
    controller: str = ""
    #: absolute paths of files that tell how the hosts are wired to each other; () where they are asked
    fabric: tuple[str, ...] = ()

    @property
    def controller_name(self) -> str:
        return self.controller or self.hosts[0].name


class Written(StrEnum):
    """Whose is a file that stands where one of ours belongs?"""

    ABSENT = "absent"
    OURS = "ours"
    #: we wrote it, and somebody changed it since
    EDITED = "edited"
    FOREIGN = "foreign"


class SeenHost(msgspec.Struct, frozen=True):
    """What one machine answered."""

    name: str
    #: as `hostname -s` says
    hostname: str
    #: where it was reached
    address: str
    uid: int
    #: may become root without a password
    root: bool
    #: `debian 12`
    distribution: str
    #: how far its clock is ahead of ours, in seconds
    clock_ahead_s: float
    systemd: bool
    #: of the packages that are needed, those not installed
    missing: tuple[str, ...]
    #: of Slurm as installed, or as the distribution would install it; (0, 0) where unknown
    slurm: tuple[int, int] = (0, 0)
    #: path -> content of files that stand where ours belong
    files: dict[str, str] = {}
    #: sha256 of munge's key; "" where there is none, or it can't be read
    key: str = ""
    #: munged, slurmctld, slurmd that run
    running: frozenset[str] = frozenset()
    #: program -> digest of what it was last started with by us
    started: dict[str, str] = {}
    #: does its own name lead to an address that others reach too?
    name_is_public: bool = False
    #: "v1", "v2" or "none", and what is there
    cgroups: str = "none"
    controllers: frozenset[str] = frozenset()
    topology: Topology | None = None
    #: PCI address of a GPU -> its device file
    gpu_files: dict[str, str] = {}
    #: NVLink domain as `cluster uuid` or `cluster uuid.clique`; "" where the driver names none
    domain: str = ""
    #: the program on that host; "" where it has none
    steelyard: str = ""
    #: why its wiring can't be told
    unread: str = ""


class StepKind(StrEnum):
    INSTALL = "install"
    KEY = "key"
    WRITE = "write"
    REMOVE = "remove"
    START = "start"
    RESTART = "restart"
    STOP = "stop"


class Step(msgspec.Struct, frozen=True):
    host: str
    kind: StepKind
    #: packages with blanks between, a path, or a program
    subject: str
    why: str
    #: WRITE: the content. START and RESTART: the digest of what the program reads
    content: str = ""


class BringUpPlan(msgspec.Struct, frozen=True):
    steps: tuple[Step, ...] = ()
    #: host -> why it stays out, one sentence each
    left_out: dict[str, str] = {}
    #: sentences that a person should read before he says yes
    notes: tuple[str, ...] = ()
    #: the nodes of the cluster when all is done
    nodes: tuple[str, ...] = ()
