"""Which calls wait, and which are being carried out? The server's copy of those that have not ended, as `live.py` is of jobs.

Those that wait are kept in the order of their age, by function, so that a look at ten thousand costs no more than at ten.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from steelyard.model.call import Call, CallState
from steelyard.model.ids import CallId, FunctionName

#: (submitted at or not before, id)
_Place = tuple[int, CallId]


class LiveCalls:
    """Used from one event loop; `apply` takes what `Tx.calls_changed(self.change)` answered."""

    def __init__(self) -> None:
        #: the newest change that is in here; 0: nothing was read yet
        self.change = 0
        self.running: dict[CallId, Call] = {}
        self._queued: dict[CallId, Call] = {}
        self._ready: dict[FunctionName, list[_Place]] = {}
        self._delayed: list[_Place] = []

    @property
    def waiting(self) -> int:
        return len(self._queued)

    def apply(self, change: int, calls: Iterable[Call]) -> None:
        if change <= self.change:
            return
        self.change = change
        for call in calls:
            self.running.pop(call.id, None)
            if (before := self._queued.pop(call.id, None)) is not None:
                self._take_out(before)
            if call.state is CallState.RUNNING:
                self.running[call.id] = call
            elif call.state is CallState.QUEUED:
                self._queued[call.id] = call
                if call.not_before is None:
                    insort(self._ready.setdefault(call.function, []), (call.submitted_at, call.id))
                else:
                    insort(self._delayed, (call.not_before, call.id))

    def wake(self, now: int) -> None:
        """Those whose pause is over wait like all others from now on."""
        due = bisect_left(self._delayed, (now + 1, CallId("")))
        for _, id_ in self._delayed[:due]:
            call = self._queued[id_]
            insort(self._ready.setdefault(call.function, []), (call.submitted_at, id_))
        del self._delayed[:due]

    @property
    def next_wake(self) -> int | None:
        return self._delayed[0][0] if self._delayed else None

    @property
    def functions(self) -> tuple[FunctionName, ...]:
        """Those with calls that could be started now."""
        return tuple(self._ready)

    def oldest(self, function: FunctionName, count: int) -> tuple[Call, ...]:
        return tuple(self._queued[id_] for _, id_ in self._ready.get(function, ())[: max(0, count)])

    def _take_out(self, call: Call) -> None:
        if not _remove(self._delayed, (call.not_before or 0, call.id)):
            ready = self._ready[call.function]
            _remove(ready, (call.submitted_at, call.id))
            if not ready:
                del self._ready[call.function]


def _remove(places: list[_Place], place: _Place) -> bool:
    at = bisect_left(places, place)
    if at == len(places) or places[at] != place:
        return False
    del places[at]
    return True
