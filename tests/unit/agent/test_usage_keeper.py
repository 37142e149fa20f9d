"""What an attempt used, over its ranks and over their ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from machines import make_hgx
from steelyard.agent.usage import UsageKeeper
from steelyard.clock import VirtualClock
from steelyard.host import UsageReading
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.wire.spawn import Exited

ATTEMPT = AttemptId("j-000001.1")
RANKS = [WorkloadId("j-000001.1.0"), WorkloadId("j-000001.1.1")]


class Rig:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.readings: dict[str, UsageReading] = {}
        self.looks = 0
        self.scratch: dict[str, int] = {}
        self.busy: dict[str, float] = {}
        meter = SimpleNamespace(read=lambda pci: {each: self.busy[each] for each in pci if each in self.busy})
        self.keeper = UsageKeeper(
            cast(Any, SimpleNamespace(read_usage=self.read)), self.clock, make_hgx(), self.scratch.get, cast(Any, meter)
        )

    def read(self, workload: WorkloadId) -> UsageReading:
        self.looks += 1
        return self.readings.get(workload, UsageReading())

    def pass_s(self, seconds: float) -> None:
        self.clock.advance(seconds)
        asyncio.run(self.keeper.sample())


def exited(workload: str, **fields: Any) -> Exited:
    made = Exited(WorkloadId(workload), 1, 2, 3, 0, None, 0.0, 0.0, 0)
    return msgspec.structs.replace(made, **fields)


def test_ranks_are_added_up_and_an_ended_one_keeps_what_it_used() -> None:
    rig = Rig()
    for rank in RANKS:
        rig.keeper.note_start(ATTEMPT, rank, Plan(), rig.clock.now_us())
    rig.readings = {rank: UsageReading(1.0, 100, 150, 10, 20) for rank in RANKS}
    rig.pass_s(1)
    rig.keeper.note_end(RANKS[0], exited(RANKS[0], user_s=1.25, system_s=0.25, written_bytes=25))
    rig.readings = {RANKS[1]: UsageReading(2.0, 100, 180, 10, 20)}
    rig.pass_s(1)
    usage = rig.keeper.usage(ATTEMPT)
    assert usage is not None
    assert (usage.cpu_s, usage.memory_peak_bytes, usage.read_bytes, usage.written_bytes) == (3.5, 330, 20, 45)
    assert [(sample.cpus, sample.memory_bytes) for sample in usage.samples] == [(2.0, 200), (1.5, 100)]


def test_a_job_that_ended_before_the_first_look_has_its_exit_record() -> None:
    rig = Rig()
    rig.keeper.note_start(ATTEMPT, WorkloadId(ATTEMPT), Plan(), rig.clock.now_us())
    rig.clock.advance(0.25)
    rig.keeper.note_end(WorkloadId(ATTEMPT), exited(ATTEMPT, user_s=0.2, peak_rss_bytes=4096, read_bytes=1, written_bytes=2))
    usage = rig.keeper.usage(ATTEMPT)
    assert usage is not None
    assert (usage.cpu_s, usage.memory_peak_bytes, usage.read_bytes, usage.written_bytes) == (0.2, 4096, 1, 2)
    assert [(sample.at_s, sample.cpus) for sample in usage.samples] == [(0.25, 0.8)]


def test_an_end_that_nobody_saw_keeps_the_last_look() -> None:
    rig = Rig()
    rig.keeper.note_start(ATTEMPT, WorkloadId(ATTEMPT), Plan(), rig.clock.now_us())
    rig.readings = {ATTEMPT: UsageReading(3.0, 100, None, None, None)}
    rig.pass_s(1)
    rig.readings = {}
    rig.keeper.note_end(WorkloadId(ATTEMPT), None)
    rig.keeper.note_end(WorkloadId(ATTEMPT), None)
    usage = rig.keeper.usage(ATTEMPT)
    assert usage is not None and (usage.cpu_s, usage.memory_peak_bytes, usage.read_bytes) == (3.0, 100, None)


def test_after_a_restart_of_the_agent_time_goes_on_from_the_start_of_the_job() -> None:
    rig = Rig()
    rig.clock.advance(100)
    rig.keeper.note_start(ATTEMPT, WorkloadId(ATTEMPT), Plan(), rig.clock.now_us() - 50_000_000)
    rig.readings = {ATTEMPT: UsageReading(25.5, 100)}
    rig.pass_s(1)
    usage = rig.keeper.usage(ATTEMPT)
    assert usage is not None and [(sample.at_s, sample.cpus) for sample in usage.samples] == [(51.0, 0.5)]


def test_nothing_is_looked_at_before_it_is_due_or_after_it_has_ended() -> None:
    rig = Rig()
    rig.pass_s(1)
    rig.keeper.note_start(ATTEMPT, WorkloadId(ATTEMPT), Plan(), rig.clock.now_us())
    rig.pass_s(0.5)
    assert rig.looks == 0
    for _ in range(600):
        rig.pass_s(1)
    assert rig.looks < 400, "a longer life is looked at less often"
    rig.keeper.note_end(WorkloadId(ATTEMPT), None)
    looks = rig.looks
    rig.pass_s(100)
    assert rig.looks == looks
    rig.keeper.forget(ATTEMPT)
    assert rig.keeper.usage(ATTEMPT) is None


def test_scratch_and_own_gpus_are_told_and_a_share_of_a_gpu_is_not() -> None:
    rig = Rig()
    first, second = make_hgx().gpus[:2]
    rig.busy = {str(first.pci): 80.0, str(second.pci): 40.0}
    rig.keeper.note_start(ATTEMPT, WorkloadId(ATTEMPT), Plan(gpus=(first.id, second.id)), rig.clock.now_us())
    other = AttemptId("j-000002.1")
    rig.keeper.note_start(other, WorkloadId(other), Plan(gpus=(first.id,), gpu_fraction=0.5), rig.clock.now_us())
    for used in (5000, 300):
        rig.scratch[ATTEMPT] = used
        rig.pass_s(1)
    whole, share = rig.keeper.usage(ATTEMPT), rig.keeper.usage(other)
    assert whole is not None and share is not None
    assert whole.scratch_peak_bytes == 5000 and share.scratch_peak_bytes is None
    assert [sample.gpu_percent for sample in whole.samples] == [60.0, 60.0]
    assert share.samples[0].gpu_percent is None
