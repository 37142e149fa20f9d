"""How is the machine wired, by NCCL's or RCCL's own topology XML (`NCCL_TOPO_DUMP_FILE`, or the file that a cloud ships)?

NCCL writes each PCIe switch as one element (its upstream port) and leaves root ports out, so devices of one element are PIX and a
path over two elements is PXB. It knows no paths between host bridges of one NUMA node: one `<cpu>` is one host bridge here,
within it PHB, beyond it SYS. Link rates of NVLink and xGMI are nominal (`notation.py` states the figures). CPUs come from
affinity masks; a mask of another width than the others in the file was retyped by hand: it is left out with a note. GUIDs are not
taken over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import msgspec

from steelyard.errors import Refused
from steelyard.host.devices import KINDS
from steelyard.host.topology.links import LinkTable
from steelyard.host.topology.notation import read_gigatransfers, read_mask, read_pci, read_whole
from steelyard.host.topology.pci import GPU_VENDOR_NAMES
from steelyard.host.topology.tree import make_pairs, pcie_gbps
from steelyard.host.topology.xml import parse_xml
from steelyard.model.machine import Core, NumaNode
from steelyard.model.topology import Bridge, BridgeKind, Gpu, Nic, Port, Switch, SwitchKind, Topology

_GPU_CLASSES = tuple(f"0x{code:04x}" for code, kind in KINDS.items() if kind == "gpu")
_NIC_CLASSES = ("0x02",)
_NVSWITCH_CLASS = "0x068000"
_CPU_CLASS = "0x068001"
#: how NCCL names a switch that it can't see (GB200, virtual machines)
SOME_NVSWITCH = "fffffff:ff:ff.0"
_VENDORS = {f"0x{vendor:04x}": name for vendor, name in GPU_VENDOR_NAMES.items()}
_SLINGSHOT_VENDOR, _MELLANOX_VENDOR = "0x17db", "0x15b3"
#: what a card of Mellanox shows as its class is how its first port runs; GB300's 0x080100 does not tell
_CLASS_LINKS = {"0x020000": "Ethernet", "0x020700": "InfiniBand"}
#: NCCL's `arch` of AMD GPUs counts in decimal what AMD writes in hexadecimal
_GCN = {"910": "gfx90a"}
#: no port is faster than 3.2 Tbit/s; some plugins tell their speed in another unit
_PORT_MBPS_MAX = 3_200_000
#: GPUs and NICs, and NUMA nodes, of one machine; work grows with the square of them
_DEVICES_MAX = 1024
_CPUS_MAX = 256


@dataclass
class _Reading:
    """What has been met so far on the way through one file."""

    source: str
    gpus: list[Gpu] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    bridges: list[Bridge] = field(default_factory=list)
    switches: dict[str, Switch] = field(default_factory=dict)
    links: LinkTable = field(default_factory=LinkTable)
    seen: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    #: how many bridges have this address
    twins: Counter[str] = field(default_factory=Counter)
    #: addresses of devices that the file does not describe
    nameless: list[str] = field(default_factory=list)


def read_nccl_xml(text: str, source: str) -> Topology:
    """The machine. Raises `Refused` for other XML, several machines in one file, and contradictions."""
    root = parse_xml(text, source)
    if root.tag == "graphs":
        raise Refused(
            f"{source} is what NCCL decided (a graph of rings and trees), not what the machine is: give the topology file"
            " (NCCL_TOPO_DUMP_FILE) instead."
        )
    if root.tag != "system":
        raise Refused(f"{source} is XML, but not a topology of NCCL: its root is <{root.tag[:40]}>, not <system>.")
    cpus = root.findall("cpu")
    if not cpus:
        raise Refused(f"{source} holds no <cpu>, so nothing can be told about the machine.")
    devices = sum(1 for element in root.iter() if element.tag in ("gpu", "net", "cpu")) + sum(
        element.get("class", "").startswith((*_GPU_CLASSES, *_NIC_CLASSES)) for element in root.iter("pci")
    )
    if devices > 3 * _DEVICES_MAX or len(cpus) > _CPUS_MAX:
        raise Refused(f"{source} lists more than {_DEVICES_MAX} devices, so it is no machine's.")
    machines = {cpu.get("host_hash") for cpu in cpus if cpu.get("host_hash")}
    if len(machines) > 1:
        raise Refused(f"{source} holds {len(machines)} machines: give a file with one.")
    reading = _Reading(source)
    masks = _read_masks(cpus, reading)
    for place, cpu in enumerate(cpus):
        _read_cpu(cpu, place, masks[place], reading)
    return _finish(reading, cpus, masks)


def _read_masks(cpus: list[Element], reading: _Reading) -> list[tuple[int, ...]]:
    """The CPUs of each `<cpu>`; () where there is no mask that can be trusted."""
    written = [(cpu.get("affinity") or "").strip() for cpu in cpus]
    width = Counter(len(mask) for mask in written if mask).most_common(1)
    masks: list[tuple[int, ...]] = []
    for cpu, mask in zip(cpus, written, strict=True):
        cores = read_mask(mask) if mask and len(mask) == width[0][0] else None
        if mask and cores is None:
            node = cpu.get("numaid", "?")
            reading.notes.append(
                f"NUMA node {node}: its CPU mask has another length than the others or no legal one; its CPUs are unknown."
            )
        masks.append(cores or ())
    overlap = [cpu for cpu, count in Counter(cpu for cores in masks for cpu in cores).items() if count > 1]
    if overlap:
        reading.notes.append(
            "The CPU masks of NUMA nodes overlap, so they are a container's, not the machine's; CPUs are unknown."
        )
        return [() for _ in masks]
    return masks


def _read_cpu(cpu: Element, place: int, cores: tuple[int, ...], reading: _Reading) -> None:
    node = read_whole(cpu.get("numaid"), 4095)
    host = f"host{node if node is not None else place}"
    if host in reading.seen:
        raise Refused(f"{reading.source} names NUMA node {node} twice, so it is not one machine's.")
    reading.seen.add(host)
    reading.bridges.append(Bridge(host, BridgeKind.HOST, numa_node=node))
    for child in cpu:
        if child.tag == "pci":
            _read_pci(child, host, node, cores, reading)
        elif child.tag == "nic":
            for net in child.findall("net"):
                _read_adrift(net, reading)


def _read_pci(element: Element, parent: str, node: int | None, cores: tuple[int, ...], reading: _Reading) -> None:
    address = read_pci(element.get("busid"))
    if address is None:
        raise Refused(f"{reading.source} has a PCI device with the address {element.get('busid', '')[:40]!r}, which is none.")
    kind, rate = element.get("class", ""), _rate(element)
    children, gpus, nics = element.findall("pci"), element.findall("gpu"), element.findall("nic")
    below = address
    if gpus or nics or not children:
        if address in reading.seen:
            raise Refused(f"{reading.source} names the PCI device {address} twice.")
        reading.seen.add(address)
    if gpus or kind.startswith(_GPU_CLASSES):
        _read_gpus(
            element, gpus, address, Gpu(address, pci=address, numa_node=node, cpus=cores, pcie_gbps=rate, parent=parent), reading
        )
    elif nics or kind.startswith(_NIC_CLASSES):
        nets = [net for nic in nics for net in nic.findall("net")]
        reading.nics.append(
            _nic(element, nets, Nic(address, pci=address, numa_node=node, pcie_gbps=rate, parent=parent), reading)
        )
    elif kind == _NVSWITCH_CLASS:
        reading.switches[address] = Switch(address, SwitchKind.NVSWITCH)
    elif children or kind.startswith("0x0604"):
        below = _bridge(address, parent, rate, len(children) > 1, reading)
    elif not kind:
        reading.nameless.append(address)
    for child in children:
        _read_pci(child, below, node, cores, reading)


def _bridge(address: str, parent: str, rate: float | None, is_switch: bool, reading: _Reading) -> str:
    """Its id. Retyped and virtual machines have several switches of one address: each element is one, whatever it is called."""
    twins = reading.twins[address]
    reading.twins[address] += 1
    if twins == 1:
        reading.notes.append(f"Several PCIe switches have the address {address}; they are kept apart as {address}#2 and so on.")
    name = f"{address}#{twins + 1}" if twins else address
    reading.bridges.append(Bridge(name, BridgeKind.PCIE, parent=parent, pcie_gbps=rate))
    if is_switch:
        reading.switches[name] = Switch(name, SwitchKind.PCIE)
    return name


def _rate(element: Element) -> float | None:
    return pcie_gbps(read_gigatransfers(element.get("link_speed")), read_whole(element.get("link_width"), 32))


def _read_gpus(element: Element, gpus: list[Element], address: str, bare: Gpu, reading: _Reading) -> None:
    """One PCI device holds one GPU, or several partitions of one."""
    width = read_whole(element.get("link_width"), 32)
    vendor = _VENDORS.get(element.get("vendor", ""), "")
    bare = msgspec.structs.replace(bare, vendor=vendor, pcie_width=width)
    if not gpus:
        reading.gpus.append(bare)
    for place, gpu in enumerate(gpus):
        name = address if not place else f"{address}/{place}"
        architecture = _architecture(gpu)
        amd = architecture is not None and architecture.startswith("gfx")
        links = reading.links.read(name, architecture, _targets(gpu, address, reading))
        found = msgspec.structs.replace(
            bare,
            id=name,
            vendor=vendor or ("AMD" if amd else "NVIDIA" if architecture else ""),
            index=read_whole(gpu.get("dev"), 4095),
            architecture=architecture,
            links=links,
        )
        reading.gpus.append(found)


def _architecture(gpu: Element) -> str | None:
    """`sm` is the compute capability of NVIDIA, and only the number of compute units on AMD, which has `gcn` beside it."""
    gcn = (gpu.get("gcn") or "").split(":")[0]
    if gcn:
        return gcn if gcn.startswith("gfx") else _GCN.get(gcn, f"gfx{gcn}")
    sm = read_whole(gpu.get("sm"), 999)
    return str(sm) if sm else None


def _targets(gpu: Element, address: str, reading: _Reading) -> list[tuple[str, str, int]]:
    """Its links as (kind, target, count). Kinds: `nvlink`, `xgmi` to another GPU; `switch`; `cpu`."""
    found: list[tuple[str, str, int]] = []
    for link in [*gpu.findall("nvlink"), *gpu.findall("xgmi")]:
        count = read_whole(link.get("count"), 1024)
        written, kind = (link.get("target") or "").strip().lower(), link.get("tclass", "")
        target = "some NVSwitch" if written == SOME_NVSWITCH else read_pci(written)
        if count is None or target is None:
            raise Refused(f"{reading.source}: GPU {address} has a link without a legal target and count.")
        if kind == _NVSWITCH_CLASS or written == SOME_NVSWITCH:
            reading.switches.setdefault(target, Switch(target, SwitchKind.NVSWITCH))
            found.append(("switch", target, count))
        elif kind == _CPU_CLASS:
            found.append(("cpu", target, count))
        else:
            found.append((link.tag, target, count))
    return found


def _nic(element: Element, nets: list[Element], bare: Nic, reading: _Reading) -> Nic:
    kind = element.get("class", "")
    link = _CLASS_LINKS.get(kind) if element.get("vendor") == _MELLANOX_VENDOR else None
    link = "Slingshot" if element.get("vendor") == _SLINGSHOT_VENDOR else "InfiniBand" if kind == "0x020700" else link
    ports = tuple(_port(net, nets, link, reading) for net in nets)
    return msgspec.structs.replace(
        bare,
        name=nets[0].get("name", "") if nets else "",
        ports=ports,
        rdma=True if kind == "0x020700" or any(_is_rdma(net) for net in nets) else None,
        pcie_width=read_whole(element.get("link_width"), 32),
    )


def _port(net: Element, nets: list[Element], link: str | None, reading: _Reading) -> Port:
    name = net.get("name", "")
    if sum(other.get("name") == net.get("name") for other in nets) > 1:
        name = f"{name}:{net.get('port', '?')}"
    mbps = read_whole(net.get("speed"))
    if mbps is not None and mbps > _PORT_MBPS_MAX:
        reading.notes.append(f"{name}: {mbps} Mbit/s is no port's speed, so it is unknown.")
        mbps = None
    return Port(name, gbps=mbps / 1000 if mbps else None, link=link)


def _is_rdma(net: Element) -> bool:
    """Ports count from 1 where NCCL goes through verbs or a plugin; its plain sockets have port 0."""
    return bool(read_whole(net.get("port")))


def _read_adrift(net: Element, reading: _Reading) -> None:
    """A network that has no PCI device: NCCL hangs it on its first CPU, which says nothing about where it is."""
    name = net.get("name") or f"net{len(reading.nics)}"
    if name in reading.seen:
        raise Refused(f"{reading.source} names the network {name[:40]} twice.")
    reading.seen.add(name)
    reading.nics.append(Nic(name, name=name, ports=(_port(net, [net], None, reading),), rdma=True if _is_rdma(net) else None))
    reading.notes.append(f"{name} has no PCI device here: where it hangs is unknown.")


def _finish(reading: _Reading, cpus: list[Element], masks: list[tuple[int, ...]]) -> Topology:
    if reading.nameless:
        reading.notes.append(
            f"What {len(reading.nameless)} PCI devices are is not told (no class): {', '.join(reading.nameless[:16])}."
            " They may be GPUs or NICs; merge with a source that knows."
        )
    # NCCL walks devices in the order of its ranks, which may differ from run to run: addresses make one order of them.
    gpus, nics = sorted(reading.gpus, key=lambda gpu: gpu.id), sorted(reading.nics, key=lambda nic: nic.id)
    nodes = [(read_whole(cpu.get("numaid"), 4095), cores) for cpu, cores in zip(cpus, masks, strict=True)]
    known = sorted((node, cores) for node, cores in nodes if node is not None)
    links, strange = reading.links.make_pairs([gpu.id for gpu in gpus])
    return Topology(
        sources=(f"NCCL topology ({reading.source})",),
        numa_nodes=tuple(NumaNode(node, cores, 0) for node, cores in known),
        cores=tuple(Core((cpu,), numa_node=node) for cpu, node in sorted((cpu, node) for node, cores in known for cpu in cores)),
        smt_known=False,
        gpus=tuple(gpus),
        nics=tuple(nics),
        bridges=tuple(reading.bridges),
        switches=tuple(switch for _, switch in sorted(reading.switches.items())),
        pairs=make_pairs(gpus, nics, reading.bridges, links, flattened=True),
        notes=(*reading.notes, *strange),
    )
