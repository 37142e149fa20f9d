"""Who has scratch space on this machine, how full is it, and when does it go?

Made before a workload's start, removed after its end; what an earlier agent left is swept at ours. Disks are touched in threads,
so that nobody's wake waits for them. Where the size is only watched, `over` names who has gone beyond it: ending them is the job
keeper's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from steelyard.host.scratch import Scratch, ScratchDisk
from steelyard.model.ids import WorkloadId

log = logging.getLogger(__name__)


@dataclass
class _Held:
    scratch: Scratch
    peak_bytes: int = 0
    #: there were more files than are looked at
    incomplete: bool = False
    over: bool = False


class ScratchKeeper:
    def __init__(self, disk: ScratchDisk) -> None:
        self._disk = disk
        self._held: dict[WorkloadId, _Held] = {}
        #: to be removed; an entry stays until nothing is left
        self._leaving: set[WorkloadId] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def adopt(self, living: Collection[WorkloadId]) -> None:
        """At start: take over what these have and remove everything else. Blocks; nothing runs yet."""
        self._disk.sweep(living)
        for workload in living:
            scratch = self._disk.find(workload)
            if scratch is not None:
                self._held[workload] = _Held(scratch)

    async def make(self, workload: WorkloadId, size_bytes: int | None, ids: tuple[int, int] | None) -> Mapping[str, str]:
        """The variables that tell the workload of it; none when none was asked for. Raises NoRoom or EdgeFailed."""
        if size_bytes is None:
            return {}
        scratch = await asyncio.to_thread(self._disk.make, workload, size_bytes, ids)
        self._held[workload] = _Held(scratch)
        return {"STEELYARD_SCRATCH": scratch.folder, "TMPDIR": scratch.folder}

    def release(self, workload: WorkloadId) -> None:
        """Its processes are gone. Safe to repeat, and for workloads that have none."""
        if self._held.pop(workload, None) is not None:
            self._leaving.add(workload)
            self._remove(workload)

    def _remove(self, workload: WorkloadId) -> None:
        task = asyncio.get_running_loop().create_task(self._try_remove(workload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_remove(self, workload: WorkloadId) -> None:
        if await asyncio.to_thread(self._disk.remove, workload):
            self._leaving.discard(workload)

    async def look(self) -> None:
        """Once a second: how full they are, and another try at what could not be removed."""
        for workload, held in list(self._held.items()):
            used = (
                self._disk.observe(workload) if held.scratch.enforced else await asyncio.to_thread(self._disk.observe, workload)
            )
            if used is not None:
                held.peak_bytes = max(held.peak_bytes, used.used_bytes)
                held.incomplete = held.incomplete or not used.complete
                held.over = not held.scratch.enforced and used.used_bytes > held.scratch.size_bytes
        if not self._tasks:
            for workload in self._leaving:
                self._remove(workload)

    def peak_bytes(self, workload: WorkloadId) -> int | None:
        """The most that was in it; None without one."""
        held = self._held.get(workload)
        if held is None:
            return None
        if held.scratch.enforced:
            used = self._disk.observe(workload)
            held.peak_bytes = max(held.peak_bytes, used.used_bytes if used is not None else 0)
        return held.peak_bytes

    def over(self) -> list[WorkloadId]:
        """Who has more in a watched folder than was asked for."""
        return [workload for workload, held in self._held.items() if held.over]

    # -- the proof

    def got(self, workload: WorkloadId) -> dict[str, object]:
        held = self._held.get(workload)
        return {} if held is None else {"scratch_bytes": self._disk.size_bytes(workload)}

    def explain(self, workload: WorkloadId) -> tuple[str, ...]:
        """What is not enforced, sentences."""
        held = self._held.get(workload)
        if held is None or held.scratch.enforced:
            return ()
        more = "; it has more files than are looked at, so that it may hold more than was seen" if held.incomplete else ""
        return (f"scratch size is watched, not enforced ({self._disk.unenforced or 'no file system of its own'}){more}",)
