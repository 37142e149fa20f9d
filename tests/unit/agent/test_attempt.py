"""Does what happened to its processes tell what became of an attempt?"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.agent.attempt import (
    WAITS,
    Attempt,
    Member,
    MemberEnd,
    adopt_member,
    explain_end,
    explain_limit,
    find_members,
    join_plans,
    judge_members,
    make_members,
    only_waits,
)
from steelyard.model.batch import RankEnd
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId, WorkloadId
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.model.reason import Reason
from steelyard.runtime.process import Adopted, AdoptedState
from steelyard.runtime.records import Handle, Intent
from steelyard.wire.agent import AssignedJob, GangPlace
from steelyard.wire.spawn import Exited

A = AttemptId("j-1.1")
SECOND = 1_000_000_000
GANG = Plan(cpus=(0, 1, 2), tasks=tuple(Plan(cpus=(cpu,)) for cpu in range(3)))


def make_attempt(ranks: int = 3) -> Attempt:
    plan = Plan(tasks=(Plan(),) * ranks)
    state = Attempt(plan, make_members(A, plan, ranks), phase="running")
    for member in state.members:
        member.phase = "running"
    return state


def make_end(at: int, code: int | None = None, signum: int | None = None, **fields: Any) -> MemberEnd:
    exited = Exited(WorkloadId("w"), 1, 1, at, code, signum, 0.0, 0.0, 10)
    return explain_end(exited, fields.get("oom_kills"), fields.get("peak"), Plan(memory_bytes=64), 0)


def test_one_process_has_the_attempts_name_and_ranks_have_their_own():
    assert [(member.workload, member.rank, member.plan) for member in make_members(A, GANG, 1)] == [(A, None, GANG)]
    members = make_members(A, GANG, 3)
    assert [(member.workload, member.rank, member.plan) for member in members] == [
        (f"{A}.{rank}", rank, Plan(cpus=(rank,))) for rank in range(3)
    ]


@pytest.mark.parametrize(
    ("end", "reason", "words"),
    [
        (make_end(5, 0), Reason.EXITED, ""),
        (make_end(5, 3), Reason.EXITED_NONZERO, ""),
        (make_end(5, None, 15), Reason.KILLED_BY_SIGNAL, "signal 15 (SIGTERM)"),
        (make_end(5, None, 40), Reason.KILLED_BY_SIGNAL, "signal 40"),
        (make_end(5, None, 9, oom_kills=1), Reason.OOM_KILLED, "64 bytes"),
        (make_end(5), Reason.EXIT_UNKNOWN, "lost"),
        (explain_end(None, None, None, Plan(), 7), Reason.EXIT_UNKNOWN, "not known"),
    ],
)
def test_exit_records_are_told_in_words(end, reason, words):
    assert end.reason is reason and words in end.detail
    assert end.bad == (reason is not Reason.EXITED)


def test_the_group_knows_the_peak_better_than_the_process():
    assert make_end(5, 0, peak=99).peak_memory_bytes == 99
    assert make_end(5, 0).peak_memory_bytes == 10


def test_the_first_rank_that_ends_badly_says_how_the_gang_ended():
    state = make_attempt()
    assert not state.note_end(state.members[0], make_end(1, 0))
    assert state.broke_with is None
    assert not state.note_end(state.members[2], make_end(2, None, 9, oom_kills=1))
    assert state.seen(0).broken
    assert state.note_end(state.members[1], make_end(3, None, 15))
    state.conclude(None)
    assert (state.phase, state.reason, state.signum, state.exit_code) == ("ended", Reason.OOM_KILLED, 9, None)
    assert state.detail == "rank 2 was ended by the kernel at its memory limit; the other rank was ended with it."
    report = state.report(A, None)
    assert report.ranks == (RankEnd(0, 0, None), RankEnd(1, None, 15), RankEnd(2, None, 9))
    assert (report.ended_at, report.peak_memory_bytes) == (3, 30)


def test_a_gang_that_was_told_to_end_is_not_broken_by_its_first_rank():
    state = make_attempt(2)
    state.signalled_ns, state.signalled = 5, 15
    state.note_end(state.members[0], make_end(1, None, 15))
    assert not state.seen(0).broken
    assert state.note_end(state.members[1], make_end(2, 0))
    state.conclude(None)
    assert state.detail == "rank 0 was ended by signal 15."


def test_all_ranks_that_end_well_end_the_gang_well():
    state = make_attempt(2)
    state.note_end(state.members[1], make_end(1, 0))
    assert state.note_end(state.members[0], make_end(2, 0))
    state.conclude(None)
    assert (state.reason, state.exit_code, state.detail, state.ended_at) == (Reason.EXITED, 0, "", 2)


def test_what_was_ended_for_a_limit_says_which_whatever_its_exit():
    state = make_attempt(1)
    state.progress = type(state.progress)(limit=Reason.MAX_DURATION)
    state.note_end(state.members[0], make_end(1, 0))
    state.conclude(JobSpec(name="a", argv=("a",), cwd="/", max_duration_s=60))
    assert (state.reason, state.exit_code) == (Reason.MAX_DURATION, 0)
    assert "duration of 60 s" in state.detail
    assert "start timeout and" not in explain_limit(Reason.START_TIMEOUT, None)


@pytest.mark.parametrize(("ran", "doubt", "phase"), [((), False, "not-started"), ((0,), False, "ended"), ((), True, "ended")])
def test_a_failed_start_never_ran_only_if_no_rank_did(ran, doubt, phase):
    state = make_attempt()
    state.phase = "starting"
    for member in state.members:
        member.phase = "running" if member.rank in ran else "starting"
    state.note_not_started(Reason.START_FAILED, "exec: no", 9, doubt=doubt)
    assert (state.phase, state.reason, state.ended_at) == (phase, Reason.START_FAILED, 9)
    # the records of those that were killed come later, and change nothing of it
    assert not state.note_end(state.members[0], make_end(1, None, 9))
    assert state.phase == phase


def test_time_stands_still_while_it_is_frozen():
    state = make_attempt(1)
    state.started_ns = 10 * SECOND
    assert state.ran_ns(15 * SECOND) == 5 * SECOND
    state.note_frozen(15 * SECOND, 115 * SECOND)
    assert state.ran_ns(99 * SECOND) == 5 * SECOND
    assert state.progress.frozen_since_boot_ns == 115 * SECOND
    state.note_thawed(20 * SECOND)
    assert (state.phase, state.ran_ns(22 * SECOND), state.progress.frozen_ns) == ("running", 7 * SECOND, 5 * SECOND)
    assert state.progress.frozen_since_boot_ns is None


def test_only_a_change_of_the_heartbeat_file_is_a_heartbeat():
    state = make_attempt(1)
    state.started_ns = 0
    state.note_beat(None, 5 * SECOND)
    assert (state.seen(5 * SECOND).touched, state.seen(5 * SECOND).silent_ns) == (False, 5 * SECOND)
    state.note_beat(77, 6 * SECOND)
    state.note_beat(77, 9 * SECOND)
    assert (state.seen(9 * SECOND).touched, state.seen(9 * SECOND).silent_ns) == (True, 3 * SECOND)
    state.note_beat(12, 10 * SECOND)  # also when the clock on the wall went back
    assert state.seen(10 * SECOND).silent_ns == 0


# after a restart of the agent


def adopted(rank: int, state: AdoptedState, reason: Reason | None = None, ranks: int = 3) -> Adopted:
    labels = {"attempt": A, "rank": str(rank), "ranks": str(ranks)}
    workload = WorkloadId(f"{A}.{rank}")
    handle = Handle(workload, "b", 100 + rank, 1, 1) if state is not AdoptedState.NOT_STARTED else None
    return Adopted(workload, state, Intent(workload, "b", "job", 0, Plan(cpus=(rank,)), "s", labels), handle, reason=reason)


def test_ranks_are_found_by_what_their_intents_say_also_those_without_one():
    members = find_members(A, [adopted(2, AdoptedState.RUNNING), adopted(0, AdoptedState.RUNNING)])
    assert [(member.workload, member.rank) for member in members] == [(f"{A}.{rank}", rank) for rank in range(3)]
    assert [member.plan.cpus for member in members] == [(0,), (), (2,)]
    assert join_plans([member.plan for member in members]).cpus == (0, 2)
    (alone,) = find_members(A, [Adopted(WorkloadId(A), AdoptedState.ENDED)])
    assert (alone.workload, alone.rank) == (A, None)


STATES: list[tuple[AdoptedState, Reason | None]] = [
    (AdoptedState.RUNNING, None),
    (AdoptedState.NOT_STARTED, Reason.NOT_STARTED),
    (AdoptedState.ENDED, None),
    (AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN),
    (AdoptedState.UNKNOWN, Reason.NODE_LOST),
]


@pytest.mark.parametrize("states", list(itertools.combinations_with_replacement([*STATES, None], 3)))
def test_a_gang_is_found_whole_or_not_at_all(states):
    members = make_members(A, GANG, 3)
    for member, seen in zip(members, states, strict=True):
        adopt_member(member, adopted(member.rank or 0, *seen) if seen else None, 5)
    phase, reason, _ = judge_members(members)
    phases = {member.phase for member in members}
    if phase == "running":
        assert phases <= {"running", "ended"} and "running" in phases
    elif phase == "not-started":
        assert phases == {"not-started"} and reason is Reason.NOT_STARTED
    elif phase == "unknown":
        assert "unknown" in phases and reason is Reason.NODE_LOST
    else:
        assert phase == "ended"
        assert phases == {"ended"} or ("not-started" in phases and reason is Reason.NODE_LOST)


@given(st.permutations(range(4)), st.lists(st.sampled_from([0, 1, None]), min_size=4, max_size=4))
def test_an_attempt_is_over_exactly_when_its_last_process_is(order: list[int], codes: list[int | None]):
    state = make_attempt(4)
    over = [state.note_end(state.members[rank], make_end(at, codes[rank])) for at, rank in enumerate(order)]
    assert over == [False, False, False, True]
    state.conclude(None)
    bad = [rank for rank in order if codes[rank] != 0]
    assert state.exit_code == (codes[bad[0]] if bad else 0)


def assigned(port: int | None) -> AssignedJob:
    """None: it is on one machine."""
    place = None if port is None else GangPlace(0, ("a", "b"), ("a", "b"), port)
    return AssignedJob(A, JobId("j-1"), DEFAULT_PROJECT, Owner("u", 1), JobSpec("x", ("true",), "/"), GANG, place=place)


def waiting(rank: int, state: AdoptedState, reason: Reason | None = None, **fields: Any) -> Adopted:
    found = adopted(rank, state, reason)
    assert found.intent is not None
    intent = replace(found.intent, labels=found.intent.labels | {WAITS: "yes"})
    return replace(found, intent=intent, **{"handle": None, **fields})


@pytest.mark.parametrize("other", [*STATES, None])
def test_what_only_waited_is_prepared_once_more_where_nothing_says_that_it_began(other):
    """Its spawner may have been killed too; that it begins would be on disk."""
    first = waiting(0, AdoptedState.NOT_STARTED, Reason.NOT_STARTED)
    found = [first] if other is None else [first, waiting(1, *other)]
    waits = other in (None, (AdoptedState.NOT_STARTED, Reason.NOT_STARTED), (AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN))
    assert only_waits(found, assigned(0)) is waits
    assert not only_waits(found, assigned(7000)), "it was told to begin"
    assert not only_waits(found, None), "nobody says any more whether it was"


def test_what_did_not_wait_for_others_or_left_a_trace_is_never_prepared_once_more():
    alone = adopted(0, AdoptedState.NOT_STARTED, Reason.NOT_STARTED)
    assert not only_waits([alone], assigned(None)) and not only_waits([alone], assigned(0))
    handle = Handle(WorkloadId(f"{A}.0"), "b", 100, 1, 1)
    exited = Exited(WorkloadId(f"{A}.0"), 1, 1, 5, 0, None, 0.0, 0.0, 10)
    for trace in ({"handle": handle}, {"exited": exited}):
        assert not only_waits([waiting(0, AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN, **trace)], assigned(0))


def test_a_member_that_ended_unseen_is_ended():
    member = Member(WorkloadId(A), Plan())
    adopt_member(member, adopted(0, AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN), 5)
    assert member.phase == "ended" and member.end is not None and member.end.bad
