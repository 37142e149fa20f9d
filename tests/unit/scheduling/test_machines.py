"""Several machines: each job goes to those of its pool, onto the best of them; what waits on one holds nobody back on another."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from machines import machine_of, make_hgx
from queues import NOW, hours, make_job, run_job, small_machine
from steelyard.model.batch import Gang, Launcher
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import OWN_MACHINE, MachineId, ProjectName
from steelyard.model.job import Job, JobState, Owner, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.placement.room import Room
from steelyard.scheduling.decide import decide
from steelyard.scheduling.preemption import choose_victims
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot
from steelyard.scheduling.why import explain

OWN = small_machine()


def node(name: str, pool: str = "train", machine: Machine = OWN, **fields: object) -> Machine:
    return msgspec.structs.replace(machine, id=MachineId(name), hostname=f"node-{name}", pool=pool, **fields)


A, B = node("a"), node("b")


class Site:
    """Machines and what runs on them."""

    def __init__(self, *machines: Machine) -> None:
        self.machines = machines
        self.holding: list[Holding] = []

    def run(self, machine: Machine, job: Job, since: int = NOW - 1, **fields: object) -> Job:
        on = [held for held in self.holding if held.plan.machine == machine.place]
        running = run_job(machine, on, job, since, **fields)  # type: ignore[arg-type]
        assert running is not None, "it does not fit"
        self.holding.append(on[-1])
        return running

    def look(self, *queued: Job, **fields: object) -> Decision:
        return decide(self.see(*queued, **fields), NOW, {}, choose_victims)

    def see(self, *queued: Job, **fields: object) -> Snapshot:
        return msgspec.structs.replace(Snapshot(self.machines, queued, tuple(self.holding)), **fields)


def pooled(name: str, cpus: float = 1.0, **fields: object) -> Job:
    return make_job(name, cpus, **{"pool": "train", **fields})  # type: ignore[arg-type]


def places(decision: Decision) -> dict[str, str]:
    return {job: plan.machine for job, plan in decision.starts}


def waits(decision: Decision) -> dict[str, Reason]:
    return {why.job: why.reason for why in decision.waits}


def test_a_job_goes_to_the_machines_of_its_pool_and_to_no_other() -> None:
    site = Site(OWN, A, node("x", "other"))
    decision = site.look(make_job("own", 5), pooled("here", 5), make_job("there", 5, pool="other"), pooled("late", 5))
    assert places(decision) == {"own": "", "here": "a", "there": "x"}
    assert waits(decision) == {"late": Reason.NO_CORES_LEFT}
    assert {pool: each.job for pool, each in decision.reservations.items()} == {"train": "late"}


def test_the_fuller_machine_is_filled_first_and_of_equals_the_first() -> None:
    site = Site(OWN, A, B)
    site.run(B, pooled("r", 2))
    assert places(site.look(pooled("one", 5), pooled("two", 5), pooled("three", 1))) == {"one": "b", "two": "a", "three": "b"}


def test_who_asks_for_no_gpus_leaves_the_machines_that_have_them() -> None:
    bare = msgspec.structs.replace(OWN, topology=None)
    site = Site(OWN, A, node("bare", machine=bare))
    site.run(A, pooled("r", 4))
    assert places(site.look(pooled("plain", 1))) == {"plain": "bare"}


def test_gpus_that_are_joined_better_win_over_a_fuller_machine() -> None:
    site = Site(OWN, A, node("b", machine=machine_of(make_hgx(4))))
    site.run(A, pooled("r", 2))
    two = Resources(1, gpus=parse_gpu_demand("2"))
    assert places(site.look(pooled("pair", resources=two))) == {"pair": "b"}
    assert places(site.look(pooled("single", resources=Resources(1, gpus=parse_gpu_demand("1"))))) == {"single": "a"}


def test_a_place_is_kept_where_it_is_free_first_and_the_other_machine_goes_on() -> None:
    site = Site(OWN, A, B)
    site.run(A, pooled("r1", 7, hours=3))
    site.run(B, pooled("r2", 6, hours=1))
    decision = site.look(pooled("large", 8), pooled("long", 1, hours=50), pooled("short", 1, hours=0.5), pooled("never-ends", 1))
    kept = decision.reservations["train"]
    assert (kept.job, kept.at, kept.plan.machine) == ("large", NOW - 1 + hours(1), "b")
    assert places(decision) == {"long": "a", "short": "b"}, "what ends before it, and what is not in its way"
    assert waits(decision) == {"large": Reason.NO_CORES_LEFT, "never-ends": Reason.RESERVED}


def test_a_job_without_a_place_on_its_pool_holds_back_nobody_elsewhere() -> None:
    site = Site(OWN, A)
    site.run(A, pooled("r", 8, hours=5))
    decision = site.look(pooled("large", 8, priority=90), make_job("own", 8, hours=50), make_job("late", 8))
    assert places(decision) == {"own": ""}
    assert {pool: each.job for pool, each in decision.reservations.items()} == {"train": "large", "": "late"}


def test_those_give_way_who_lose_the_least_whatever_machine_they_are_on() -> None:
    soft = Resources(8, preemptible=True)
    site = Site(OWN, A, B)
    site.run(A, pooled("old", resources=soft), since=NOW - hours(9))
    site.run(B, pooled("young", resources=soft), since=NOW - hours(1))
    decision = site.look(pooled("firm", 8, priority=60), make_job("own", 1))
    assert decision.preempts == (("young", "firm"),)
    assert decision.reservations["train"].plan.machine == "b"


def test_what_is_suspended_goes_on_where_it_was() -> None:
    site = Site(OWN, A, B)
    site.run(B, pooled("frozen", 8), state=JobState.SUSPENDED)
    site.holding = [
        Holding(held.demand, held.plan, msgspec.structs.replace(held.job, suspended_at=NOW)) for held in site.holding if held.job
    ]
    site.run(A, pooled("r", 1))
    assert site.look().resumes == ("frozen",)
    site.run(B, pooled("first", 8))
    assert site.look().resumes == (), "the other machine is free, and its memory is not there"


def test_a_machine_that_drains_or_is_sick_gets_nothing_new() -> None:
    drained, sick = node("a", draining="its time is nearly over"), node("b", blocked=("node",))
    decision = Site(OWN, drained, sick).look(pooled("x"))
    assert not decision.starts and waits(decision) == {"x": Reason.NODE_DRAINED}
    (why,) = decision.waits
    assert why.detail == "no machine of pool train takes new work: node-a: its time is nearly over; node-b: out of use"
    assert places(Site(OWN, drained, node("c")).look(pooled("x"))) == {"x": "c"}


def test_a_pool_without_a_machine_is_waited_for_and_so_is_a_larger_one() -> None:
    decision = Site(OWN).look(pooled("x"), make_job("own"))
    assert (places(decision), waits(decision)) == ({"own": ""}, {"x": Reason.NO_MACHINE})
    decision = Site(OWN, A).look(pooled("huge", 100), make_job("beyond", 100))
    assert waits(decision)["huge"] is Reason.CORES_BEYOND_MACHINE, "another machine may come"
    assert [why.job for why in decision.never] == ["beyond"]


def test_quotas_hold_over_all_machines() -> None:
    quota = Quota(ProjectName("p"), Owner("admin", 0), 1, cores=6.0)
    decision = Site(OWN, A, B).look(
        pooled("one", 4, project="p"), make_job("two", 2, project="p"), pooled("three", 2, project="p"), quotas=(quota,)
    )
    assert places(decision) == {"one": "a", "two": ""} and waits(decision) == {"three": Reason.QUOTA}


def test_what_would_be_over_too_late_does_not_go_onto_a_machine_that_is_taken_back() -> None:
    ends = {A.place: NOW + hours(1), B.place: NOW + hours(3)}
    site = Site(OWN, A, B)
    site.run(A, pooled("r", 1))  # the fuller machine is filled first
    jobs = (pooled("short", 1, hours=1), pooled("long", 1, hours=2), pooled("longest", 1, hours=4), pooled("open", 1))
    decision = site.look(*jobs, ends=ends)
    assert places(decision) == {"short": "a", "long": "b", "open": "a"}
    assert waits(decision) == {"longest": Reason.NO_TIME_LEFT}
    assert "node-b the last, at " in decision.waits[0].detail
    assert places(site.look(*jobs, ends={A.place: ends[A.place]})) == {
        "short": "a",
        "long": "b",
        "longest": "b",
        "open": "a",
    }, "a machine without an end has time for anything"


def test_what_was_said_of_a_short_job_is_not_said_of_a_long_one_that_has_fewer_machines() -> None:
    site = Site(OWN, A, B)
    site.run(B, pooled("r", 8, hours=1))
    ends = {A.place: NOW + hours(1), B.place: NOW + hours(5)}
    jobs = (pooled("long", 6, hours=2), pooled("longer", 6, hours=3), pooled("short", 6, hours=0.5))
    decision = site.look(*jobs, ends=ends)
    assert places(decision) == {"short": "a"} and waits(decision)["long"] is Reason.NO_CORES_LEFT
    assert decision.reservations["train"].plan.machine == "b"


def test_no_place_is_kept_that_is_free_too_late() -> None:
    site = Site(OWN, A)
    site.run(A, pooled("r", 8, hours=1))
    decision = site.look(pooled("late", 8, hours=2), pooled("small", 0.5, hours=9), ends={A.place: NOW + hours(2.5)})
    assert decision.reservations == {} and waits(decision) == {"late": Reason.NO_CORES_LEFT, "small": Reason.NO_TIME_LEFT}


def test_why_names_the_end_of_a_machine_and_a_limit_that_starts_the_job() -> None:
    site = Site(OWN, A)
    job = pooled("x", 1, hours=2)
    told = explain(site.see(job, ends={A.place: NOW + hours(1)}), job, NOW, lambda each, now: decide(each, now, {}))
    assert [(block.node, block.reason) for block in told.blocking] == [("node-a", Reason.NO_TIME_LEFT)]
    assert [change.text for change in told.changes] == ["--max-duration 59m: then it is over before its machine is taken back"]


def test_why_tells_what_is_in_the_way_on_each_machine() -> None:
    site = Site(OWN, A, B)
    site.run(A, pooled("r1", 7, hours=1))
    site.run(B, pooled("r2", 1, memory_gib=120, hours=2))
    job = pooled("x", 4, memory_gib=64)
    told = explain(site.see(job), job, NOW, lambda snapshot, now: decide(snapshot, now, {}, choose_victims))
    assert [(block.node, block.reason) for block in told.blocking[:2]] == [
        ("node-a", Reason.NO_CORES_LEFT),
        ("node-b", Reason.NO_MEMORY_LEFT),
    ]
    assert any(change.text.startswith("wait for r1 to end") for change in told.changes)


demands = st.builds(
    Resources,
    cpus=st.sampled_from([0.5, 1.0, 3.0, 6.0]),
    memory_bytes=st.none() | st.just(60 << 30),
    exclusive=st.booleans(),
    gpus=st.none() | st.sampled_from(["1", "2", "4", "0.5"]).map(parse_gpu_demand),
    preemptible=st.booleans(),
)
wishes = st.lists(
    st.fixed_dictionaries({
        "resources": demands,
        "hours": st.none() | st.sampled_from([0.5, 1.0, 5.0]),
        "priority": st.sampled_from([50, 60]),
        "pool": st.sampled_from(["", "train", "train", "other"]),
        "gang": st.none() | st.just(Gang(1, 2)),
    }),
    min_size=4,
    max_size=30,
)  # fmt: skip
ALL = (OWN, A, B, node("c"), node("x", "other"))


def live_through(wanted: Sequence[dict[str, object]], machines: Sequence[Machine] = ALL) -> tuple[Snapshot, Decision]:
    """Half of them started by a first decision an hour ago; the rest wait."""
    jobs = [make_job(f"j{at:02d}", submitted=at, **each) for at, each in enumerate(wanted)]  # type: ignore[arg-type]
    half = len(jobs) // 2
    before = decide(Snapshot(tuple(machines), tuple(jobs[:half])), NOW - hours(1), {})
    by_id = {job.id: job for job in jobs}
    holding: list[Holding] = []
    for name, plan in before.starts:
        running = msgspec.structs.replace(by_id[name], state=JobState.RUNNING, plan=plan, started_at=NOW - hours(1))
        holding.append(Holding(running.spec.demand, plan, running))
    snapshot = Snapshot(tuple(machines), tuple(jobs[half:]), tuple(holding))
    return snapshot, decide(snapshot, NOW, {}, choose_victims)


@given(wanted=wishes)
@settings(max_examples=60)
def test_nothing_is_given_twice_on_any_machine_and_everybody_gets_one_answer(wanted: list[dict[str, object]]) -> None:
    snapshot, decision = live_through(wanted)
    jobs = {job.id: job for job in snapshot.queued}
    rooms = {machine.place: Room(machine) for machine in snapshot.machines}
    pools = {machine.place: machine.pool for machine in snapshot.machines}
    for held in snapshot.holding:
        assert rooms[held.plan.machine].check(held.demand, held.plan) == ()
        rooms[held.plan.machine].take(held.demand, held.plan)
    for name, plan in decision.starts:
        assert pools[plan.machine] == jobs[name].spec.pool
        assert rooms[plan.machine].check(jobs[name].spec.demand, plan) == ()
        rooms[plan.machine].take(jobs[name].spec.demand, plan)
    told = [*(name for name, _ in decision.starts), *(why.job for why in (*decision.waits, *decision.never))]
    assert sorted(told) == sorted(jobs)
    leaving = {name for name, _ in decision.preempts}
    for kept in decision.reservations.values():
        # at its time the place is free of all that runs then, whatever has started since
        at, room = kept.at, Room(next(each for each in snapshot.machines if each.place == kept.plan.machine))
        started = [(jobs[name], plan, NOW) for name, plan in decision.starts]
        running = [(held.job, held.plan, NOW - hours(1)) for held in snapshot.holding if held.job is not None]
        for job, plan, since in [*started, *((job, plan, since) for job, plan, since in running if job.id not in leaving)]:
            end = None if job.spec.max_duration_s is None else since + round(job.spec.max_duration_s * 1e6)
            if plan.machine == kept.plan.machine and at is not None and (end is None or end > at):
                room.take(job.spec.demand, plan)
        assert at is None or room.check(jobs[kept.job].spec.demand, kept.plan) == ()


@given(wanted=wishes)
@settings(max_examples=40)
def test_pools_do_not_feel_each_other(wanted: list[dict[str, object]]) -> None:
    snapshot, decision = live_through(wanted)
    for pool in ("", "train", "other"):
        mine = msgspec.structs.replace(
            snapshot,
            machines=tuple(each for each in snapshot.machines if each.pool == pool),
            queued=tuple(job for job in snapshot.queued if job.spec.pool == pool),
            holding=tuple(held for held in snapshot.holding if held.job is not None and held.job.spec.pool == pool),
        )
        alone = decide(mine, NOW, {}, choose_victims)
        ids = {job.id for job in mine.queued}
        assert alone.starts == tuple((name, plan) for name, plan in decision.starts if name in ids)
        assert set(alone.waits) == {why for why in decision.waits if why.job in ids}
        assert alone.reservations.get(pool) == decision.reservations.get(pool)


def _at_home(plan: Plan) -> Plan:
    return msgspec.structs.replace(plan, machine=OWN_MACHINE, tasks=tuple(_at_home(task) for task in plan.tasks))


@given(wanted=wishes)
@settings(max_examples=40)
def test_a_pool_of_one_machine_is_decided_as_the_homes_own_is(wanted: list[dict[str, object]]) -> None:
    _, own = live_through([{**each, "pool": ""} for each in wanted], [OWN])
    _, away = live_through([{**each, "pool": "train"} for each in wanted], [A])
    named = {job: _at_home(plan) for job, plan in away.starts}
    if not own.never:
        assert named == dict(own.starts) and away.preempts == own.preempts
        assert {why.job: why.reason for why in away.waits} == {why.job: why.reason for why in own.waits}


def test_a_plan_says_on_which_machine_it_is() -> None:
    for demand in (Resources(1), Resources(2, exclusive=True), Resources(1, gpus=parse_gpu_demand("2"))):
        plan = Room(A).place(demand)
        assert isinstance(plan, Plan) and plan.machine == "a"


def test_mpi_over_machines_stays_within_one_allocation_in_the_batch_systems_order() -> None:
    machines = [node(f"{of}{at}", allocation=f"train-{of}", allocation_place=at) for at in (1, 0) for of in "xy"]
    site = Site(OWN, node("alone"), *machines)
    mpi = Gang(nodes=2, launcher=Launcher.MPI)
    decision = site.look(pooled("m", 4, gang=mpi))
    assert [[part.machine for part in plan.parts] for _, plan in decision.starts] == [["x0", "x1"]]
    site.run(machines[0], pooled("r", 6, hours=1))
    decision = site.look(pooled("m", 4, gang=mpi))
    assert [[part.machine for part in plan.parts] for _, plan in decision.starts] == [["y0", "y1"]]
    site.run(machines[1], pooled("r2", 6, hours=2))
    decision = site.look(pooled("m", 4, gang=mpi), pooled("gang", 4, gang=Gang(nodes=2)))
    assert not places(decision).keys() & {"m"}, "what is free of two allocations is none"
    site = Site(OWN, node("alone"), node("alone2"))
    assert waits(site.look(pooled("m", 1, gang=mpi))) == {"m": Reason.NO_MACHINE}
