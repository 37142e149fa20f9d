"""Gangs on several machines of a pool: on all of them at once, with a place kept while they wait, and victims on each."""

from __future__ import annotations

import msgspec

from queues import NOW, hours, make_job, run_job, small_machine
from steelyard.model.batch import Gang, Preemption, PreemptMode
from steelyard.model.ids import JobId, MachineId
from steelyard.model.job import Job, JobState, Plan, Resources, join_parts
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.scheduling.decide import decide
from steelyard.scheduling.forecast import forecast_starts
from steelyard.scheduling.preemption import choose_victims
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot
from steelyard.scheduling.why import explain

OWN = small_machine()
#: cores of each machine
CORES = 8


def node(name: str) -> Machine:
    return msgspec.structs.replace(OWN, id=MachineId(name), hostname=f"node-{name}", pool="train")


A, B, C = node("a"), node("b"), node("c")


class Site:
    def __init__(self, *machines: Machine) -> None:
        self.machines = machines
        self.holding: list[Holding] = []

    def run(self, machine: Machine, job: Job, since: int = NOW - 1) -> Job:
        on = [part for held in self.holding for part in held.parts if part.plan.machine == machine.place]
        running = run_job(machine, on, job, since)
        assert running is not None, "it does not fit"
        self.holding.append(on[-1])
        return running

    def run_gang(self, job: Job, *machines: Machine, state: JobState = JobState.RUNNING) -> Job:
        plan = join_parts([Plan(share=job.spec.demand.cpus, machine=machine.place) for machine in machines])
        job = msgspec.structs.replace(job, state=state, plan=plan, started_at=NOW - 1)
        self.holding.append(Holding(job.spec.demand, plan, job))
        return job

    def see(self, *queued: Job) -> Snapshot:
        return Snapshot(self.machines, queued, tuple(self.holding))

    def look(self, *queued: Job) -> Decision:
        return decide(self.see(*queued), NOW, {}, choose_victims)


def pooled(name: str, cpus: float, **fields: object) -> Job:
    return make_job(name, cpus, **{"pool": "train", **fields})  # type: ignore[arg-type]


def gang(name: str, cpus: float, nodes: int = 2, **fields: object) -> Job:
    return pooled(name, cpus, gang=Gang(nodes, 1), **fields)


def places(plan: Plan) -> list[str]:
    return [part.machine for part in plan.parts]


def started(decision: Decision) -> dict[str, list[str]]:
    return {job: places(plan) for job, plan in decision.starts}


def test_it_starts_on_as_many_machines_as_it_has_nodes_each_with_its_part() -> None:
    decision = Site(A, B, C).look(gang("g", 8.0, 3))
    assert started(decision) == {"g": ["a", "b", "c"]}
    ((_, plan),) = decision.starts
    assert [part.share for part in plan.parts] == [8.0] * 3 and all(len(part.tasks) == 1 for part in plan.parts)


def test_the_fullest_that_still_have_room_are_taken() -> None:
    site = Site(A, B, C)
    site.run(B, pooled("x", 2.0))
    site.run(C, pooled("y", 1.0))
    assert set(started(site.look(gang("g", 4.0)))["g"]) == {"b", "c"}


def test_where_one_machine_is_lacking_none_of_it_starts() -> None:
    site = Site(A, B)
    site.run(A, pooled("x", 6.0))
    decision = site.look(gang("g", 4.0))
    assert not decision.starts
    (why,) = decision.waits
    assert (why.reason, why.detail.partition(";")[0]) == (
        Reason.NO_CORES_LEFT,
        "2 machines asked at once, 1 of 2 can take their part now",
    )
    (why,) = Site(A).look(gang("g", 4.0)).waits
    assert (why.reason, why.detail) == (
        Reason.NO_MACHINE,
        "2 machines asked at once, and 1 machine of pool train can take work now",
    )


