"""What CRITICAL takes out of use comes back only by a passed active check: the rule, driven through every order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from steelyard.lifecycle.node import (
    TRANSITIONS,
    Move,
    NodeHealth,
    NodeState,
    apply_check,
    apply_health,
    apply_restart,
    apply_use,
    ask_check,
    plan_blocked,
)
from steelyard.model.health import NODE, Finding, Health, Severity
from steelyard.model.job import Plan

A, B = "0000:0f:00.0", "0000:10:00.0"
PASS = Finding("probe", A, Severity.PASS, "It computes.")


def critical(*blocks: str, sequence: int | None = None) -> Finding:
    return Finding("xid", blocks[0], Severity.CRITICAL, "Xid 79 (1 line).", blocks=blocks, sequence=sequence)


def drain(*blocks: str, in_use: tuple[str, ...] = ()) -> NodeHealth:
    return apply_health(NodeHealth(), Health((critical(*blocks),)), in_use, 1).health


def begin(node: NodeHealth, subject: str) -> NodeHealth:
    move = ask_check(node, subject)
    assert isinstance(move, Move)
    return move.health


def test_critical_drains_and_the_rest_of_the_machine_works_on() -> None:
    node = drain(A)
    assert (node.state, node.blocked, node.blocked_pairs) == (NodeState.DEGRADED, (A,), ())


def test_work_on_it_goes_on_to_its_end_first() -> None:
    node = drain(A, in_use=(A, NODE))
    assert node.holds[0].state is NodeState.DRAINING and node.blocked == (A,)
    assert isinstance(ask_check(node, A), str)
    assert apply_use(node, (A, NODE)).health == node
    assert apply_use(node, (NODE,)).health.holds[0].state is NodeState.DRAINED


def test_a_lost_link_blocks_the_pair_and_neither_device() -> None:
    node = drain(B, A)
    assert (node.blocked, node.blocked_pairs, node.holds[0].subject) == ((), ((A, B),), f"{A}+{B}")
    assert plan_blocked(node.blocked, node.blocked_pairs, Plan(gpus=(A, B)))
    assert not plan_blocked(node.blocked, node.blocked_pairs, Plan(gpus=(A,)))


def test_a_drained_machine_takes_nothing_and_says_so() -> None:
    node = drain(NODE)
    assert node.state is NodeState.DRAINED
    assert plan_blocked(node.blocked, (), Plan())


def test_a_plan_on_a_blocked_device_or_memory_node_is_refused() -> None:
    assert plan_blocked((A,), (), Plan(gpus=(A,))) and plan_blocked(("numa:1",), (), Plan(memory_nodes=(1,)))
    assert not plan_blocked((A, "numa:1"), (), Plan(gpus=(B,), memory_nodes=(0,)))


def test_the_finding_is_gone_and_nothing_comes_back() -> None:
    node = drain(A)
    assert apply_health(node, Health((Finding("xid", A, Severity.PASS, "fine"),)), (), 2).health.blocked == (A,)
    assert apply_restart(node, "another boot").health.blocked == (A,)


def test_a_passed_check_puts_it_back_and_answers_the_lines_before_it() -> None:
    node = apply_check(begin(drain(A), A), A, (PASS,), 41).health
    assert (node.state, node.answered) == (NodeState.READY, {A: 41})
    assert apply_restart(node, "another boot").health.answered == {}


@pytest.mark.parametrize("severity", [Severity.UNKNOWN, Severity.WARNING, Severity.CRITICAL])
def test_a_check_that_did_not_pass_leaves_it_out_with_what_it_found(severity: Severity) -> None:
    found = (PASS, Finding("probe", A, severity, "Hm."))
    move = apply_check(begin(drain(A), A), A, found, 41)
    assert (move.health.holds[0].state, move.health.holds[0].checked) == (NodeState.DRAINED, found)
    assert "did not pass" in move.events[0]


def test_a_check_that_looked_at_nothing_has_not_passed() -> None:
    assert apply_check(begin(drain(A), A), A, (), 41).health.blocked == (A,)


def test_a_check_that_the_agent_died_in_has_not_passed() -> None:
    assert apply_restart(begin(drain(A), A), "").health.holds[0].state is NodeState.DRAINED


def test_an_answer_without_a_check_is_an_illegal_transition_and_changes_nothing() -> None:
    node = drain(A)
    move = apply_check(node, A, (PASS,), 1)
    assert move.health == node and "illegal" in move.events[0]


def test_asking_for_what_is_not_held_says_what_is() -> None:
    answer = ask_check(drain(A), B)
    assert isinstance(answer, str) and A in answer


def test_the_same_finding_again_writes_no_history() -> None:
    node = drain(A)
    assert apply_health(node, Health((critical(A),)), (), 2) == Move(node)


class Life(RuleBasedStateMachine):
    """Two devices, the machine and a pair under any order of faults, ends of work, restarts and checks."""

    def __init__(self) -> None:
        super().__init__()
        self.node = NodeHealth()
        self.held: set[str] = set()

    def take(self, move: Move) -> None:
        before = {hold.subject: hold.state for hold in self.node.holds}
        after = {hold.subject: hold.state for hold in move.health.holds}
        for subject in before | after:
            old, new = before.get(subject, NodeState.READY), after.get(subject, NodeState.READY)
            assert old is new or new in TRANSITIONS[old], (subject, old, new)
        self.node = move.health

    @rule(blocks=st.sampled_from([(A,), (B,), (NODE,), (A, B)]), used=st.sets(st.sampled_from([A, B, NODE])))
    def fault(self, blocks: tuple[str, ...], used: set[str]) -> None:
        self.take(apply_health(self.node, Health((critical(*blocks),)), used, 1))
        self.held.add("+".join(blocks))

    @rule(used=st.sets(st.sampled_from([A, B, NODE])))
    def all_is_well(self, used: set[str]) -> None:
        self.take(apply_health(self.node, Health((PASS,)), used, 2))
        self.take(apply_use(self.node, used))

    @rule(boot=st.sampled_from(["one", "two"]))
    def restart(self, boot: str) -> None:
        self.take(apply_restart(self.node, boot))

    @rule(subject=st.sampled_from([A, B, NODE, f"{A}+{B}"]))
    def ask(self, subject: str) -> None:
        move = ask_check(self.node, subject)
        if isinstance(move, Move):
            self.take(move)

    @rule(subject=st.sampled_from([A, B, NODE, f"{A}+{B}"]), severities=st.lists(st.sampled_from(list(Severity)), max_size=3))
    def answer(self, subject: str, severities: list[Severity]) -> None:
        hold = self.node.hold(subject)
        checking = hold is not None and hold.state is NodeState.CHECKING
        self.take(apply_check(self.node, subject, [Finding("probe", subject, each, "said") for each in severities], 5))
        if checking and Severity.PASS in severities and set(severities) <= {Severity.PASS, Severity.INFO}:
            self.held.discard(subject)

    @invariant()
    def nothing_comes_back_without_a_passed_check(self) -> None:
        assert {hold.subject for hold in self.node.holds} == self.held

    @precondition(lambda self: self.held)
    @invariant()
    def a_machine_with_something_out_of_use_is_not_ready(self) -> None:
        assert self.node.state is not NodeState.READY


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30)
