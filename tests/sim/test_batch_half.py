"""The life of many jobs under faults on the virtual clock: what must hold after every step, and once all faults are over.

Server, agent and spawner are killed at any step, the machine is restarted, messages are late or lost, writes fail or succeed
without an answer. A failure prints the steps that led to it; steps that once failed are kept as tests of their own at the end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from sim_agent import is_frozen
from sim_world import MACHINE, World
from steelyard.control.live import HOLDING
from steelyard.errors import Refused
from steelyard.lifecycle.job import hold_job, reprioritise_job, stop_job
from steelyard.model.batch import (
    Dependency,
    DependencyKind,
    Gang,
    Launcher,
    Preemption,
    PreemptMode,
    RetryOn,
    RetryRule,
    Warn,
)
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import JobId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.placement.room import Room
from steelyard.scheduling.amounts import count_cores, count_gpus
from steelyard.scheduling.fair_share import GPU_CORES
from steelyard.scheduling.snapshot import Standing
from steelyard.scheduling.standing import judge

GIB = 1 << 30
#: how long part of a gang may run without the rest, and an agent may need to notice
PARTLY_US = 5_000_000
QUOTA = Quota(ProjectName("p"), Owner("admin", 0), 1, cores=2.0, gpus=1.0, memory_bytes=80 * GIB, running_jobs=2)

shapes = st.sampled_from([(0.5, False), (1.0, False), (2.0, False), (3.0, False), (1.0, True), (2.0, True)])
demands = st.builds(
    lambda shape, **fields: Resources(shape[0], exclusive=shape[1], **fields),
    shapes,
    memory_bytes=st.sampled_from([8 * GIB, 8 * GIB, 40 * GIB]),
    gpus=st.sampled_from([None, None, None, "1", "0.5"]).map(lambda text: None if text is None else parse_gpu_demand(text)),
)
retries = st.lists(
    st.builds(RetryRule, st.sampled_from(RetryOn), st.integers(0, 3), st.sampled_from([0.0, 3.0])),
    max_size=2,
    unique_by=lambda rule: rule.on,
).map(tuple)
specs = st.fixed_dictionaries(
    {
        "resources": demands,
        "gang": st.none() | st.none() | st.builds(Gang, st.just(1), st.integers(1, 3), st.sampled_from(Launcher)),
        "priority": st.sampled_from([10, 50, 50, 90]),
        "account": st.sampled_from(["", "lab/a", "lab/b"]),
        "held": st.sampled_from([False, False, False, True]),
        "max_duration_s": st.sampled_from([None, None, 4.0, 20.0]),
        "retry": retries,
        "env": st.fixed_dictionaries(
            {
                "RUN": st.sampled_from(["0", "0.5", "5", "12", "50"]),
                "CODE": st.sampled_from(["0", "0", "0", "3"]),
                "TERM": st.sampled_from(["obeys", "obeys", "ignores"]),
            }
        ),
    }
)
preemptions = st.none() | st.builds(
    Preemption, st.sampled_from(PreemptMode), st.just(15), st.sampled_from([0.0, 5.0]), st.sampled_from([0.0, 10.0])
)
projects = st.sampled_from(["default", "default", "p"])
which = st.integers(0, 30)
steps = st.sampled_from(["jobs", "assignment", "reports", "send", "report", "assign", "agent", "agent", "connect"])


class Batch(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.run(self.world.truth.write(lambda tx: tx.put_quota(QUOTA)))
        self.known: list[JobId] = []
        self.ended: dict[JobId, Job] = {}
        #: attempt -> since when it has run in part
        self.partly: dict[str, int] = {}
        self.settles = True

    # -- what people do

    @rule(fields=specs, gives_way=preemptions, project=projects)
    def submit(self, fields: dict[str, Any], gives_way: Preemption | None, project: str) -> None:
        self._submit(fields, gives_way, project=project)

    @rule(fields=specs, text=st.sampled_from(["0-3%2", "0-2%1", "0-4:2", "0-2"]), project=projects)
    def submit_array(self, fields: dict[str, Any], text: str, project: str) -> None:
        self._submit(fields, None, text, project=project)

    @rule(fields=specs, on=st.lists(which, min_size=1, max_size=2), kind=st.sampled_from(DependencyKind))
    @precondition(lambda self: self.known)
    def submit_dependent(self, fields: dict[str, Any], on: list[int], kind: DependencyKind) -> None:
        after = tuple(Dependency(self._pick(each), kind) for each in on)
        self._submit({**fields, "after": after}, None)

    @rule(at=which, priority=st.sampled_from([0, 50, 100]))
    @precondition(lambda self: self.known)
    def change_priority(self, at: int, priority: int) -> None:
        self.world.change(self._pick(at), lambda job: reprioritise_job(job, priority))
        self._settle()

    @rule(at=which, held=st.booleans())
    @precondition(lambda self: self.known)
    def hold(self, at: int, held: bool) -> None:
        self.world.change(self._pick(at), lambda job: hold_job(job, held))
        self._settle()

    @rule(at=which, signum=st.sampled_from([15, 15, 9]), grace_s=st.sampled_from([0.0, 5.0]))
    @precondition(lambda self: self.known)
    def stop(self, at: int, signum: int, grace_s: float) -> None:
        self.world.change(self._pick(at), lambda job: stop_job(job, signum, grace_s, self.world.clock.now_us()))
        self._settle()

    # -- what happens by itself

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(order=st.lists(steps, min_size=1, max_size=12))
    def go_on_in_part(self, order: list[str]) -> None:
        """One thing after the other, in whatever order; nothing else happens."""
        world = self.world
        for step in order:
            match step:
                case "jobs" | "assignment" | "reports":
                    world.activate(step)
                case "send":
                    world.send_report()
                case "report":
                    world.deliver_report()
                case "assign":
                    world.deliver_assignment()
                case "connect":
                    world.connect()
                case _:
                    if world.agent is not None:
                        world.agent.work(1)
            self.check()

    @rule(fits=st.booleans())
    def stop_settling(self, fits: bool) -> None:
        """From now on steps of people are (not) followed by all that follows from them."""
        self.settles = fits

    # -- faults

    @rule(back=st.booleans())
    def kill_server(self, back: bool) -> None:
        del back
        self.world.start_server()
        self._settle()

    @rule(work=st.integers(0, 8))
    def kill_agent(self, work: int) -> None:
        """In the middle of what it does."""
        if self.world.agent is not None:
            self.world.agent.work(work)
            self.world.kill_agent()
        self._settle()

    @rule()
    def start_agent(self) -> None:
        self.world.start_agent()
        self._settle()

    @rule(at_once=st.booleans())
    def restart_machine(self, at_once: bool) -> None:
        self.world.reboot()
        if at_once:
            self.world.start_agent()
        self._settle()

    @rule(work=st.integers(0, 8))
    @precondition(lambda self: self.world.kernel.processes or (self.world.agent is not None and self.world.agent.busy))
    def kill_spawner(self, work: int) -> None:
        """In the middle of what the agent starts."""
        if self.world.agent is not None:
            self.world.agent.work(work)
        self.world.kernel.kill_spawner()
        self._settle()

    @rule(up=st.booleans())
    def cut_link(self, up: bool) -> None:
        self.world.link_up = up
        if not up:
            self.world.hub.disconnect()
        self._settle()

    @rule(at=which)
    def kill_process(self, at: int) -> None:
        processes = sorted(self.world.kernel.processes)
        if processes:
            self.world.kernel.signal(processes[at % len(processes)], 9)
        self._settle()

    @rule(before=st.integers(0, 2), after=st.integers(0, 2), reads=st.integers(0, 2))
    def break_store(self, before: int, after: int, reads: int) -> None:
        store = self.world.store
        store.before, store.after, store.reads = before, after, reads

    # -- what must hold

    @invariant()
    def check(self) -> None:
        jobs = {job.id: job for job in self.world.read(lambda tx: tx.jobs())}
        self._check_jobs(jobs)
        self._check_machine(jobs)
        events = self.world.read(lambda tx: tx.events("job", None, 100_000))
        assert not [event for event in events if "illegal" in event.text], "R7"

    def _check_jobs(self, jobs: dict[JobId, Job]) -> None:
        assert set(self.known) <= set(jobs), "I1"
        arrays: Counter[JobId] = Counter()
        for job in jobs.values():
            before = self.ended.get(job.id)
            assert before is None or before == job, "what has ended changes no more"
            if job.state.terminal:
                self.ended[job.id] = job
            if job.state in HOLDING:
                assert not job.held, "a held job does not start"
                assert job.plan is not None
                if job.array is not None:
                    arrays[job.array.id] += 1
                    assert arrays[job.array.id] <= (job.array.at_once or 99)
            if job.attempt:
                for after in job.spec.after:
                    named = [jobs[after.job]] if after.job in jobs else _elements(jobs, after.job)
                    assert judge(after.kind, named) is Standing.MET, "it started before what it waits for"
        held = [job for job in jobs.values() if job.state in HOLDING and job.project == "p"]
        active = [job for job in held if job.state is not JobState.SUSPENDED]
        assert len(active) <= 2 and sum(job.spec.demand.cpus for job in active) <= 2
        assert sum(job.spec.demand.memory_bytes or 0 for job in held) <= 80 * GIB

    def _check_machine(self, jobs: dict[JobId, Job]) -> None:
        kernel, now = self.world.kernel, self.world.clock.now_us()
        assert all(count == 1 for count in kernel.starts.values()), f"I2: {kernel.starts}"
        room = Room(MACHINE)
        attempts = {each.attempt: each.job for each in kernel.processes.values()}
        by_job = Counter(each.job for each in attempts.values())
        assert all(count == 1 for count in by_job.values()), f"two attempts of a job at a time: {attempts}"
        for attempt, job in attempts.items():
            row = jobs[job.job]
            assert row.state in HOLDING and row.attempt_id == attempt, f"{attempt} runs and its place is given away: {row}"
        for frozen in (True, False):
            for attempt, job in attempts.items():
                if is_frozen(kernel, attempt) is not frozen:
                    continue
                if not frozen and jobs[job.job].suspended_at is None:
                    assert room.check(job.spec.demand, job.plan) == (), f"I4: {attempt}"
                    room.take(job.spec.demand, job.plan)
                else:
                    # frozen, or thawed only to be ended: then it gets what is left of the shared cores
                    room.take(job.spec.demand, job.plan, suspended=True)
        self._check_gangs(now)

    def _check_gangs(self, now: int) -> None:
        """A rank that ended badly takes the others with it; nothing is started in part for long."""
        kernel, disk = self.world.kernel, self.world.kernel.disk
        broken: set[str] = set()
        for each in kernel.processes.values():
            mine = [name for name in disk.exits if name.startswith(f"{each.attempt}.")]
            if any(disk.exits[name].exit_code != 0 for name in mine):
                broken.add(each.attempt)
        if self.world.agent is None:
            self.partly.clear()
        self.partly = {attempt: self.partly.get(attempt, now) for attempt in broken if self.world.agent is not None}
        assert all(now - since <= PARTLY_US for since in self.partly.values()), "a gang goes on in part"

    def teardown(self) -> None:
        """All faults are over and there is time: everything that was acknowledged comes to its end, or says why it waits."""
        world = self.world
        try:
            world.store.before = world.store.after = world.store.reads = 0
            world.link_up = True
            world.start_agent()
            for _ in range(120):
                world.advance(60.0)
                self.check()
                jobs = {job.id: job for job in world.read(lambda tx: tx.jobs())}
                if all(job.state.terminal or self._is_stuck(job, jobs) for job in jobs.values()):
                    break
            self._check_quiet()
        finally:
            world.loop.close()

    def _check_quiet(self) -> None:
        world = self.world
        jobs = {job.id: job for job in world.read(lambda tx: tx.jobs())}
        for job in jobs.values():
            if job.state is JobState.QUEUED:
                assert world.jobs.why(job.id) is not None, f"{job.id} waits and nobody says why"
                assert self._is_stuck(job, jobs), world.jobs.why(job.id)
            else:
                assert job.state.terminal, f"{job.id} is left {job.state}: {job.reason} {job.detail}"
        assert not world.kernel.processes
        assert world.agent is not None and not world.agent.attempts, "something is kept of what has ended"
        assert not world.kernel.disk.intents and not world.kernel.disk.exits and not world.kernel.disk.groups, "I6"
        self._check_charges()

    def _check_charges(self) -> None:
        """Each attempt that ran is charged once, for as long as it ran; one that a restart of the machine ended, until that is
        known. What was frozen meanwhile is not looked at here."""
        lives = self.world.kernel.lives
        if any(job.spec.preemption.mode is PreemptMode.SUSPEND for job, _, _ in lives.values()):
            return
        least = most = 0.0
        for attempt, (job, begin, end) in lives.items():
            demand = job.spec.demand
            rate = count_cores(demand) + GPU_CORES * count_gpus(demand)
            least += rate * (end - begin) / 1e6
            known = self.world.clock.now_us() if attempt in self.world.kernel.lost else end
            most += rate * (known - begin) / 1e6
        used = sum(account.usage for account in self.world.read(lambda tx: tx.accounts()))
        # usage fades a little within hours
        assert 0.95 * least - 1 <= used <= most + 1, (least, used, most)

    def _is_stuck(self, job: Job, jobs: dict[JobId, Job]) -> bool:
        """Held, larger than its project's quota, or after such a job: it waits, and time alone does not start it."""
        if job.state is not JobState.QUEUED:
            return False
        why = self.world.jobs.why(job.id)
        if job.held or (why is not None and "can't start under the quota" in why.detail):
            return True
        named = [each for after in job.spec.after for each in _elements(jobs, after.job)]
        return any(self._is_stuck(each, jobs) for each in named)

    # -- helpers

    def _submit(self, fields: dict[str, Any], gives_way: Preemption | None, array: str | None = None, **more: Any) -> None:
        fields = dict(fields)
        if gives_way is not None:
            demand = replace(fields["resources"], preemptible=True, exclusive=False)
            if gives_way.mode is PreemptMode.SUSPEND:
                demand = replace(demand, gpus=None)
            fields |= {"resources": demand, "preemption": gives_way}
        if fields["max_duration_s"] is not None:
            fields["warn"] = Warn(10, 2.0)
        try:
            self.known += self.world.submit(JobSpec("x", ("true",), "/", **fields), array, **more)
        except Refused as err:
            if err.code not in frozenset(Reason):  # no empty machine holds it
                raise
        self._settle()

    def _settle(self) -> None:
        if self.settles:
            self.world.settle()

    def _pick(self, at: int) -> JobId:
        return self.known[at % len(self.known)]


