"""Topology from /proc and /sys: a small machine of our own, every recorded tree, and archives that mean harm."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.topology import packed
from steelyard.host.topology.linux import read_linux
from steelyard.host.topology.packed import unpack
from steelyard.host.topology.read import read_linux_packed
from steelyard.model.topology import SwitchKind, Topology

CPU, NODE, KFD = "sys/devices/system/cpu", "sys/devices/system/node", "sys/class/kfd/kfd/topology/nodes"
#: a switch with two GPUs and a NIC, and a drive at the other package
ROOT = "pci0000:00/0000:00:01.0"
SWITCH = f"{ROOT}/0000:01:00.0"
ROADS = {
    "0000:00:01.0": "pci0000:00",
    "0000:01:00.0": ROOT,
    "0000:02:00.0": SWITCH,
    "0000:02:01.0": SWITCH,
    "0000:02:02.0": SWITCH,
    "0000:03:00.0": f"{SWITCH}/0000:02:00.0",
    "0000:04:00.0": f"{SWITCH}/0000:02:01.0",
    "0000:05:00.0": f"{SWITCH}/0000:02:02.0",
    "0000:80:01.0": "pci0000:80",
    "0000:81:00.0": "pci0000:80/0000:80:01.0",
}
BRIDGE, AMD_GPU, CARD, DRIVE = (
    ("060400", "10b5", "9781"),
    ("120000", "1002", "74a1"),
    ("020700", "15b3", "1021"),
    ("010802", "144d", "a80a"),
)
CLASSES = {"0000:03:00.0": AMD_GPU, "0000:04:00.0": AMD_GPU, "0000:05:00.0": CARD, "0000:81:00.0": DRIVE}


def files() -> dict[str, str]:
    """Two packages of two single-threaded cores, a NUMA node each."""
    found = {
        f"{CPU}/online": "0-3",
        "proc/meminfo": "MemTotal:       2000 kB",
        f"{NODE}/node0/distance": "10 21",
        f"{NODE}/node1/distance": "21 10",
    }
    for node in range(2):
        found[f"{NODE}/node{node}/cpulist"] = f"{2 * node}-{2 * node + 1}"
        found[f"{NODE}/node{node}/meminfo"] = f"Node {node} MemTotal:       1000 kB"
    for cpu in range(4):
        found[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = str(cpu // 2)
        found[f"{CPU}/cpu{cpu}/topology/core_cpus_list"] = str(cpu)
    for address, road in ROADS.items():
        folder = f"sys/devices/{road}/{address}"
        code, vendor, device = CLASSES.get(address, BRIDGE)
        found |= {f"{folder}/class": f"0x{code}", f"{folder}/vendor": f"0x{vendor}", f"{folder}/device": f"0x{device}"}
        found |= {f"{folder}/max_link_speed": "32.0 GT/s PCIe", f"{folder}/max_link_width": "16"}
        found |= {f"{folder}/current_link_speed": "2.5 GT/s PCIe", f"{folder}/current_link_width": "16"}
        found[f"{folder}/numa_node"] = str(int(address > "0000:80"))
    # The kernel does not know this one's node, but which CPUs are near.
    found[f"sys/devices/{ROADS['0000:81:00.0']}/0000:81:00.0/numa_node"] = "-1"
    found[f"sys/devices/{ROADS['0000:81:00.0']}/0000:81:00.0/local_cpulist"] = "2-3"
    found[f"sys/devices/{ROADS['0000:81:00.0']}/0000:81:00.0/nvme/nvme0/nvme0n1/size"] = "2000"
    found[f"sys/devices/{ROADS['0000:81:00.0']}/0000:81:00.0/nvme/nvme0/serial"] = "S3CR3T"
    card = f"sys/devices/{ROADS['0000:05:00.0']}/0000:05:00.0"
    found |= {
        f"{card}/infiniband/mlx5_0/node_guid": "S3CR3T",
        f"{card}/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
        f"{card}/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
        f"{card}/infiniband/mlx5_0/ports/1/link_layer": "InfiniBand",
        f"{card}/infiniband/mlx5_0/ports/2/rate": "10 Gb/sec (4X SDR)",
        f"{card}/infiniband/mlx5_0/ports/2/state": "1: DOWN",
        f"{card}/net/ib0/address": "S3CR3T",
    }
    for place, bus in enumerate(("03", "04")):
        found[f"sys/devices/{ROADS[f'0000:{bus}:00.0']}/0000:{bus}:00.0/mem_info_vram_total"] = str(192 * 2**30)
        location = int(bus, 16) << 8
        found[f"{KFD}/{place + 1}/properties"] = f"simd_count 4\ngfx_target_version 90402\nlocation_id {location}\ndomain 0"
        found[f"{KFD}/{place + 1}/io_links/0/properties"] = f"type 11\nnode_to {2 - place}\nweight 15\nmax_bandwidth 64000"
    found[f"{KFD}/0/properties"] = "simd_count 0\nlocation_id 0"
    return found


def links() -> dict[str, str]:
    found = {f"sys/bus/pci/devices/{address}": f"../../../devices/{road}/{address}" for address, road in ROADS.items()}
    found["sys/class/infiniband/mlx5_0"] = f"../../devices/{ROADS['0000:05:00.0']}/0000:05:00.0/infiniband/mlx5_0"
    return found


def write(root: Path) -> Path:
    for name, text in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    for name, target in links().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


def tar(path: Path, mode: str = "w:bz2", prefix: str = "box/", extra: dict[str, tuple[bytes, str]] | None = None) -> Path:
    """`extra`: name -> (content, target of a link or "")."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        entries = {prefix + name: (text.encode(), "") for name, text in files().items()}
        entries |= {prefix + name: (b"", target) for name, target in links().items()}
        for name, (content, target) in (entries | (extra or {})).items():
            member = tarfile.TarInfo(name)
            if target:
                member.type, member.linkname = tarfile.SYMTYPE, target
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def check_own_machine(topology: Topology) -> None:
    assert (topology.packages, len(topology.cores), topology.threads, topology.smt_known) == (2, 4, 4, True)
    assert topology.numa_distances == ((10, 21), (21, 10))
    assert topology.memory_bytes == 2000 * 1024
    assert [(gpu.id, gpu.vendor, gpu.memory_bytes, gpu.architecture) for gpu in topology.gpus] == [
        ("0000:03:00.0", "AMD", 192 * 2**30, "gfx942"),
        ("0000:04:00.0", "AMD", 192 * 2**30, "gfx942"),
    ]
    assert {(gpu.numa_node, gpu.pcie_gbps, gpu.pcie_width, gpu.pcie_width_max) for gpu in topology.gpus} == {(0, 504.123, 16, 16)}
    (nic,) = topology.nics
    assert (nic.id, nic.name, nic.rdma, nic.gbps) == ("0000:05:00.0", "mlx5_0", True, 400.0)
    assert [(port.name, port.gbps, port.up) for port in nic.ports] == [("mlx5_0:1", 400.0, True), ("mlx5_0:2", None, False)]
    assert [(nvme.name, nvme.size_bytes, nvme.numa_node) for nvme in topology.nvme] == [("nvme0n1", 1_024_000, 1)]
    assert [(switch.id, switch.kind) for switch in topology.switches] == [("0000:01:00.0", SwitchKind.PCIE)]
    assert [(pair.a[5:7], pair.b[5:7], pair.class_name, pair.gbps) for pair in topology.pairs] == [
        ("03", "04", "XGMI", 512.0),
        ("03", "05", "PIX", 504.123),
        ("04", "05", "PIX", 504.123),
    ]
    assert [(bridge.id, bridge.numa_node) for bridge in topology.bridges if bridge.parent is None] == [("host0", 0), ("host1", 1)]
    assert "S3CR3T" not in repr(topology)


