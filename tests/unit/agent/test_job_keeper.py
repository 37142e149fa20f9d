"""A job's start and its end as the keeper sees them: nothing stays "starting" for ever, and no device comes back unseen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent_parts import no_secrets
from containers import NO_CONTAINERS
from machines import make_hgx
from steelyard.agent.attempt import Attempt, MemberEnd, make_members
from steelyard.agent.jobs import JobKeeper
from steelyard.agent.terminals import TerminalKeeper
from steelyard.clock import VirtualClock
from steelyard.config import Settings
from steelyard.errors import Unreachable
from steelyard.host.volumes import VolumeFolders
from steelyard.model.batch import Gang
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId, WorkloadId
from steelyard.model.job import JobSpec, Owner, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.secret import SecretUse
from steelyard.runtime.process import Adopted, AdoptedState
from steelyard.runtime.records import Handle, Intent
from steelyard.wire.agent import AssignedJob, GangPlace
from steelyard.wire.spawn import Exited

GPU = make_hgx().gpus[0].id
PLAN = Plan(gpus=(GPU,), gpu_fraction=0.5)
ATTEMPT = AttemptId("j-000001.1")
#: of the intent of a part with one rank
LABELS = {"attempt": ATTEMPT, "rank": "0", "ranks": "1", "first": "0", "waits": "yes"}
SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=64000, work_gid=64001, admin_user="root", admin_uid=0)


class Rig:
    """Stand-ins for everything around the keeper; `log` is what was asked of them."""

    def __init__(self, folder: Path) -> None:
        self.log: list[tuple[object, ...]] = []
        self.start_fails: Exception | None = None
        #: processes of it outlive its first one
        self.left_behind = True
        #: its exit is known before its start is
        self.ends_at_once: Exited | None = None
        self.env: dict[str, str] = {}
        nothing = cast(Any, lambda *arguments: None)
        timing = SimpleNamespace(hold=nothing, release=nothing, adopt=nothing, observe_wakeups=nothing)
        cgroups = SimpleNamespace(
            kill=lambda workload: self.log.append(("cgroup killed", workload)),
            remove=lambda workload: not self.left_behind,
            read=lambda workload: SimpleNamespace(oom_kills=None, memory_peak_bytes=None),
        )
        runtime = SimpleNamespace(
            prepare_all=self.prepare_all,
            launch=self.launch,
            kill=lambda workload: self.log.append(("killed", workload)),
            stop=lambda workload, signum: self.log.append(("stopped", workload, signum)),
        )
        holdings = SimpleNamespace(
            terminals=TerminalKeeper(cast(Any, None), VirtualClock()),
            secrets=no_secrets(),
            volumes=VolumeFolders(Path("/nonexistent"), ()),
            prepare=self.prepare,
            note_start=nothing,
            note_end=nothing,
            drop=nothing,
            used=nothing,
            forget=nothing,
        )
        devices = SimpleNamespace(
            note_start=self.note_start, note_end=lambda who, plan: self.log.append(("end", list(who), plan))
        )
        self.keeper = JobKeeper(
            cast(Any, SimpleNamespace(workloads=folder, environments=folder)),
            SETTINGS,
            cast(Any, SimpleNamespace(topology=make_hgx(), cpus=(0,), numa_nodes=(), cores=(), hostname="h")),
            cast(Any, runtime),
            cast(Any, None),
            cast(Any, cgroups),
            VirtualClock(),
            cast(Any, timing),
            lambda: None,
            cast(Any, devices),
            cast(Any, SimpleNamespace(check=nothing)),
            cast(Any, holdings),
            "/slurm/bin",
            NO_CONTAINERS,
        )

    async def note_start(self, plan: Plan) -> None:
        self.log.append(("start", plan))

    async def prepare(self, *arguments: object) -> dict[str, str]:
        return {}

    async def prepare_all(self, wanted: Any, **fields: Any) -> None: ...

    async def launch(self, workload: WorkloadId, **fields: Any) -> object:
        self.env = fields["env"]
        if self.ends_at_once is not None:
            self.keeper.on_exit(self.ends_at_once)
            return Handle(workload=workload, boot_id="b", pid=1, start_time=1, at=70)
        raise self.start_fails or OSError("as far as the test goes")

    async def run_job(self) -> None:
        spec = JobSpec(name="a", argv=("true",), cwd="/")
        job = AssignedJob(ATTEMPT, JobId("j-000001"), DEFAULT_PROJECT, Owner("root", 0), spec, PLAN)
        state = Attempt(PLAN, make_members(ATTEMPT, PLAN, 1))
        self.keeper._add(ATTEMPT, state)
        self.keeper._step = lambda: None
        await self.keeper._start(job, state)


def test_a_start_that_breaks_in_a_way_nobody_foresaw_ends_with_a_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.start_fails = ZeroDivisionError("a defect")
    asyncio.run(rig.run_job())
    state = rig.keeper.attempts()[0]
    assert (state.phase, state.reason) == ("not-started", Reason.START_FAILED)
    assert "a defect" in state.detail and ("killed", ATTEMPT) in rig.log


def test_a_job_that_ends_before_its_start_is_noted_still_tells_when_it_started(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.ends_at_once = Exited(
        workload=ATTEMPT, pid=1, start_time=1, ended_at=90, exit_code=0, signal=None, user_s=0, system_s=0, peak_rss_bytes=0
    )
    asyncio.run(rig.run_job())
    report = rig.keeper.attempts()[0]
    assert (report.phase, report.reason, report.started_at, report.ended_at) == ("ended", Reason.EXITED, 70, 90)
    # the answer to a start may come after the end
    state = rig.keeper._attempts[ATTEMPT]
    state.ended_at = 60
    assert state.report(ATTEMPT, None).started_at == 60
    assert rig.log[-1] == ("end", [ATTEMPT], PLAN)


def test_an_environment_that_can_not_be_made_ends_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **fields: object) -> dict[str, str]:
        raise KeyError("GPU-x")

    monkeypatch.setattr("steelyard.agent.job_start.make_environment", fail)
    rig = Rig(tmp_path)
    asyncio.run(rig.run_job())
    assert rig.keeper.attempts()[0].phase == "not-started"


def test_mps_is_looked_for_at_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    monkeypatch.setattr("steelyard.agent.device_proof.mps_runs", lambda: False)
    asyncio.run(rig.run_job())
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in rig.env
    monkeypatch.setattr("steelyard.agent.device_proof.mps_runs", lambda: True)
    asyncio.run(rig.run_job())
    assert rig.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"


def test_a_job_that_ended_while_nobody_watched_is_cleared_away_and_its_devices_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    intent = Intent(workload=WorkloadId(ATTEMPT), boot_id="b", kind="job", at=0, plan=PLAN, spawner="s", labels={})
    found = Adopted(workload=WorkloadId(ATTEMPT), state=AdoptedState.UNKNOWN, reason=Reason.EXIT_UNKNOWN, intent=intent)
    rig.keeper.adopt([found], [])
    assert rig.log == [("cgroup killed", ATTEMPT), ("end", [ATTEMPT], PLAN)]


@pytest.mark.parametrize("left_behind", [True, False])
def test_what_a_job_left_behind_is_killed_with_it_and_an_empty_group_is_only_removed(tmp_path: Path, left_behind: bool) -> None:
    rig = Rig(tmp_path)
    rig.left_behind = left_behind
    state = Attempt(Plan(), make_members(ATTEMPT, Plan(), 1), phase="running")
    state.members[0].phase = "running"
    rig.keeper._add(ATTEMPT, state)
    assert rig.keeper.on_exit(Exited(WorkloadId(ATTEMPT), 7, 70, 1, 0, None, 0.0, 0.0, 0))
    assert (("cgroup killed", ATTEMPT) in rig.log) is left_behind
    assert rig.keeper.attempts()[0].phase == "ended"


def test_a_job_that_comes_while_another_is_told_to_end_is_started_once(tmp_path: Path) -> None:
    async def script() -> None:
        rig = Rig(tmp_path)
        spec = JobSpec(name="a", argv=("true",), cwd="/")
        old = AssignedJob(ATTEMPT, JobId("j-000001"), DEFAULT_PROJECT, Owner("root", 0), spec, Plan(), stop_signal=15)
        new = msgspec.structs.replace(old, attempt=AttemptId("j-000002.1"), stop_signal=None)
        state = Attempt(Plan(), make_members(ATTEMPT, Plan(), 1), phase="running")
        state.members[0].phase = "running"
        rig.keeper._add(ATTEMPT, state)
        rig.keeper.reconcile([old, new])
        assert len(rig.keeper._tasks) == 1
        assert rig.log == [("stopped", ATTEMPT, 15)]
        for task in rig.keeper._tasks:
            task.cancel()
        assert rig.keeper._timer is not None
        rig.keeper._timer.cancel()

    asyncio.run(script())


def test_a_job_with_more_in_a_watched_folder_than_it_asked_for_is_ended_and_says_why(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    state = Attempt(PLAN, make_members(ATTEMPT, PLAN, 1), "running")
    state.members[0].phase = "running"
    rig.keeper._add(ATTEMPT, state)
    (tmp_path / ATTEMPT).mkdir()
    for _ in range(2):
        rig.keeper.end_over_scratch([WorkloadId(ATTEMPT), WorkloadId("j-000009.1")])
    assert rig.log == [("killed", ATTEMPT)]
    spec = JobSpec(name="a", argv=("true",), cwd="/", resources=Resources(scratch_bytes=1 << 30))
    state.note_end(state.members[0], MemberEnd(5, Reason.KILLED_BY_SIGNAL, signum=9))
    state.conclude(spec)
    assert state.reason is Reason.SCRATCH_EXCEEDED
    assert "1 GiB" in state.detail and "--scratch" in state.detail


def test_a_spawner_that_is_away_costs_an_attempt_only_what_it_may_have_started(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.start_fails = Unreachable("the spawner is not connected")
    asyncio.run(rig.run_job())
    state = rig.keeper.attempts()[0]
    assert (state.phase, state.reason) == ("ended", Reason.NODE_LOST), "it was asked for: it may have run"
    early = Rig(tmp_path / "early")

    async def refuse(wanted: object, **fields: object) -> None:
        raise Unreachable("the spawner is not connected")

    early.keeper._runtime.prepare_all = cast(Any, refuse)
    asyncio.run(early.run_job())
    state = early.keeper.attempts()[0]
    assert (state.phase, state.reason) == ("not-started", Reason.NOT_STARTED), "another attempt may follow"


def test_a_gang_whose_plan_has_no_room_for_its_ranks_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async def script() -> None:
        rig = Rig(tmp_path)
        spec = JobSpec(name="a", argv=("true",), cwd="/", gang=Gang(tasks_per_node=3))
        job = AssignedJob(ATTEMPT, JobId("j-000001"), DEFAULT_PROJECT, Owner("root", 0), spec, Plan())
        rig.keeper.reconcile([job])
        await asyncio.gather(*rig.keeper._tasks)
        state = rig.keeper.attempts()[0]
        assert state.phase == "not-started" and "3 processes, and its plan has room for 0" in state.detail

    asyncio.run(script())


def gang_part(port: int = 0, **fields: Any) -> AssignedJob:
    spec = JobSpec(name="a", argv=("true",), cwd="/", gang=Gang(nodes=2, tasks_per_node=1))
    place = GangPlace(0, ("h", "g"), ("h", "g"), port)
    job = AssignedJob(ATTEMPT, JobId("j-000001"), DEFAULT_PROJECT, Owner("root", 0), spec, Plan(tasks=(Plan(),)), place=place)
    return msgspec.structs.replace(job, **fields)


class PartRig(Rig):
    """Of a part of a gang; its start goes as far as its first process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.wrote = asyncio.Event()
        self.keeper._runtime.renew = cast(Any, self.renew)

    async def prepare_all(self, wanted: Any, **fields: Any) -> None:
        self.log.append(("intents", [dict(each.labels) for each in wanted]))
        await self.wrote.wait()

    async def renew(self, workloads: Any) -> None:
        self.log.append(("renewed", list(workloads)))

    async def launch(self, workload: WorkloadId, **fields: Any) -> object:
        self.log.append(("launched", workload))
        return Handle(workload=workload, boot_id="b", pid=1, start_time=1, at=70)

    def note(self) -> None:
        self.log.append(("noted",))

    def forget(self, workload: WorkloadId) -> bool:
        self.log.append(("forgotten", workload))
        return True

    def phase(self) -> str:
        return self.keeper.attempts()[0].phase


