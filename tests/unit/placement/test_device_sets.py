"""The choice of GPUs, cards and cores together: the same as trying everything, on invented and on recorded machines."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brute_force import brute_force
from machines import cube_mesh, make_topology, nvswitch_16, pcie_16, rail_8
from recorded import recorded
from steelyard.errors import Refused
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.topology import PathClass, Port, Topology
from steelyard.placement.best_sets import bits, find_best_sets
from steelyard.placement.devices import DeviceDemand, DevicePlan, Used, choose_devices
from steelyard.placement.gpus import GpuUse
from steelyard.placement.next_best import list_next_best
from steelyard.placement.pair_value import address_key
from steelyard.placement.symmetry import find_rules

PCIE = [PathClass.PIX, PathClass.PXB, PathClass.PHB, PathClass.NODE, PathClass.SYS]


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Up to nine GPUs and five cards: wired at random with few or many values, or in equal groups (many symmetries)."""
    gpus, nics = draw(st.integers(1, 9)), draw(st.integers(0, 5))
    seed = draw(st.randoms(use_true_random=False))
    links = draw(st.sampled_from(["none", "some", "all", "grouped"]))
    rates = draw(st.sampled_from([(None,), (200.0,), (200.0, 400.0), (100.0, 200.0, 300.1, None)]))
    paths = draw(st.lists(st.sampled_from(PCIE), min_size=1, max_size=3))
    width = draw(st.integers(1, 4))

    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        grouped = a // width == b // width
        if b < gpus and (links == "all" or (links == "some" and seed.random() < 0.5) or (links == "grouped" and grouped)):
            return seed.choice([PathClass.NV, PathClass.XGMI]), seed.randrange(3), seed.choice(rates)
        if links == "grouped":
            return (PathClass.PIX if grouped or b - gpus == a // width else PathClass.SYS), 0, None
        path = seed.choice(paths)
        return path, 0, seed.choice([None, 100.0, 252.062]) if path is PathClass.PIX else None

    nodes = draw(st.lists(st.sampled_from([0, 0, 1, 1, None]), min_size=gpus, max_size=gpus))
    made = make_topology(nodes, wiring, [0] * nics, draw(st.integers(1, 4)))
    ports = draw(st.lists(st.sampled_from(["up", "down", "slow"]), min_size=nics, max_size=nics))
    cards = [
        msgspec.structs.replace(nic, ports=(Port(nic.name, 100.0 if port == "slow" else 400.0, None, port != "down"),))
        for nic, port in zip(made.nics, ports, strict=True)
    ]
    kept = (
        [pair for pair in made.pairs if seed.random() < draw(st.sampled_from([0.8, 1.0, 1.0]))]
        if len(made.pairs) < 8
        else made.pairs
    )
    return msgspec.structs.replace(made, nics=tuple(cards), pairs=tuple(kept))


def up(topology: Topology) -> int:
    return sum(1 for nic in topology.nics if any(port.up is not False for port in nic.ports))


def compare(topology: Topology, used: Used, demand: DeviceDemand) -> DevicePlan:
    plan = choose_devices(topology, used, demand)
    assert plan is not None
    gpus, nics, remains = brute_force(topology, used, demand)
    assert (plan.gpus, plan.nics) == (gpus, nics)
    found = None if plan.remainder is None else (round(plan.remainder.smallest * 1000), round(plan.remainder.pair_sum * 1000))
    assert found == remains
    return plan


def shuffle(topology: Topology, seed: random.Random) -> Topology:
    """The same machine with everything listed in another order and other indices."""
    gpus = [msgspec.structs.replace(gpu, index=seed.randrange(100)) for gpu in topology.gpus]
    nics, pairs = list(topology.nics), list(topology.pairs)
    pairs = [msgspec.structs.replace(pair, a=pair.b, b=pair.a) if seed.random() < 0.5 else pair for pair in pairs]
    for things in (gpus, nics, pairs):
        seed.shuffle(things)
    return msgspec.structs.replace(topology, gpus=tuple(gpus), nics=tuple(nics), pairs=tuple(pairs))


@settings(max_examples=200)
@given(topology=topologies(), data=st.data(), seed=st.randoms(use_true_random=False))
def test_the_choice_is_the_one_that_trying_everything_gives(topology: Topology, data: st.DataObject, seed: random.Random) -> None:
    taken = data.draw(st.sets(st.sampled_from([gpu.id for gpu in topology.gpus]), max_size=len(topology.gpus) - 1))
    used = Used(gpus=GpuUse(dict.fromkeys(taken, 1.0)), cpus=frozenset(data.draw(st.sets(st.integers(0, 1)))))
    count = data.draw(st.integers(1, len(topology.gpus) - len(taken)))
    nics = data.draw(st.integers(0, up(topology)))
    cores = data.draw(st.integers(0, 6))
    free = sum(1 for core in topology.cores if not used.cpus & set(core.cpus))
    demand = DeviceDemand(GpuDemand(count=count), nics, min(cores, free))
    plan = compare(topology, used, demand)
    shuffled = choose_devices(shuffle(topology, seed), used, demand)
    assert shuffled is not None and (shuffled.gpus, shuffled.nics, shuffled.cores) == (plan.gpus, plan.nics, plan.cores)


def test_gpus_of_another_model_are_not_chosen_but_count_as_what_remains() -> None:
    made = cube_mesh()
    gpus = [msgspec.structs.replace(gpu, name="NVIDIA A100") if at % 2 else gpu for at, gpu in enumerate(made.gpus)]
    topology = msgspec.structs.replace(made, gpus=tuple(gpus))
    for count in (1, 2, 3, 4):
        plan = compare(topology, Used(), DeviceDemand(GpuDemand("H100", count), 1, 4))
        assert plan.remainder is not None
        assert set(plan.gpus) <= {gpu.id for gpu in gpus if "H100" in gpu.name}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("make", [cube_mesh, rail_8])
def test_machines_with_eight_gpus_agree_with_trying_everything(make: type[Topology], count: int) -> None:
    for nics, cores in ((0, 0), (2, 8)):
        compare(make(), Used(), DeviceDemand(GpuDemand(count=count), nics, cores))


@pytest.mark.parametrize(("count", "nics"), [(2, 2), (4, 1), (8, 1)])
def test_sixteen_gpus_agree_with_trying_everything(count: int, nics: int) -> None:
    if count < 8:
        compare(nvswitch_16(), Used(), DeviceDemand(GpuDemand(count=count), nics, 16))
    held = Used(gpus=GpuUse({"0000:13:00.0": 1.0, "0000:1c:00.0": 0.5}), nics=frozenset({"0000:80:00.0"}))
    compare(nvswitch_16(), held, DeviceDemand(GpuDemand(count=min(count, 4)), nics, 16))
    compare(pcie_16(), Used(), DeviceDemand(GpuDemand(count=count), 0, 16))


def test_of_equal_gpus_those_near_the_card_are_taken_with_the_cores_of_their_node() -> None:
    # the cards of the first socket are in use
    used = Used(nics=frozenset(f"0000:{0x80 + at:02x}:00.0" for at in range(4)))
    plan = choose_devices(nvswitch_16(), used, DeviceDemand(GpuDemand(count=2), 1, 8, whole_cores=True, local_memory=True))
    assert plan is not None and plan.gpus == ("0000:18:00.0", "0000:19:00.0") and plan.nics == ("0000:84:00.0",)
    assert plan.memory_nodes == (1,) and plan.core_count == 8 and len(plan.cores) == 16
    assert plan.bottleneck is not None and plan.bottleneck.class_name == "NV6" and plan.pair_sum == 1200.0


def test_gpus_that_look_alike_but_share_no_card_are_told_apart() -> None:
    """Each GPU has one near and one far card; the even ones share theirs, and so do the odd ones."""

    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        return (PathClass.NV, 4, 800.0) if b < 4 else (PathClass.PIX if a < 4 and a % 2 == b % 2 else PathClass.SYS, 0, None)

    plan = compare(make_topology([0, 0, 0, 0], wiring, [0, 0]), Used(), DeviceDemand(GpuDemand(count=2), 1))
    assert (plan.gpus, plan.nics) == (("0000:10:00.0", "0000:12:00.0"), ("0000:80:00.0",))


def test_what_remains_decides_between_equal_sets() -> None:
    """Six GPUs in a row of pairs: taking the middle pair would be as good, but would not leave more."""

    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        # 0-1, 2-3 and 1-2 are linked: {1, 2} leaves no linked pair, {0, 1} leaves {2, 3}
        return (PathClass.NV, 4, 800.0) if (a, b) in {(0, 1), (2, 3), (1, 2)} else (PathClass.SYS, 0, None)

    topology = make_topology([0, 0, 0, 0], wiring)
    # 0 comes first by address only among equals; without 0 on the list the middle pair would come first
    gpus = (topology.gpus[1], topology.gpus[2], topology.gpus[0], topology.gpus[3])
    renamed = {gpu.id: f"GPU{at}" for at, gpu in enumerate(gpus)}
    topology = msgspec.structs.replace(
        topology,
        gpus=tuple(msgspec.structs.replace(gpu, id=renamed[gpu.id]) for gpu in gpus),
        pairs=tuple(msgspec.structs.replace(pair, a=renamed[pair.a], b=renamed[pair.b]) for pair in topology.pairs),
    )
    plan = compare(topology, Used(), DeviceDemand(GpuDemand(count=2)))
    assert plan.gpus == ("GPU0", "GPU2") and plan.remainder is not None and plan.remainder.smallest == 800.0


def test_an_unknown_nvlink_bandwidth_never_loses_to_a_known_pcie_path() -> None:
    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        return (PathClass.NV, 0, None) if (a, b) == (1, 2) else (PathClass.PIX, 0, 252.0)

    plan = compare(make_topology([0, 0, 0], wiring), Used(), DeviceDemand(GpuDemand(count=2)))
    assert plan.gpus == ("0000:11:00.0", "0000:12:00.0") and "classes of paths" in plan.notes[0]


def test_a_card_that_is_down_or_slower_is_not_chosen() -> None:
    made = rail_8()
    down = msgspec.structs.replace(made.nics[0], ports=(Port("mlx5_0", 400.0, None, False),))
    slow = msgspec.structs.replace(made.nics[1], ports=(Port("mlx5_1", 25.0, None, True),))
    topology = msgspec.structs.replace(made, nics=(down, slow, *made.nics[2:]))
    plan = compare(topology, Used(), DeviceDemand(GpuDemand(count=8), 8))
    assert not {down.id, slow.id} & set(plan.nics)


def test_alternatives_are_the_next_best_sets() -> None:
    topology = cube_mesh()
    plan = choose_devices(topology, Used(), DeviceDemand(GpuDemand(count=2)), alternatives=3)
    assert plan is not None and plan.pair_sum == 400.0
    assert [other.pair_sum for other in plan.alternatives] == [400.0] * 3
    assert len({plan.gpus, *(other.gpus for other in plan.alternatives)}) == 4


rows_of = st.integers(2, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(1, 3), min_size=n, max_size=n), min_size=n, max_size=n),
        st.lists(st.lists(st.integers(1, 2), min_size=n, max_size=n), max_size=3),
    )
)