def test_a_tree_is_read_with_devices_links_and_paths(tmp_path: Path) -> None:
    check_own_machine(read_linux(write(tmp_path), "box"))


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:gz", "w:xz"])
def test_a_packed_tree_reads_as_the_tree_itself(tmp_path: Path, mode: str) -> None:
    check_own_machine(read_linux_packed(tar(tmp_path / "box.tar", mode)))


def test_parts_of_a_gpu_are_gpus_of_their_own(tmp_path: Path) -> None:
    tree = write(tmp_path)
    part = tree / KFD / "3"
    (part / "io_links/0").mkdir(parents=True)
    (part / "properties").write_text(f"simd_count 4\ngfx_target_version 90402\nlocation_id {(3 << 8) + 1}\ndomain 0\n")
    (part / "io_links/0/properties").write_text("type 11\nnode_to 1\n")
    topology = read_linux(tree)
    assert [gpu.id for gpu in topology.gpus] == ["0000:03:00.0", "0000:03:00.0/1", "0000:04:00.0"]
    assert topology.pairs[0].class_name == "XGMI"


def test_a_card_in_a_slower_slot_has_the_slots_speed(tmp_path: Path) -> None:
    tree = write(tmp_path)
    (tree / "sys/bus/pci/devices/0000:80:01.0/max_link_speed").write_text("16.0 GT/s PCIe\n")
    (tree / "sys/bus/pci/devices/0000:81:00.0/current_link_width").write_text("4\n")
    assert read_linux(tree).nvme[0].pcie_gbps == 63.015