async def pass_by() -> None:
    """Whatever can go on without waiting has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_part_is_told_as_prepared_while_its_intents_are_written_and_begins_when_both_are_there(tmp_path: Path) -> None:
    async def script() -> None:
        rig = PartRig(tmp_path)
        rig.keeper.go_ahead([gang_part()], rig.note)
        await pass_by()
        assert rig.phase() == "prepared" and rig.log == [("intents", [LABELS])]
        rig.keeper.reconcile([gang_part()])
        rig.keeper.go_ahead([gang_part(7000)], rig.note)
        await pass_by()
        assert rig.log[1:] == [("noted",)], "the word to begin is written down before anything begins, and so is the intent"
        rig.wrote.set()
        await pass_by()
        assert rig.log[2:4] == [("renewed", [f"{ATTEMPT}.0"]), ("launched", f"{ATTEMPT}.0")]
        rig.keeper.reconcile([])
        for task in rig.keeper._tasks:
            task.cancel()

    asyncio.run(script())


def test_nothing_begins_that_could_not_be_noted(tmp_path: Path) -> None:
    async def script() -> None:
        rig = PartRig(tmp_path)
        rig.wrote.set()
        rig.keeper.go_ahead([gang_part()], rig.note)
        await pass_by()

        def fail() -> None:
            raise OSError("no room")

        with pytest.raises(OSError, match="no room"):
            rig.keeper.go_ahead([gang_part(7000)], fail)
        await pass_by()
        assert rig.phase() == "prepared" and ("launched", f"{ATTEMPT}.0") not in rig.log
        for task in rig.keeper._tasks:
            task.cancel()

    asyncio.run(script())


@pytest.mark.parametrize(
    "job",
    [
        gang_part(stop_signal=15),
        gang_part(7000),
        gang_part(place=None),
        gang_part(spec=JobSpec("a", ("true",), "/", gang=Gang(2, 1), secrets=(SecretUse("s"),))),
    ],
    ids=["is to end", "begins", "is alone", "has secrets"],
)
def test_only_what_is_merely_prepared_goes_ahead_of_the_disk(tmp_path: Path, job: AssignedJob) -> None:
    async def script() -> None:
        rig = PartRig(tmp_path)
        rig.keeper.go_ahead([job], rig.note)
        assert not rig.keeper._tasks and rig.log == []

    asyncio.run(script())


def test_a_part_that_only_waited_when_its_agent_was_killed_is_forgotten_and_prepared_anew(tmp_path: Path) -> None:
    def adopt(port: int) -> PartRig:
        rig = PartRig(tmp_path)
        rig.keeper._cleanup = cast(Any, SimpleNamespace(forget=rig.forget))
        workload = WorkloadId(f"{ATTEMPT}.0")
        intent = Intent(workload, "b", "job", 0, Plan(), "s", LABELS)
        found = Adopted(workload, AdoptedState.NOT_STARTED, intent, reason=Reason.NOT_STARTED)
        rig.keeper.adopt([found], [gang_part(port)])
        return rig

    rig = adopt(0)
    assert rig.keeper.attempts() == () and rig.log == [("forgotten", f"{ATTEMPT}.0")]
    begun = adopt(7000)
    assert begun.phase() == "not-started" and begun.log == []
