"""Whatever is killed, and whenever: a gang is never partly running for long, and none of its ranks ever runs twice.

The real keeper drives the runtime's in-memory twin on a virtual clock. Faults are drawn: ranks end, the agent dies at a step of
a start or later, the spawner dies, work is stopped, suspended, or no longer assigned.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_parts import no_secrets
from containers import NO_CONTAINERS
from steelyard.agent.jobs import JobKeeper
from steelyard.clock import VirtualClock
from steelyard.config import Settings
from steelyard.host import CgroupReading
from steelyard.host.volumes import VolumeFolders
from steelyard.model.batch import Gang
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId, WorkloadId
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.runtime.fake import FakeRuntime, Fate
from steelyard.runtime.records import Handle
from steelyard.wire.agent import AssignedJob, AttemptState
from steelyard.wire.spawn import Exited

A = AttemptId("j-1.1")
RANKS = 3
SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=64000, work_gid=64001, admin_user="root", admin_uid=0)
JOB = AssignedJob(
    A,
    JobId("j-1"),
    DEFAULT_PROJECT,
    Owner("ada", 1000),
    JobSpec(name="a", argv=("train",), cwd="/", gang=Gang(tasks_per_node=RANKS)),
    Plan(tasks=(Plan(),) * RANKS),
)
#: a gang that is broken is gone within this
PARTLY_S = 5.0
STEP_S = 0.5


class Died(BaseException):
    """The agent was killed here."""


class World:
    """Machine, spawner and server of one agent after the other."""

    def __init__(self, folder: Path, ignores: frozenset[int], dies_at: tuple[int, bool] | None) -> None:
        self.clock = VirtualClock()
        self.exits: list[Exited] = []
        self.runtime = FakeRuntime(self.clock, choose_fate=lambda argv: Fate(ignores=ignores), on_exit=self.exits.append)
        self.folder = folder
        #: and the signals that wait for it to go on
        self.frozen: dict[WorkloadId, list[int]] = {}
        self.assigned: tuple[AssignedJob, ...] = (JOB,)
        self._dies_at, self._launches = dies_at, 0
        self._launch = self.runtime.launch
        self.runtime.launch = self.launch  # type: ignore[method-assign]
        self.runtime.stop = self.stop  # type: ignore[method-assign]
        self.keeper = self.make_keeper()

    async def launch(self, workload: WorkloadId, **fields: Any) -> Handle:
        self._launches += 1
        dies = self._dies_at is not None and self._dies_at[0] == self._launches
        if dies and self._dies_at == (self._launches, False):
            raise Died
        handle = await self._launch(workload, **fields)
        if dies:
            self.runtime.lose_handle(workload)
            raise Died
        return handle

    def freeze(self, workload: WorkloadId, frozen: bool) -> bool:
        if frozen:
            self.frozen.setdefault(workload, [])
            return True
        for signum in self.frozen.pop(workload, []):
            self.runtime.signal_leader(workload, signum)
        return True

    def stop(self, workload: WorkloadId, signum: int) -> None:
        if workload in self.frozen and signum != 9:
            self.frozen[workload].append(signum)
        else:
            self.runtime.signal_leader(workload, signum)

    def make_keeper(self) -> JobKeeper:
        nothing = cast(Any, lambda *arguments, **fields: None)
        cgroups = SimpleNamespace(
            kill=self.runtime.kill,
            remove=lambda workload: False,
            read=lambda workload: CgroupReading(),
            frozen=lambda workload: workload in self.frozen,
            freeze=self.freeze,
            prepare=nothing,
            make=nothing,
            pids=lambda workload: [],
            path=lambda workload: "",
            controllers=frozenset(),
        )
        timing = SimpleNamespace(hold=nothing, release=nothing, adopt=nothing, observe_wakeups=nothing, start_probe=no_probe)
        timing.report_wakeups = lambda attempt: SimpleNamespace(breaches=0, worst_us=0)
        cleanup = SimpleNamespace(
            forget=self.runtime.forget,
            remove=lambda workload: (self.runtime.kill(workload), self.runtime.forget(workload)),
        )
        machine = SimpleNamespace(topology=None, cpus=(0,), numa_nodes=(), cores=(), hostname="h")
        keeper = JobKeeper(
            cast(Any, SimpleNamespace(workloads=self.folder, environments=self.folder)),
            SETTINGS,
            cast(Any, machine),
            cast(Any, self.runtime),
            cast(Any, cleanup),
            cast(Any, cgroups),
            self.clock,
            cast(Any, timing),
            lambda: None,
            cast(Any, SimpleNamespace(note_start=nothing, note_end=nothing)),
            cast(Any, SimpleNamespace(check=nothing)),
            cast(
                Any,
                SimpleNamespace(
                    prepare=no_holdings,
                    secrets=no_secrets(),
                    note_start=nothing,
                    note_end=nothing,
                    drop=nothing,
                    forget=nothing,
                    volumes=VolumeFolders(Path("/nonexistent"), ()),
                ),
            ),
            "/slurm",
            NO_CONTAINERS,
        )
        keeper._proofs.observe = nothing
        keeper._holdings.used = nothing
        return keeper

    async def settle(self) -> None:
        """Everything that follows from what happened, at this moment of the clock."""
        for _ in range(50):
            starts = await asyncio.gather(*self.keeper._tasks, return_exceptions=True)
            if any(isinstance(start, Died) for start in starts):
                self.restart()
            exits, self.exits[:] = list(self.exits), []
            for exited in exits:
                self.keeper.on_exit(exited)
            for workload, _, _ in self.keeper.running:
                if workload not in self.runtime._processes:  # its spawner is dead: seen by pidfd
                    self.keeper.on_lost(workload)
            self.keeper._step()
            if not exits and not self.exits and not self.keeper._tasks:
                return
            await asyncio.sleep(0)

    def restart(self) -> None:
        self.drop()
        self.exits.clear()  # told to nobody: the records are on disk
        self.keeper = self.make_keeper()
        self.keeper.adopt(self.runtime.adopt(self.runtime.running()), self.assigned)
        self.keeper.reconcile(self.assigned)

    def drop(self) -> None:
        if self.keeper._timer is not None:
            self.keeper._timer.cancel()

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.clock.advance(STEP_S)
            await self.settle()

    @property
    def running(self) -> list[WorkloadId]:
        return sorted(self.runtime._processes)

    @property
    def state(self) -> AttemptState | None:
        return next(iter(self.keeper.attempts()), None)


async def no_probe(job: AssignedJob) -> None:
    """No promise is watched."""


async def no_holdings(workload: WorkloadId, *arguments: object) -> dict[str, str]:
    return {}


EVENTS = st.one_of(
    st.tuples(st.just("end"), st.integers(0, RANKS - 1), st.sampled_from([0, 0, 1])),
    st.tuples(st.just("kill"), st.integers(0, RANKS - 1), st.just(0)),
    st.tuples(st.just("agent"), st.just(0), st.just(0)),
    st.tuples(st.just("unseen"), st.integers(0, RANKS - 1), st.sampled_from([0, 1])),
    st.tuples(st.just("spawner"), st.just(0), st.just(0)),
    st.tuples(st.just("suspend"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("stop"), st.sampled_from([2, 15, 9]), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 12), st.just(0)),
)


def change(world: World, **fields: Any) -> None:
    world.assigned = tuple(msgspec.structs.replace(job, **fields) for job in world.assigned)
    world.keeper.reconcile(world.assigned)


async def happen(world: World, event: tuple[str, int, int]) -> None:
    kind, number, code = event
    rank = WorkloadId(f"{A}.{number}")
    if kind == "end" and rank in world.running:
        world.runtime.end(rank, exit_code=code)
    elif kind == "kill" and rank in world.running:
        world.runtime.end(rank, signum=9)
    elif kind in ("agent", "unseen"):
        if kind == "unseen" and rank in world.running:  # while no agent is there
            world.runtime.end(rank, exit_code=code)
        world.restart()
    elif kind == "spawner":
        world.runtime.lose_spawner()
    elif kind == "suspend":
        change(world, suspended=bool(number))
    elif kind == "stop":
        change(world, stop_signal=number, stop_grace_s=4.0)
    elif kind == "wait":
        await world.pass_time(number)
    await world.settle()


def check(world: World) -> None:
    assert all(count == 1 for count in Counter(world.runtime.started).values()), world.runtime.started
    state = world.state
    assert state is not None
    if state.phase in ("ended", "not-started", "unknown"):
        assert world.running == []
    if state.phase == "not-started":
        assert world.runtime.started == []
    if state.phase in ("running", "suspended"):
        assert len(world.runtime.started) == RANKS
    if state.phase == "suspended":
        assert set(world.running) <= world.frozen.keys()


async def play(world: World, events: list[tuple[str, int, int]]) -> None:
    world.keeper.reconcile(world.assigned)
    await world.settle()
    for event in events:
        check(world)
        before = world.running
        await happen(world, event)
        gone = [rank for rank in before if rank not in world.running]
        bad = [end for end in (world.state.ranks if world.state else ()) if end.exit_code != 0]
        if gone and bad:
            await world.pass_time(PARTLY_S)
            assert world.running == [], f"{event}: partly running for longer than {PARTLY_S} s"
    check(world)
    world.assigned = ()
    world.keeper.reconcile(())
    await world.settle()
    await world.pass_time(30)
    world.keeper.reconcile(())
    await world.settle()
    assert world.running == [] and world.state is None and world.runtime._cgroups == set()
    world.drop()


@settings(max_examples=150)
@given(
    events=st.lists(EVENTS, max_size=8),
    ignores=st.sampled_from([frozenset[int](), frozenset({15}), frozenset({2, 15})]),
    dies_at=st.none() | st.tuples(st.integers(1, RANKS), st.booleans()),
)
def test_a_gang_is_whole_or_gone_and_runs_once(
    events: list[tuple[str, int, int]], ignores: frozenset[int], dies_at: tuple[int, bool] | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:

        async def main() -> None:
            await play(World(Path(folder), ignores, dies_at), events)

        asyncio.run(main())