def test_memory_of_an_nvidia_gpu_is_told_by_its_driver(tmp_path: Path) -> None:
    tree = write(tmp_path)
    gpu = tree / "proc/driver/nvidia/gpus/0000:03:00.0"
    gpu.mkdir(parents=True)
    (gpu / "numa_status").write_text("Node:\t\t1\n")
    (gpu / "information").write_text("Model: \t NVIDIA GH200\nGPU UUID: \t GPU-12ab\n")
    topology = read_linux(tree)
    assert topology.gpu_memory_nodes == (1,)
    assert topology.memory_bytes == 1000 * 1024
    assert (topology.gpus[0].name, topology.gpus[0].uuid) == ("NVIDIA GH200", "GPU-12ab")


def test_cpus_outside_our_cpuset_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    tree = write(tmp_path)
    (tree / "proc/self").mkdir()
    (tree / "proc/self/cpuset").write_text("/jobs/7\n")
    (tree / "proc/mounts").write_text("none /dev/cpuset cgroup rw,cpuset,noprefix 0 0\n")
    (tree / "dev/cpuset/jobs/7").mkdir(parents=True)
    (tree / "dev/cpuset/jobs/7/cpus").write_text("1-2\n")
    topology = read_linux(tree)
    assert [core.cpus for core in topology.cores] == [(1,), (2,)]
    assert any("2 of 4" in note for note in topology.notes)


def test_a_folder_without_proc_and_sys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="neither sys nor proc"):
        read_linux(tmp_path, "box")


def test_this_machine_is_read() -> None:
    topology = read_linux(Path("/"))
    assert topology.threads > 0
    assert topology.memory_bytes


@pytest.mark.parametrize("name", ["../evil", "box/sys/../../evil", "box/sys/bus/../../../../evil"])
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    archive = tar(tmp_path / "box.tar", extra={name: (b"x", "")})
    (tmp_path / "into").mkdir()
    with pytest.raises(Refused, match="leads out"):
        unpack(archive, tmp_path / "into")
    assert not (tmp_path / "evil").exists()


def test_an_absolute_name_stays_inside(tmp_path: Path) -> None:
    check_own_machine(read_linux_packed(tar(tmp_path / "box.tar", prefix="/")))


