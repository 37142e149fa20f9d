"""What every runtime promises: the real one on real processes, and the fake of the simulator."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import pytest
from spawner_rig import PLAIN_ENV, WORK_GID, WORK_UID, open_rig

from steelyard.clock import VirtualClock
from steelyard.errors import Conflict, EdgeFailed, Refused
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime import Runtime, Wanted
from steelyard.runtime.fake import FakeRuntime, Fate
from steelyard.runtime.process import Adopted, AdoptedState
from steelyard.runtime.records import Handle
from steelyard.wire.spawn import Exited

SLEEPS, ENDS_WITH_3, STUBBORN, MISSING = (
    ("sleep", "1000"),
    ("sh", "-c", "exit 3"),
    ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"),
    ("/no/such/program",),
)


class Stage(Protocol):
    """A runtime, and what a test needs of the world around it."""

    runtime: Runtime

    async def next_exit(self) -> Exited: ...
    async def ready(self, workload: WorkloadId) -> None: ...
    async def restart_agent(self) -> list[Adopted]: ...
    async def kill_spawner(self) -> list[Adopted]: ...


class FakeStage:
    def __init__(self) -> None:
        fates = {
            ENDS_WITH_3: Fate(0.1, 3),
            STUBBORN: Fate(ignores=frozenset({signal.SIGTERM})),
            MISSING: Fate(fails=("exec", "No such file")),
        }
        self.clock = VirtualClock()
        self.exits: list[Exited] = []
        self.runtime = FakeRuntime(self.clock, choose_fate=lambda argv: fates.get(tuple(argv), Fate()), on_exit=self.exits.append)

    async def next_exit(self) -> Exited:
        if not self.exits:
            self.clock.advance(1)
            self.runtime.tick()
        return self.exits.pop(0)

    async def ready(self, workload: WorkloadId) -> None:
        pass

    async def restart_agent(self) -> list[Adopted]:
        return self.runtime.adopt(self.runtime.running())

    async def kill_spawner(self) -> list[Adopted]:
        self.runtime.lose_spawner()
        return self.runtime.adopt(self.runtime.running())


@contextlib.asynccontextmanager
async def open_fake() -> AsyncIterator[Stage]:
    yield FakeStage()


@contextlib.asynccontextmanager
async def open_real() -> AsyncIterator[Stage]:
    async with open_rig() as rig:

        class RealStage:
            runtime: Runtime = rig.make_runtime()

            async def next_exit(self) -> Exited:
                return await rig.next_exit()

            async def ready(self, workload: WorkloadId) -> None:
                path = rig.workloads / workload / "stdout"
                while b"ready" not in path.read_bytes():
                    await asyncio.sleep(0.005)

            async def restart_agent(self) -> list[Adopted]:
                running = await rig.connect()
                self.runtime = rig.make_runtime()
                return self.runtime.adopt(running)

            async def kill_spawner(self) -> list[Adopted]:
                rig.kill_spawner()
                running = await rig.start_spawner()
                self.runtime = rig.make_runtime()
                return self.runtime.adopt(running)

        yield RealStage()


@pytest.fixture(params=[open_fake, open_real], ids=["fake", "process"])
def play(request: pytest.FixtureRequest) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    def run(script: Callable[[Stage], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(30), request.param() as stage:
                await script(stage)

        asyncio.run(main())

    return run


Play = Callable[[Callable[[Stage], Awaitable[None]]], None]
A, B = WorkloadId("job-1.1"), WorkloadId("job-2.1")


async def start(stage: Stage, workload: WorkloadId, argv: Sequence[str]) -> Handle:
    return await stage.runtime.start(
        workload, kind="job", argv=argv, env=PLAIN_ENV, cwd="/", uid=WORK_UID, gid=WORK_GID, plan=Plan(), labels={"why": "test"}
    )


def test_an_exit_carries_the_code_and_the_started_process(play: Play) -> None:
    async def script(stage: Stage) -> None:
        handle = await start(stage, A, ENDS_WITH_3)
        exited = await stage.next_exit()
        assert (exited.workload, exited.exit_code, exited.signal) == (A, 3, None)
        assert (exited.pid, exited.start_time) == (handle.pid, handle.start_time)

    play(script)


def test_stop_signals_and_kill_ends_what_ignores_it(play: Play) -> None:
    async def script(stage: Stage) -> None:
        await start(stage, A, SLEEPS)
        stage.runtime.stop(A, signal.SIGTERM)
        assert (await stage.next_exit()).signal == signal.SIGTERM
        await start(stage, B, STUBBORN)
        await stage.ready(B)
        stage.runtime.stop(B, signal.SIGTERM)
        assert stage.runtime.signal_leader(B, signal.SIGTERM)
        assert not stage.runtime.forget(B)
        stage.runtime.kill(B)
        assert (await stage.next_exit()).signal == signal.SIGKILL
        assert not stage.runtime.signal_leader(B, signal.SIGTERM)
        assert stage.runtime.forget(B)

    play(script)


def test_an_id_is_started_at_most_once_until_forgotten(play: Play) -> None:
    async def script(stage: Stage) -> None:
        await start(stage, A, ENDS_WITH_3)
        with pytest.raises(Conflict):
            await start(stage, A, ENDS_WITH_3)
        await stage.next_exit()
        with pytest.raises(Conflict):
            await start(stage, A, ENDS_WITH_3)
        assert stage.runtime.forget(A)
        await start(stage, A, ENDS_WITH_3)
        assert (await stage.next_exit()).exit_code == 3

    play(script)


def test_launching_twice_is_refused_by_the_spawner_itself(play: Play) -> None:
    async def script(stage: Stage) -> None:
        await start(stage, A, SLEEPS)
        with pytest.raises(EdgeFailed, match=r"it runs already|it ran already"):
            await stage.runtime.launch(A, argv=SLEEPS, env=PLAIN_ENV, cwd="/", uid=WORK_UID, gid=WORK_GID)
        (adopted,) = await stage.restart_agent()
        assert adopted.state is AdoptedState.RUNNING

    play(script)


def test_a_program_that_does_not_exist_is_named_and_nothing_runs(play: Play) -> None:
    async def script(stage: Stage) -> None:
        with pytest.raises(EdgeFailed, match="exec") as failed:
            await start(stage, A, MISSING)
        assert failed.value.code == "start-failed"
        (adopted,) = await stage.restart_agent()
        assert adopted.state is AdoptedState.NOT_STARTED
        assert stage.runtime.forget(A)
        assert await stage.restart_agent() == []

    play(script)


def test_ids_that_could_leave_their_folder_are_refused(play: Play) -> None:
    async def script(stage: Stage) -> None:
        for bad in ("../x", "a/b", ".hidden", "", "x" * 201, "a\n"):
            with pytest.raises(Refused):
                await start(stage, WorkloadId(bad), SLEEPS)

    play(script)


def test_a_restarted_agent_finds_what_runs_what_ended_and_what_never_started(play: Play) -> None:
    async def script(stage: Stage) -> None:
        prepared = WorkloadId("job-3.1")
        running = await start(stage, A, SLEEPS)
        await start(stage, B, ENDS_WITH_3)
        await stage.next_exit()
        stage.runtime.prepare(prepared, kind="replica", plan=Plan())
        one, two, three = await stage.restart_agent()
        assert (one.workload, one.state, one.handle, one.watched) == (A, AdoptedState.RUNNING, running, True)
        assert one.intent is not None and one.intent.labels == {"why": "test"}
        assert (two.workload, two.state) == (B, AdoptedState.ENDED)
        assert two.exited is not None and two.exited.exit_code == 3
        assert (three.workload, three.state, three.reason) == (prepared, AdoptedState.NOT_STARTED, Reason.NOT_STARTED)

    play(script)


def test_work_outlives_the_spawner_and_its_exit_is_then_unknown(play: Play) -> None:
    async def script(stage: Stage) -> None:
        handle = await start(stage, A, SLEEPS)
        (adopted,) = await stage.kill_spawner()
        assert (adopted.state, adopted.watched, adopted.handle) == (AdoptedState.RUNNING, False, handle)
        stage.runtime.kill(A)
        (adopted,) = await stage.restart_agent()
        assert (adopted.state, adopted.reason) == (AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN)
        assert stage.runtime.forget(A)

    play(script)


@pytest.mark.parametrize("renewed", [False, True])
def test_what_was_prepared_for_a_spawner_that_went_is_launched_once_it_is_renewed(play: Play, renewed: bool) -> None:
    async def script(stage: Stage) -> None:
        runtime = stage.runtime
        await runtime.prepare_all([Wanted(A, Plan(), {"why": "test"})], kind="job")
        await stage.kill_spawner()
        if renewed:
            await runtime.renew([A])
        launch = runtime.launch(A, argv=SLEEPS, env=PLAIN_ENV, cwd="/", uid=WORK_UID, gid=WORK_GID)
        if not renewed:
            with pytest.raises(EdgeFailed, match="the spawner was restarted"):
                await launch
            return
        handle = await launch
        (found,) = await stage.restart_agent()
        assert (found.state, found.handle) == (AdoptedState.RUNNING, handle)
        assert found.intent is not None and found.intent.labels == {"why": "test"}
        stage.runtime.kill(A)
        await stage.next_exit()

    play(script)
