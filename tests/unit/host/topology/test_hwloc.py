"""hwloc XML of versions 1, 2 and 3: small machines of our own, every recorded file, and damaged ones."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.topology.hwloc import read_hwloc_xml
from steelyard.model.topology import BridgeKind, PathClass, SwitchKind, Topology

GPU = '<object type="OSDev" gp_index="{gp}" name="{name}" osdev_type="{kind}">{infos}</object>'


def info(**infos: str) -> str:
    return "".join(f'<info name="{name}" value="{value}"/>' for name, value in infos.items())


def pci(address: str, code: str, inner: str = "", gp: int = 0, speed: str = "15.753846") -> str:
    return (
        f'<object type="PCIDev" gp_index="{gp}" pci_busid="{address}" pci_type="{code} [0000:0000] 00" pci_link_speed="{speed}">'
        f"{inner}</object>"
    )


def bridge(inner: str, address: str = "") -> str:
    if not address:
        return f'<object type="Bridge" bridge_type="0-1" depth="0" bridge_pci="0000:[00-0f]">{inner}</object>'
    return (
        f'<object type="Bridge" bridge_type="1-1" pci_busid="{address}" pci_type="0604 [10b5:9781] [0:0] 00"'
        f' pci_link_speed="15.753846">{inner}</object>'
    )


def package(number: int, io: str = "", node: str = "") -> str:
    """Two cores of two threads with a NUMA node of 1 GiB; CPUs 4n to 4n+3."""
    first = 4 * number
    cores = "".join(
        f'<object type="Core" os_index="{core}"><object type="PU" os_index="{first + core}"/>'
        f'<object type="PU" os_index="{first + core + 2}"/></object>'
        for core in range(2)
    )
    mask = f'cpuset="{0xF << first:#010x}" nodeset="{1 << number:#010x}"'
    return (
        f'<object type="Package" os_index="{number}" {mask}>'
        f'<object type="NUMANode" os_index="{number}" {mask} local_memory="1073741824"/>{node}'
        f'<object type="L3Cache" {mask} cache_size="1048576" depth="3" cache_type="0">{cores}</object>{io}</object>'
    )


def machine(*packages: str, after: str = "", version: str = "2.0", top: str = 'cpuset="0x000000ff" nodeset="0x00000003"') -> str:
    return (
        f'<?xml version="1.0"?><!DOCTYPE topology SYSTEM "hwloc2.dtd"><topology version="{version}">'
        f'<object type="Machine" os_index="0" {top}>{"".join(packages)}</object>{after}</topology>'
    )


def gpu_node(number: int, address: str, gp: int, version: int = 2) -> str:
    kinds = ("5", "1") if version == 2 else ("8", "12")
    views = GPU.format(
        gp=gp, name=f"cuda{number}", kind=kinds[0], infos=info(GPUModel="Tesla V100", CUDAGlobalMemorySize="16777216")
    ) + GPU.format(
        gp=gp + 1,
        name=f"nvml{number}",
        kind=kinds[1],
        infos=info(GPUModel="Tesla V100", GPUVendor="NVIDIA Corporation", NVIDIASerial="S3CR3T", NVIDIAUUID=f"GPU-{number}"),
    )
    return pci(address, "0302 [10de:1db1]", views, gp=gp + 2)


def matrix(name: str, objects: list[str], rows: list[list[int]]) -> str:
    values = " ".join(str(value) for row in rows for value in row)
    return (
        f'<distances2hetero nbobjs="{len(objects)}" kind="25" name="{name}"><indexes length="1">{" ".join(objects)} </indexes>'
        f'<u64values length="1">{values} </u64values></distances2hetero>'
    )


def read(text: str) -> Topology:
    topology = read_hwloc_xml(text, "box.xml")
    msgspec.json.encode(topology)
    return topology


def refusal(text: str) -> str:
    with pytest.raises(Refused) as caught:
        read(text)
    assert "box.xml" in caught.value.public
    return caught.value.public


def by_pair(topology: Topology) -> dict[tuple[str, str], str]:
    return {(pair.a, pair.b): pair.class_name for pair in topology.pairs}


def test_packages_nodes_cores_threads_and_caches_are_counted() -> None:
    topology = read(machine(package(0), package(1)))
    assert (topology.packages, topology.threads, topology.smt_known) == (2, 8, True)
    assert [(core.cpus, core.package, core.numa_node) for core in topology.cores] == [
        ((0, 2), 0, 0),
        ((1, 3), 0, 0),
        ((4, 6), 1, 1),
        ((5, 7), 1, 1),
    ]
    assert [(node.id, node.cpus, node.memory_bytes) for node in topology.numa_nodes] == [
        (0, (0, 1, 2, 3), 2**30),
        (1, (4, 5, 6, 7), 2**30),
    ]
    assert [(cache.level, cache.kind, cache.size_bytes, cache.cpus) for cache in topology.caches] == [
        (3, "Unified", 2**20, (0, 1, 2, 3)),
        (3, "Unified", 2**20, (4, 5, 6, 7)),
    ]
    assert topology.memory_bytes == 2 * 2**30
    assert topology.sources == ("hwloc XML v2 (box.xml)",)


def test_only_online_and_allowed_cpus_count() -> None:
    topology = read(machine(package(0), package(1), top='cpuset="0x000000fb" allowed_cpuset="0x0000003f" nodeset="0x3"'))
    assert [core.cpus for core in topology.cores] == [(0,), (1, 3), (4,), (5,)]
    assert any("3 logical CPUs" in note for note in topology.notes)


def test_fast_memory_is_listed_and_takes_no_cpu_from_ordinary_memory() -> None:
    fast = '<object type="NUMANode" os_index="{}" subtype="HBM" cpuset="{}" nodeset="0x4" local_memory="4096"/>'
    topology = read(machine(package(0, node=fast.format(2, "0xf")), package(1)))
    assert [(node.id, node.cpus) for node in topology.numa_nodes] == [(0, (0, 1, 2, 3)), (1, (4, 5, 6, 7)), (2, ())]
    assert topology.gpu_memory_nodes == ()
    assert any("HBM" in note for note in topology.notes)


@pytest.mark.parametrize("version", [2, 3])
def test_two_views_of_a_gpu_are_one_gpu_without_its_serial(version: int) -> None:
    io = bridge(bridge(gpu_node(0, "0000:02:00.0", 100, version), "0000:01:00.0"))
    topology = read(machine(package(0, io), package(1), version=f"{version}.0"))
    (gpu,) = topology.gpus
    assert (gpu.id, gpu.name, gpu.vendor, gpu.memory_bytes, gpu.index) == ("0000:02:00.0", "Tesla V100", "NVIDIA", 2**34, 0)
    assert (gpu.uuid, gpu.numa_node, gpu.cpus, gpu.pcie_gbps, gpu.parent) == ("GPU-0", 0, (0, 1, 2, 3), 126.031, "0000:01:00.0")
    assert "S3CR3T" not in repr(topology)


def test_a_pcie_switch_joins_what_hangs_on_its_ports() -> None:
    ports = [bridge(gpu_node(n, f"0000:{n + 4:02x}:00.0", 100 * n + 100), f"0000:03:0{n}.0") for n in range(2)]
    switch = bridge(bridge("".join(ports), "0000:02:00.0"), "0000:01:00.0")
    far = bridge(bridge(gpu_node(2, "0000:82:00.0", 900), "0000:81:00.0"))
    topology = read(machine(package(0, bridge(switch)), package(1, far)))
    assert [(switch.id, switch.kind) for switch in topology.switches] == [("0000:02:00.0", SwitchKind.PCIE)]
    assert [bridge.kind for bridge in topology.bridges].count(BridgeKind.HOST) == 2
    assert by_pair(topology) == {
        ("0000:04:00.0", "0000:05:00.0"): "PIX",
        ("0000:04:00.0", "0000:82:00.0"): "SYS",
        ("0000:05:00.0", "0000:82:00.0"): "SYS",
    }
    assert any("NVLink" in note for note in topology.notes)


def test_direct_nvlinks_are_counted_in_whole_links() -> None:
    io = bridge("".join(gpu_node(n, f"0000:0{n + 1}:00.0", 100 * n + 100) for n in range(3)))
    rows = [[10**6, 50_000, 0], [50_000, 10**6, 25_000], [0, 25_000, 10**6]]
    text = machine(package(0, io), package(1), after=matrix("NVLinkBandwidth", ["OSDev:101", "OSDev:201", "OSDev:301"], rows))
    topology = read(text)
    assert [(pair.class_name, pair.gbps) for pair in topology.pairs] == [("NV2", 400.0), ("PHB", None), ("NV1", 200.0)]
    assert [gpu.links for gpu in topology.gpus] == [2, 3, 1]


def test_nvswitches_join_all_gpus_at_the_narrower_ones_links() -> None:
    gpus = [gpu_node(n, f"0000:0{n + 1}:00.0", 100 * n + 100) for n in range(2)]
    switches = [pci(f"0000:0{n + 5}:00.0", "0680 [10de:1ac2]", gp=500 + n) for n in range(2)]
    objects = ["OSDev:101", "OSDev:201", "PCIDev:500", "PCIDev:501"]
    rows = [[0, 0, 50_000, 25_000], [0, 0, 0, 25_000], [50_000, 0, 0, 0], [25_000, 25_000, 0, 0]]
    text = machine(package(0, bridge("".join(gpus + switches))), package(1), after=matrix("NVLinkBandwidth", objects, rows))
    topology = read(text)
    assert by_pair(topology) == {("0000:01:00.0", "0000:02:00.0"): "NV1"}
    assert [gpu.links for gpu in topology.gpus] == [3, 1]
    assert [switch.kind for switch in topology.switches] == [SwitchKind.NVSWITCH] * 2


def test_a_gpu_in_parts_is_several_gpus_joined_by_xgmi() -> None:
    views = "".join(
        GPU.format(gp=700 + n, name=f"rsmi{n}", kind="1", infos=info(GPUModel="MI300A" if n == 0 else "", GPUVendor="AMD"))
        for n in range(3)
    )
    after = matrix("XGMIBandwidth", [f"OSDev:{700 + n}" for n in range(3)], [[10**6, 10**5, 10**5]] * 3)
    topology = read(machine(package(0, bridge(pci("0000:02:00.0", "1200 [1002:74a0]", views))), package(1), after=after))
    assert [(gpu.id, gpu.name, gpu.index) for gpu in topology.gpus] == [
        ("0000:02:00.0", "MI300A", 0),
        ("0000:02:00.0/1", "MI300A", 1),
        ("0000:02:00.0/2", "MI300A", 2),
    ]
    assert {(pair.class_name, pair.gbps) for pair in topology.pairs} == {("XGMI", 800.0)}
    assert len(topology.pairs) == 3


def test_tiles_platforms_and_consoles_are_no_gpus() -> None:
    views = "".join(
        GPU.format(gp=1, name=name, kind="5", infos="") for name in ("ze0", "ze0.0", "ze0.1", "opencl0d0", "opencl1d0")
    )
    devices = [
        pci("0000:01:00.0", "0380 [8086:0bd5]", views),
        pci("0000:02:00.0", "0300 [1a03:2000]"),
        pci("0000:03:00.0", "0300 [102b:0532]"),
        pci("0000:04:00.0", "0300 [1002:515e]"),
        pci("0000:05:00.0", "1200 [8086:7d1d]"),
    ]
    assert [gpu.id for gpu in read(machine(package(0, bridge("".join(devices))), package(1))).gpus] == ["0000:01:00.0"]


def test_gpus_of_a_file_without_pci_are_counted_once() -> None:
    views = [
        GPU.format(gp=n, name=name, kind="5", infos=info(GPUVendor="NVIDIA Corporation"))
        for n, name in enumerate(("cuda0", "nvml0"))
    ]
    topology = read(machine(package(0, "".join(views)), package(1)))
    assert [(gpu.id, gpu.pci, gpu.numa_node) for gpu in topology.gpus] == [("nvml0", None, 0)]


def test_an_interface_and_its_rdma_device_are_one_nic_without_addresses() -> None:
    state = info(NodeGUID="aa:bb", Port1State="4", Port1LID="0x2dbf", Port2State="1", Port2LID="0x0")
    views = GPU.format(gp=1, name="hsi0", kind="2", infos=info(Address="aa:bb")) + GPU.format(
        gp=2, name="mlx5_0", kind="3", infos=state
    )
    cards = [
        pci("0000:01:00.0", "0207 [15b3:1019]", views),
        pci("0000:02:00.0", "0200 [17db:0501]", GPU.format(gp=3, name="hsi1", kind="2", infos="")),
        pci("0000:03:00.0", "0200 [8086:1521]", GPU.format(gp=4, name="eth0", kind="2", infos="")),
        pci("0000:04:00.0", "0c03 [8086:1d26]", GPU.format(gp=5, name="usb0", kind="2", infos="")),
    ]
    topology = read(machine(package(0, bridge("".join(cards))), package(1)))
    assert [(nic.name, nic.rdma) for nic in topology.nics] == [("mlx5_0", True), ("hsi1", True), ("eth0", False)]
    assert [(port.name, port.link, port.up) for port in topology.nics[0].ports] == [
        ("mlx5_0:1", "InfiniBand", True),
        ("mlx5_0:2", "InfiniBand", False),
    ]
    assert [nic.ports[0].link for nic in topology.nics[1:]] == ["Slingshot", "Ethernet"]
    assert "aa:bb" not in repr(topology)


def test_a_drive_is_as_large_as_its_namespaces() -> None:
    views = "".join(GPU.format(gp=n, name=f"nvme0n{n}", kind="0", infos=info(Size="1000", SerialNumber="S3CR3T")) for n in (1, 2))
    topology = read(machine(package(0, bridge(pci("0000:01:00.0", "0108 [144d:a80a]", views))), package(1)))
    assert [(nvme.id, nvme.name, nvme.size_bytes) for nvme in topology.nvme] == [("0000:01:00.0", "nvme0n1", 2_048_000)]
    assert "S3CR3T" not in repr(topology)


def test_devices_at_the_whole_machine_have_no_numa_node() -> None:
    topology = read(machine(package(0), package(1), bridge(gpu_node(0, "0000:01:00.0", 100))))
    assert (topology.gpus[0].numa_node, topology.gpus[0].cpus, topology.bridges[0].numa_node) == (None, (), None)


def test_distances_stand_in_the_order_of_the_nodes() -> None:
    after = (
        '<distances2 type="NUMANode" nbobjs="2" kind="5" name="NUMALatency" indexing="os"><indexes length="4">1 0 </indexes>'
        '<u64values length="9">11 21 22 12 </u64values></distances2>'
    )
    assert read(machine(package(0), package(1), after=after)).numa_distances == ((12, 22), (21, 11))


VERSION_1 = """<?xml version="1.0"?>
<!DOCTYPE topology SYSTEM "hwloc.dtd">
<topology><object type="Machine" os_index="0" cpuset="0xf" complete_cpuset="0xff" online_cpuset="0xf" allowed_cpuset="0xf">
  <info name="Architecture" value="ppc64le"/>
  <distances nbobjs="4" relative_depth="1" latency_base="10.000000">
    {latencies}
  </distances>
  <object type="NUMANode" os_index="0" cpuset="0x3" nodeset="0x1" local_memory="1000000">
    <object type="Socket" os_index="0" cpuset="0x3" nodeset="0x1">
      <object type="Cache" cpuset="0x3" cache_size="32768" depth="1" cache_type="1">
        <object type="Core" os_index="0"><object type="PU" os_index="0"/><object type="PU" os_index="1"/></object></object>
    </object>
    <object type="Bridge" bridge_type="0-1" bridge_pci="0004:[00-0a]">
      <object type="PCIDev" name="Tesla V100" pci_busid="0004:04:00.0" pci_type="0302 [10de:1db1] [10de:1212] a1"
        pci_link_speed="0.000000"><object type="OSDev" name="cuda0" osdev_type="5">
          <info name="CUDAGlobalMemorySize" value="16384"/></object></object>
      <object type="PCIDev" name="Tesla V100" pci_busid="0004:05:00.0" pci_type="0302 [10de:1db1] [10de:1212] a1"
        pci_link_speed="0.000000"/></object></object>
  <object type="NUMANode" os_index="8" cpuset="0xc" nodeset="0x100" local_memory="2000000">
    <object type="Socket" os_index="8"><object type="Core" os_index="0"><object type="PU" os_index="2"/>
      <object type="PU" os_index="3"/></object></object></object>
  <object type="NUMANode" os_index="254" cpuset="0x0" nodeset="0x0" local_memory="16777000"/>
  <object type="NUMANode" os_index="255" cpuset="0x0" nodeset="0x0" local_memory="16777000"/>
