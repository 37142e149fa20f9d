"""Placement on one machine: a table of cases, and a brute-force model that it must agree with."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import machines
from steelyard.model.job import Plan, Resources
from steelyard.model.machine import Core, Machine, NumaNode
from steelyard.model.reason import Reason
from steelyard.placement.machine import Refusal, check_plan, place

GIB = 1 << 30


def make_machine(nodes: tuple[int, ...] = (2,), siblings: int = 1, memory: int = 8 * GIB) -> Machine:
    """`nodes`: physical cores of each NUMA node. CPUs are numbered as Linux does: first threads first, then the siblings."""
    total = sum(nodes)
    node_of = [node for node, count in enumerate(nodes) for _ in range(count)]
    cores = tuple(Core(tuple(core + thread * total for thread in range(siblings)), 0, node_of[core]) for core in range(total))
    numa_nodes = tuple(
        NumaNode(node, tuple(cpu for core in cores if core.numa_node == node for cpu in core.cpus), memory // len(nodes))
        for node in range(len(nodes))
    )
    return machines.make_machine(cores=cores, numa_nodes=numa_nodes, memory_bytes=memory)


def whole(cores: float) -> Resources:
    return Resources(cpus=cores, exclusive=True)


def fill(machine: Machine, *demands: Resources) -> list[tuple[Resources, Plan]]:
    running: list[tuple[Resources, Plan]] = []
    for demand in demands:
        plan = place(machine, running, demand)
        assert isinstance(plan, Plan), plan
        running.append((demand, plan))
    return running


def test_fifty_small_jobs_share_two_cores() -> None:
    machine = make_machine()
    assert len(fill(machine, *[Resources(cpus=0.01)] * 50)) == 50


def test_shares_are_exact_up_to_the_last_hundredth() -> None:
    machine = make_machine()
    running = fill(machine, *[Resources(cpus=0.01)] * 200)
    answer = place(machine, running, Resources(cpus=0.01))
    assert isinstance(answer, Refusal) and not answer.never and answer.reasons == (Reason.NO_CORES_LEFT,)
    assert answer.largest.cpus == 0


def test_an_exclusive_core_comes_with_its_siblings_and_the_first_core_stays_shared() -> None:
    plan = place(make_machine((4,), siblings=2), (), whole(2))
    assert plan == Plan(cpus=(2, 3, 6, 7), share=2.0, memory_nodes=(0,))


def test_one_core_always_stays_shared() -> None:
    machine = make_machine((4,))
    answer = place(machine, (), whole(4))
    assert isinstance(answer, Refusal) and answer.never and answer.reasons == (Reason.CORES_BEYOND_MACHINE,)
    assert "this machine has 4 cores" in answer.detail and answer.largest.exclusive_cores == 3
    running = fill(machine, whole(3))
    later = place(machine, running, whole(1))
    assert isinstance(later, Refusal) and not later.never and later.largest.exclusive_cores == 0


def test_a_machine_with_one_core_gives_none_away() -> None:
    answer = place(make_machine((1,), siblings=2), (), whole(1))
    assert isinstance(answer, Refusal) and answer.never and "this machine has 1 core and" in answer.detail


def test_cores_of_one_numa_node_are_preferred_and_the_fuller_node_first() -> None:
    machine = make_machine((4, 4))
    running = fill(machine, whole(2))
    assert running[0][1].cpus == (6, 7)
    # node 1 has two free cores left, just enough: node 0 is kept whole
    assert place(machine, running, whole(2)) == Plan(cpus=(4, 5), share=2.0, memory_nodes=(1,))
    assert place(machine, running, whole(3)) == Plan(cpus=(1, 2, 3), share=3.0, memory_nodes=(0,))


def test_a_demand_wider_than_a_node_spans_the_emptiest() -> None:
    plan = place(make_machine((2, 4)), (), whole(5))
    assert plan == Plan(cpus=(1, 2, 3, 4, 5), share=5.0, memory_nodes=(0, 1))


def test_memory_larger_than_the_node_is_not_bound_to_it() -> None:
    plan = place(make_machine((2, 2), memory=8 * GIB), (), Resources(1, 6 * GIB, exclusive=True))
    assert isinstance(plan, Plan) and plan.cpus == (3,) and plan.memory_nodes == ()


def test_exclusive_work_does_not_squeeze_what_shares() -> None:
    machine = make_machine((4,))
    running = fill(machine, Resources(cpus=2.5))
    answer = place(machine, running, whole(2))
    assert isinstance(answer, Refusal) and answer.largest.exclusive_cores == 1
    assert isinstance(place(machine, running, whole(1)), Plan)


def test_a_refusal_names_every_reason() -> None:
    machine = make_machine()
    never = place(machine, (), Resources(5, 64 * GIB))
    assert isinstance(never, Refusal) and never.never
    assert never.reasons == (Reason.CORES_BEYOND_MACHINE, Reason.MEMORY_BEYOND_MACHINE)
    assert "this machine has 2 cores; 5 asked" in never.detail and "8 GiB of memory; 64 GiB asked" in never.detail
    running = fill(machine, Resources(1.5, 6 * GIB))
    later = place(machine, running, Resources(1, 4 * GIB))
    assert isinstance(later, Refusal) and not later.never
    assert later.reasons == (Reason.NO_CORES_LEFT, Reason.NO_MEMORY_LEFT)
    assert (later.largest.cpus, later.largest.memory_bytes) == (0.5, 2 * GIB)


@pytest.mark.parametrize(
    ("plan", "demand", "word"),
    [
        (Plan(cpus=(3,)), whole(1), "not free"),
        (Plan(cpus=(0, 1, 2)), whole(3), "overbooked"),
        (Plan(share=3.5), Resources(3.5), "overbooked"),
        (Plan(memory_bytes=9 * GIB), Resources(1, 9 * GIB), "memory"),
    ],
)
def test_the_check_finds_what_may_not_be_carried_out(plan: Plan, demand: Resources, word: str) -> None:
    machine = make_machine((4,))
    running = fill(machine, whole(1))
    findings = check_plan(machine, running, demand, plan)
    assert any(word in finding for finding in findings), findings


demands = st.one_of(
    st.builds(
        Resources,
        cpus=st.integers(1, 500).map(lambda n: n / 100),
        memory_bytes=st.none() | st.integers(1, 10).map(lambda n: n * GIB),
    ),
    st.builds(Resources, cpus=st.integers(1, 6).map(float), exclusive=st.just(True)),
)


def obviously_fits(machine: Machine, running: list[tuple[Resources, Plan]], demand: Resources) -> bool:
    """The same rules by trying every set of cores, in hundredths."""
    taken = {cpu for _, plan in running for cpu in plan.cpus}
    free = [core for core in machine.cores if not set(core.cpus) & taken]
    shared = sum(round(asked.cpus * 100) for asked, _ in running if not asked.exclusive)
    if sum(asked.memory_bytes or 0 for asked, _ in running) + (demand.memory_bytes or 0) > machine.memory_bytes:
        return False
    if not demand.exclusive:
        return shared + round(demand.cpus * 100) <= len(free) * 100
    for chosen in itertools.combinations(free, int(demand.cpus)):
        left = len(free) - len(chosen)
        if left >= 1 and shared <= left * 100:
            return True
    return False


@settings(max_examples=150)
@given(
    nodes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    siblings=st.integers(1, 2),
    wanted=st.lists(st.tuples(demands, st.booleans()), max_size=14),
)
def test_placement_agrees_with_trying_everything(nodes: list[int], siblings: int, wanted: list[tuple[Resources, bool]]) -> None:
    machine = make_machine(tuple(nodes), siblings)
    running: list[tuple[Resources, Plan]] = []
    for demand, ends_one in wanted:
        answer = place(machine, running, demand)
        assert isinstance(answer, Plan) == obviously_fits(machine, running, demand)
        if isinstance(answer, Refusal):
            assert answer.never == (not obviously_fits(machine, [], demand))
            assert answer.reasons
        else:
            assert check_plan(machine, running, demand, answer) == ()
            running.append((demand, answer))
        given_cpus = [cpu for _, plan in running for cpu in plan.cpus]
        assert len(given_cpus) == len(set(given_cpus)) and set(given_cpus) <= set(machine.cpus)
        shared_cores = [core for core in machine.cores if not set(core.cpus) & set(given_cpus)]
        assert shared_cores, "one core always stays shared"
        assert all(set(core.cpus) <= set(given_cpus) for core in machine.cores if core not in shared_cores)
        assert sum(round(asked.cpus * 100) for asked, _ in running if not asked.exclusive) <= 100 * len(shared_cores)
        if ends_one and running:
            running.pop(0)


@settings(max_examples=100)
@given(wanted=st.lists(demands, max_size=8), last=demands)
def test_the_largest_possible_is_possible_and_a_little_more_is_not(wanted: list[Resources], last: Resources) -> None:
    machine = make_machine((4,))
    running: list[tuple[Resources, Plan]] = []
    for demand in wanted:
        answer = place(machine, running, demand)
        if isinstance(answer, Plan):
            running.append((demand, answer))
    refusal = place(machine, running, last)
    if isinstance(refusal, Plan) or refusal.never:
        return
    largest = refusal.largest
    if largest.cpus > 0:
        assert isinstance(place(machine, running, Resources(cpus=largest.cpus)), Plan)
    assert isinstance(place(machine, running, Resources(cpus=largest.cpus + 0.01)), Refusal)
    if largest.exclusive_cores:
        assert isinstance(place(machine, running, whole(largest.exclusive_cores)), Plan)
    assert isinstance(place(machine, running, whole(largest.exclusive_cores + 1)), Refusal)