def test_links_never_lead_out_also_together(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "class").write_text("S3CR3T")
    devices = "box/sys/bus/pci/devices"
    harm = {
        f"{devices}/0000:06:00.0": (b"", str(secret)),
        f"{devices}/0000:07:00.0": (b"", "../../../../../secret"),
        # Each alone stays inside; the second climbs through the first.
        f"{devices}/0000:08:00.0": (b"", "../../../../sys"),
        f"{devices}/0000:09:00.0": (b"", "0000:08:00.0/../../secret"),
        "box/sys/devices/0000:08:00.0/x/class": (b"written through a link?", ""),
    }
    (tmp_path / "into").mkdir()
    unpack(tar(tmp_path / "box.tar", extra=harm), tmp_path / "into")
    top = os.path.realpath(tmp_path / "into")
    for folder, folders, names in os.walk(top):
        for name in (*folders, *names):
            assert os.path.realpath(os.path.join(folder, name)).startswith(top + os.sep)
    assert (secret / "class").read_text() == "S3CR3T"


def test_addresses_and_serials_are_not_even_unpacked(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    unpack(tar(tmp_path / "box.tar"), tmp_path / "into")
    texts = [path.read_text() for path in (tmp_path / "into").rglob("*") if path.is_file()]
    assert texts
    assert not any("S3CR3T" in text for text in texts)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BYTES_MAX", 2**20)
    bomb = tar(tmp_path / "box.tar", extra={"box/proc/version": (b"\0" * 2**21, "")})
    assert bomb.stat().st_size < 2**15
    with pytest.raises(Refused, match="more than 1 MiB"):
        read_linux_packed(bomb)
    monkeypatch.setattr(packed, "ENTRIES_MAX", 10)
    with pytest.raises(Refused, match="10 files"):
        read_linux_packed(tar(tmp_path / "small.tar"))


def test_a_cut_off_archive_is_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "box.tar").read_bytes()
    for part in (0, 3, 100, len(whole) // 2, len(whole) - 20):
        (tmp_path / "cut.tar").write_bytes(whole[:part])
        with pytest.raises(Refused, match=r"cut\.tar"):
            read_linux_packed(tmp_path / "cut.tar")


def test_json_of_rdma_devices_alone_is_a_machine_with_nics(tmp_path: Path) -> None:
    tree = {
        f"any/mlx5_{n}/ports/1/{name}": text
        for n in range(2)
        for name, text in {"rate": "200 Gb/sec", "state": "4: ACTIVE"}.items()
    }
    (tmp_path / "box.json").write_text(json.dumps(tree))
    topology = read_linux_packed(tmp_path / "box.json")
    assert [(nic.id, nic.gbps, nic.pci) for nic in topology.nics] == [("mlx5_0", 200.0, None), ("mlx5_1", 200.0, None)]
    assert (topology.pairs, topology.memory_bytes, topology.numa_nodes) == ((), None, ())


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '{"etc/passwd": "x"}', '{"a":' * 100_000, "{}"])
def test_json_that_is_no_tree_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "box.json").write_text(text)
    with pytest.raises(Refused, match=r"box\.json"):
        read_linux_packed(tmp_path / "box.json")


def test_ttar_keeps_contents_links_and_refuses_a_cut(tmp_path: Path) -> None:
    text = (
        "Directory: fixtures/sys\nMode: 755\n# ttar - -\nPath: fixtures/proc/meminfo\nLines: 1\nMemTotal:  7 kBEOF\nMode: 444\n"
        "Path: fixtures/sys/class/net/eth0/device\nSymlinkTo: ../../../devices/pci0000:00/0000:00:1f.6/\n"
        "Path: fixtures/sys/class/net/eth0/speed\nLines: 1\n1000\nMode: 444\n"
    )
    (tmp_path / "box.ttar").write_text(text)
    topology = read_linux_packed(tmp_path / "box.ttar")
    assert topology.memory_bytes == 7 * 1024
    assert [(nic.pci, nic.gbps) for nic in topology.nics] == [("0000:00:1f.6", 1.0)]
    (tmp_path / "box.ttar").write_text(text[: text.index("1000")])
    with pytest.raises(Refused, match="cut off"):
        read_linux_packed(tmp_path / "box.ttar")


