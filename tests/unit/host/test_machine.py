"""The inventory of small machines written as /proc and /sys trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.host.machine import observe_machine

CPUS = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def two_sockets(root: Path) -> Path:
    """Two packages, two cores each, two threads each (0-3 first threads, 4-7 second), CPU 7 offline, a NUMA node per package."""
    files = {
        f"{CPUS}/online": "0-6",
        "proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast  CPU\nflags\t\t: fpu sse",
        "sys/devices/system/node/node0/cpulist": "0-1,4-5",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       10240 kB",
        "sys/devices/system/node/node1/meminfo": "Node 1 MemTotal:        6144 kB",
        "sys/class/dmi/id/sys_vendor": "Maker",
        "sys/class/dmi/id/product_name": "Box 1",
        "etc/machine-id": "secret",
    }
    for cpu in range(7):
        core = cpu % 4
        files[f"{CPUS}/cpu{cpu}/topology/physical_package_id"] = str(core // 2)
        files[f"{CPUS}/cpu{cpu}/topology/thread_siblings_list"] = f"{core},{core + 4}"
        files[f"{CPUS}/cpu{cpu}/cache/index0/level"] = "1"
        files[f"{CPUS}/cpu{cpu}/cache/index0/type"] = "Data"
        files[f"{CPUS}/cpu{cpu}/cache/index0/size"] = "48K"
        files[f"{CPUS}/cpu{cpu}/cache/index0/shared_cpu_list"] = f"{core},{core + 4}"
    return write(root, files)


def test_cores_threads_nodes_and_caches_are_counted_without_what_is_offline(tmp_path: Path) -> None:
    machine = observe_machine(two_sockets(tmp_path))
    assert [(core.cpus, core.package, core.numa_node) for core in machine.cores] == [
        ((0, 4), 0, 0),
        ((1, 5), 0, 0),
        ((2, 6), 1, 1),
        ((3,), 1, 1),
    ]
    assert [(node.id, node.cpus, node.memory_bytes) for node in machine.numa_nodes] == [
        (0, (0, 1, 4, 5), 10240 * 1024),
        (1, (2, 3, 6), 6144 * 1024),
    ]
    assert [(cache.cpus, cache.size_bytes) for cache in machine.caches] == [(core.cpus, 48 * 1024) for core in machine.cores]
    assert (machine.memory_bytes, machine.cpu_model) == (16384 * 1024, "Fast CPU")
    assert machine.virtualisation == "bare metal"


def test_cpus_that_we_may_not_use_are_left_out(tmp_path: Path) -> None:
    write(two_sockets(tmp_path), {"proc/self/status": "Cpus_allowed_list:\t0,4-5"})
    assert observe_machine(tmp_path).cpus == (0, 4, 5)


def test_the_identity_is_a_hash_that_prefers_hardware(tmp_path: Path) -> None:
    by_install = observe_machine(two_sockets(tmp_path)).id
    assert "secret" not in by_install
    write(tmp_path, {"sys/class/dmi/id/product_uuid": "00000000-0000-0000-0000-000000000000"})
    assert observe_machine(tmp_path).id == by_install
    write(tmp_path, {"sys/class/dmi/id/product_uuid": "4c4c4544-0042-3510-8052-b4c04f564431"})
    assert observe_machine(tmp_path).id != by_install


def test_an_empty_tree_is_an_unknown_machine_and_no_error(tmp_path: Path) -> None:
    machine = observe_machine(tmp_path)
    assert (machine.cores, machine.devices, machine.memory_bytes) == ((), (), 0)
    assert machine.virtualisation == "unknown"
    assert machine.isolation.cgroups == "none"


def test_nonsense_in_the_files_is_passed_over(tmp_path: Path) -> None:
    tree = two_sockets(tmp_path)
    write(tree, {f"{CPUS}/cpu0/cache/index0/size": "huge", "proc/meminfo": "x", "sys/bus/pci/devices/0000:00:00.0/class": "?"})
    machine = observe_machine(tree)
    assert len(machine.caches) == 4
    assert machine.memory_bytes == 16384 * 1024


def test_devices_are_named_without_serials_or_addresses(tmp_path: Path) -> None:
    pci = "sys/devices/pci0000:00/0000:00:01.0"
    files: dict[str, str] = {}
    for at, (code, vendor, device) in enumerate(
        [
            ("0x030200", "0x10de", "0x2330"),
            ("0x020000", "0x15b3", "0x1021"),
            ("0x010802", "0x144d", "0xa80a"),
            ("0x030000", "0x1a03", "0x2000"),
        ]
    ):
        folder = f"{pci}/0000:0{at}:00.0"
        files |= {f"{folder}/class": code, f"{folder}/vendor": vendor, f"{folder}/device": device, f"{folder}/numa_node": "-1"}
    files |= {
        f"{pci}/0000:01:00.0/net/eth0/address": "aa:bb:cc:dd:ee:ff",
        f"{pci}/0000:01:00.0/net/eth0/speed": "100000",
        f"{pci}/0000:01:00.0/net/eth0/operstate": "up",
        f"{pci}/0000:02:00.0/nvme/nvme0/nvme0n1/size": "1953125000",
        f"{pci}/0000:02:00.0/nvme/nvme0/serial": "S3CR3T",
        "proc/driver/nvidia/gpus/0000:00:00.0/information": "Model: \t NVIDIA H100\nGPU UUID: \t GPU-S3CR3T",
        "sys/class/net/lo/operstate": "unknown",
        "usr/share/misc/pci.ids": "10de  NVIDIA Corporation\n\t2330  GH100\n15b3  Mellanox\n\t1021  MT2910",
    }
    write(tmp_path, files)
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    (tmp_path / "sys/class/block").mkdir(parents=True)
    for at in range(4):
        (tmp_path / f"sys/bus/pci/devices/0000:0{at}:00.0").symlink_to(
            f"../../../devices/pci0000:00/0000:00:01.0/0000:0{at}:00.0"
        )
    (tmp_path / "sys/class/net/eth0").symlink_to("../../devices/pci0000:00/0000:00:01.0/0000:01:00.0/net/eth0")
    (tmp_path / "sys/class/block/nvme0n1").symlink_to("../../devices/pci0000:00/0000:00:01.0/0000:02:00.0/nvme/nvme0/nvme0n1")
    devices = observe_machine(tmp_path).devices
    assert [(device.kind, device.name, device.pci, device.detail) for device in devices] == [
        ("gpu", "NVIDIA H100", "0000:00:00.0", "no driver"),
        ("nic", "eth0", "0000:01:00.0", "Ethernet, 100 Gbit/s, up"),
        ("nvme", "nvme0n1", "0000:02:00.0", "1000 GB"),
    ]
    assert "S3CR3T" not in str(devices)
    assert "aa:bb" not in str(devices)


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({"proc/cpuinfo": "flags\t: fpu hypervisor"}, "guest"),
        ({"proc/cpuinfo": "flags\t: fpu"}, "bare metal"),
        ({"proc/cpuinfo": "flags\t: fpu", "sys/class/dmi/id/sys_vendor": "QEMU"}, "guest"),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "m7g.large"}, "guest"),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "m7g.metal"}, "bare metal"),
        ({"sys/class/dmi/id/sys_vendor": "Microsoft Corporation", "sys/class/dmi/id/product_name": "Virtual Machine"}, "guest"),
        ({"sys/hypervisor/type": "xen", "proc/cpuinfo": "flags\t: fpu"}, "guest"),
        ({"proc/device-tree/hypervisor/compatible": "linux,kvm"}, "guest"),
        ({"proc/cpuinfo": "processor : 0\nplatform\t: pSeries"}, "guest"),
        ({"proc/cpuinfo": "processor : 0\nplatform\t: PowerNV"}, "bare metal"),
        ({"sys/class/dmi/id/sys_vendor": "Supermicro"}, "bare metal"),
        ({"proc/cpuinfo": "processor : 0"}, "unknown"),
    ],
)
def test_bare_metal_or_guest_is_said_with_the_evidence(tmp_path: Path, files: dict[str, str], verdict: str) -> None:
    machine = observe_machine(write(tmp_path, files))
    assert machine.virtualisation == verdict
    assert machine.virtualisation_detail.endswith(".")