def test_a_waiting_gang_keeps_a_place_on_each_of_its_machines() -> None:
    site = Site(A, B)
    site.run(A, pooled("x", 6.0, hours=1))
    decision = site.look(gang("g", 6.0), pooled("long", 4.0), pooled("short", 4.0, hours=0.5), pooled("beside", 2.0))
    kept = decision.reservations["train"]
    assert (kept.job, kept.at, places(kept.plan)) == ("g", NOW - 1 + hours(1), ["b", "a"])
    assert started(decision) == {"short": ["b"], "beside": ["a"]}, "what is over by then, or fits beside it"
    assert {why.job: why.reason for why in decision.waits}["long"] is Reason.RESERVED


def test_its_place_is_as_of_when_the_last_of_its_machines_is_free() -> None:
    site = Site(A, B)
    site.run(A, pooled("x", 6.0, hours=1))
    site.run(B, pooled("y", 6.0, hours=3))
    decision = site.look(gang("g", 6.0), pooled("two", 2.0, hours=2.9), pooled("four", 2.0, hours=4))
    assert decision.reservations["train"].at == NOW - 1 + hours(3)
    assert set(started(decision)) == {"two", "four"}, "two cores of each machine are left beside it"
    site.holding.pop()
    site.run(B, pooled("z", 6.0))
    assert site.look(gang("g", 6.0)).reservations["train"].at is None, "nobody knows when that ends"


def test_what_ends_on_one_machine_is_waited_for_with_the_other_in_hand() -> None:
    site = Site(A, B)
    ending = site.run(A, pooled("x", 6.0))
    site.holding[-1] = msgspec.structs.replace(site.holding[-1], job=msgspec.structs.replace(ending, state=JobState.STOPPING))
    decision = site.look(gang("g", 6.0), pooled("next", 6.0))
    assert not decision.starts, "the free machine is kept as well"


def test_victims_go_on_every_machine_that_lacks_room_and_nowhere_else() -> None:
    gives_way = Resources(6.0, preemptible=True)
    site = Site(A, B, C)
    site.run(A, pooled("a", 6.0, resources=gives_way, priority=10))
    site.run(B, pooled("b", 6.0, resources=gives_way, priority=10))
    assert site.look(gang("g", 6.0)).preempts == ((JobId("a"), JobId("g")),), "one of two, beside the empty machine"
    assert set(site.look(gang("g", 6.0, 3)).preempts) == {(JobId("a"), JobId("g")), (JobId("b"), JobId("g"))}
    site.run(C, pooled("c", 6.0))
    assert site.look(gang("g", 6.0, 3)).preempts == (), "where all are not enough, nobody goes"


def test_a_victim_on_several_machines_leaves_all_of_them() -> None:
    gives_way = Resources(6.0, preemptible=True)
    site = Site(A, B)
    site.run_gang(gang("v", 6.0, resources=gives_way, priority=10), A, B)
    assert site.look(gang("g", 6.0)).preempts == ((JobId("v"), JobId("g")),)
    decision = site.look(pooled("one", 6.0), pooled("two", 6.0))
    assert decision.preempts == ((JobId("v"), JobId("one")),), "whose other machine is the second one's"


def test_a_suspended_gang_goes_on_where_it_was_when_all_of_it_can() -> None:
    asked = {"resources": Resources(6.0, preemptible=True), "preemption": Preemption(PreemptMode.SUSPEND)}
    site = Site(A, B)
    site.run_gang(gang("v", 6.0, suspended_at=NOW, **asked), A, B, state=JobState.SUSPENDED)
    assert site.look().resumes == (JobId("v"),)
    site.run(B, pooled("x", 6.0))
    assert site.look().resumes == ()


def test_it_counts_on_all_of_its_machines_and_is_explained_and_forecast() -> None:
    site = Site(A, B)
    site.run_gang(gang("v", 6.0, hours=1), A, B)
    assert started(site.look(pooled("x", 2.0), pooled("y", 2.0), pooled("z", 2.0))).keys() == {"x", "y"}
    waiting = gang("g", 6.0)
    told = explain(site.see(waiting), waiting, NOW, _decide)
    assert {block.node for block in told.blocking if block.reason is Reason.NO_CORES_LEFT} >= {"node-a", "node-b"}
    starts = forecast_starts(site.see(waiting), NOW, _decide)
    assert starts == {"g": NOW - 1 + hours(1)}


def _decide(seen: Snapshot, now: int) -> Decision:
    return decide(seen, now, {}, choose_victims)
