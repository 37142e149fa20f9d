"""Who has scratch space, how full it was, and that it goes when it should, on a disk that is made up."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from steelyard.agent.scratch import ScratchKeeper
from steelyard.host.scratch import Scratch, ScratchUse
from steelyard.model.ids import WorkloadId

JOB, OTHER = WorkloadId("j-000001.1"), WorkloadId("j-000002.1")


class Disk:
    unenforced = "there are no loop devices"

    def __init__(self, *, enforced: bool = True) -> None:
        self.enforced = enforced
        self.used = ScratchUse(0)
        self.there: dict[WorkloadId, Scratch] = {}
        self.swept: list[WorkloadId] = []
        #: removals that fail
        self.busy = 0

    def make(self, workload: WorkloadId, size_bytes: int, ids: tuple[int, int] | None) -> Scratch:
        self.there[workload] = Scratch(f"/scratch/{workload}", size_bytes, self.enforced)
        return self.there[workload]

    def find(self, workload: WorkloadId) -> Scratch | None:
        return self.there.get(workload)

    def observe(self, workload: WorkloadId) -> ScratchUse | None:
        return self.used if workload in self.there else None

    def size_bytes(self, workload: WorkloadId) -> int | None:
        return self.there[workload].size_bytes

    def remove(self, workload: WorkloadId) -> bool:
        if self.busy:
            self.busy -= 1
            return False
        self.there.pop(workload, None)
        return True

    def sweep(self, living: list[WorkloadId]) -> bool:
        self.swept = [workload for workload in self.there if workload not in living]
        for workload in self.swept:
            del self.there[workload]
        return True


def make(disk: Disk) -> ScratchKeeper:
    return ScratchKeeper(cast(Any, disk))


async def settle(keeper: ScratchKeeper) -> None:
    await asyncio.gather(*keeper._tasks)


def test_a_job_is_told_where_its_scratch_is_and_one_that_asked_for_none_nothing() -> None:
    keeper = make(Disk())
    told = asyncio.run(keeper.make(JOB, 100, None))
    assert told == {"STEELYARD_SCRATCH": "/scratch/j-000001.1", "TMPDIR": "/scratch/j-000001.1"}
    assert asyncio.run(keeper.make(OTHER, None, None)) == {}
    assert (keeper.peak_bytes(OTHER), keeper.got(OTHER), keeper.explain(OTHER)) == (None, {}, ())


def test_the_most_that_was_in_it_is_kept() -> None:
    disk = Disk()
    keeper = make(disk)

    async def live() -> None:
        await keeper.make(JOB, 100, None)
        for used in (10, 90, 20):
            disk.used = ScratchUse(used)
            await keeper.look()

    asyncio.run(live())
    assert keeper.peak_bytes(JOB) == 90
    disk.used = ScratchUse(95)
    assert keeper.peak_bytes(JOB) == 95, "its end is looked at too"


def test_what_can_not_be_removed_at_once_is_tried_again() -> None:
    disk = Disk()
    keeper = make(disk)

    async def end() -> None:
        await keeper.make(JOB, 100, None)
        disk.busy = 2
        keeper.release(JOB)
        keeper.release(JOB)
        await settle(keeper)
        assert JOB in disk.there
        for _ in range(2):
            await keeper.look()
            await settle(keeper)
        assert JOB not in disk.there

    asyncio.run(end())


def test_a_restarted_agent_keeps_what_the_living_have() -> None:
    disk = Disk()
    for workload in (JOB, OTHER):
        disk.make(workload, 100, None)
    keeper = make(disk)
    keeper.adopt([JOB])
    assert disk.swept == [OTHER] and keeper.got(JOB) == {"scratch_bytes": 100}


def test_a_watched_folder_says_so_and_who_goes_beyond_its_size_is_named() -> None:
    disk = Disk(enforced=False)
    keeper = make(disk)

    async def live() -> None:
        await keeper.make(JOB, 100, None)
        for used, over in ((ScratchUse(100), []), (ScratchUse(101, complete=False), [JOB])):
            disk.used = used
            await keeper.look()
            assert keeper.over() == over

    asyncio.run(live())
    assert keeper.explain(JOB)[0].startswith("scratch size is watched, not enforced (there are no loop devices)")
    assert "more files than are looked at" in keeper.explain(JOB)[0]
