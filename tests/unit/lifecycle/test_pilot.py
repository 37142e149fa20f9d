from __future__ import annotations

import pytest
from msgspec.structs import replace

from steelyard.lifecycle.pilot import (
    BACKOFF_MAX_S,
    apply_entry,
    drain_pilot,
    end_pilot,
    ends_within,
    explain_coming,
    find_drain,
    greet_pilot,
    judge_pool,
    known_end,
    longest_work_s,
)
from steelyard.model.ids import DEFAULT_PROJECT, MachineId
from steelyard.model.job import Owner
from steelyard.model.pool import Pilot, PilotState, Pool, PoolSpec
from steelyard.model.slurm import QueueEntry

S = 1_000_000
OWNER = Owner("ann", 1)
NEW = Pilot(MachineId("p-1"), "p", DEFAULT_PROJECT, OWNER, 1, PilotState.SUBMITTED, 0)
POOL = Pool(PoolSpec("p", 0, 2, drain_s=120.0), DEFAULT_PROJECT, OWNER, 1, 0)
RUNS = QueueEntry(7, "RUNNING", "", 100 * S, "n1", 3700 * S)


def in_state(state: PilotState) -> Pilot:
    return replace(NEW, state=state)


def test_it_goes_from_the_queue_to_work_to_its_end() -> None:
    waits = apply_entry(NEW, QueueEntry(7, "PENDING", "Resources"), "", 1)
    assert (waits.state, waits.detail, waits.number) == (PilotState.WAITING, "Resources", "7")
    starts = apply_entry(waits, RUNS, "", 2)
    assert (starts.state, starts.detail, starts.node, starts.ends_at) == (PilotState.STARTING, "", "n1", 3700 * S)
    ready = greet_pilot(starts, "host", 3)
    assert (ready.state, ready.ready_at, ready.node) == (PilotState.READY, 3, "n1")
    assert apply_entry(ready, RUNS, "", 4) == ready
    drains = drain_pilot(ready, "why")
    assert (drains.state, drain_pilot(drains, "other"), greet_pilot(drains, "", 5)) == (PilotState.DRAINING, drains, drains)
    ended = apply_entry(drains, QueueEntry(7, "CANCELLED"), "words", 6)
    assert (ended.state, ended.detail, ended.ended_at) == (PilotState.ENDED, "why", 6)
    assert apply_entry(drains, QueueEntry("7", "NODE_FAIL"), "", 6).detail == "its node failed"


def test_an_agent_may_be_heard_before_the_cluster_tells_that_it_runs() -> None:
    ready = greet_pilot(NEW, "host", 3)
    assert (ready.state, ready.node) == (PilotState.READY, "host")
    assert apply_entry(ready, QueueEntry(7, "PENDING", "x"), "", 4).state is PilotState.READY
    assert apply_entry(ready, RUNS, "", 4).node == "n1"


def test_of_several_nodes_each_machine_has_its_own_and_is_lost_when_the_cluster_takes_that_out() -> None:
    first, second = (replace(NEW, id=MachineId(f"p-{at + 1}"), allocation="p-1", place=at) for at in (0, 1))
    both = replace(RUNS, nodes="n[07-08]")
    assert [apply_entry(each, both, "", 2).node for each in (first, second)] == ["n07", "n08"]
    # heard before the cluster was asked
    ready = apply_entry(greet_pilot(second, "some-host", 1), both, "", 2)
    assert (ready.state, ready.node) == (PilotState.READY, "n08")
    lost = apply_entry(ready, replace(RUNS, nodes="n07"), "", 3)
    assert (lost.state, lost.detail) == (PilotState.ENDED, "its node failed")
    assert apply_entry(ready, replace(RUNS, nodes="n07", state="COMPLETING"), "", 3) == ready
    assert apply_entry(ready, replace(RUNS, nodes=""), "", 3) == ready


@pytest.mark.parametrize("state", [state for state in PilotState if state is not PilotState.ENDED])
@pytest.mark.parametrize("said", ["TIMEOUT", "NODE_FAIL", "PREEMPTED", "CANCELLED", "COMPLETED", "FAILED"])
def test_whatever_it_was_an_end_is_an_end(state: PilotState, said: str) -> None:
    assert apply_entry(in_state(state), QueueEntry(7, said), "", 9).ended_at == 9


