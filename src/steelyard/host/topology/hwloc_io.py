"""Which devices does an hwloc file list, and on which bridges? GPUs, NICs, NVMe and NVSwitches from its PCI tree.

hwloc lists PCI functions, and below them what drivers made of them ("OS devices"): one GPU is often `cuda0`, `nvml0` and
`opencl0d0`, one network function `hsi0` and `mlx5_0`. Here each function is one device again, except for a GPU whose driver
splits it (MI300A in TPX mode shows `rsmi0` to `rsmi2` at one address): then each part is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from steelyard.errors import Refused
from steelyard.host.devices import kind_of
from steelyard.host.topology.hwloc_object import HwlocObject, members, parse_number
from steelyard.host.topology.pci import CRAY, GPU_VENDOR_NAMES, check_device_count, is_nvswitch, parse_pci_address
from steelyard.model.topology import Bridge, BridgeKind, Gpu, Nic, Nvme, Port, Switch, SwitchKind

#: Ways to see a GPU, the one that numbers and names it best first. OpenCL comes last: each platform may list the same GPU.
_GPU_BACKENDS = ("nvml", "cuda", "rsmi", "ze", "opencl")
#: Sizes in KiB, in the order of trust. An APU's GTT size is host memory, not its own.
_MEMORY_INFOS = ("CUDAGlobalMemorySize", "RSMIVRAMSize", "LevelZeroHBMSize", "LevelZeroMemorySize", "OpenCLGlobalMemorySize")
_VENDOR_WORDS = {"nvidia": "NVIDIA", "amd": "AMD", "advanced micro devices": "AMD", "intel": "Intel"}
#: `osdev_type` in versions 1 and 2; version 3 has bits
_OS_TYPES = {0: "storage", 1: "gpu", 2: "network", 3: "openfabrics", 4: "dma", 5: "coproc", 6: "memory"}
_OS_BITS = {1: "storage", 2: "memory", 4: "gpu", 8: "coproc", 16: "network", 32: "openfabrics", 64: "dma"}
#: PCI base class of USB and other serial buses: a BMC's network over USB is no network card
_SERIAL_BUS = 0x0C
_ACTIVE_STATE = "4"


@dataclass(frozen=True, slots=True)
class Attached:
    """A device or host bridge and where on the CPU side it hangs."""

    device: HwlocObject
    numa_node: int | None
    #: the usable CPUs near it, as bits: there may be many places and few of them matter
    cpus_mask: int


@dataclass(slots=True)
class HwlocDevices:
    bridges: tuple[Bridge, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    nvme: tuple[Nvme, ...] = ()
    nvswitches: tuple[Switch, ...] = ()
    #: `OSDev:802`, `PCIDev:449` as matrices refer to objects -> our id
    ids: dict[str, str] = field(default_factory=dict)
    #: `rsmi3` -> our id, for peers that are named
    names: dict[str, str] = field(default_factory=dict)
    #: our id -> names of GPUs that it says it has xGMI links to
    peers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_devices(roots: Sequence[Attached], version: int, source: str) -> HwlocDevices:
    """All devices below the host bridges, in the file's order."""
    reader = _Reader(version, source)
    for root in roots:
        if root.device.kind == "OSDev":
            reader.loose.append(root)
        else:
            reader.read(root.device, None, root)
    return reader.result()


@dataclass(frozen=True, slots=True)
class _Function:
    """A PCI function with its OS devices."""

    at: HwlocObject
    address: str
    code: int
    vendor: int
    device: int
    parent: str | None
    place: Attached
    os: tuple[tuple[str, HwlocObject], ...]

    def of(self, *kinds: str) -> list[HwlocObject]:
        return [device for kind, device in self.os if kind in kinds]

    @property
    def product(self) -> str:
        return self.at.infos().get("PCIDevice") or self.at.name


