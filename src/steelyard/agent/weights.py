"""Whose weights stay in the page cache while they sleep? A wake then costs a copy from memory and no read from disk.

The kernel keeps what was read as long as nothing else wants the memory; what it let go of is read ahead again, at leisure, while
the function sleeps: one at a time, within a budget for the machine, and only as long as memory is plenty. Pinned memory, from
which a copy to a GPU would be faster still, is not held. What to keep is decided by the pure `choose_kept`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from steelyard.agent.edges import Edges
from steelyard.host.page_cache import CachedFile, list_files, measure_resident, read_ahead, yield_the_disk
from steelyard.model.ids import FunctionName

#: of the machine's memory, what weights of sleeping functions may have together; and what must be available beyond a read
BUDGET_SHARE, RESERVE_SHARE = 0.5, 0.1
#: between two looks at what is resident, or two reads of the same weights
LOOK_NS = 60 * 1_000_000_000
#: so much of them counts as all
RESIDENT_SHARE = 0.98


class Weights(NamedTuple):
    """Of one function, as it is now."""

    function: FunctionName
    path: str
    asleep: bool


@dataclass
class _Kept:
    function: FunctionName
    path: str
    asleep: bool = False
    #: monotonic ns; 0: it slept when it was first seen
    last_awake_ns: int = 0
    looked_ns: int | None = None
    files: list[CachedFile] = field(default_factory=list)
    resident: int | None = None
    chosen: bool = True

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def choose_kept(sizes: Sequence[tuple[FunctionName, int, int]], budget_bytes: int) -> set[FunctionName]:
    """(function, bytes, when it was last awake) -> those that are kept: who was awake last comes first, and who does not fit into
    what is left is passed over."""
    kept: set[FunctionName] = set()
    for function, size, _ in sorted(sizes, key=lambda each: (-each[2], each[0])):
        if size <= budget_bytes:
            budget_bytes -= size
            kept.add(function)
    return kept


class WeightsKeeper:
    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._known: dict[FunctionName, _Kept] = {}
        self._available_bytes = 0
        self._working: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "weights", initializer=yield_the_disk)

    def look(self, wanted: Sequence[Weights], available_bytes: int) -> None:
        """May be called as often as one likes; the work is done in a thread, a function at a time."""
        now_ns, self._available_bytes = self._edges.clock.mono_ns(), available_bytes
        for name in self._known.keys() - {each.function for each in wanted}:
            del self._known[name]
        for each in wanted:
            kept = self._known.get(each.function)
            if kept is None or kept.path != each.path:
                kept = self._known[each.function] = _Kept(each.function, each.path)
            if not each.asleep:
                kept.last_awake_ns = now_ns
            elif not kept.asleep:
                kept.looked_ns = None  # it has just gone to sleep
            kept.asleep = each.asleep
        due = [kept for kept in self._known.values() if kept.looked_ns is None or now_ns - kept.looked_ns >= LOOK_NS]
        if due and (self._working is None or self._working.done()):
            self._working = asyncio.get_running_loop().create_task(self._work(due))

    async def _work(self, due: list[_Kept]) -> None:
        do = asyncio.get_running_loop().run_in_executor
        for kept in due:
            kept.looked_ns = self._edges.clock.mono_ns()
            kept.files = await do(self._thread, list_files, Path(kept.path))
            kept.resident = await do(self._thread, measure_resident, kept.files)
            sizes = [(name, each.size, each.last_awake_ns) for name, each in self._known.items()]
            chosen = choose_kept(sizes, self.budget_bytes)
            for name, each in self._known.items():
                each.chosen = name in chosen
            if kept.resident is not None and kept.resident < kept.size * RESIDENT_SHARE and self._may_read(kept):
                await do(self._thread, read_ahead, kept.files, lambda kept=kept: self._may_read(kept))
                kept.resident = await do(self._thread, measure_resident, kept.files)

    @property
    def budget_bytes(self) -> int:
        return round(self._edges.machine.memory_bytes * BUDGET_SHARE)

    def _may_read(self, kept: _Kept) -> bool:
        # page cache counts as available, so what is read does not lower it; what programs take does
        plenty = self._available_bytes >= kept.size + self._edges.machine.memory_bytes * RESERVE_SHARE
        return kept.asleep and kept.chosen and plenty and self._known.get(kept.function) is kept

    def tell(self, function: FunctionName) -> str:
        """A sentence for `why`; empty where it has no weights of its own."""
        kept = self._known.get(function)
        if kept is None or kept.looked_ns is None:
            return ""
        if not kept.files:
            return f" There are no weights in {kept.path}."
        size = f"{kept.size / 1e9:.1f} GB"
        if not kept.chosen:
            return f" Its weights ({size}) do not fit beside others into the {self.budget_bytes / 1e9:.1f} GB that are kept."
        if kept.resident is None:
            return f" How much of its weights ({size}) is in the page cache only their owner may know."
        return f" Of its weights {kept.resident / 1e9:.1f} of {size} are in the page cache."

    def close(self) -> None:
        if self._working is not None:
            self._working.cancel()
        self._known.clear()  # which ends a read
        self._thread.shutdown(wait=False, cancel_futures=True)