def test_one_that_never_worked_tells_what_its_program_said() -> None:
    assert end_pilot(in_state(PilotState.STARTING), "its node failed", "no python", 1).detail == "its node failed: no python"
    worked = replace(in_state(PilotState.READY), ready_at=1)
    assert end_pilot(worked, "its node failed", "no python", 1).detail == "its node failed"


def test_it_drains_before_its_limit_and_is_replaced_before_that() -> None:
    ready = greet_pilot(apply_entry(NEW, RUNS, "", 1), "", 2)
    assert not find_drain(ready, POOL, (3700 - 121) * S)
    assert ends_within(ready, POOL, 60.0, (3700 - 170) * S)
    assert find_drain(ready, POOL, (3700 - 120) * S) == "its time limit comes at 01:01:40 UTC"
    # a short one takes work for half of its time
    short = replace(ready, ends_at=160 * S)
    assert not find_drain(short, POOL, 129 * S)
    assert find_drain(short, POOL, 130 * S)


def test_what_runs_there_may_count_on_its_end_before_the_cluster_has_told_it() -> None:
    heard = greet_pilot(NEW, "host", 50 * S)
    assert known_end(heard, 600.0) == 600 * S, "it began after it was asked for"
    assert known_end(heard, None) == 0, "nobody knows yet"
    assert known_end(apply_entry(heard, RUNS, "", 2), 600.0) == 3700 * S
    assert known_end(apply_entry(heard, QueueEntry("7", "RUNNING", "", 100 * S, "n1"), "", 2), None) is None, "it has none"
    assert [longest_work_s(PoolSpec("p", max_duration_s=limit)) for limit in (None, 60.0, 7200.0)] == [None, 54.0, 7140.0]


def test_the_end_of_one_that_is_ending_is_no_limit() -> None:
    ready = greet_pilot(apply_entry(NEW, RUNS, "", 1), "", 2)
    assert apply_entry(ready, QueueEntry("7", "COMPLETING", "", 100 * S, "n1", 200 * S), "", 3) == ready


def test_one_whose_agent_is_not_heard_is_given_back() -> None:
    starts = replace(apply_entry(NEW, RUNS, "", 1), ends_at=None)
    assert not find_drain(starts, POOL, 399 * S)
    assert "its agent was not heard" in find_drain(starts, POOL, 401 * S)


def test_ends_without_work_are_counted_with_longer_and_longer_rests_until_one_works() -> None:
    pool, rests = POOL, list[float]()
    ended = end_pilot(in_state(PilotState.STARTING), "", "bad", 0)
    for _ in range(9):
        pool = judge_pool(pool, in_state(PilotState.STARTING), ended, 0)
        rests.append((pool.not_before or 0) / S)
    assert rests == [10, 20, 40, 80, 160, 320, BACKOFF_MAX_S, BACKOFF_MAX_S, BACKOFF_MAX_S]
    assert pool.complaint == "Pilot p-1 ended before it took work: bad"
    ready = greet_pilot(in_state(PilotState.STARTING), "", 1)
    assert judge_pool(pool, in_state(PilotState.STARTING), ready, 1) == POOL
    # one that left the queue because nobody waited for it any more did nothing wrong
    gone = end_pilot(drain_pilot(in_state(PilotState.WAITING), "idle"), "", "", 0)
    assert judge_pool(POOL, in_state(PilotState.DRAINING), gone, 0) == POOL


def test_a_pool_without_a_machine_says_what_is_nearest() -> None:
    waits = apply_entry(NEW, QueueEntry("7", "PENDING", "Resources"), "", 1)
    starts = apply_entry(replace(NEW, id=MachineId("p-2")), RUNS, "", 2)
    assert explain_coming(POOL, [NEW]) == "its machine p-1 is being asked for"
    assert explain_coming(POOL, [NEW, waits]) == "its machine p-1 waits in Slurm's queue: Resources"
    assert explain_coming(POOL, [waits, starts]) == "its machine p-2 starts on n1"
    assert explain_coming(POOL, [replace(waits, pool="other")]) == ""
    assert explain_coming(replace(POOL, complaint="Slurm says: no"), []) == "no machine comes to pool p: Slurm says: no"
