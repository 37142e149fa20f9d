"""How long does it take to choose GPUs, cards and cores of one machine, and machines of a fabric? Pure decisions, one thread.

Machines drawn here, so that anybody can measure it: sixteen equal GPUs behind NVSwitches, eight with rails, a cube mesh without
bandwidths, and 12,500 nodes of eight GPUs. The peer inside a machine is brute force (every set of GPUs), in turns.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

from bench.figures import Figure
from steelyard.model.cores import Core, NumaNode
from steelyard.model.fabric import Fabric, FabricHost, FabricLink, FabricPort, FabricSwitch
from steelyard.model.gang import GangDemand, GangPlan
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.timing import Timing
from steelyard.model.topology import Gpu, Nic, Pair, PathClass, Port, Topology
from steelyard.placement.devices import DevicePlan, Used, make_demand
from steelyard.placement.fabric import plan_gang
from steelyard.placement.fabric_state import make_state
from steelyard.placement.shortage import plan_devices

CUBE = {(0, 1): 1, (0, 2): 2, (0, 3): 1, (0, 7): 2, (1, 2): 1, (1, 3): 2, (1, 6): 2, (2, 3): 2, (2, 5): 1, (3, 4): 1}
CUBE |= {(4, 5): 2, (4, 6): 2, (4, 7): 1, (5, 6): 1, (5, 7): 2, (6, 7): 1}


def measure_placement(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds = 20 if quick else 200
    cases = {
        "8 of 16 GPUs, 4 cards, 16 cores": (draw_machine(16), 8, 4, 16),
        "8 of 16 GPUs": (draw_machine(16), 8, 0, 0),
        "4 of 8 GPUs, 4 cards, 16 cores": (draw_machine(8), 4, 4, 16),
        "4 of 8 GPUs, cube mesh": (draw_machine(8, cube=True), 4, 0, 0),
    }
    times: dict[str, list[float]] = {}
    forced: dict[str, list[float]] = {}
    for at in range(rounds):
        for name, (machine, gpus, nics, cores) in cases.items():
            say(f"round {at + 1}/{rounds}: {name}")
            demand = make_demand(GpuDemand(count=gpus), nics, cores, None, Timing.BEST_EFFORT)
            took, plan = _time(lambda machine=machine, demand=demand: plan_devices(machine, Used(), demand))
            assert isinstance(plan, DevicePlan)
            times.setdefault(name, []).append(took)
            if at < 3:
                forced.setdefault(name, []).append(_time(lambda machine=machine, gpus=gpus: _every_set(machine, gpus))[0])
    medians = {name: statistics.median(took) * 1e3 for name, took in times.items()}
    hardest = next(iter(cases))
    more = {f"{name} (ms)": value for name, value in medians.items()}
    more |= {f"{name}, worst (ms)": max(took) * 1e3 for name, took in times.items()}
    more |= {f"{name}, brute force of the pairs alone (ms)": statistics.median(took) * 1e3 for name, took in forced.items()}
    inside = Figure(
        "placement",
        f"choice inside a machine: {hardest}, p50",
        medians[hardest],
        "ms",
        "< 2 ms",
        medians[hardest] < 2,
        f"Median of {rounds}; the same choice as brute force over all rules (docs/machines.md).",
        more,
    )
    return [inside, _measure_gangs(say, 3 if quick else 20)]


def _measure_gangs(say: Callable[[str], None], rounds: int) -> Figure:
    say("gangs on 100,000 GPUs")
    fabric = _fabric(12_500)
    built, state = _time(lambda: make_state(fabric, 8))
    demand = GangDemand(nodes=16, gpus_per_node=8, preferred_level="leaf")
    times: list[float] = []
    for _ in range(rounds):
        took, plan = _time(lambda: plan_gang(state, demand))
        assert isinstance(plan, GangPlan)
        times.append(took)
        state.take_plan(plan)
    median = statistics.median(times) * 1e3
    return Figure(
        "gang",
        "choice of 16 machines of 12,500 with 8 GPUs each (100,000 GPUs), p50",
        median,
        "ms",
        "<= 20 ms",
        median <= 20,
        f"{rounds} gangs one after the other, each taken before the next; levels leaf, spine, fabric.",
        {"worst (ms)": max(times) * 1e3, "building the state (ms)": built * 1e3},
    )


def _time(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def _every_set(machine: Topology, count: int) -> tuple[str, ...]:
    """The plainest way to rules (a) and (b) alone."""
    pairs = {frozenset((pair.a, pair.b)): pair.gbps or pair.links for pair in machine.pairs}
    sets = itertools.combinations([gpu.id for gpu in machine.gpus], count)

    def value(some: tuple[str, ...]) -> tuple[float, float]:
        values = [pairs[frozenset(pair)] for pair in itertools.combinations(some, 2)]
        return min(values), sum(values)

    return max(sets, key=value)


def draw_machine(gpus: int, cube: bool = False) -> Topology:
    """Two NUMA nodes; two GPUs and one card to a PCIe switch; all GPUs joined alike, or as a cube mesh."""
    nodes = tuple(NumaNode(node, tuple(range(node * 64, node * 64 + 64)), 1 << 40) for node in (0, 1))
    cards = tuple(
        Gpu(f"0000:{at + 16:02x}:00.0", "NVIDIA H100", "NVIDIA", 80 << 30, numa_node=at * 2 // gpus) for at in range(gpus)
    )
    nics = tuple(
        Nic(f"0000:{at + 128:02x}:00.0", f"mlx5_{at}", ports=(Port(f"mlx5_{at}", 400.0),), rdma=True, numa_node=at * 4 // gpus)
        for at in range(gpus // 2)
    )
    devices = [(card, at // 2) for at, card in enumerate(cards)] + [(nic, at) for at, nic in enumerate(nics)]
    pairs: list[Pair] = []
    for (first, (a, slot_a)), (second, (b, slot_b)) in itertools.combinations(enumerate(devices), 2):
        near = PathClass.PIX if slot_a == slot_b else PathClass.NODE if a.numa_node == b.numa_node else PathClass.SYS
        links = 0 if second >= gpus else CUBE.get((first, second), 0) if cube else 18
        rate = None if cube or not links else 3600.0
        pairs.append(Pair(a.id, b.id, PathClass.NV if links else near, links, rate))
    cores = tuple(Core((cpu,), node.id, node.id) for node in nodes for cpu in node.cpus)
    return Topology(
        packages=2, numa_nodes=nodes, cores=cores, memory_bytes=2 << 40, gpus=cards, nics=nics, pairs=tuple(pairs),
        numa_distances=((10, 21), (21, 10)),
    )  # fmt: skip


def _fabric(nodes: int) -> Fabric:
    """Leaves of 20 machines, spines of 25 leaves."""
    leaves = -(-nodes // 20)
    spines = -(-leaves // 25)
    switches = [FabricSwitch(f"leaf{at}", 1) for at in range(leaves)] + [FabricSwitch(f"spine{at}", 2) for at in range(spines)]
    return Fabric(
        hosts=tuple(FabricHost(f"n{at}", (FabricPort(f"leaf{at // 20}", gbps=400.0),)) for at in range(nodes)),
        switches=tuple(switches),
        links=tuple(FabricLink(f"leaf{at}", f"spine{at // 25}") for at in range(leaves)),
    )