</object></topology>""".replace("{latencies}", '<latency value="1.0"/>' + '<latency value="4.0"/>' * 15)


def test_version_1_with_nodes_as_parents_and_memory_of_gpus() -> None:
    topology = read(VERSION_1)
    assert (topology.packages, topology.threads, len(topology.cores)) == (2, 4, 2)
    assert [(node.id, node.cpus) for node in topology.numa_nodes] == [(0, (0, 1)), (8, (2, 3)), (254, ()), (255, ())]
    assert topology.gpu_memory_nodes == (254, 255)
    assert topology.memory_bytes == 3_000_000
    assert [(gpu.name, gpu.numa_node, gpu.memory_bytes) for gpu in topology.gpus] == [
        ("Tesla V100", 0, 2**24),
        ("Tesla V100", 0, None),
    ]
    assert topology.numa_distances[0] == (10, 40, 40, 40)
    # Elsewhere a node without CPUs is a memory expander, however large.
    assert read(VERSION_1.replace("ppc64le", "x86_64")).gpu_memory_nodes == ()
    assert [(cache.level, cache.kind, cache.cpus) for cache in topology.caches] == [(1, "Data", (0, 1))]


def test_version_1_without_numa_has_its_memory_at_one_node() -> None:
    text = '<topology><object type="Machine" local_memory="4096"><object type="PU" os_index="0"/></object></topology>'
    topology = read(text)
    assert [(node.id, node.cpus, node.memory_bytes) for node in topology.numa_nodes] == [(0, (0,), 4096)]
    assert (topology.smt_known, topology.packages) == (False, None)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<root/>", "<root>"),
        ('<topology version="4.0"><object type="Machine"/></topology>', "4.0"),
        ('<topology version="2.0"/>', "Machine"),
        (machine(package(0), package(0)), "two places"),
        (machine(package(0).replace('local_memory="1', 'local_memory="-1')), "no number"),
        (machine(package(0).replace('local_memory="1', 'local_memory="99999999999')), "no number"),
        (machine(package(0), top='cpuset="0xf,zz"'), "no mask"),
        (machine(package(0).replace('PU" os_index', 'PU" number')), "os_index"),
        (machine(package(0, bridge(pci("0000:1:00.0", "0302 [10de:1db1]")))), "PCI address"),
        (machine(package(0, bridge(pci("0000:01:00.0", "what")))), "PCI class"),
        (machine(package(0, bridge(pci("0000:01:00.0", "0302 [10de:1db1]") * 2))), "both at"),
        (machine(package(0, bridge(pci("0000:01:00.0", "0302 [10de:1db1]", speed="nan")))), "no speed"),
        (machine(package(0), after=matrix("NVLinkBandwidth", ["OSDev:1", "OSDev:2"], [[1, 2]])), "2 names and 2 values"),
        (machine(package(0), after='<distances2 nbobjs="100000" kind="5"/>'), "at most 2048"),
        (machine(package(0), package(1))[:-30], "cut off"),
        (machine(package(0, bridge("".join(pci(f"{n:04x}:01:00.0", "0200 [1:1]") for n in range(1025))))), "more than 1024"),
    ],
)
def test_what_is_illegal_is_refused_with_its_reason(text: str, word: str) -> None:
    text = text.replace("[1:1]", "[8086:1521]")
    assert word in refusal(text)


def test_infinite_masks_are_understood() -> None:
    assert read(machine(package(0), package(1), top='cpuset="0xf...f" nodeset="0xf...f,0x0"')).threads == 8


FILES = [
    "fluxcore-sierra.xml",
    "fluxcore-tuo.SPX.xml",
    "fluxcore-tuo.TPX.xml",
    "hwloc-nvidiaDGX2.xml",
    "hwloc3-nvidiaDGX2.xml",
    "hwloc-power8gpudistances.xml",
]


def recorded_machine(name: str) -> Topology:
    return read_hwloc_xml(recorded(f"hwloc-xml/{name}").read_text(), name)


def test_every_recorded_file_has_the_stated_facts() -> None:
    facts = json.loads(recorded("manifest.json").read_text())
    checked = 0
    for entry in facts:
        if not entry["file"].startswith("hwloc-xml/"):
            continue
        topology = recorded_machine(Path(entry["file"]).name)
        stated = {word: int(number) for number, word in re.findall(r"(\d+) (pkg|NUMA|cores|PU|cuda|rsmi|nvml)\b", entry["facts"])}
        read_ = {"pkg": topology.packages, "NUMA": len(topology.numa_nodes), "PU": topology.threads}
        if topology.smt_known:
            read_["cores"] = len(topology.cores)
        for word, number in read_.items():
            assert (entry["file"], word, number) == (entry["file"], word, stated[word])
        drivers = max(stated.get(word, 0) for word in ("cuda", "rsmi", "nvml"))
        assert drivers == 0 or sum(gpu.index is not None and gpu.vendor != "" for gpu in topology.gpus) >= drivers
        count = len(topology.gpus) + len(topology.nics)
        assert len(topology.pairs) == count * (count - 1) // 2
        homes = [cpu for node in topology.numa_nodes for cpu in node.cpus]
        assert sorted(homes) == sorted(cpu for core in topology.cores for cpu in core.cpus)
        checked += 1
    assert checked >= 29


def test_sierra_has_four_v100_beside_their_memory_and_four_rails() -> None:
    topology = recorded_machine("fluxcore-sierra.xml")
    assert [gpu.name for gpu in topology.gpus] == ["Tesla V100-SXM2-16GB"] * 4
    assert [nic.name for nic in topology.nics if nic.rdma] == ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"]
    assert topology.gpu_memory_nodes == (252, 253, 254, 255)
    assert [gpu.numa_node for gpu in topology.gpus] == [0, 0, 8, 8]
    assert len(topology.numa_distances) == 6


@pytest.mark.parametrize("name", ["hwloc-nvidiaDGX2.xml", "hwloc3-nvidiaDGX2.xml"])
def test_dgx2_is_one_nvlink_fabric(name: str) -> None:
    topology = recorded_machine(name)
    assert len(topology.gpus) == 16
    assert Counter((pair.class_name, pair.gbps) for pair in topology.pairs) == {("NV6", 1200.0): 120}
    assert Counter(switch.kind for switch in topology.switches)[SwitchKind.NVSWITCH] == 12


def test_minsky_has_nvlink_inside_each_half() -> None:
    topology = recorded_machine("hwloc-power8gpudistances.xml")
    assert [pair.class_name for pair in topology.pairs] == ["NV2", "SYS", "SYS", "SYS", "SYS", "NV2"]


def test_mi300a_in_parts_is_twelve_gpus() -> None:
    whole, parts = recorded_machine("fluxcore-tuo.SPX.xml"), recorded_machine("fluxcore-tuo.TPX.xml")
    assert (len(whole.gpus), len(parts.gpus)) == (4, 12)
    assert sum(pair.path is PathClass.XGMI for pair in parts.pairs) == 66
    assert sum(nic.ports[0].link == "Slingshot" for nic in parts.nics) == 4


def test_a_truncated_recorded_file_is_refused() -> None:
    text = recorded("hwloc-xml/hwloc-power8gpudistances.xml").read_text()
    for end in range(100, len(text) - 20, 1500):
        with pytest.raises(Refused):
            read_hwloc_xml(text[:end], "box.xml")


RICH = machine(
    package(0, bridge("".join(gpu_node(n, f"0000:0{n + 1}:00.0", 100 * n + 100) for n in range(2)))),
    package(
        1, bridge(pci("0000:81:00.0", "0207 [15b3:1019]", GPU.format(gp=1, name="mlx5_0", kind="3", infos=info(Port1State="4"))))
    ),
    after=matrix("NVLinkBandwidth", ["OSDev:101", "OSDev:201"], [[0, 25_000], [25_000, 0]]),
)


def mutations(text: str) -> st.SearchStrategy[str]:
    """Pieces cut out, doubled, moved or overwritten with what numbers and names may become."""
    junk = st.sampled_from(
        ["", "0", "-1", "99999999999999999999999", "0x", "ffffffff", "NaN", "9" * 5000, "²", "\x00", "object", "<", '"']
    )
    place = st.integers(0, len(text))
    edit = st.tuples(place, st.integers(0, 200), junk | st.text(max_size=5), st.booleans())

    def apply(edits: list[tuple[int, int, str, bool]]) -> str:
        changed = text
        for at, length, new, double in edits:
            piece = changed[at : at + length]
            changed = changed[:at] + new + (piece * 2 if double else "") + changed[at + length :]
        return changed

    numbers = [match.span() for match in re.finditer(r'"[^"]*"', text)]
    value = st.tuples(st.sampled_from(numbers), junk).map(lambda pick: f'{text[: pick[0][0]]}"{pick[1]}"{text[pick[0][1] :]}')
    elements = [match.start() for match in re.finditer("<(?=[a-z/])", text)]
    dropped = st.sampled_from(list(pairwise(elements))).map(lambda pick: text[: pick[0]] + text[pick[1] :])
    return st.lists(edit, min_size=1, max_size=4).map(apply) | value | dropped


@pytest.mark.parametrize("text", [RICH, VERSION_1], ids=["version 2", "version 1"])
def test_a_damaged_file_is_read_or_refused_and_never_crashes(text: str) -> None:
    @settings(max_examples=250)
    @given(mutations(text))
    def damage(changed: str) -> None:
        with contextlib.suppress(Refused):
            topology = read_hwloc_xml(changed, "box.xml")
            assert msgspec.json.decode(msgspec.json.encode(topology), type=Topology) == topology

    damage()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_recorded_file_is_read_or_refused(name: str) -> None:
    text = recorded(f"hwloc-xml/{name}").read_text()

    @settings(max_examples=20)
    @given(mutations(text))
    def damage(changed: str) -> None:
        with contextlib.suppress(Refused):
            msgspec.json.encode(read_hwloc_xml(changed, "box.xml"))

    damage()
