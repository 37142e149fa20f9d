from __future__ import annotations

import pytest

from steelyard.cli.machine_text import render_machine
from steelyard.model import words
from steelyard.model.ids import MachineId
from steelyard.model.machine import Cache, Core, Device, Isolation, Machine, NumaNode

ISOLATION = Isolation(
    cgroups="v2", cpuset=True, memory=False, own_uid=True, no_new_privs=True, missing=("Memory is not limited.",)
)


def make_machine(nodes: int, cores: int) -> Machine:
    """`cores` two-threaded cores per node under one L3."""
    total = nodes * cores
    members = [tuple(range(node * cores, node * cores + cores)) for node in range(nodes)]
    return Machine(
        id=MachineId("m"),
        boot_id="b",
        hostname="rigel",
        kernel="6.1",
        cpu_model="Some CPU",
        cores=tuple(Core(cpus=(cpu, cpu + total), package=0, numa_node=cpu // cores) for cpu in range(total)),
        caches=(
            *(Cache(level=3, kind="Unified", size_bytes=32 << 20, cpus=(*own, *(cpu + total for cpu in own))) for own in members),
            *(Cache(level=2, kind="Unified", size_bytes=1 << 20, cpus=(cpu, cpu + total)) for cpu in range(total)),
        ),
        numa_nodes=tuple(
            NumaNode(id=at, cpus=(*own, *(cpu + total for cpu in own)), memory_bytes=64 << 30) for at, own in enumerate(members)
        ),
        memory_bytes=nodes * 64 << 30,
        devices=(
            Device(kind="gpu", name="NVIDIA H100", pci="0000:01:00.0", numa_node=0),
            Device(kind="disk", name="sda", detail="1 TB"),
        ),
        virtualisation="bare metal",
        virtualisation_detail="The CPU's hypervisor bit is clear.",
        isolation=ISOLATION,
    )


def test_a_small_machine_is_drawn_core_by_core() -> None:
    text = render_machine(make_machine(1, 4), 60)
    assert text.splitlines()[:3] == [
        "rigel · Some CPU · Linux 6.1",
        "1 package · 4 cores · 8 threads · 1 NUMA node · 64 GiB",
        "  memory",
    ]
    assert "│ L3 32 MiB, shared by 4 cores" in text
    assert "[0 4] [1 5] [2 6] [3 7]" in text
    assert "each core: L2 1 MiB" in text
    assert "GPU  NVIDIA H100" in text
    assert "disk sda, 1 TB" in text


def test_what_is_not_isolated_is_said_with_the_reason() -> None:
    text = render_machine(make_machine(1, 2), 80)
    assert "  yes  control groups (v2)" in text
    assert "  no   memory limits" in text
    assert text.endswith("  - Memory is not limited.")


def test_a_large_machine_is_a_table_with_a_row_per_node() -> None:
    lines = render_machine(make_machine(8, 16), 100).splitlines()
    row = next(line for line in lines if line.startswith("  7 "))
    assert row.split() == ["7", "64", "GiB", "16", "112-127,240-255", "1", "x", "L3", "32", "MiB", "-"]
    assert any(line.startswith("  GPU  NVIDIA H100") for line in lines)


@pytest.mark.parametrize("width", [10, 50, 80, 110, 300])
@pytest.mark.parametrize(("nodes", "cores"), [(1, 1), (1, 64), (2, 24), (4, 48), (16, 16)])
def test_no_line_is_wider_than_asked(width: int, nodes: int, cores: int) -> None:
    lines = render_machine(make_machine(nodes, cores), width).splitlines()
    assert max(len(line) for line in lines) <= max(50, min(width, 110))
    assert len(lines) < 60


def test_sizes_are_short() -> None:
    assert [words.size(size) for size in (0, 512, 48 << 10, 1280 << 10, (24 << 30) - 5, 1536 << 30)] == [
        "0 B",
        "512 B",
        "48 KiB",
        "1.2 MiB",
        "24 GiB",
        "1.5 TiB",
    ]
