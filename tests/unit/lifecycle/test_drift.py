"""The kept hardware beside what is seen, and what each change takes out of use."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.lifecycle.drift import check_drift, tells_less, topology_hash
from steelyard.model.health import Severity
from steelyard.model.machine import Core, NumaNode
from steelyard.model.topology import Gpu, Nic, Nvme, Pair, PathClass, Port, Topology

GIB = 1 << 30


def make_topology() -> Topology:
    gpus = tuple(
        Gpu(f"0000:{n:02x}:00.0", "NVIDIA H100", "NVIDIA", 80 * GIB, index=n, pcie_width=16, pcie_width_max=16, links=18)
        for n in range(4)
    )
    nics = tuple(
        Nic(f"0000:{n:02x}:00.0", f"mlx5_{n}", ports=(Port(f"mlx5_{n}", 400, up=True),), pcie_width=16) for n in (10, 11)
    )
    pairs = tuple(Pair(a.id, b.id, PathClass.NV, 18) for i, a in enumerate(gpus) for b in gpus[i + 1 :])
    return Topology(
        sources=("sysfs",),
        packages=2,
        numa_nodes=(NumaNode(0, (0, 1), 256 * GIB), NumaNode(1, (2, 3), 256 * GIB)),
        cores=tuple(Core((cpu,), cpu // 2, cpu // 2) for cpu in range(4)),
        memory_bytes=512 * GIB,
        gpus=gpus,
        nics=nics,
        nvme=(Nvme("0000:20:00.0", "nvme0n1", size_bytes=3840 * 10**9),),
        pairs=pairs,
    )


KEPT = make_topology()


def without(**fields: object) -> Topology:
    return msgspec.structs.replace(KEPT, **fields)


def blocked(seen: Topology) -> set[tuple[str, ...]]:
    return {finding.blocks for finding in check_drift(KEPT, seen) if finding.blocking}


def test_unchanged_hardware_passes() -> None:
    (finding,) = check_drift(KEPT, KEPT)
    assert finding.severity is Severity.PASS


@given(st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_order_and_volatile_facts_change_neither_hash_nor_findings(chance: random.Random) -> None:
    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(chance.sample(items, len(items)))

    gpus = tuple(msgspec.structs.replace(gpu, index=chance.randrange(9), uuid="GPU-x", cpus=(1,), mig=True) for gpu in KEPT.gpus)
    nics = tuple(msgspec.structs.replace(nic, ports=(Port(nic.name, 100, up=False),)) for nic in KEPT.nics)
    seen = without(
        gpus=shuffled(gpus),
        nics=shuffled(nics),
        pairs=tuple(msgspec.structs.replace(p, a=p.b, b=p.a) for p in shuffled(KEPT.pairs)),  # type: ignore[attr-defined]
        cores=shuffled(KEPT.cores),
        notes=("odd",),
        sources=("hwloc",),
    )
    assert topology_hash(seen) == topology_hash(KEPT)
    assert [finding.severity for finding in check_drift(KEPT, seen)] == [Severity.PASS]


def test_a_missing_gpu_blocks_itself_and_nothing_else() -> None:
    seen = without(gpus=KEPT.gpus[:3], pairs=tuple(p for p in KEPT.pairs if KEPT.gpus[3].id not in (p.a, p.b)))
    assert blocked(seen) == {(KEPT.gpus[3].id,)}
    assert topology_hash(seen) != topology_hash(KEPT)


def test_missing_cards_and_disks_block_themselves() -> None:
    assert blocked(without(nics=KEPT.nics[1:])) == {(KEPT.nics[0].id,)}
    assert blocked(without(nvme=())) == {(KEPT.nvme[0].id,)}


def test_fewer_lanes_block_the_device() -> None:
    seen = without(gpus=(msgspec.structs.replace(KEPT.gpus[0], pcie_width=8), *KEPT.gpus[1:]))
    assert blocked(seen) == {(KEPT.gpus[0].id,)}


@pytest.mark.parametrize("change", [{"links": 12}, {"path": PathClass.SYS, "links": 0}])
def test_lost_nvlinks_block_only_the_use_of_both_gpus_together(change: dict[str, object]) -> None:
    seen = without(pairs=(msgspec.structs.replace(KEPT.pairs[0], **change), *KEPT.pairs[1:]))
    assert blocked(seen) == {(KEPT.pairs[0].a, KEPT.pairs[0].b)}
    assert topology_hash(seen) != topology_hash(KEPT)


def test_where_no_pair_tells_it_a_gpu_with_fewer_links_blocks_itself() -> None:
    seen = without(gpus=(msgspec.structs.replace(KEPT.gpus[0], links=17), *KEPT.gpus[1:]))
    assert blocked(seen) == {(KEPT.gpus[0].id,)}


def test_missing_memory_blocks_that_memory_node() -> None:
    seen = without(numa_nodes=(KEPT.numa_nodes[0], NumaNode(1, (2, 3), 224 * GIB)))
    assert blocked(seen) == {("numa:1",)}
    slightly = without(numa_nodes=(KEPT.numa_nodes[0], NumaNode(1, (2, 3), 256 * GIB - GIB // 4)))
    assert blocked(slightly) == set()


def test_missing_cpus_warn_and_new_things_are_told() -> None:
    assert [f.severity for f in check_drift(KEPT, without(cores=KEPT.cores[:3]))] == [Severity.WARNING]
    new = without(nvme=(*KEPT.nvme, Nvme("0000:21:00.0")))
    assert [f.severity for f in check_drift(KEPT, new)] == [Severity.INFO]


def test_facts_that_a_source_does_not_tell_are_no_drift_but_do_not_replace_what_was_known() -> None:
    poor = without(gpus=tuple(msgspec.structs.replace(gpu, links=None, memory_bytes=None) for gpu in KEPT.gpus))
    assert blocked(poor) == set()
    assert tells_less(KEPT, poor) and not tells_less(poor, KEPT) and not tells_less(KEPT, KEPT)