class _Reader:
    def __init__(self, version: int, source: str) -> None:
        self.version, self.source = version, source
        self.found = HwlocDevices()
        self.addresses: set[str] = set()
        self.twice: list[str] = []
        #: GPUs that no driver shows, and whether one shows any
        self.undriven: list[str] = []
        self.driven = False
        self.hosts = 0
        self.bridges: list[Bridge] = []
        self.gpus: list[Gpu] = []
        self.nics: list[Nic] = []
        self.nvme: list[Nvme] = []
        self.nvswitches: list[Switch] = []
        #: OS devices without a PCI function, where hwloc was told to leave PCI out
        self.loose: list[Attached] = []

    def read(self, at: HwlocObject, parent: str | None, place: Attached) -> None:
        if at.kind == "Bridge":
            parent = self.bridge(at, parent, place)
            for child in at.children():
                self.read(child, parent, place)
        elif at.kind == "PCIDev":
            self.function(at, parent, place)

    def address(self, at: HwlocObject) -> str:
        address = parse_pci_address(at.text("pci_busid") or "", self.source)
        if address in self.addresses:
            self.twice.append(address)
        self.addresses.add(address)
        return address

    def bridge(self, at: HwlocObject, parent: str | None, place: Attached) -> str:
        kind = at.text("bridge_type") or ""
        if not re.fullmatch("[01]-1", kind):
            raise Refused(f"{self.source}: a Bridge has bridge_type={kind[:20]!r}; 0-1 and 1-1 are known.", code="illegal")
        if kind == "0-1":
            bridge = Bridge(f"host{self.hosts}", BridgeKind.HOST, numa_node=place.numa_node)
            self.hosts += 1
        else:
            bridge = Bridge(self.address(at), BridgeKind.PCIE, parent, at.link_gbps())
        self.bridges.append(bridge)
        return bridge.id

    def function(self, at: HwlocObject, parent: str | None, place: Attached) -> None:
        address = self.address(at)
        words = re.match(r"([0-9a-fA-F]{4}) \[([0-9a-fA-F]{4}):([0-9a-fA-F]{4})\]", at.text("pci_type") or "")
        if words is None:
            raise Refused(
                f"{self.source}: {address} has pci_type={(at.text('pci_type') or '')[:40]!r}, no PCI class.", code="illegal"
            )
        code, vendor, device = (int(word, 16) for word in words.groups())
        os = tuple((kind, child) for child in at.children() if child.kind == "OSDev" for kind in self.os_kinds(child))
        function = _Function(at, address, code, vendor, device, parent, place, os)
        backends = _gpu_backends(device for _, device in os)
        self.driven |= bool(backends)
        kind = kind_of(code, vendor, device)
        # hwloc knows an NVSwitch also from the links of GPUs, where its own PCI class could not be read.
        if is_nvswitch(code, vendor) or at.subtype == "NVSwitch":
            self.nvswitches.append(Switch(address, SwitchKind.NVSWITCH))
            self.remember(at, address)
        elif kind == "gpu" or backends:
            self.undriven += [] if backends else [address]
            self.add_gpus(function, backends)
        elif kind == "nic" or function.of("openfabrics") or (function.of("network") and code >> 8 != _SERIAL_BUS):
            self.nics.append(_nic(function))
        elif kind == "nvme":
            self.nvme.append(_nvme(function))
        check_device_count(len(self.gpus), len(self.nics), self.source)

    def os_kinds(self, at: HwlocObject) -> list[str]:
        number = at.number("osdev_type")
        if number is None:
            return []
        if self.version >= 3:
            return [name for bit, name in _OS_BITS.items() if number & bit]
        return [_OS_TYPES[number]] if number in _OS_TYPES else []

    def remember(self, at: HwlocObject, id_: str) -> None:
        """How matrices and peers will call this object."""
        if (number := at.number("gp_index")) is not None:
            self.found.ids[f"{at.kind}:{number}"] = id_
        if at.kind == "OSDev" and at.name:
            self.found.names[at.name] = id_

    def add_gpus(self, function: _Function, backends: dict[str, list[HwlocObject]]) -> None:
        parts = max((len(devices) for name, devices in backends.items() if name != "opencl"), default=1)
        whole_name = ""
        for part in range(parts):
            id_ = function.address if part == 0 else f"{function.address}/{part}"
            views = [devices[part] for devices in backends.values() if part < len(devices)]
            infos = [view.infos() for view in views]
            whole_name = next((info["GPUModel"] for info in infos if info.get("GPUModel")), "") or whole_name or function.product
            self.gpus.append(
                Gpu(
                    id=id_,
                    name=whole_name,
                    vendor=GPU_VENDOR_NAMES.get(function.vendor) or _vendor(infos),
                    memory_bytes=_gpu_memory(infos, self.source),
                    pci=function.address,
                    index=_driver_number(views),
                    uuid=next((info["NVIDIAUUID"] for info in infos if info.get("NVIDIAUUID")), None),
                    numa_node=function.place.numa_node,
                    cpus=members(function.place.cpus_mask),
                    pcie_gbps=function.at.link_gbps(),
                    parent=function.parent,
                )
            )
            for view, info in zip(views, infos, strict=True):
                self.remember(view, id_)
                if info.get("XGMIPeers"):
                    self.found.peers[id_] = tuple(info["XGMIPeers"].split())
        self.remember(function.at, function.address)

    def add_loose_gpus(self) -> None:
        """GPUs of a file without PCI. CUDA and NVML list the same ones: only the best view per maker counts."""
        taken: dict[str, str] = {}
        for backend in _GPU_BACKENDS:
            for place in self.loose:
                views = _gpu_backends([place.device]).get(backend)
                if not views:
                    continue
                info = place.device.infos()
                vendor = _vendor([info])
                if taken.setdefault(vendor, backend) != backend:
                    continue
                self.gpus.append(
                    Gpu(
                        id=place.device.name,
                        name=info.get("GPUModel", ""),
                        vendor=vendor,
                        memory_bytes=_gpu_memory([info], self.source),
                        index=_driver_number(views),
                        uuid=info.get("NVIDIAUUID"),
                        numa_node=place.numa_node,
                        cpus=members(place.cpus_mask),
                    )
                )
                self.remember(place.device, place.device.name)
                check_device_count(len(self.gpus), len(self.nics), self.source)

    def result(self) -> HwlocDevices:
        self.add_loose_gpus()
        found = self.found
        found.bridges, found.gpus, found.nics = tuple(self.bridges), tuple(self.gpus), tuple(self.nics)
        found.nvme, found.nvswitches = tuple(self.nvme), tuple(self.nvswitches)
        listed = (*found.bridges, *found.gpus, *found.nics, *found.nvme, *found.nvswitches)
        ids = Counter(device.id for device in listed)
        for id_, count in ids.items():
            if count > 1:
                raise Refused(f"{self.source}: two devices or bridges are both at {id_}.", code="illegal")
        # Where only one of the two is a device that we list, nothing depends on the other.
        notes = [f"Two PCI functions of the file are both at {address}." for address in self.twice]
        if self.driven and self.undriven:
            notes.append(f"No driver that hwloc asked shows the GPUs {', '.join(self.undriven)}: they may not be usable.")
        found.notes = tuple(notes)
        return found