def _elements(jobs: dict[JobId, Job], name: JobId) -> list[Job]:
    return [jobs[name]] if name in jobs else [job for job in jobs.values() if job.array is not None and job.array.id == name]


TestBatch = Batch.TestCase
TestBatch.settings = settings(
    max_examples=250,
    stateful_step_count=30,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


# -- what once failed

LASTS = {"RUN": "50", "CODE": "0", "TERM": "obeys"}


def make_spec(**fields: Any) -> JobSpec:
    return JobSpec("x", ("true",), "/", **{"env": LASTS, "resources": Resources(1.0), **fields})


def test_an_attempt_that_the_agent_never_heard_of_is_not_started_after_a_restart_has_given_it_up() -> None:
    world = World()
    world.settle()
    (job,) = world.submit(make_spec(retry=(RetryRule(RetryOn.NODE_LOST, 1, 0.0),)))
    world.activate("jobs")
    world.activate("assignment")
    world.reboot()
    world.start_agent()
    world.connect()
    world.send_report()
    world.deliver_report()
    world.activate("reports")
    world.settle()
    assert dict(world.kernel.starts) == {f"{job}.2": 1}
    world.loop.close()


def test_of_equal_jobs_those_that_give_way_do_not_take_the_room_that_one_of_them_gave_up() -> None:
    world = World()
    world.settle()
    gives_way = Resources(2.0, preemptible=True)
    world.submit(make_spec(resources=gives_way), "0-3")
    world.settle()
    (other,) = world.submit(make_spec())
    world.settle()
    assert world.read(lambda tx: tx.job(other).state) is JobState.RUNNING  # type: ignore[union-attr]
    world.advance(40.0)
    assert sum(world.kernel.starts.values()) == 3, "one gave way, and runs again when the other has ended"
    world.loop.close()


def test_a_dependency_that_ended_while_the_store_could_not_be_read_is_noticed() -> None:
    world = World()
    (first,) = world.submit(make_spec())
    (then,) = world.submit(make_spec(after=(Dependency(first),)))
    world.advance(45.0)
    world.store.reads = 3
    world.advance(60.0)
    assert world.read(lambda tx: tx.job(then).attempt) == 1  # type: ignore[union-attr]
    world.loop.close()


def test_a_job_outlives_its_spawner_and_the_agent_after_it_and_its_end_is_told_as_unseen() -> None:
    world = World()
    world.settle()
    (job,) = world.submit(make_spec())
    world.settle()
    world.kernel.kill_spawner()
    world.kill_agent()
    world.start_agent()
    world.advance(40.0)
    assert world.read(lambda tx: tx.job(job).state) is JobState.RUNNING  # type: ignore[union-attr]
    world.advance(60.0)
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and (row.state, row.reason) == (JobState.FAILED, Reason.EXIT_UNKNOWN)
    world.loop.close()


def test_an_attempt_that_may_have_run_while_both_its_keepers_were_dead_is_not_told_as_not_started() -> None:
    world = World()
    world.settle()
    world.submit(make_spec())
    world.activate("jobs")
    world.activate("assignment")
    world.deliver_assignment()
    assert world.agent is not None
    world.agent.work(3)
    assert world.kernel.processes and not world.kernel.disk.handles
    world.kill_agent()
    world.kernel.kill_spawner()
    world.advance(60.0)
    world.start_agent()
    world.settle()
    assert sum(world.kernel.starts.values()) == 1
    world.loop.close()
