"""Which small changes would start this job now? Each is made in the snapshot and the real decision is asked; one that does not
start it is not told.

Amounts are found by bisection: less is never harder to place, so the largest that starts is found in a few questions. A
question costs one decision over the jobs before this one, so all questions together are bounded: past that, changes that were
not looked at are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from steelyard.model import words
from steelyard.model.batch import PRIORITY_MAX
from steelyard.model.gpu_demand import GpuDemand, format_gpu_demand
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState, Resources
from steelyard.model.site import Quota
from steelyard.model.timing import Timing
from steelyard.placement.budget import Budget
from steelyard.scheduling.change import Change, ChangeKind, apply_change
from steelyard.scheduling.forecast import Decide, find_end
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot
from steelyard.scheduling.victim_search import Candidate, find_victims

#: decisions that all questions about one job may take
QUESTIONS_MAX = 250
_MEMORY_STEP = 64 << 20
_DAY_S = 86400
#: so many running jobs are looked at one by one
_FEW = 8
#: more jobs than that nobody stops for one
_STOPS_MAX = 3


class WhatIf:
    """Questions about one job. `opened` is the change that every other one includes: what keeps the job from being looked at at
    all (a hold, a dependency) is out of the way."""

    def __init__(self, snapshot: Snapshot, opened: Change, now: int, decide: Decide) -> None:
        self.opened, self.job = opened, opened.job
        self._snapshot, self._now, self._decide = snapshot, now, decide
        self._left = QUESTIONS_MAX
        decision = decide(apply_change(snapshot, opened), now)
        self._reservation = decision.reservations.get(self.job.spec.pool)
        #: how it goes with nothing but `opened`
        self.preempts = gets_room(decision, self.job.id)

    def find_all(self) -> list[Change]:
        found: list[Change | None] = [self._wait(), self._priority(), self._stop()]
        if self.job.state is not JobState.SUSPENDED:
            found += [self._duration(), self._preemptible(), self._quota(), self._array_limit()]
            found += [self._gpus(), self._any_gpu(), self._cores(), self._memory(), self._nics(), self._ranks()]
            found += [self._shared_cores()]
        return [change for change in found if change is not None]

    def prove(self, change: Change) -> Change | None:
        """None also where there is no question left."""
        if self._left <= 0:
            return None
        self._left -= 1
        return prove(change, self._snapshot, self._now, self._decide)

    # what others do

    def _wait(self) -> Change | None:
        """The first of those that end by themselves whose ends let it start."""
        known = [(end, held.job.id) for held, end in self._ends() if held.job is not None]
        if not known:
            return None
        known.sort()

        def starts(count: int) -> bool:
            return self._without([job for _, job in known[:count]]) is not None

        # with still more gone a job before this one may take it all: so the first few are asked one by one
        few = min(_FEW, len(known))
        count = next((count for count in range(1, few + 1) if starts(count)), None) or _smallest(few + 1, len(known), starts)
        if count is None:
            return None
        needed = known[:count]
        for each in known[:count]:
            fewer = [other for other in needed if other != each]
            if fewer and self._without([job for _, job in fewer]) is not None:
                needed = fewer
        at, jobs = max(end for end, _ in needed), tuple(job for _, job in needed)
        text = f"wait for {_join(jobs)} to end, at {{at}} at the latest"
        return self.prove(self._make(ChangeKind.WAIT, text, self.job, _soon(at - self._now), ended=jobs, at=at))

    def _ends(self) -> list[tuple[Holding, int]]:
        ends = [(held, find_end(held, self._now)) for held in self._rivals()]
        return [(held, end) for held, end in ends if end is not None]

    def _rivals(self) -> list[Holding]:
        """Other jobs that run where it could."""
        held = [each for each in self._snapshot.holding if each.job is not None and each.job.id != self.job.id]
        return [each for each in held if each.job is not None and each.job.spec.pool == self.job.spec.pool]

    def _stop(self) -> Change | None:
        """The fewest running jobs without which it starts."""
        running = [held.job for held in self._rivals() if held.job is not None]
        running = [job for job in running if job.state in (JobState.RUNNING, JobState.SUSPENDED)]
        candidates = [Candidate(0, 0, age, (1,)) for age in range(len(running))]

        def fits(gone: Sequence[int]) -> bool:
            return self._without([running[at].id for at in gone]) is not None

        found = find_victims(candidates, fits, (1,), Budget(60))
        if found is None or not 0 < len(found.chosen) <= _STOPS_MAX:
            return None
        jobs = tuple(running[at].id for at in found.chosen)
        return self.prove(self._make(ChangeKind.STOP, f"stop {_join(jobs)}", self.job, 1.0 + len(jobs), ended=jobs))

    def _without(self, ended: Sequence[JobId]) -> Change | None:
        return self.prove(self._make(ChangeKind.STOP, "", self.job, 0.0, ended=tuple(ended)))

    def _quota(self) -> Change | None:
        quota = next((each for each in self._snapshot.quotas if each.project == self.job.project), None)
        if quota is None:
            return None
        free = msgspec.structs.replace(quota, cores=None, gpus=None, memory_bytes=None, running_jobs=None)
        if self._with_quota(free) is None:
            return None
        said: list[str] = []
        for field, step, most in (("cores", 1, 4096), ("gpus", 1, 1024), ("memory_bytes", _MEMORY_STEP, 1 << 20)):
            limit = getattr(quota, field)
            if limit is not None:
                free, text = self._tighten(quota, free, field, step, most)
                said += [text] if text else []
        if quota.running_jobs is not None:
            free, text = self._tighten(quota, free, "running_jobs", 1, 100_000)
            said += [text] if text else []
        if not said:
            return None
        text = f"raise the quota of project {quota.project} to {' and '.join(said)}"
        return self.prove(self._make(ChangeKind.QUOTA, text, self.job, 0.6, quota=free))

    def _tighten(self, quota: Quota, free: Quota, field: str, step: int, most: int) -> tuple[Quota, str]:
        """`free` with as little of `field` as will do; "" where the quota itself has enough."""
        same = msgspec.structs.replace(free, **{field: getattr(quota, field)})
        if self._with_quota(same) is not None:
            return same, ""

        def make(count: int) -> Quota:
            return msgspec.structs.replace(free, **{field: count * step})

        # memory in steps, and then no less than it was
        low = math.floor(getattr(quota, field) / step) + 1
        count = _smallest(low, most, lambda count: self._with_quota(make(count)) is not None)
        if count is None:
            return free, ""
        nouns = {"cores": "core", "gpus": "GPU", "running_jobs": "running job"}
        amount = f"{words.exact_size(count * step)} of memory" if field == "memory_bytes" else words.count(count, nouns[field])
        return make(count), amount

    def _with_quota(self, quota: Quota) -> Change | None:
        return self.prove(self._make(ChangeKind.QUOTA, "", self.job, 0.0, quota=quota))

    def _array_limit(self) -> Change | None:
        array = self.job.array
        if array is None or array.at_once is None or array.at_once >= array.count:
            return None

        def make(count: int) -> Change:
            text = f"let {count} elements of its array run at a time instead of {array.at_once}"
            return self._make(ChangeKind.ARRAY_LIMIT, text, self.job, 0.3, array_at_once=count)

        return self._smallest(array.at_once + 1, array.count, make)

    # what the job itself could do

    def _priority(self) -> Change | None:
        job = self.job

        def make(priority: int) -> Change:
            changed = msgspec.structs.replace(job, priority=priority)
            size = (priority - job.priority) / PRIORITY_MAX
            return self._make(ChangeKind.PRIORITY, f"raise its priority above {priority - 1}", changed, size)

        found = self._smallest(job.priority + 1, PRIORITY_MAX, make)
        if found is None or not found.preempts:
            return found
        text = f"{found.text}: then {_join(found.preempts)} {'gives' if len(found.preempts) == 1 else 'give'} way to it"
        return msgspec.structs.replace(found, text=text, size=found.size + 1.0)

    def _duration(self) -> Change | None:
        """A limit with which it is over before the reserved job starts, or before the last of its machines is taken back."""
        reservation, asked = self._reservation, self.job.spec.max_duration_s
        if reservation is None or reservation.job == self.job.id:
            return None if asked is None else self._within(asked)
        if reservation.at is None:
            # any limit will do
            longest = _DAY_S
        else:
            longest = (reservation.at - self._now) // 1_000_000
        if longest < 1 or (asked is not None and longest >= asked):
            return None
        text = f"--max-duration {format_duration(longest)}"
        if reservation.at is None:
            text += f" (or any other limit): what has one may start before {reservation.job}"
        else:
            text += f": then it is over before {reservation.job} starts"
        size = 0.5 if asked is None else 1 - longest / asked
        return self.prove(self._make(ChangeKind.MAX_DURATION, text, self._with(max_duration_s=float(longest)), size))

    def _within(self, asked_s: float) -> Change | None:
        ends = self._snapshot.ends
        left = [ends[each.place] - self._now for each in self._snapshot.usable(self.job.spec.pool) if each.place in ends]
        # what is said is done a little later
        longest = max(left, default=0) // 60_000_000 * 60 - 60
        if not 0 < longest < asked_s:
            return None
        text = f"--max-duration {format_duration(longest)}: then it is over before its machine is taken back"
        changed = self._with(max_duration_s=float(longest))
        return self.prove(self._make(ChangeKind.MAX_DURATION, text, changed, 1 - longest / asked_s))

    def _preemptible(self) -> Change | None:
        soft = self.job.spec.resources.preemptible
        changed = self._with_resources(preemptible=not soft)
        found = self.prove(self._make(ChangeKind.PREEMPTIBLE, "make it preemptible", changed, 0.6))
        if found is None or not soft:
            return found
        tail = f": then {_join(found.preempts)} may have to give way to it" if found.preempts else ""
        return msgspec.structs.replace(found, text=f"without --preemptible{tail}")

    def _gpus(self) -> Change | None:
        gpus = self.job.spec.resources.gpus
        if gpus is None or gpus.count < 2:
            return None

        def make(count: int) -> Change:
            changed = self._with_resources(gpus=msgspec.structs.replace(gpus, count=count))
            text = f"{words.count(count, 'GPU')} instead of {gpus.count}{self._per_rank()}"
            return self._make(ChangeKind.GPUS, text, changed, 1 - count / gpus.count)

        return self._largest(1, gpus.count - 1, make)

    def _any_gpu(self) -> Change | None:
        gpus, machines = self.job.spec.resources.gpus, self._snapshot.usable(self.job.spec.pool)
        if gpus is None or gpus.mig_profile is not None:
            return None
        if gpus.model is None and gpus.memory_min_bytes is None and gpus.memory_max_bytes is None:
            return None
        wired = [machine.topology for machine in machines if machine.topology is not None]
        for name in sorted({gpu.name for topology in wired for gpu in topology.gpus if gpu.name}):
            model = GpuDemand(model=name, count=gpus.count, fraction=gpus.fraction)
            if gpus.matches_name(name) and gpus.memory_min_bytes is None and gpus.memory_max_bytes is None:
                continue
            text = f"GPUs of model {name} instead of {format_gpu_demand(msgspec.structs.replace(gpus, count=1, fraction=None))}"
            found = self.prove(self._make(ChangeKind.GPU_MODEL, text, self._with_resources(gpus=model), 0.35))
            if found is not None:
                return found
        return None

    def _cores(self) -> Change | None:
        asked = self.job.spec.resources
        # shares are counted in tenths, so that 0.5 has something below it
        unit = 1.0 if asked.whole_cores else 0.1
        count = math.ceil(round(asked.cpus / unit, 6))

        def make(number: int) -> Change:
            cpus = round(number * unit, 1)
            text = f"{cpus:g} {'core' if cpus == 1 else 'cores'} instead of {asked.cpus:g}{self._per_rank()}"
            return self._make(ChangeKind.CORES, text, self._with_resources(cpus=cpus), 1 - cpus / asked.cpus)

        return self._largest(1, count - 1, make)

    def _memory(self) -> Change | None:
        asked = self.job.spec.resources.memory_bytes
        if asked is None:
            return None

        def make(number: int) -> Change:
            memory = number * _MEMORY_STEP
            text = f"{words.exact_size(memory)} of memory instead of {words.exact_size(asked)}{self._per_rank()}"
            return self._make(ChangeKind.MEMORY, text, self._with_resources(memory_bytes=memory), 1 - memory / asked)

        return self._largest(1, -(-asked // _MEMORY_STEP) - 1, make)

    def _nics(self) -> Change | None:
        asked = self.job.spec.resources.nics

        def make(number: int) -> Change:
            text = f"{words.count(number, 'network card')} instead of {asked}{self._per_rank()}"
            return self._make(ChangeKind.NICS, text, self._with_resources(nics=number), 1 - number / asked)

        return self._largest(0, asked - 1, make)

    def _ranks(self) -> Change | None:
        gang = self.job.spec.gang
        if gang is None:
            return None

        def make(number: int) -> Change:
            changed = self._with(gang=msgspec.structs.replace(gang, nodes=1, tasks_per_node=number))
            text = f"{words.count(number, 'rank')} on one node instead of {gang.world_size}"
            return self._make(ChangeKind.RANKS, text, changed, 1 - number / gang.world_size)

        return self._largest(1, gang.tasks_per_node if gang.nodes > 1 else gang.tasks_per_node - 1, make)

    def _shared_cores(self) -> Change | None:
        asked = self.job.spec.resources
        if not asked.whole_cores:
            return None
        changed = self._with_resources(exclusive=False, timing=Timing.BEST_EFFORT, max_wakeup_us=None)
        text = "shared cores instead of whole ones"
        if asked.timing is not Timing.BEST_EFFORT:
            text = f"best-effort timing on shared cores instead of {asked.timing.value}"
        return self.prove(self._make(ChangeKind.SHARED_CORES, text, changed, 0.4))

    # parts

    def _make(self, kind: ChangeKind, text: str, job: Job, size: float, **fields: object) -> Change:
        """On top of `opened`."""
        whole = f"{self.opened.text}, and {text}" if self.opened.text and text else text
        return msgspec.structs.replace(self.opened, kind=kind, text=whole, job=job, size=self.opened.size + size, **fields)

    def _with(self, **fields: object) -> Job:
        return msgspec.structs.replace(self.job, spec=msgspec.structs.replace(self.job.spec, **fields))

    def _with_resources(self, **fields: object) -> Job:
        resources: Resources = msgspec.structs.replace(self.job.spec.resources, **fields)
        return self._with(resources=resources)

    def _per_rank(self) -> str:
        gang = self.job.spec.gang
        return " for each rank" if gang is not None and gang.world_size > 1 else ""

    def _largest(self, low: int, high: int, make: Callable[[int], Change]) -> Change | None:
        found = _smallest(-high, -low, lambda number: self.prove(make(-number)) is not None)
        return None if found is None else self.prove(make(-found))

    def _smallest(self, low: int, high: int, make: Callable[[int], Change]) -> Change | None:
        found = _smallest(low, high, lambda number: self.prove(make(number)) is not None)
        return None if found is None else self.prove(make(found))


def format_duration(seconds: int) -> str:
    """As the command line takes it: 5400 -> "1h30m"."""
    parts = ((seconds // 3600, "h"), (seconds % 3600 // 60, "m"), (seconds % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def prove(change: Change, snapshot: Snapshot, now: int, decide: Decide) -> Change | None:
    """The change with who gives way for it; None where the job does not start."""
    preempts = gets_room(decide(apply_change(snapshot, change), now), change.job.id)
    return None if preempts is None else msgspec.structs.replace(change, preempts=preempts, proven=True)


def gets_room(decision: Decision, job: JobId) -> tuple[JobId, ...] | None:
    """Who gives way to it, () if it starts at once; None where it just waits."""
    if job in decision.resumes or any(started == job for started, _ in decision.starts):
        return ()
    return tuple(victim for victim, winner in decision.preempts if winner == job) or None


def _smallest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number for which it holds, if it holds for all larger ones."""
    if low > high or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _soon(wait_us: int) -> float:
    """Waiting a day is as much as halving what was asked."""
    return min(1.0, 0.1 + wait_us / 1e6 / _DAY_S / 2)


def _join(jobs: Sequence[JobId]) -> str:
    shown = [*jobs[:3], f"{len(jobs) - 3} more"] if len(jobs) > 4 else list(jobs)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
