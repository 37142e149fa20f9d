"""Gangs on several machines: what each part's word makes of the whole."""

from __future__ import annotations

import signal
from typing import Any

import msgspec
import pytest

from steelyard.lifecycle.job import make_job, start_job, stop_job
from steelyard.lifecycle.parts import BROKEN_GRACE_S, apply_part, find_port, join_proofs, lose_part, only_waits, why_end
from steelyard.model.batch import Gang, RankEnd, RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Plan, join_parts
from steelyard.model.owner import Owner
from steelyard.model.proof import Proof, ProofState
from steelyard.model.reason import Reason
from steelyard.model.usage import Usage
from steelyard.wire.agent import AttemptState

A, B = MachineId("train-1"), MachineId("train-2")
NOW = 1_800_000_000_000_000


def gang(**fields: Any) -> Job:
    spec = JobSpec("train", ("true",), "/", gang=Gang(2, 1), pool="train", **fields)
    job = make_job(JobId("j-1"), spec, Owner("u", 1), DEFAULT_PROJECT, NOW)
    return start_job(job, join_parts([Plan(machine=A), Plan(machine=B)])).job


def hear(job: Job, machine: MachineId, phase: str, **fields: Any) -> Job:
    change = apply_part(job, machine, AttemptState(job.attempt_id, phase, **fields), NOW)
    assert change is None or not change.error
    return job if change is None else change.job


def ended(job: Job, machine: MachineId, code: int | None = 0, **fields: Any) -> Job:
    reason = Reason.EXITED if code == 0 else Reason.EXITED_NONZERO
    facts = {"exit_code": code, "reason": reason, "started_at": NOW, "ended_at": NOW + 5, **fields}
    return hear(job, machine, "ended", **facts)


def running(**fields: Any) -> Job:
    job = gang(**fields)
    for phase, port in (("prepared", 7000), ("running", 7000)):
        job = hear(job, A, phase, port=port, started_at=NOW if phase == "running" else None)
        job = hear(job, B, phase, started_at=NOW if phase == "running" else None)
    assert job.state is JobState.RUNNING
    return job


def test_nothing_begins_before_all_are_prepared() -> None:
    job = hear(gang(), A, "prepared", port=7000)
    assert (find_port(job), job.state) == (0, JobState.STARTING)
    job = hear(job, B, "starting")
    assert find_port(job) == 0
    job = hear(job, B, "prepared")
    assert (find_port(job), job.state) == (7000, JobState.STARTING)
    job = hear(job, A, "running", started_at=NOW)
    assert job.state is JobState.STARTING, "one of two"
    job = hear(job, B, "running", started_at=NOW + 1)
    assert (job.state, job.started_at) == (JobState.RUNNING, NOW + 1)


def test_whoever_was_prepared_and_forgot_it_changes_nothing() -> None:
    """Its agent was restarted: the others run, and it is told at once where they are."""
    job = hear(hear(gang(), A, "prepared", port=7000), B, "prepared")
    assert find_port(hear(hear(job, A, "starting"), A, "prepared", port=7100)) == 7000


def test_what_was_only_told_counts_as_if_it_had_been_stored() -> None:
    job = gang()
    told = {A: AttemptState(job.attempt_id, "prepared", port=7000)}
    first = apply_part(job, A, told[A], NOW)
    assert first is not None and only_waits(first)
    last = apply_part(job, B, AttemptState(job.attempt_id, "prepared"), NOW, told)
    assert last is not None and not only_waits(last)
    assert (find_port(last.job), last.job.generation) == (7000, job.generation + 1)


def test_what_was_told_of_a_part_that_is_lost_since_does_not_count() -> None:
    job = gang()
    told = {A: AttemptState(job.attempt_id, "prepared", port=7000)}
    change = lose_part(job, A, "pilot train-1 ended", NOW)
    assert change is not None
    after = apply_part(change.job, B, AttemptState(job.attempt_id, "prepared"), NOW, told)
    assert after is not None and not only_waits(after)
    assert (find_port(after.job), why_end(after.job)) == (0, (signal.SIGTERM, BROKEN_GRACE_S))
    assert after.job.parts is not None and [part.phase for part in after.job.parts.each] == ["ended", "prepared"]


def test_a_part_that_can_not_start_is_stored_with_what_was_told_of_others() -> None:
    job = gang()
    told = {A: AttemptState(job.attempt_id, "prepared", port=7000)}
    refused = AttemptState(job.attempt_id, "not-started", reason=Reason.START_FAILED)
    change = apply_part(job, B, refused, NOW, told)
    assert change is not None and not only_waits(change)
    assert change.job.parts is not None and [part.phase for part in change.job.parts.each] == ["prepared", "not-started"]
    assert (find_port(change.job), change.job.parts.broke) == (0, 1)


def test_a_part_that_can_not_start_starts_nothing_elsewhere() -> None:
    job = hear(gang(), A, "prepared", port=7000)
    job = hear(job, B, "not-started", reason=Reason.START_FAILED, detail="No folder /x.")
    assert (find_port(job), why_end(job), job.state) == (0, (signal.SIGTERM, BROKEN_GRACE_S), JobState.STARTING)
    job = hear(job, A, "not-started", reason=Reason.STOPPED_BY_USER)
    assert (job.state, job.reason, job.parts) == (JobState.FAILED, Reason.START_FAILED, None)
    assert job.detail == "No folder /x (on train-2)."


