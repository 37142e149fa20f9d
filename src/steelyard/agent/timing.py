"""How does a job's timing class get carried out and proved on this machine?

Before a realtime job starts, its settings go through the journal; when it has ended (or an agent finds that it has), they are
released. A promise `max_wakeup_us` gets a watcher: a workload of ours named `<attempt>.probe`, of the job's class and on its
CPUs. In `realtime` it stands one FIFO priority above the job, so that it measures what the machine adds and never the job's own
work; it costs about 1 % of one of the job's cores. Elsewhere it is an ordinary process like the job's, and what the job
itself does to it counts. Nothing here decides where anything runs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.agent.cleanup import Cleanup
from steelyard.clock import Clock
from steelyard.config import Paths
from steelyard.errors import SteelyardError
from steelyard.host.journal import SettingsJournal
from steelyard.host.timing import count_others, observe_memory_lock, observe_scheduler, observe_timing
from steelyard.lifecycle.promise import Wakeups, explain_promise, got_promise
from steelyard.lifecycle.timing import (
    Planned,
    TimingFacts,
    asked_timing,
    explain_unheld,
    got_timing,
    plan_settings,
)
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.model.timing import FIFO_PRIORITY, Timing
from steelyard.runtime.process import Adopted, ProcessRuntime
from steelyard.runtime.wakeups import read_page
from steelyard.wire.agent import AssignedJob

log = logging.getLogger(__name__)

KIND = "probe"
#: between two wake-ups of a watcher
PROBE_INTERVAL_US = 2000
#: what is read of interrupts and kernel threads for a proof may be that old
FACTS_NS = 10_000_000_000
#: a watcher that runs writes every few milliseconds, unless the machine holds it back
STALE_NS = 5_000_000_000
#: between two reports of breaches of one job
REPORT_NS = 10_000_000_000

NOT_ROOT = "Steelyard does not run as root: FIFO priority, interrupts, kernel threads and clocks stay as they are."


@dataclass
class _Held:
    plan: Plan
    #: sentences, for the proof
    forbidden: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reported: Wakeups = field(default_factory=Wakeups)
    reported_ns: int | None = None


class TimingKeeper:
    """Of all jobs of one machine. `journal_dir` is the machine's, not the home's."""

    def __init__(
        self,
        paths: Paths,
        runtime: ProcessRuntime,
        cleanup: Cleanup,
        clock: Clock,
        journal: SettingsJournal,
        root: bool,
    ) -> None:
        self._paths, self._runtime, self._cleanup, self._clock = paths, runtime, cleanup, clock
        self._journal, self._root = journal, root
        self._held: dict[AttemptId, _Held] = {}
        self._facts: tuple[int, TimingFacts] | None = None
        self._others: dict[tuple[int, ...], tuple[int, int]] = {}
        #: attempts with a watcher -> its pid, 0 where that is not known
        self._probes: dict[AttemptId, int] = {}

    # -- holding and releasing

    def adopt(self, living: Iterable[tuple[AttemptId, Plan]], probes: Iterable[Adopted]) -> None:
        """After a restart: settings of workloads that are gone are put back, watchers without a job end."""
        plans = dict(living)
        for attempt, plan in plans.items():
            self.hold(attempt, plan)
        mine = {self._holder(attempt) for attempt in plans}
        prefix = self._holder(AttemptId(""))
        self._restore(lambda holder: holder in mine or not holder.startswith(prefix))
        for probe in probes:
            attempt = AttemptId(probe.workload.removesuffix(f".{KIND}"))
            if attempt in plans:
                self._probes[attempt] = probe.handle.pid if probe.handle is not None else 0
            else:
                self._cleanup.remove(probe.workload)

    def hold(self, attempt: AttemptId, plan: Plan) -> None:
        """Everything the class wants of the machine. What can't be had is kept for the proof; nothing raises."""
        self._held[attempt] = _Held(plan)
        if plan.timing is Timing.BEST_EFFORT:
            return
        if not self._root:
            self._held[attempt] = _Held(plan, (NOT_ROOT,) if plan.timing is Timing.REALTIME else ())
            return
        planned = plan_settings(plan, self._observe(fresh=True))
        try:
            unheld = explain_unheld(self._journal.hold(self._holder(attempt), planned.settings), self._holder(attempt))
        except OSError as err:
            unheld = (f"No setting was changed: the journal can't be written ({err.strerror}).",)
        self._facts = None
        self._held[attempt] = _make_held(plan, planned, unheld)

    def release(self, attempt: AttemptId) -> None:
        """The job has ended, or never started. Safe to repeat."""
        held = self._held.pop(attempt, None)
        if held is not None and held.plan.timing is not Timing.BEST_EFFORT and self._root:
            holder = self._holder(attempt)
            self._restore(lambda other: other != holder)
        self.end_probe(attempt)

    def _restore(self, living: Callable[[str], bool]) -> None:
        try:
            self._journal.restore(living)
        except OSError as err:
            log.error("settings could not be put back (%s); the next agent tries again", err)
        self._facts = None

    def _holder(self, attempt: AttemptId) -> str:
        return f"{self._paths.tag}/{attempt}"

    # -- the watcher of a promise

    async def start_probe(self, job: AssignedJob) -> None:
        """Beside a job that runs. Without it the promise is NOT VERIFIED, and the job goes on."""
        limit = job.spec.resources.max_wakeup_us
        if limit is None:
            return
        fifo = FIFO_PRIORITY + 1 if job.plan.timing is Timing.REALTIME else 0
        words = (str(self._page(job.attempt)), str(limit), str(PROBE_INTERVAL_US), str(fifo))
        try:
            self._probes[job.attempt] = 0
            handle = await self._runtime.start(
                _probe(job.attempt),
                kind=KIND,
                argv=(sys.executable, "-P", "-m", "steelyard.runtime.wakeups", "watch", *words),
                env={"PATH": os.defpath, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
                cwd="/",
                uid=None,
                gid=None,
                plan=Plan(cpus=job.plan.cpus, share=0.05, memory_nodes=job.plan.memory_nodes, timing=job.plan.timing),
            )
        except (SteelyardError, OSError) as err:
            log.warning("the promise of %s is not watched: %s", job.attempt, err)
        else:
            self._probes[job.attempt] = handle.pid
        if job.attempt not in self._held:  # it ended meanwhile
            self.end_probe(job.attempt)

    def end_probe(self, attempt: AttemptId) -> None:
        if self._probes.pop(attempt, None) is not None:
            self._cleanup.remove(_probe(attempt))

    def observe_wakeups(self, attempt: AttemptId) -> Wakeups | None:
        seen = read_page(self._page(attempt))
        if seen is None:
            return None
        stale = self._clock.mono_ns() - seen.seen_ns > STALE_NS
        return Wakeups(seen.samples, seen.breaches, -(-seen.worst_ns // 1000), stale)

    def report_wakeups(self, attempt: AttemptId) -> Wakeups:
        """What the server should know of breaches: changes at most every few seconds, so that a bad hour is not a flood."""
        held = self._held.get(attempt)
        if held is None or attempt not in self._probes:
            return Wakeups()
        seen, now = self.observe_wakeups(attempt), self._clock.mono_ns()
        due = held.reported_ns is None or now - held.reported_ns > REPORT_NS
        if seen is not None and seen.breaches > held.reported.breaches and due:
            held.reported, held.reported_ns = seen, now
        return held.reported

    def _page(self, attempt: AttemptId) -> Path:
        # named as Cleanup names the page of a workload, so that it goes with the watcher
        return self._paths.pages / _probe(attempt)

    # -- the proof

    def asked(self, job: AssignedJob) -> dict[str, object]:
        """Keys beside those that every job has."""
        facts = self._observe() if job.plan.timing is Timing.REALTIME and self._root else None
        asked = asked_timing(job.plan, facts)
        if job.spec.resources.max_wakeup_us is not None:
            asked["max_wakeup_us"] = job.spec.resources.max_wakeup_us
        return asked

    def got(self, job: AssignedJob, pids: Sequence[int], own_cpus: bool) -> dict[str, object]:
        got: dict[str, object] = {}
        if job.plan.timing is not Timing.BEST_EFFORT:
            # only realtime changes what the facts are about, and looking at a large machine takes tens of milliseconds
            facts = self._observe() if job.plan.timing is Timing.REALTIME else TimingFacts(online=())
            got = got_timing(job.plan, facts, observe_scheduler(pids), own_cpus, observe_memory_lock(pids))
            got["others_on_its_cpus"] = self._count_others(job.plan.cpus, pids)
        if job.spec.resources.max_wakeup_us is not None:
            got |= got_promise(self.observe_wakeups(job.attempt))
        return got

    def explain(self, job: AssignedJob) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(what this machine forbids, what is worth knowing), sentences."""
        held = self._held.get(job.attempt, _Held(job.plan))
        forbidden = held.forbidden
        if job.spec.resources.max_wakeup_us is not None:
            forbidden += explain_promise(job.spec.resources.max_wakeup_us, self.observe_wakeups(job.attempt))
        others = self._others.get(job.plan.cpus, (0, 0))[1] if job.plan.timing is not Timing.BEST_EFFORT else 0
        notes = held.notes
        if others:
            notes = (
                f"{others} processes outside this job, Steelyard's own programs among them, may run on its CPUs too; "
                "they are counted and never moved.",
                *notes,
            )
        return forbidden, notes

    def _observe(self, fresh: bool = False) -> TimingFacts:
        now = self._clock.mono_ns()
        if fresh or self._facts is None or now - self._facts[0] > FACTS_NS:
            self._facts = (now, observe_timing())
        return self._facts[1]

    def _count_others(self, cpus: tuple[int, ...], pids: Sequence[int]) -> int:
        now = self._clock.mono_ns()
        known = self._others.get(cpus)
        if known is None or now - known[0] > FACTS_NS:
            known = self._others[cpus] = (now, count_others(cpus, (*pids, *self._probes.values())))
        return known[1]


def _make_held(plan: Plan, planned: Planned, unheld: tuple[str, ...]) -> _Held:
    return _Held(plan, (*planned.forbidden, *unheld), planned.notes)


def _probe(attempt: AttemptId) -> WorkloadId:
    return WorkloadId(f"{attempt}.{KIND}")