def _gpu_backends(devices: Iterable[HwlocObject]) -> dict[str, list[HwlocObject]]:
    """The views of a GPU by backend, best first. Intel's tiles (`ze0.1`) are parts of `ze0`, not GPUs of their own."""
    found: dict[str, list[HwlocObject]] = {}
    for device in devices:
        match = re.fullmatch(r"(nvml|cuda|rsmi|ze|opencl)[0-9]+(d[0-9]+)?", device.name)
        if match is None or device in found.get(match[1], []):
            continue
        if match[1] == "opencl" and device.infos().get("OpenCLDeviceType", "GPU") != "GPU":
            continue
        found.setdefault(match[1], []).append(device)
    return {name: found[name] for name in _GPU_BACKENDS if name in found}


def _vendor(infos: Sequence[dict[str, str]]) -> str:
    words = next((info["GPUVendor"].lower() for info in infos if info.get("GPUVendor")), "")
    return next((name for start, name in _VENDOR_WORDS.items() if words.startswith(start)), "")


def _gpu_memory(infos: Sequence[dict[str, str]], source: str) -> int | None:
    for name in _MEMORY_INFOS:
        for info in infos:
            if info.get(name):
                return parse_number(info[name], f"{source}: a GPU with {name}") * 1024
    return None


def _driver_number(views: Sequence[HwlocObject]) -> int | None:
    match = re.search(r"([0-9]{1,9})$", views[0].name) if views else None
    return int(match[1]) if match else None


def _nic(function: _Function) -> Nic:
    fabrics, networks = function.of("openfabrics"), function.of("network")
    slingshot = function.vendor == CRAY or any(device.subtype == "Slingshot" for device in networks)
    if fabrics:
        ports = [port for device in fabrics for port in _fabric_ports(device, function.code)]
    else:
        link = "Slingshot" if slingshot else "Ethernet" if function.code == 0x0200 else None
        ports = [Port(device.name, link=link) for device in networks]
    named = [*fabrics, *networks]
    return Nic(
        id=function.address,
        name=named[0].name if named else "",
        pci=function.address,
        ports=tuple(ports),
        # A function with a driver but without an RDMA device has none; without any driver it can't be told.
        rdma=True if fabrics or slingshot else False if networks else None,
        numa_node=function.place.numa_node,
        pcie_gbps=function.at.link_gbps(),
        parent=function.parent,
    )


def _fabric_ports(device: HwlocObject, code: int) -> list[Port]:
    """hwloc tells the state of each port but not its rate. Only InfiniBand hands out LIDs; RoCE leaves them 0."""
    infos = device.infos()
    numbers = sorted(int(match[1]) for name in infos if (match := re.fullmatch(r"Port([0-9]{1,3})State", name)))
    ports: list[Port] = []
    for number in numbers or [1]:
        state, lid = infos.get(f"Port{number}State"), infos.get(f"Port{number}LID", "")
        infiniband = code == 0x0207 or re.fullmatch(r"0x0*[1-9a-f][0-9a-f]*", lid) is not None
        link = "InfiniBand" if infiniband else "Ethernet" if code == 0x0200 and numbers else None
        name = f"{device.name}:{number}" if len(numbers) > 1 else device.name
        ports.append(Port(name, link=link, up=None if state is None else state == _ACTIVE_STATE))
    return ports


def _nvme(function: _Function) -> Nvme:
    """A drive may be cut into namespaces (`nvme0n1`, `nvme0n2`): it is named after the first and as large as all."""
    parts = sorted(function.of("storage"), key=lambda part: part.name)
    sizes = [part.infos().get("Size") for part in parts]
    total = sum(
        parse_number(size, f"{part.source}: {part.name} with Size") * 1024
        for part, size in zip(parts, sizes, strict=True)
        if size
    )
    return Nvme(
        id=function.address,
        name=parts[0].name if parts else function.product,
        pci=function.address,
        size_bytes=total if 0 < total < 2**62 else None,
        numa_node=function.place.numa_node,
        pcie_gbps=function.at.link_gbps(),
        parent=function.parent,
    )
