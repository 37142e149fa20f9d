"""What does a device bring into a container? Plain values: specifications as they stand in files, what a machine shows beside
them, and the edits that come of both.

A specification follows https://github.com/cncf-tags/container-device-interface (SPEC.md, 0.3.0 to 1.0.0). Its fields keep the
standard's names in files (camelCase) and ours here.
"""

from __future__ import annotations

import msgspec

from steelyard.model.mount import Bind, DeviceNode

#: of a device file, as the kernel counts it: major and minor
Number = tuple[int, int]


class CdiNode(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Who may use it, the grant says, and not its mode: `file_mode`, `uid`, `gid` and `permissions` are read and not needed."""

    #: in the container
    path: str
    #: on the machine; "": the same
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None

    @property
    def source(self) -> str:
        return self.host_path or self.path


class CdiMount(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    host_path: str
    container_path: str
    type: str = ""
    options: tuple[str, ...] | None = None

    @property
    def read_only(self) -> bool:
        return "ro" in (self.options or ())


class CdiHook(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """A program that other runtimes run as root while a container starts. We never do."""

    hook_name: str
    path: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    timeout: int | None = None


class CdiEdits(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    #: NAME=VALUE
    env: tuple[str, ...] | None = None
    device_nodes: tuple[CdiNode, ...] | None = None
    mounts: tuple[CdiMount, ...] | None = None
    hooks: tuple[CdiHook, ...] | None = None
    intel_rdt: dict[str, object] | None = None
    additional_gids: tuple[int, ...] | None = None


class CdiDevice(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    name: str
    annotations: dict[str, str] | None = None
    container_edits: CdiEdits = CdiEdits()


class Specification(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """One file of the standard."""

    cdi_version: str
    #: `nvidia.com/gpu`: who made it, and what
    kind: str
    devices: tuple[CdiDevice, ...]
    annotations: dict[str, str] | None = None
    #: for each container that gets any of its devices
    container_edits: CdiEdits = CdiEdits()

    @property
    def vendor(self) -> str:
        return self.kind.partition("/")[0]


class SpecificationFile(msgspec.Struct, frozen=True):
    #: its path, as it is named to people
    path: str
    #: of its folder: the higher wins
    priority: int
    specification: Specification


class Problem(msgspec.Struct, frozen=True):
    """A file that is not used."""

    path: str
    #: what is wrong with it
    text: str


class NvidiaDriver(msgspec.Struct, frozen=True):
    """Its files, as its installer left them."""

    version: str
    #: lib*.so.<version>, all in one folder
    libraries: tuple[str, ...]
    programs: tuple[str, ...] = ()
    #: of nvidia-persistenced, of nvidia-fabricmanager, and the folder of MPS; "": it does not run
    persistenced: str = ""
    fabricmanager: str = ""
    mps: str = ""


class OwnNode(msgspec.Struct, frozen=True):
    """A device file that one device alone has: closed to all work that was not given that device."""

    path: str
    number: Number
    #: of a part that MIG cut: (GPU instance, compute instance or None for the whole instance)
    part: tuple[int, int | None] | None = None


class CdiFacts(msgspec.Struct, frozen=True):
    """What a machine shows, at one look."""

    #: stands before each path of the machine; "" but for one that is made up
    root: str = ""
    files: tuple[SpecificationFile, ...] = ()
    problems: tuple[Problem, ...] = ()
    driver: NvidiaDriver | None = None
    #: PCI address -> the files of that device
    own_nodes: dict[str, tuple[OwnNode, ...]] = {}
    #: files that all devices of a driver share: `/dev/nvidiactl`, `/dev/kfd`, `/dev/infiniband/rdma_cm`
    shared_nodes: dict[str, Number] = {}
    #: of the device files that specifications name, those that are there
    numbers: dict[str, DeviceNode] = {}
    #: of the files that specifications name, those that are not there
    missing: frozenset[str] = frozenset()
    #: library on the machine -> the other names that links beside it give it, such as `libcuda.so.1`
    aliases: dict[str, tuple[str, ...]] = {}


class DeviceEdits(msgspec.Struct, frozen=True):
    """What a container is given for its devices."""

    env: dict[str, str] = {}
    nodes: tuple[DeviceNode, ...] = ()
    binds: tuple[Bind, ...] = ()
    #: file name -> file of the machine: found by the dynamic loader of the image, wherever that looks
    libraries: dict[str, str] = {}
    groups: tuple[int, ...] = ()
    #: any amount of memory may be locked, as RDMA needs it
    lock_memory: bool = False
    #: what it was taken from: files of the standard, or a driver
    sources: tuple[str, ...] = ()
    #: sentences for the proof: where it comes from, what was not done
    notes: tuple[str, ...] = ()
