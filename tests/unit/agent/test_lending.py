"""A function wakes on a place that it had lent: whoever is there ends within the bound, nobody new comes, then it starts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent_parts import no_secrets
from containers import NO_CONTAINERS
from machines import make_hgx
from steelyard.agent.attempt import Attempt, MemberEnd, Progress, make_members
from steelyard.agent.function import FunctionHost
from steelyard.agent.functions import FunctionKeeper
from steelyard.agent.jobs import JobKeeper
from steelyard.agent.lending import Lending, meets
from steelyard.agent.reconcile import JobSeen, Kill, Signal, decide_jobs
from steelyard.agent.revision import RevisionHost
from steelyard.clock import VirtualClock
from steelyard.config import Settings
from steelyard.host.volumes import VolumeFolders
from steelyard.lifecycle.promise import Wakeups
from steelyard.model.batch import Preemption
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, FunctionName, JobId, WorkloadId
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.model.reason import Reason
from steelyard.wire.agent import AssignedJob
from steelyard.wire.spawn import Exited

GPU, OTHER = (gpu.id for gpu in make_hgx().gpus[:2])
PLACE = Plan(gpus=(GPU,))
A, B = AttemptId("j-000001.1"), AttemptId("j-000002.1")
SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=64000, work_gid=64001, admin_user="root", admin_uid=0)
SECOND = 1_000_000_000


def make_job(attempt: AttemptId = A, plan: Plan = PLACE, stop_signal: int | None = None, **fields: Any) -> AssignedJob:
    spec = JobSpec("a", ("true",), "/", preemption=Preemption(signal=10, grace_s=1.0), **fields)
    return AssignedJob(
        attempt, JobId(attempt[:8]), DEFAULT_PROJECT, Owner("root", 0), spec, plan, stop_signal=stop_signal, stop_grace_s=600.0
    )


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        (Plan(gpus=(GPU,)), Plan(gpus=(OTHER, GPU)), True),
        (Plan(gpus=(GPU,)), Plan(gpus=(OTHER,)), False),
        (Plan(nics=("mlx5_0",)), Plan(nics=("mlx5_0",)), True),
        (Plan(cpus=(1,)), Plan(cpus=(1,)), False),
        (Plan(gpus=(GPU,), mig_instances=("a",)), Plan(gpus=(GPU,), mig_instances=("b",)), False),
        (Plan(gpus=(GPU,), mig_instances=("a",)), Plan(gpus=(GPU,), mig_instances=("b", "a")), True),
        (Plan(gpus=(GPU,), mig_instances=("a",)), Plan(gpus=(GPU,)), True),
    ],
)
def test_places_meet_where_a_device_or_an_instance_is_in_both(one: Plan, other: Plan, met: bool) -> None:
    assert meets(one, other) is meets(other, one) is met


@pytest.mark.parametrize(
    ("job", "seen", "now_ns", "wanted", "next_ns"),
    [
        # told with its own signal, and killed after its grace where that ends first
        (make_job(), JobSeen("running", kill_at_ns=5 * SECOND), 0, [Signal(A, 10, Reason.PREEMPTED)], None),
        (make_job(), JobSeen("running", 0, 10, limit=Reason.PREEMPTED, kill_at_ns=5 * SECOND), 0, [], SECOND),
        (make_job(), JobSeen("running", 0, 10, limit=Reason.PREEMPTED, kill_at_ns=SECOND // 2), 0, [], SECOND // 2),
        (make_job(), JobSeen("running", 0, 10, limit=Reason.PREEMPTED, kill_at_ns=SECOND // 2), SECOND // 2, [Kill(A)], None),
        # a stop with a long grace, or a limit, is cut short
        (make_job(stop_signal=15), JobSeen("running", 0, 15, kill_at_ns=SECOND), 0, [], SECOND),
        (make_job(stop_signal=15), JobSeen("running", 0, 15, kill_at_ns=SECOND), SECOND, [Kill(A)], None),
        (make_job(), JobSeen("running", 0, 15, limit=Reason.MAX_DURATION, kill_at_ns=SECOND), SECOND, [Kill(A)], None),
        # an agent that was restarted goes on, by the job's own grace
        (make_job(), JobSeen("running", limit=Reason.PREEMPTED), 0, [Signal(A, 10, Reason.PREEMPTED)], None),
        # a start under way is broken off by whoever makes it
        (make_job(), JobSeen("starting", kill_at_ns=0), SECOND, [], None),
    ],
)
def test_what_a_function_wants_back_is_told_to_end_and_killed_at_the_bound(
    job: AssignedJob, seen: JobSeen, now_ns: int, wanted: list[object], next_ns: int | None
) -> None:
    assert decide_jobs({A: job}, {A: seen}, now_ns) == (wanted, next_ns)


@pytest.mark.parametrize(
    ("code", "signum", "reason"),
    [(None, 10, Reason.PREEMPTED), (3, None, Reason.PREEMPTED), (0, None, Reason.EXITED)],
)
def test_what_gave_way_says_to_whom_unless_it_had_finished(code: int | None, signum: int | None, reason: Reason) -> None:
    attempt = Attempt(PLACE, make_members(A, PLACE, 1), progress=Progress(limit=Reason.PREEMPTED, function="f"))
    how = Reason.EXITED if code == 0 else Reason.EXITED_NONZERO if code else Reason.KILLED_BY_SIGNAL
    attempt.members[0].end = MemberEnd(1, how, exit_code=code, signum=signum)
    attempt.conclude(None)
    assert attempt.reason is reason
    assert (attempt.detail == "gave way to the function f, which woke") is (reason is Reason.PREEMPTED)


class Rig:
    """A real keeper of jobs; everything around it is a stand-in. `log` is what was asked of that."""

    def __init__(self, folder: Path) -> None:
        self.log: list[tuple[object, ...]] = []
        self.lends = True
        self.looked = asyncio.Event()
        self.looked.set()
        self.launching = asyncio.Event()
        self.launched = asyncio.Event()
        self.clock = VirtualClock()
        nothing = cast(Any, lambda *arguments: None)
        reading = SimpleNamespace(oom_kills=None, memory_peak_bytes=None)
        holdings = SimpleNamespace(
            secrets=no_secrets(),
            terminals=SimpleNamespace(made=lambda *_: contextlib.nullcontext(), forget=nothing, hang_up=nothing),
            volumes=VolumeFolders(Path("/nonexistent"), ()),
            prepare=self.prepare,
            note_start=nothing,
            note_end=nothing,
            drop=nothing,
            used=nothing,
            forget=nothing,
        )
        runtime = SimpleNamespace(
            prepare_all=self.prepare_all,
            launch=self.launch,
            kill=lambda workload: self.log.append(("killed", workload)),
            stop=lambda workload, signum: self.log.append(("told", workload, signum)),
        )
        self.keeper = JobKeeper(
            cast(Any, SimpleNamespace(workloads=folder, environments=folder)),
            SETTINGS,
            cast(Any, SimpleNamespace(topology=make_hgx(), cpus=(0, 1), numa_nodes=(), cores=(), hostname="h")),
            cast(Any, runtime),
            cast(Any, None),
            cast(Any, SimpleNamespace(kill=nothing, remove=lambda workload: True, read=lambda workload: reading)),
            self.clock,
            cast(
                Any, SimpleNamespace(hold=nothing, release=nothing, observe_wakeups=nothing, report_wakeups=lambda _: Wakeups())
            ),
            nothing,
            cast(Any, self),
            cast(Any, SimpleNamespace(check=nothing)),
            cast(Any, holdings),
            "/slurm/bin",
            NO_CONTAINERS,
            lambda plan: self.lends or not meets(plan, PLACE),
        )
        self.keeper.files.save_progress = cast(Any, nothing)
        self.lending = Lending(lambda: self.log.append(("cores",)), self.keeper.make_way, self)

    # the keeper of devices

    async def note_start(self, plan: Plan) -> None:
        await self.looked.wait()

    def note_end(self, workloads: Collection[str], plan: Plan) -> None:
        self.log.append(("ended", tuple(workloads)))

    async def wait_free(self, devices: Collection[str], own: Collection[str]) -> None:
        self.log.append(("free", tuple(devices)))

    async def prepare_all(self, wanted: Any, **fields: Any) -> None: ...

    async def prepare(self, *asked: object) -> dict[str, str]:
        return {}

    async def launch(self, workload: WorkloadId, **fields: Any) -> object:
        self.launching.set()
        await self.launched.wait()
        self.log.append(("launched", workload))
        return SimpleNamespace(pid=1, start_time=1, at=1)

    def run(self, *jobs: AssignedJob) -> None:
        """They run already."""
        for job in jobs:
            state = Attempt(job.plan, make_members(job.attempt, job.plan, 1), phase="running")
            state.members[0].phase = "running"
            self.keeper._add(job.attempt, state)
        self.keeper._assigned = {job.attempt: job for job in jobs}

    def end(self, attempt: str, code: int | None = None, signum: int | None = 10) -> None:
        self.keeper.on_exit(Exited(WorkloadId(attempt), 1, 1, 5, code, signum, 0.0, 0.0, 0))

    def take_back(self, bound_s: float = 2.0) -> asyncio.Task[None]:
        self.lends = False
        return asyncio.create_task(self.lending.take_back(PLACE, "f", self.clock.mono_ns() + round(bound_s * 1e9)))

    def phase(self, attempt: str) -> tuple[str, Reason | None]:
        [state] = [each for each in self.keeper.attempts() if each.attempt == attempt]
        return state.phase, state.reason


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(folder: Path, script: Any) -> None:
    async def life() -> None:
        rig = Rig(folder)
        async with asyncio.timeout(10):
            await cast("Coroutine[Any, Any, None]", script(rig))
        if rig.keeper._timer is not None:
            rig.keeper._timer.cancel()

    asyncio.run(life())


def test_a_wake_tells_whoever_has_its_gpu_and_starts_when_that_is_gone_and_the_gpu_free(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        rig.run(make_job(A), make_job(B, Plan(gpus=(OTHER,))))
        wake = rig.take_back()
        await turn()
        assert rig.log == [("told", A, 10)] and not wake.done(), "the other one is on another GPU"
        rig.end(A)
        await wake
        assert rig.log == [("told", A, 10), ("ended", (A,)), ("free", (GPU,))]
        assert (rig.phase(A), rig.phase(B)) == (("ended", Reason.PREEMPTED), ("running", None))

    play(tmp_path, script)


def test_who_does_not_listen_is_killed_when_the_bound_is_over(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        rig.run(make_job(A))
        wake = rig.take_back(bound_s=0.5)
        await turn()
        rig.clock.advance(0.49)
        rig.keeper._step()
        assert ("killed", A) not in rig.log
        rig.clock.advance(0.02)
        rig.keeper._step()
        assert rig.log[-1] == ("killed", A) and not wake.done()
        rig.end(A, signum=9)
        await wake
        assert rig.phase(A) == ("ended", Reason.PREEMPTED)

    play(tmp_path, script)


def test_a_start_that_comes_during_or_after_the_wake_is_refused_and_says_so(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        rig.lends = False
        rig.keeper.reconcile([make_job(A)])
        assert rig.phase(A) == ("not-started", Reason.PREEMPTED)
        assert not rig.keeper._tasks and rig.log == []
        await rig.take_back()
        assert rig.log == [("free", (GPU,))]

    play(tmp_path, script)


def test_a_start_under_way_is_broken_off_before_its_process_is_launched(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        rig.looked.clear()
        rig.keeper.reconcile([make_job(A)])
        wake = rig.take_back()
        await turn()
        assert not wake.done()
        rig.looked.set()
        await wake
        assert rig.phase(A) == ("not-started", Reason.PREEMPTED)
        assert ("launched", A) not in rig.log and rig.log[-1] == ("free", (GPU,))

    play(tmp_path, script)


def test_a_process_that_is_just_being_launched_is_ended_before_the_function_starts(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        rig.keeper._timing.start_probe = cast(Any, lambda job: asyncio.sleep(0))
        rig.keeper._proofs.observe = cast(Any, lambda job, state: None)
        rig.keeper.reconcile([make_job(A)])
        await rig.launching.wait()
        wake = rig.take_back()
        await turn()
        assert not wake.done() and ("told", A, 10) not in rig.log
        rig.launched.set()
        await turn()
        assert ("told", A, 10) in rig.log and not wake.done()
        rig.end(A)
        await wake
        assert rig.phase(A) == ("ended", Reason.PREEMPTED)

    play(tmp_path, script)


def test_an_agent_that_was_killed_after_it_told_the_job_still_knows_to_whom_it_gives_way(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        rig.run(make_job(A))
        rig.keeper._attempts[A].progress = Progress(limit=Reason.PREEMPTED, function="f")  # as the next agent reads it
        rig.keeper._step()
        assert rig.log == [("told", A, 10)]
        rig.end(A)
        assert rig.keeper.attempts()[0].detail == "gave way to the function f, which woke"

    play(tmp_path, script)


def test_without_devices_the_cores_come_back_in_the_same_turn(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        work = rig.lending.take_back(Plan(cpus=(1,)), "f", 0)
        with pytest.raises(StopIteration):
            work.send(None)
        assert rig.log == [("cores",)]

    play(tmp_path, script)


# -- the function's side


class Revision:
    """A real revision on a lent place; its start is cut off where something would be launched."""

    def __init__(self, folder: Path, wake_bound_s: float | None = 2.0) -> None:
        self.log: list[object] = []
        self.ready = asyncio.Event()
        spec = SimpleNamespace(
            attr=None, served_by_runner=False, as_root=False, env={}, startup_deadline_s=60.0, replicas_min=0, replicas_max=1,
            concurrency=8, bundle=None, wake_bound_s=wake_bound_s, secrets=(),
        )  # fmt: skip
        function = SimpleNamespace(
            name=FunctionName("f"), revision=1, owner=Owner("root", 0), spec=spec, plan=PLACE, token="", volumes=()
        )
        edges = SimpleNamespace(
            volumes=VolumeFolders(Path("/nonexistent"), ()),
            clock=VirtualClock(),
            settings=SETTINGS,
            machine=SimpleNamespace(topology=make_hgx()),
            spawner=SimpleNamespace(connected=True),
            cleanup=SimpleNamespace(remove=lambda workload: self.log.append("cleared")),
        )
        nothing = cast(Any, lambda *arguments: None)
        self.host = RevisionHost(
            cast(Any, edges), cast(Any, function), folder, cast(Any, SimpleNamespace(fileno=lambda: 0)),
            cast(Any, SimpleNamespace(check=nothing)), nothing, nothing, nothing, cast(Any, self), nothing, no_secrets(),
        )  # fmt: skip
        self.host.opened = True
        self.host._armed = False
        page = SimpleNamespace(close=lambda: None, state=0, finished=0, errors=0, busy=0, said="")
        slot = SimpleNamespace(workload=WorkloadId("f.1.a"), page=page, close_fds=lambda: None, spawner="s")
        self.host._take_slot = cast(Any, lambda: slot)
        self.host._start_from_template = cast(Any, self.start)

    async def take_back(self, place: Plan, function: str, kill_at_ns: int, own: Collection[str]) -> None:
        self.log.append(("take back", function, kill_at_ns, self.host.lends))
        await self.ready.wait()

    def give(self, place: Plan, own: Collection[str]) -> None:
        self.log.append(("give", set(own)))

    async def start(self, *arguments: object) -> bool:
        self.log.append("started")
        return True


def test_a_replica_starts_only_once_the_place_is_its_own_and_gives_it_when_it_has_ended(tmp_path: Path) -> None:
    async def life() -> None:
        each = Revision(tmp_path)
        assert each.host.lends
        seen_ns = each.host.edges.clock.mono_ns()
        wake = asyncio.create_task(each.host._start(seen_ns, woken=True))
        await turn()
        assert each.log == [("take back", "f", seen_ns + 2 * SECOND, False)], "it lends no more while it takes back"
        each.ready.set()
        replica = await wake
        assert each.log[-1] == "started" and replica.taken_ns >= seen_ns
        each.host._remove(replica)
        assert each.log[-2:] == ["cleared", ("give", {"f.1.a"})] and each.host.lends

    asyncio.run(life())


def test_a_wake_that_failed_meanwhile_starts_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        each = Revision(tmp_path)
        wake = asyncio.create_task(each.host._start(each.host.edges.clock.mono_ns(), woken=True))
        await turn()
        [replica] = each.host.replicas.values()
        each.host._spawn_task = cast(Any, lambda work: work.close())
        each.host._check_deadline(replica)
        assert each.host.failure is not None and "had lent are not free yet" in each.host.failure[1]
        each.ready.set()
        await wake
        assert "started" not in each.log and each.host.lends

    asyncio.run(life())


def test_a_function_that_lends_nothing_asks_nobody(tmp_path: Path) -> None:
    async def life() -> None:
        each = Revision(tmp_path, wake_bound_s=None)
        assert not each.host.lends
        replica = await each.host._start(0, woken=True)
        each.host._remove(replica)
        assert each.log == ["started", "cleared"] and replica.taken_ns == 0

    asyncio.run(life())


def make_keeper(*hosts: SimpleNamespace) -> FunctionKeeper:
    functions = [SimpleNamespace(name=host.name, plan=host.plan) for host in hosts]
    ledger = SimpleNamespace(assignment=SimpleNamespace(functions=functions))
    nothing = cast(Any, None)
    edges = cast(Any, SimpleNamespace(machine=SimpleNamespace(memory_bytes=1 << 30), clock=VirtualClock()))
    keeper = FunctionKeeper(
        edges,
        cast(Any, ledger),
        nothing,
        nothing,
        on_wake=nothing,
        devices=nothing,
        presence=nothing,
        lending=nothing,
        secrets=no_secrets(),
    )
    keeper._hosts = cast(Any, {host.name: host for host in hosts if host.known})
    return keeper


def make_host(gpu: str, lends: bool, known: bool = True, older: Plan | None = None) -> SimpleNamespace:
    plan = Plan(gpus=(gpu,))
    hosts = [SimpleNamespace(plan=each) for each in (plan, older) if each is not None]
    return SimpleNamespace(name=f"f-{gpu}", plan=plan, lends=lends, known=known, hosts=hosts, routed=hosts[0])


def test_a_job_may_have_devices_whose_functions_all_sleep_and_lend() -> None:
    asked = Plan(gpus=(GPU, OTHER))
    assert make_keeper(make_host(GPU, lends=True), make_host(OTHER, lends=True)).may_have(asked)
    assert not make_keeper(make_host(GPU, lends=True), make_host(OTHER, lends=False)).may_have(asked)
    assert not make_keeper(make_host(GPU, lends=True, known=False)).may_have(asked), "it was not taken over yet"
    assert not make_keeper(make_host("elsewhere", lends=False, older=Plan(gpus=(GPU,)))).may_have(asked)
    assert make_keeper(make_host("elsewhere", lends=False)).may_have(asked)


def test_a_function_lends_only_with_nothing_under_way(tmp_path: Path) -> None:
    nothing = cast(Any, None)
    host = FunctionHost(nothing, FunctionName("f"), *[nothing] * 10, no_secrets())
    assert not host.lends
    newest = SimpleNamespace(revision=1)
    host.desired = cast(Any, {1: newest})
    host.ready = cast(Any, {1: SimpleNamespace(lends=True, function=newest)})
    assert host.lends
    host.draining = [(cast(Any, None), 0)]
    assert not host.lends, "an older revision still answers"
    host.draining = []
    host._rollout = cast(Any, SimpleNamespace(done=lambda: False))
    assert not host.lends, "a revision rolls out"
    host._rollout = None
    host.desired = cast(Any, {2: SimpleNamespace(revision=2)})
    assert not host.lends, "the newest one failed"
    host.desired = cast(Any, {1: newest, 2: SimpleNamespace(revision=2)})
    host.ready = cast(Any, {1: SimpleNamespace(lends=True), 2: SimpleNamespace(lends=True)})
    assert not host.lends, "two revisions share the traffic"


def test_a_new_revision_takes_the_place_back_before_its_template_is_made(tmp_path: Path) -> None:
    async def life() -> None:
        taken: list[tuple[object, ...]] = []

        async def take_back(*arguments: object) -> None:
            taken.append(arguments)

        nothing, edges = cast(Any, None), cast(Any, SimpleNamespace(clock=VirtualClock()))
        lending = cast(Any, SimpleNamespace(take_back=take_back))
        host = FunctionHost(edges, FunctionName("f"), *[nothing] * 8, lending, nothing, no_secrets())
        plain, lender = (SimpleNamespace(spec=SimpleNamespace(wake_bound_s=bound_s)) for bound_s in (None, 3.0))
        await host._take_back(cast(Any, plain), PLACE)
        assert taken == []
        host.ready = cast(Any, {1: SimpleNamespace(function=lender)})
        await host._take_back(cast(Any, plain), PLACE)
        assert taken == [(PLACE, "f", edges.clock.mono_ns() + 3 * SECOND)], "the one before had lent it"

    asyncio.run(life())


def test_jobs_are_kept_off_cores_that_are_not_lent(tmp_path: Path) -> None:
    async def script(rig: Rig) -> None:
        made: list[tuple[int, ...]] = []
        rig.keeper._cgroups = cast(Any, SimpleNamespace(prepare=lambda cpus, nodes: made.append(cpus)))
        place = Plan(cpus=(1,))
        rig.keeper.reserve([place])
        rig.keeper.reserve([place], [place])
        rig.keeper.reserve([place], [place])
        rig.keeper.reserve([place])
        assert made == [(0,), (0, 1), (0,)], "one write for each change"
        rig.keeper.reserve([place], [place])
        assert (rig.keeper.shared_cpus(), rig.keeper._kept_cpus()) == ((0, 1), (0,))

    play(tmp_path, script)