TREES = {
    # packages, NUMA nodes, cores, threads, NICs, NVMe
    "16amd64-8n2c-cpusets": (6, 8, 10, 10, 0, 0),
    "20em64t-hybrid-1p6c2t+2ca4co1t": (1, 1, 14, 20, 0, 0),
    "256ppc-8n8s4t": (None, 8, 64, 256, 0, 0),
    "32em64t-2n8c+dax+nvme+mic+dimms": (2, 2, 16, 16, 3, 1),
    "32intel64-2p8co2t+8ve": (2, 2, 16, 32, 4, 0),
    "40intel64-2g2n4c+pcilocality": (4, 4, 40, 40, 5, 0),
    "64amd64-4s2n4ca2co": (4, 8, 32, 64, 0, 0),
    "fakepcilocalities": (4, 4, 40, 40, 5, 0),
    "memorysidecaches": (2, 4, 40, 80, 0, 0),
    "nvidia-dgx-gb10": (1, 1, 20, 20, 0, 0),
}


@pytest.mark.parametrize("name", TREES)
def test_recorded_trees_have_their_facts(name: str) -> None:
    topology = read_linux_packed(recorded(f"hwloc-fsroot/{name}.tar.bz2"))
    counted = (topology.packages, len(topology.numa_nodes), len(topology.cores), topology.threads)
    assert (*counted, len(topology.nics), len(topology.nvme)) == TREES[name]
    assert topology.memory_bytes
    assert len(topology.numa_distances) == len(topology.numa_nodes)
    msgspec.json.encode(topology)


def test_the_recorded_infiniband_of_an_h100_node() -> None:
    topology = read_linux_packed(recorded("sysfs/infiniband-h100.json"))
    fast = [nic for nic in topology.nics if nic.gbps == 400]
    assert (len(topology.nics), len(fast)) == (9, 8)
    assert all(nic.ports[0].link == "InfiniBand" and nic.ports[0].up for nic in fast)


def test_recorded_nodes_without_links_still_show_their_cards() -> None:
    good = read_linux_packed(recorded("health/gcm-learn_good.json"))
    assert ({nic.gbps for nic in good.nics}, len(good.nics), len(good.nvme)) == ({200.0}, 8, 10)
    slow = read_linux_packed(recorded("health/gcm-learn_ib_intf_bad_rate.json"))
    assert 100.0 in {nic.gbps for nic in slow.nics}
    with pytest.raises(Refused):
        read_linux_packed(recorded("health/gcm-DGX_A100.json"))


def test_the_recorded_ttar_has_cards_of_several_makers() -> None:
    topology = read_linux_packed(recorded("sysfs/procfs-fixtures-subset.ttar"))
    assert [nic.name for nic in topology.nics] == ["hfi1_0", "mlx4_0", "mlx5_0", "eth0"]


def test_any_nonsense_in_the_files_is_read(tmp_path: Path) -> None:
    tree, own = write(tmp_path), sorted(files())
    junk = st.sampled_from(["", "-1", "9" * 5000, "0-99999999999", "0x" + "f" * 40000, "²", "\0", "Unknown", "1e999", "NaN GT/s"])

    @settings(max_examples=150)
    @given(st.dictionaries(st.sampled_from(own), junk | st.text(max_size=8), min_size=1, max_size=4))
    def damage(changed: dict[str, str]) -> None:
        for name, text in changed.items():
            (tree / name).write_text(text)
        msgspec.json.encode(read_linux(tree, "box"))
        for name in changed:
            (tree / name).write_text(files()[name] + "\n")

    for odd in ("²", "99999999999", "x", "-1"):
        for folder in (CPU + "/cpu", NODE + "/node", KFD + "/", "sys/bus/pci/devices/0000:00:0"):
            (tree / f"{folder}{odd}").mkdir()
    damage()


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.binary(max_size=8), st.booleans())
def test_a_damaged_archive_is_read_or_refused(at: int, junk: bytes, inside: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = tar(Path(folder) / "box.tar", "w" if inside else "w:bz2").read_bytes()
        at %= len(whole)
        (Path(folder) / "box.tar").write_bytes(whole[:at] + junk + whole[at + len(junk) + 1 :])
        with contextlib.suppress(Refused):
            read_linux_packed(Path(folder) / "box.tar")
