"""What do this machine's jobs use, and what did they use in all?

Looks at the control groups of what runs, once a second at first and less often the longer it runs (lifecycle/usage.py); at
nothing while nothing runs. An attempt may be several workloads (ranks of a gang): it used what they used together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from steelyard.clock import Clock
from steelyard.host import Cgroups, UsageReading
from steelyard.host.gpu_use import GpuMeter
from steelyard.lifecycle.usage import Look, Track, add_look, is_due
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.model.topology import Topology
from steelyard.model.usage import Usage
from steelyard.wire.spawn import Exited

N = TypeVar("N", int, float)

#: a driver that has not answered by then is not asked again before it has
GPU_WAIT_S = 2.0


@dataclass
class _Used:
    """Of one workload, the most that was seen of each."""

    cpu_s: float | None = None
    memory_bytes: int = 0
    memory_peak_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    scratch_peak_bytes: int | None = None
    ended: bool = False


@dataclass
class _Life:
    """Of one attempt."""

    start_ns: int
    gpus: tuple[str, ...] = ()
    used: dict[WorkloadId, _Used] = field(default_factory=dict)
    track: Track = field(default_factory=Track)


class UsageKeeper:
    """`scratch_used`: bytes in a workload's scratch folder now, None without one."""

    def __init__(
        self,
        cgroups: Cgroups,
        clock: Clock,
        topology: Topology | None,
        scratch_used: Callable[[WorkloadId], int | None] = lambda workload: None,
        meter: GpuMeter | None = None,
    ) -> None:
        self._cgroups, self._clock, self._scratch_used = cgroups, clock, scratch_used
        self._meter = meter or GpuMeter()
        gpus = topology.gpus if topology is not None else ()
        self._pci = {gpu.id: gpu.pci for gpu in gpus if gpu.pci is not None}
        self._lives: dict[AttemptId, _Life] = {}
        self._of: dict[WorkloadId, AttemptId] = {}
        #: GPU -> percent, as of the newest look; and the look that the driver has not answered yet
        self._busy: dict[str, float] = {}
        self._asking: asyncio.Future[dict[str, float]] | None = None

    def note_start(self, attempt: AttemptId, workload: WorkloadId, plan: Plan, started_at: int | None = None) -> None:
        """A workload of the attempt is being started; or runs since `started_at` (wall clock, microseconds), as a restarted agent
        finds."""
        ago_us = 0 if started_at is None else max(0, self._clock.now_us() - started_at)
        # A share of a GPU and a MIG instance are told apart by no counter of the driver.
        gpus = plan.gpus if plan.gpu_fraction >= 1 and not plan.mig_instances else ()
        life = self._lives.setdefault(attempt, _Life(self._clock.mono_ns() - ago_us * 1000))
        life.gpus = tuple(sorted({*life.gpus, *(self._pci[gpu] for gpu in gpus if gpu in self._pci)}))
        life.used.setdefault(workload, _Used())
        self._of[workload] = attempt

    def note_end(self, workload: WorkloadId, exited: Exited | None) -> int | None:
        """Its first process has ended; its group is still there. Without an exit record the last look is all there is. Returns
        the most memory that it had; None where that is not known."""
        attempt = self._of.get(workload)
        if attempt is None or (used := (life := self._lives[attempt]).used[workload]).ended:
            return None
        self._look(workload, used)
        used.ended, used.memory_bytes = True, 0
        if exited is not None and exited.start_time:
            used.cpu_s = max(used.cpu_s or 0.0, exited.user_s + exited.system_s)
            used.memory_peak_bytes = used.memory_peak_bytes or exited.peak_rss_bytes or None
            used.read_bytes = _most(used.read_bytes, exited.read_bytes)
            used.written_bytes = _most(used.written_bytes, exited.written_bytes)
        if all(each.ended for each in life.used.values()):
            self._add(life)
        return used.memory_peak_bytes

    async def sample(self) -> None:
        """Look at everything that is due. Called once a second while anything runs."""
        running = {attempt: life for attempt, life in self._lives.items() if any(not used.ended for used in life.used.values())}
        due = [life for life in running.values() if is_due(life.track, self._at_s(life))]
        if any(life.gpus for life in due):
            await self._ask_gpus(pci for life in due for pci in life.gpus)
        for life in due:
            for workload, used in life.used.items():
                if not used.ended:
                    self._look(workload, used)
            self._add(life)

    def usage(self, attempt: AttemptId) -> Usage | None:
        """So far, or in all; None for an attempt that never ran here."""
        life = self._lives.get(attempt)
        if life is None:
            return None
        for workload, used in life.used.items():
            if not used.ended:
                self._look(workload, used)
        each = list(life.used.values())
        return Usage(
            cpu_s=_total([used.cpu_s for used in each]),
            memory_peak_bytes=_total([used.memory_peak_bytes for used in each]),
            read_bytes=_total([used.read_bytes for used in each]),
            written_bytes=_total([used.written_bytes for used in each]),
            scratch_peak_bytes=_total([used.scratch_peak_bytes for used in each]),
            samples=life.track.samples,
        )

    def forget(self, attempt: AttemptId) -> None:
        life = self._lives.pop(attempt, None)
        for workload in life.used if life is not None else ():
            self._of.pop(workload, None)

    # -- looking

    def _at_s(self, life: _Life) -> float:
        return (self._clock.mono_ns() - life.start_ns) / 1e9

    def _look(self, workload: WorkloadId, used: _Used) -> None:
        reading: UsageReading = self._cgroups.read_usage(workload)
        used.cpu_s = _most(used.cpu_s, reading.cpu_s)
        used.read_bytes = _most(used.read_bytes, reading.read_bytes)
        used.written_bytes = _most(used.written_bytes, reading.written_bytes)
        used.memory_bytes = reading.memory_bytes or 0
        used.memory_peak_bytes = _most(used.memory_peak_bytes, reading.memory_peak_bytes, reading.memory_bytes)
        used.scratch_peak_bytes = _most(used.scratch_peak_bytes, self._scratch_used(workload))

    def _add(self, life: _Life) -> None:
        each = life.used.values()
        busy = [self._busy[pci] for pci in life.gpus if pci in self._busy]
        look = Look(
            at_s=self._at_s(life),
            cpu_s=sum(used.cpu_s or 0.0 for used in each),
            memory_bytes=sum(used.memory_bytes for used in each),
            read_bytes=sum(used.read_bytes or 0 for used in each),
            written_bytes=sum(used.written_bytes or 0 for used in each),
            gpu_percent=sum(busy) / len(busy) if busy else None,
        )
        life.track = add_look(life.track, look)

    async def _ask_gpus(self, pci_addresses: Iterable[str]) -> None:
        """A GPU that has hung hangs whoever asks: in a thread, one at a time, and not waited for."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._meter.read, list(pci_addresses)))
        done, _ = await asyncio.wait([self._asking], timeout=GPU_WAIT_S)
        self._busy = {}
        if done:
            self._busy = self._asking.result()
            self._asking = None


def _most(*amounts: N | None) -> N | None:
    return max((amount for amount in amounts if amount is not None), default=None)


def _total(amounts: Sequence[N | None]) -> N | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known[1:], known[0]) if known else None
