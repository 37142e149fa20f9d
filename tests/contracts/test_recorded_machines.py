"""Our reader of /proc and /sys against recorded machines (hwloc's own test trees): no crash on any, and the known counts.

The recordings are not part of the project: they are looked for under STEELYARD_FIXTURES, else in `shared/fixtures` beside the
checkout. test_machine.py has small machines of its own for where they are absent."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from steelyard.cli.machine_text import render_machine
from steelyard.host.machine import observe_machine
from steelyard.model.machine import Machine

FIXTURES = Path(os.environ.get("STEELYARD_FIXTURES") or Path(__file__).parents[3] / "shared/fixtures") / "hwloc-fsroot"
TREES = sorted(FIXTURES.glob("*.tar.bz2")) if FIXTURES.is_dir() else []
#: thousands of files that we never read
UNREAD = ("*/node[0-9]*/memory[0-9]*", "*/power", "*/LNXSYSTM:00", "*/firmware", "*/pci0000:7f", "*/pci0000:ff", "*/device-tree")
#: what the recordings' own descriptions say: packages, cores, logical CPUs, NUMA nodes (None: not said)
KNOWN: dict[str, tuple[int | None, int, int, int]] = {
    "16amd64-8n2c-cpusets": (6, 10, 10, 8),  # recorded inside a cpuset of ten CPUs
    "20em64t-hybrid-1p6c2t+2ca4co1t": (1, 14, 20, 1),
    "256ppc-8n8s4t": (None, 64, 256, 8),  # its firmware numbers no packages
    "32em64t-2n8c+dax+nvme+mic+dimms": (2, 16, 16, 2),
    "32intel64-2p8co2t+8ve": (2, 16, 32, 2),
    "40intel64-2g2n4c+pcilocality": (4, 40, 40, 4),
    "64amd64-4s2n4ca2co": (4, 32, 64, 8),  # the kernel counts the two halves of a module as siblings
    "fakepcilocalities": (4, 40, 40, 4),
    "memorysidecaches": (2, 40, 80, 4),
    "nvidia-dgx-gb10": (1, 20, 20, 1),
}


@pytest.fixture(scope="module", params=TREES or [None], ids=lambda tree: tree.name.removesuffix(".tar.bz2") if tree else "absent")
def recorded(request: pytest.FixtureRequest) -> tuple[str, Machine]:
    tree: Path | None = request.param
    if tree is None:
        pytest.skip(f"no recorded machines under {FIXTURES} (set STEELYARD_FIXTURES)")
    # In memory where that can be: these are ten thousand small files, needed for a moment.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        unpack = ["tar", "--extract", "--no-same-owner", f"--file={tree}", f"--directory={folder}"]
        subprocess.run([*unpack, *(f"--exclude={part}" for part in UNREAD)], check=True)
        (root,) = Path(folder).iterdir()
        return tree.name.removesuffix(".tar.bz2"), observe_machine(root)


def test_a_recorded_machine_has_the_counts_it_is_known_for(recorded: tuple[str, Machine]) -> None:
    name, machine = recorded
    if name not in KNOWN:
        pytest.skip(f"nothing is known of {name}")
    packages, cores, cpus, nodes = KNOWN[name]
    assert packages is None or len({core.package for core in machine.cores}) == packages
    assert (len(machine.cores), len(machine.cpus), len(machine.numa_nodes)) == (cores, cpus, nodes)


def test_a_recorded_machine_is_consistent(recorded: tuple[str, Machine]) -> None:
    _, machine = recorded
    cpus = [cpu for core in machine.cores for cpu in core.cpus]
    assert len(cpus) == len(set(cpus))
    assert sorted(cpu for node in machine.numa_nodes for cpu in node.cpus) == sorted(cpus)
    assert all(cache.size_bytes > 0 and set(cache.cpus) <= set(cpus) for cache in machine.caches)
    assert machine.memory_bytes > 0
    assert machine.virtualisation in ("bare metal", "guest", "unknown")


def test_a_recorded_machine_can_be_drawn_and_shows_no_address(recorded: tuple[str, Machine]) -> None:
    _, machine = recorded
    text = render_machine(machine, 100)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert not re.search(r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", text)
