"""Commands inside jobs, on the runtime's in-memory twin: started once, found again, ended with the job, forgotten when read."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from steelyard.agent.execs import ENDED_MAX, KIND, READ_KEEP_S, RUNNING_MAX, ExecHost, ExecKeeper
from steelyard.agent.terminals import TerminalKeeper
from steelyard.clock import VirtualClock
from steelyard.errors import Conflict, EdgeFailed, NotFound, SteelyardError
from steelyard.host.proc import start_time
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime.fake import FakeRuntime, Fate
from steelyard.wire.agent import ExecStart, ExecState

ATTEMPT = AttemptId("j-000001.1")
HOST = WorkloadId("j-000001.1.0")
X1 = WorkloadId("j-000001.1-x1")


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, VirtualClock()
        self.fates: dict[str, Fate] = {}
        self.runtime = FakeRuntime(self.clock, choose_fate=lambda argv: self.fates.get(argv[0], Fate()))
        self.host: ExecHost | SteelyardError = ExecHost(
            HOST, os.getpid(), start_time(os.getpid()) or 0, Plan(), (64000, 64000), "/"
        )
        self.keeper = self.make()
        asyncio.run(self.runtime.start(HOST, kind="job", argv=("job",), env={}, cwd="/", uid=None, gid=None, plan=Plan()))

    def make(self) -> ExecKeeper:
        cleanup = SimpleNamespace(remove=lambda workload: (self.runtime.kill(workload), self.runtime.forget(workload)))
        keeper = ExecKeeper(
            cast(Any, SimpleNamespace(workloads=self.folder)),
            cast(Any, self.runtime),
            cast(Any, cleanup),
            self.clock,
            self.find_host,
            cast(Any, None),
            TerminalKeeper(cast(Any, None), self.clock),
        )
        self.runtime.on_exit = lambda exited: keeper.on_exit(exited) and None
        return keeper

    async def find_host(self, attempt: AttemptId, rank: int | None) -> ExecHost:
        if isinstance(self.host, SteelyardError):
            raise self.host
        return self.host

    def start(self, *argv: str, key: str = "") -> str:
        return asyncio.run(self.keeper.start(ATTEMPT, ExecStart(argv or ("top",), key=key)))

    def tidy(self, *, host_lives: bool = True, known: bool = True) -> None:
        self.keeper.tidy([HOST] if host_lives else [], [ATTEMPT] if known else [])


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_it_joins_the_jobs_group_and_has_none_of_its_own(rig: Rig) -> None:
    assert rig.start() == "x1"
    assert rig.runtime._intents[X1].inside == HOST and X1 not in rig.runtime._cgroups
    assert rig.keeper.state(X1) == ExecState(ended=False)
    assert [workload for workload, _, _ in rig.keeper.running] == [X1]


def test_the_end_is_told_as_a_shell_tells_it(rig: Rig) -> None:
    rig.start()
    rig.start()
    rig.runtime.end(X1, exit_code=7)
    rig.keeper.stop(WorkloadId(f"{ATTEMPT}-x2"), 9)
    assert rig.keeper.state(X1) == ExecState(ended=True, exit_code=7)
    assert rig.keeper.state(WorkloadId(f"{ATTEMPT}-x2")) == ExecState(ended=True, exit_code=137)


def test_the_same_key_is_the_same_command(rig: Rig) -> None:
    assert [rig.start(key="a"), rig.start(key="a"), rig.start(key="b"), rig.start(), rig.start()] == [
        "x1", "x1", "x2", "x3", "x4"
    ]  # fmt: skip


def test_only_so_many_run_at_a_time(rig: Rig) -> None:
    for _ in range(RUNNING_MAX):
        rig.start()
    with pytest.raises(Conflict, match="run inside it already"):
        rig.start()
    rig.runtime.end(X1, exit_code=0)
    assert rig.start() == f"x{RUNNING_MAX + 1}"


def test_what_does_not_start_leaves_nothing(rig: Rig) -> None:
    rig.fates["broken"] = Fate(fails=("exec", "No such file or directory"))
    with pytest.raises(EdgeFailed, match="No such file"):
        rig.start("broken")
    assert rig.keeper.state(X1) is None and X1 not in rig.runtime._intents
    rig.host = Conflict("The job is starting.")
    with pytest.raises(Conflict, match="starting"):
        rig.start()


def test_a_job_whose_process_has_just_gone_is_not_joined(rig: Rig) -> None:
    rig.host = ExecHost(HOST, os.getpid(), 1, Plan(), None, "/")
    with pytest.raises(Conflict, match="just ended"):
        rig.start()


def test_it_is_forgotten_with_its_output_a_while_after_its_end_was_read(rig: Rig) -> None:
    rig.start()
    output = rig.folder / X1
    output.mkdir()
    rig.runtime.end(X1, exit_code=0)
    rig.clock.advance(READ_KEEP_S * 2)
    rig.tidy()
    assert rig.keeper.state(X1) is not None, "nobody had asked yet"
    rig.tidy()
    assert output.exists()
    rig.clock.advance(READ_KEEP_S + 1)
    rig.tidy()
    assert rig.keeper.state(X1) is None and not output.exists() and X1 not in rig.runtime._intents
    with pytest.raises(NotFound):
        rig.keeper.stop(X1, 15)
    assert rig.start() == "x2", "a name is never given twice"


def test_it_ends_and_is_forgotten_with_the_job(rig: Rig) -> None:
    rig.start()
    rig.tidy(host_lives=False)
    assert rig.keeper.state(X1) == ExecState(ended=True, exit_code=137)
    rig.tidy(host_lives=False, known=False)
    assert rig.keeper.state(X1) is not None, "whoever waits for its end may still ask"
    rig.clock.advance(READ_KEEP_S + 1)
    rig.tidy(host_lives=False, known=False)
    assert rig.keeper.state(X1) is None


def test_its_end_outlasts_the_work_also_when_nobody_has_asked(rig: Rig) -> None:
    rig.start()
    rig.tidy(host_lives=False, known=False)
    rig.clock.advance(READ_KEEP_S - 1)
    rig.tidy(host_lives=False, known=False)
    assert rig.keeper.state(X1) == ExecState(ended=True, exit_code=137)


def test_work_that_somebody_is_inside_of_is_told_until_they_leave(rig: Rig) -> None:
    assert rig.keeper.inside == set()
    rig.start()
    assert rig.keeper.inside == {HOST}
    rig.runtime.end(X1, exit_code=0)
    assert rig.keeper.inside == set()


def test_unread_ends_do_not_pile_up(rig: Rig) -> None:
    for number in range(ENDED_MAX + 5):
        rig.start()
        rig.runtime.end(WorkloadId(f"{ATTEMPT}-x{number + 1}"), exit_code=0)
    rig.tidy()
    assert rig.keeper.state(WorkloadId(f"{ATTEMPT}-x5")) is None
    assert rig.keeper.state(WorkloadId(f"{ATTEMPT}-x6")) is not None


def test_a_restarted_agent_finds_what_runs_and_what_ended_meanwhile(rig: Rig) -> None:
    rig.start()
    rig.start()
    rig.runtime.on_exit = lambda exited: None
    rig.runtime.end(X1, exit_code=3)
    (rig.folder / X1).mkdir()
    (rig.folder / f"{ATTEMPT}-x2").mkdir()
    rig.keeper = rig.make()
    found = rig.runtime.adopt(rig.runtime.running())
    rig.keeper.adopt(item for item in found if item.intent is not None and item.intent.kind == KIND)
    assert rig.keeper.state(X1) == ExecState(ended=True, exit_code=3)
    assert [workload for workload, _, _ in rig.keeper.running] == [f"{ATTEMPT}-x2"]
    assert rig.start() == "x3"


def test_an_end_that_nobody_saw_is_said_to_be_unknown(rig: Rig) -> None:
    rig.start()
    rig.runtime.lose_spawner()
    rig.keeper = rig.make()
    process = rig.runtime._processes.pop(X1)
    assert not process.watched
    rig.keeper.adopt(item for item in rig.runtime.adopt(rig.runtime.running()) if item.workload == X1)
    state = rig.keeper.state(X1)
    assert state is not None and state.ended and state.exit_code is None and "lost" in state.detail