def test_one_that_was_never_started_is_tried_again() -> None:
    job = hear(hear(gang(), B, "not-started", reason=Reason.NOT_STARTED), A, "not-started", reason=Reason.STOPPED_BY_USER)
    assert (job.state, job.reason) == (JobState.QUEUED, Reason.NOT_STARTED)


def test_a_rank_that_fails_ends_all_and_is_named() -> None:
    job = running()
    job = hear(job, B, "running", started_at=NOW, broken=True, ranks=(RankEnd(1, 3),))
    assert (job.state, why_end(job)) == (JobState.RUNNING, (signal.SIGTERM, BROKEN_GRACE_S))
    job = ended(job, A, None, signal=15, reason=Reason.KILLED_BY_SIGNAL, ranks=(RankEnd(0, None, 15),), usage=Usage(cpu_s=1.0))
    assert job.state is JobState.RUNNING, "the next attempt must not meet what is left of this one"
    job = ended(job, B, 3, detail="rank 1 exited with code 3.", ranks=(RankEnd(1, 3),), usage=Usage(cpu_s=2.0))
    assert (job.state, job.reason, job.exit_code) == (JobState.FAILED, Reason.EXITED_NONZERO, 3)
    assert job.detail == "rank 1 exited with code 3 (on train-2); what ran on its other machines was ended with it."
    assert [end.rank for end in job.ranks] == [0, 1]
    assert job.usage == Usage(cpu_s=3.0)


def test_all_that_end_well_have_succeeded() -> None:
    job = ended(running(), A)
    assert (job.state, why_end(job)) == (JobState.RUNNING, None)
    job = ended(job, B)
    assert (job.state, job.exit_code, job.detail) == (JobState.SUCCEEDED, 0, "")


@pytest.mark.parametrize("retry", [False, True])
def test_a_machine_that_is_lost_ends_the_others_and_then_the_attempt(retry: bool) -> None:
    job = running(retry=(RetryRule(RetryOn.NODE_LOST, 3, 0.0),) if retry else ())
    change = lose_part(job, A, "pilot train-1 ended", NOW)
    assert change is not None
    job = change.job
    assert (job.state, why_end(job)) == (JobState.RUNNING, (signal.SIGTERM, BROKEN_GRACE_S))
    assert lose_part(job, A, "again", NOW) is None
    job = ended(job, B, None, signal=15, reason=Reason.KILLED_BY_SIGNAL)
    assert job.state is (JobState.QUEUED if retry else JobState.FAILED)
    assert job.parts is None and "pilot train-1 ended (on train-1)" in job.detail
    assert job.reason is (Reason.BACKOFF if retry else Reason.NODE_LOST)


def test_a_limit_is_kept_by_each_and_breaks_nothing() -> None:
    job = ended(running(), A, None, signal=15, reason=Reason.MAX_DURATION, detail="It had run long.")
    assert why_end(job) is None
    job = ended(job, B, None, signal=15, reason=Reason.MAX_DURATION, detail="It had run long.")
    assert (job.state, job.reason) == (JobState.FAILED, Reason.MAX_DURATION)


def test_after_a_stop_its_grace_holds_for_all() -> None:
    stopped = stop_job(running(), signal.SIGINT, 60.0, NOW)
    assert stopped is not None
    job = ended(stopped.job, A, None, signal=2, reason=Reason.KILLED_BY_SIGNAL)
    assert (job.state, why_end(job)) == (JobState.STOPPING, None)
    job = ended(job, B)
    assert (job.state, job.reason) == (JobState.STOPPED, Reason.STOPPED_BY_USER)


def test_the_first_word_about_an_end_is_the_last() -> None:
    change = lose_part(running(), A, "gone", NOW)
    assert change is not None
    assert apply_part(change.job, A, AttemptState(change.job.attempt_id, "not-started"), NOW) is None
    assert apply_part(change.job, MachineId("train-9"), AttemptState(change.job.attempt_id, "running"), NOW) is None


def test_an_older_attempt_is_history() -> None:
    job = running()
    late = AttemptState(msgspec.convert("j-1.0", str), "ended", exit_code=0)  # type: ignore[arg-type]
    change = apply_part(job, A, late, NOW)
    assert change is not None and change.job is job and "late report" in change.event


def test_proofs_of_parts_are_one() -> None:
    def proof(state: ProofState, cpus: int, *differences: str) -> Proof:
        return Proof(state, {"cpus": [cpus], "uid": 1}, {"cpus": [cpus], "uid": 1}, differences)

    found = join_proofs({0: proof(ProofState.MATCH, 1), 1: proof(ProofState.PARTIAL, 2, "memory")})
    assert (found.state, found.differences) == (ProofState.PARTIAL, ("node 1: memory",))
    assert found.got == {"cpus[node 0]": [1], "cpus[node 1]": [2], "uid": 1}
