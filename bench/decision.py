"""How long does one decision over a long queue take? Pure, one thread, nothing read from a disk.

A machine drawn here (128 cores, eight GPUs, four network cards) that is nearly full: 200 jobs run, 10,000 wait. Once the queue
has 200 different shapes, once every job is another; each time one job holds the reservation, and the others are tried behind it.
Beside it a plain first fit that asks `place` for each job, as far as it gets in two seconds: the naive way to the same starts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

from bench.figures import Figure, percentile
from bench.placement import draw_machine
from steelyard.model.batch import Gang
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.machine import Isolation, Machine
from steelyard.placement.gang import place_spec
from steelyard.placement.machine import place
from steelyard.placement.room import Room
from steelyard.scheduling.decide import decide
from steelyard.scheduling.snapshot import Holding, Snapshot

_GIB = 1 << 30
_RUNNING, _QUEUED = 200, 10_000
_NOW = 1_800_000_000_000_000


def measure_decision(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds = 3 if quick else 30
    cases = {"200 shapes": make_snapshot(200), "10,000 shapes": make_snapshot(_QUEUED)}
    ranks = {f"user{at}": float(at) for at in range(20)}
    times: dict[str, list[float]] = {}
    started: dict[str, float] = {}
    for at in range(rounds):
        for name, snapshot in cases.items():
            say(f"round {at + 1}/{rounds}: {name}")
            begin = time.perf_counter()
            decision = decide(snapshot, _NOW, ranks)
            times.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)
            assert decision.reservation is not None and len(decision.order) == _QUEUED
            started[name] = float(len(decision.starts))
    worst = max(cases, key=lambda name: statistics.median(times[name]))
    say("one by one")
    more = {f"{name}, p50 (ms)": statistics.median(took) for name, took in times.items()}
    more |= {f"{name}, p99 (ms)": percentile(took, 0.99) for name, took in times.items()}
    more |= {f"{name}, started": count for name, count in started.items()}
    more["first fit that asks placement for each job, the same queue (ms)"] = _first_fit(cases[worst])
    median = statistics.median(times[worst])
    return [
        Figure(
            "decision",
            f"one decision with {_QUEUED:,} jobs queued and {_RUNNING} running, {worst}, p50",
            median,
            "ms",
            "<= 50 ms",
            median <= 50,
            f"{rounds} decisions each; 128 cores, 8 GPUs, 4 network cards; priorities, 20 accounts, gangs, one reservation.",
            more,
        )
    ]


def make_snapshot(shapes: int) -> Snapshot:
    """The same for the same number: its chance is seeded."""
    chance = random.Random(shapes)
    machine = _make_machine()
    room, holding = Room(machine), list[Holding]()
    while len(holding) < _RUNNING:
        job = _make_job(len(holding), _running_spec(chance, len(holding)), JobState.RUNNING, chance)
        plan = place_spec(room, job.spec)
        assert isinstance(plan, Plan), plan
        room.take(job.spec.demand, plan)
        holding.append(Holding(job.spec.demand, plan, job))
    specs = [_queued_spec(chance, at) for at in range(shapes)]
    queued = tuple(
        _make_job(
            _RUNNING + at, specs[at % shapes], JobState.QUEUED, chance, 100 if not at else chance.choice((10, 50, 50, 50, 90))
        )
        for at in range(_QUEUED)
    )
    return Snapshot((machine,), queued, tuple(holding))


def _running_spec(chance: random.Random, at: int) -> JobSpec:
    gpus = GpuDemand(count=1) if at < 6 else None
    cpus = 4.0 if at < 6 else chance.choice((0.25, 0.5, 0.75))
    return _make_spec(Resources(cpus, _GIB * chance.randint(1, 3), gpus=gpus), chance.randint(1000, 100_000))


def _queued_spec(chance: random.Random, at: int) -> JobSpec:
    if not at:
        return _make_spec(Resources(32, 64 * _GIB, gpus=GpuDemand(count=8)), 86_400)
    gpus = GpuDemand(count=chance.randint(1, 8)) if chance.random() < 0.3 else None
    whole = chance.random() < 0.2
    gang = Gang(1, chance.randint(2, 8)) if chance.random() < 0.2 else None
    # no two alike: their memory differs
    asked = Resources(chance.choice((1, 2, 4, 8, 16, 32, 64)), _GIB * 2 + at * 4096, exclusive=whole, gpus=gpus)
    return _make_spec(asked, chance.choice((None, 60, 600, 3600, 86_400, 604_800)), gang)


def _make_spec(resources: Resources, duration_s: int | None, gang: Gang | None = None) -> JobSpec:
    duration = None if duration_s is None else float(duration_s)
    return JobSpec("x", ("true",), "/", resources=resources, max_duration_s=duration, gang=gang)


def _make_job(number: int, spec: JobSpec, state: JobState, chance: random.Random, priority: int = 50) -> Job:
    return Job(
        id=JobId(f"j-{number:06d}"),
        project=DEFAULT_PROJECT,
        owner=Owner(f"user{chance.randint(0, 19)}", 1000),
        generation=1,
        attempt=0,
        spec=spec,
        state=state,
        submitted_at=_NOW - 10**9 + number,
        started_at=_NOW - 10**8 if state is JobState.RUNNING else None,
        priority=priority,
    )


def _first_fit(snapshot: Snapshot) -> float:
    """Scaled up to the whole queue where two seconds were not enough."""
    (machine,) = snapshot.machines
    held = [(each.demand, each.plan) for each in snapshot.holding]
    begin = time.perf_counter()
    for done, job in enumerate(snapshot.queued, 1):
        answer = place(machine, held, job.spec.demand)
        if isinstance(answer, Plan):
            held.append((job.spec.demand, answer))
        took = time.perf_counter() - begin
        if took > 2:
            return took / done * len(snapshot.queued) * 1e3
    return (time.perf_counter() - begin) * 1e3


def _make_machine() -> Machine:
    topology = draw_machine(8)
    return Machine(
        id=MachineId("m"),
        boot_id="b",
        hostname="h",
        kernel="k",
        cpu_model="c",
        cores=topology.cores,
        caches=(),
        numa_nodes=topology.numa_nodes,
        memory_bytes=topology.memory_bytes or 0,
        devices=(),
        virtualisation="unknown",
        virtualisation_detail="",
        isolation=Isolation("v2", True, True, True, True),
        topology=topology,
    )