@settings(max_examples=150)
@given(drawn=rows_of, data=st.data())
def test_next_best_and_symmetry_agree_with_listing_all_sets(
    drawn: tuple[list[list[int]], list[list[int]]], data: st.DataObject
) -> None:
    raw, extra = drawn
    n = len(raw)
    rows = tuple(tuple(0 if a == b else raw[min(a, b)][max(a, b)] for b in range(n)) for a in range(n))
    size = data.draw(st.integers(1, n))
    every = [mask for mask in range(1 << n) if mask.bit_count() == size]
    every.sort(key=lambda mask: tuple(bits(mask)))

    def value(mask: int) -> tuple[int, int]:
        values = [rows[a][b] for a in bits(mask) for b in bits(mask) if a < b]
        return (min(values), sum(values)) if values else (0, 0)

    best = max(map(value, every))
    finalists = [mask for mask in every if value(mask) == best]
    assert find_best_sets(rows, (1 << n) - 1, size) == (best, finalists)
    columns = tuple(tuple(column) for column in extra)
    fewer = find_best_sets(rows, (1 << n) - 1, size, find_rules(rows, columns, [0] * n))[1]
    assert fewer[0] == finalists[0] and set(fewer) <= set(finalists)
    if not columns and min(map(min, raw)) == max(map(max, raw)):
        assert len(fewer) == 1
    rest = sorted((mask for mask in every if mask != finalists[0]), key=value, reverse=True)
    assert list_next_best(rows, (1 << n) - 1, finalists[0], 3) == rest[:3]


