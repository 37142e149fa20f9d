"""How does a gang on several machines start, break and end, all of it or nothing?

Each machine's agent tells of its part alone. Here they become one: what the job is in comes of all its parts together, by the
rules that hold for any other attempt (`attempt.py`).
1. Every agent prepares its part (files, folders, devices, on the first machine free ports) and starts nothing. When all have,
   this and the ports are written into the row, and with the next assignments all start. Nothing of it is stored before.
2. A part breaks the gang when it ends badly, when a rank of it does, or when its machine is lost. The first to be heard of does;
   the others are told to end, and what the whole ended for is what that one did.
3. What ran into `max_duration` breaks nothing: each agent keeps that limit by itself, and all come to it.
4. The attempt is over when all its parts are, so that the next one never meets what is left of it.
Pure. Never reads the clock: `now` is an argument.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from steelyard.lifecycle.attempt import AttemptFacts, apply_attempt, explain_end
from steelyard.lifecycle.job import Change, next_of
from steelyard.lifecycle.proof import worst_state
from steelyard.model.ids import AttemptId, MachineId
from steelyard.model.job import Job, JobState
from steelyard.model.part import Part, Parts
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.usage import Usage

#: how long what is left of a broken gang may take to end after SIGTERM
BROKEN_GRACE_S = 3.0

_READY = frozenset({"prepared", "running", "suspended", "ended"})
_BEGUN = frozenset({"running", "suspended", "ended"})
_WAITS = frozenset({"starting", "prepared"})


class PartFacts(AttemptFacts, Protocol):
    """What an agent tells of a part, beside what it tells of any attempt (`wire.agent.AttemptState`)."""

    @property
    def port(self) -> int: ...
    @property
    def broken(self) -> bool: ...


class Joined(Part, frozen=True):
    """All parts as one attempt: what `apply_attempt` reads."""

    attempt: AttemptId = AttemptId("")


def apply_part(
    job: Job, machine: MachineId, seen: PartFacts, now: int, told: Mapping[MachineId, PartFacts] = {}
) -> Change | None:
    """What the agent of `machine` sees of its part becomes the job's state. None when the job already says so. `told`: parts of
    this attempt that other machines called prepared, and that were not stored for that (see `only_waits`)."""
    if job.attempt == 0 or seen.attempt != job.attempt_id or job.parts is None or machine not in job.machines:
        return apply_attempt(job, seen, now) if seen.attempt != job.attempt_id else None
    place = job.machines.index(machine)
    stored = job.parts
    if told and not stored.go:
        stored = _add_told(job, stored, told)
        job = msgspec.structs.replace(job, parts=stored)
    before = stored.each[place]
    if before.over:
        # the first word about an end is the last
        return None
    part = _read(seen)
    if part.phase == "unknown":
        return lose_part(job, machine, seen.detail or "its machine was restarted while it ran", now)
    breaks = seen.broken or (part.over and _is_bad(part) and part.reason is not Reason.MAX_DURATION)
    return _put(job, place, part, seen.port if place == 0 else 0, breaks, f"on {machine}: {part.phase}", now)


def only_waits(change: Change) -> bool:
    """A part is prepared, others are not yet, and nothing else has happened. It need not be stored: an agent tells it again to
    a server that was restarted, and of many machines each would cost the last one a commit to wait for."""
    parts = change.job.parts
    return parts is not None and not parts.go and parts.broke is None and {each.phase for each in parts.each} <= _WAITS


def lose_part(job: Job, machine: MachineId, why: str, now: int) -> Change | None:
    """Nothing of it runs on that machine any more, and nobody will tell how it ended."""
    if job.parts is None or machine not in job.machines:
        return None
    place = job.machines.index(machine)
    before = job.parts.each[place]
    if before.over:
        return None
    part = msgspec.structs.replace(before, phase="ended", reason=Reason.NODE_LOST, detail=why, ended_at=now)
    return _put(job, place, part, 0, True, f"on {machine}: {why}", now)


def find_port(job: Job) -> int:
    """Where its ranks meet, once all of it is prepared; 0: nothing of it is started."""
    return job.parts.port if job.parts is not None and job.parts.go else 0


def why_end(job: Job) -> tuple[int, float] | None:
    """The signal and the grace with which all that is left of it has to end; None: its parts want no end."""
    parts = job.parts
    if parts is None or parts.broke is None:
        return None
    if job.stop_signal == signal.SIGKILL:
        return signal.SIGKILL, BROKEN_GRACE_S
    if parts.each[parts.broke].reason is Reason.PREEMPTED:
        return job.spec.preemption.signal, job.spec.preemption.grace_s
    return signal.SIGTERM, BROKEN_GRACE_S


def join_usage(usages: Iterable[Usage | None]) -> Usage | None:
    """Sums; over time nothing, since clocks of machines are not one."""
    found = [usage for usage in usages if usage is not None]
    if not found:
        return None
    return Usage(
        cpu_s=_sum(usage.cpu_s for usage in found),
        memory_peak_bytes=_sum_bytes(usage.memory_peak_bytes for usage in found),
        read_bytes=_sum_bytes(usage.read_bytes for usage in found),
        written_bytes=_sum_bytes(usage.written_bytes for usage in found),
        scratch_peak_bytes=_sum_bytes(usage.scratch_peak_bytes for usage in found),
    )


def join_proofs(proofs: Mapping[int, Proof]) -> Proof:
    """One proof, of those of parts (at least one) by their places. A key that says the same of all stands once; of ranks, which
    have numbers of their own, as it is; any other as `cpus[node 0]`."""
    asked: dict[str, object] = {}
    got: dict[str, object] = {}
    keys = {at: {**proof.asked, **proof.got} for at, proof in proofs.items()}
    for key in dict.fromkeys(key for mine in keys.values() for key in mine):
        pairs = {at: (proof.asked.get(key), proof.got.get(key)) for at, proof in proofs.items() if key in keys[at]}
        values = list(pairs.values())
        once = "[" in key or all(pair == values[0] for pair in values)
        for at, (wanted, had) in pairs.items():
            name = key if once else f"{key}[node {at}]"
            asked[name], got[name] = wanted, had
    return Proof(
        state=worst_state(proofs.values()),
        asked=asked,
        got=got,
        differences=tuple(
            text if text.startswith("rank ") else f"node {at}: {text}"
            for at, proof in proofs.items()
            for text in proof.differences
        ),
        checked_at=max((proof.checked_at for proof in proofs.values() if proof.checked_at is not None), default=None),
        notes=tuple(dict.fromkeys(note for proof in proofs.values() for note in proof.notes)),
    )


def _add_told(job: Job, stored: Parts, told: Mapping[MachineId, PartFacts]) -> Parts:
    each = tuple(
        _read(told[machine]) if machine in told and part.phase == "starting" else part
        for machine, part in zip(job.machines, stored.each, strict=True)
    )
    first = told.get(job.machines[0])
    return msgspec.structs.replace(stored, each=each, port=stored.port if first is None else first.port)


def _put(job: Job, place: int, part: Part, port: int, breaks: bool, event: str, now: int) -> Change | None:
    before = job.parts
    assert before is not None
    each = tuple(part if at == place else other for at, other in enumerate(before.each))
    wanted = job.stop_signal is not None
    broke = place if before.broke is None and breaks and not wanted else before.broke
    go = before.go or (broke is None and not wanted and all(other.phase in _READY for other in each))
    if go and not before.go:
        event = "prepared on all its machines"
    parts = Parts(each, before.port if before.go else port or before.port, go, broke)
    if parts == before:
        return None
    changed = msgspec.structs.replace(job, parts=parts)
    change = apply_attempt(changed, _join(changed, parts), now)
    if change is None or change.error:
        # whether the whole is in another state is told by the next part
        return Change(next_of(changed), event)
    if change.job.state.terminal or change.job.state is JobState.QUEUED:
        return Change(msgspec.structs.replace(change.job, parts=None), change.event)
    return change


def _join(job: Job, parts: Parts) -> Joined:
    """The whole attempt, as an agent would tell of it that had all of it on its machine."""
    each = parts.each
    starts = [part.started_at for part in each if part.started_at is not None]
    whole = Joined(
        attempt=job.attempt_id,
        started_at=max(starts) if len(starts) == len(each) else None,
        wakeup_breaches=sum(part.wakeup_breaches for part in each),
        wakeup_worst_us=max(part.wakeup_worst_us for part in each),
    )
    if not all(part.over for part in each):
        begun = all(part.phase in _BEGUN for part in each) or job.state in (JobState.RUNNING, JobState.SUSPENDED)
        return msgspec.structs.replace(whole, phase="running" if begun else "starting")
    ran = any(part.phase == "ended" for part in each)
    place = _find_cause(parts)
    cause = each[place]
    reason, bad = cause.reason, _is_bad(cause)
    if ran and cause.phase == "not-started" and reason in (None, Reason.NOT_STARTED):
        # no fault of the job's: its rule for lost nodes says whether it is tried again
        reason = Reason.NODE_LOST
    detail = cause.detail
    if bad:
        said = detail or explain_end(reason or Reason.NOT_STARTED, cause.signal, cause.exit_code)
        with_it = "; what ran on its other machines was ended with it" if ran and parts.broke is not None else ""
        detail = f"{said.rstrip('.')} (on {job.machines[place]}){with_it}."
    peaks = [part.peak_memory_bytes for part in each if part.peak_memory_bytes is not None]
    proofs = {at: part.proof for at, part in enumerate(each) if part.proof is not None}
    return msgspec.structs.replace(
        whole,
        phase="ended" if ran else "not-started",
        reason=reason,
        detail=detail,
        started_at=max(starts, default=None),
        ended_at=max((part.ended_at for part in each if part.ended_at is not None), default=None),
        exit_code=cause.exit_code,
        signal=cause.signal,
        peak_memory_bytes=sum(peaks) if peaks else None,
        proof=join_proofs(proofs) if proofs else None,
        usage=join_usage(part.usage for part in each),
        ranks=tuple(sorted((end for part in each for end in part.ranks), key=lambda end: end.rank)),
    )


def _find_cause(parts: Parts) -> int:
    """The part that says how the whole ended: the one that broke it, else the first that ended badly, else the first."""
    if parts.broke is not None:
        return parts.broke
    bad = [at for at, part in enumerate(parts.each) if _is_bad(part)]
    return min(bad, key=lambda at: parts.each[at].ended_at or 0) if bad else 0


def _is_bad(part: Part) -> bool:
    return part.phase == "not-started" or part.exit_code != 0 or part.reason not in (None, Reason.EXITED)


def _read(seen: PartFacts) -> Part:
    return Part(**{name: getattr(seen, name) for name in Part.__struct_fields__})


def _sum(amounts: Iterable[float | None]) -> float | None:
    found = [amount for amount in amounts if amount is not None]
    return sum(found) if found else None


def _sum_bytes(amounts: Iterable[int | None]) -> int | None:
    found = [amount for amount in amounts if amount is not None]
    return sum(found) if found else None