def test_addresses_order_by_number() -> None:
    names = [
        "GPU10",
        "0001:00:00.0",
        "GPU9",
        "0000:ff:00.0",
        "0000:0f:00.0/2",
        "0000:0f:00.0",
        "0000:0f:00.0/11",
        "mlx5_2",
        "mlx5_10",
    ]
    assert sorted(names, key=address_key) == [
        "0000:0f:00.0", "0000:0f:00.0/2", "0000:0f:00.0/11", "0000:ff:00.0", "0001:00:00.0", "GPU9", "GPU10", "mlx5_2", "mlx5_10",
    ]  # fmt: skip


def test_searches_on_impossible_machines_end_and_say_so() -> None:
    """64 partitions of eight GPUs are easy for eight of them; sixteen, or cards wired at random, are cut short."""

    def partitions(a: int, b: int) -> tuple[PathClass, int, float | None]:
        return (PathClass.PIX, 0, None) if a // 8 == b // 8 else (PathClass.XGMI, 1, None)

    topology = make_topology([at // 32 for at in range(64)], partitions)
    eight = choose_devices(topology, Used(), DeviceDemand(GpuDemand(count=8)))
    assert eight is not None and len(eight.notes) == 1 and "bandwidth" in eight.notes[0]
    assert eight.bottleneck is not None and eight.bottleneck.path is PathClass.XGMI
    sixteen = choose_devices(topology, Used(), DeviceDemand(GpuDemand(count=16)))
    assert sixteen is not None and len(set(sixteen.gpus)) == 16 and "not proven the best" in sixteen.notes[0]
    seed = random.Random(1)
    wild = make_topology([0] * 12, lambda a, b: (seed.choice(PCIE), 0, None), [0] * 40)
    plan = choose_devices(wild, Used(), DeviceDemand(GpuDemand(count=8), 5))
    assert plan is not None and len(set(plan.nics)) == 5 and len(set(plan.gpus)) == 8


def recorded_machines() -> Iterator[tuple[Path, Topology]]:
    pytest.importorskip("steelyard.host.topology.read", reason="the readers are needed")
    read_topology = importlib.import_module("steelyard.host.topology.read").read_topology
    for folder in ("hwloc-xml", "nccl-topo", "nvidia-smi", "rocm-smi"):
        for path in sorted(recorded(folder).iterdir()):
            try:
                topology = read_topology([path])
            except Refused:
                continue
            if sum(1 for gpu in topology.gpus if not gpu.mig and not gpu.mig_instances) > 1:
                yield path, topology


def test_recorded_machines_agree_with_trying_everything() -> None:
    seen = 0
    for path, topology in recorded_machines():
        whole = [gpu for gpu in topology.gpus if not gpu.mig and not gpu.mig_instances]
        # all sets of eight of sixteen take seconds each: `docs/machines.md` is made with them, here four must do
        sizes = (2, 4, 8) if len(whole) <= 8 else (2, 4)
        for count in sizes:
            if count <= len(whole) <= 16:
                nics = min(2, up_nics(topology))
                plan = compare(topology, Used(), DeviceDemand(GpuDemand(count=count), nics, min(4, len(topology.cores))))
                again = choose_devices(
                    shuffle(topology, random.Random(path.name)), Used(), DeviceDemand(GpuDemand(count=count), nics)
                )
                plain = choose_devices(topology, Used(), DeviceDemand(GpuDemand(count=count), nics))
                assert again is not None and plain is not None and (again.gpus, again.nics) == (plain.gpus, plain.nics), path.name
                assert plan.gpus
        seen += 1
    assert seen > 20


def up_nics(topology: Topology) -> int:
    return sum(1 for nic in topology.nics if not nic.ports or any(port.up is not False for port in nic.ports))
