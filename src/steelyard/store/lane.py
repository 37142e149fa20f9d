"""How do functions of many callers run one after another on one thread, many at a time?

A lane owns a thread and a bounded queue. The thread takes everything that waits and hands it to `carry_out` as one batch, so
that what is dear per batch (a COMMIT with its fsync, a snapshot) is paid once however many wait: group commit. Never touches a
database itself.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from steelyard.errors import EdgeFailed, NoRoom

#: functions in one batch: bounds how long the first of them waits for the last
BATCH_MAX = 512
#: functions that may wait; more are refused (R11)
WAITING_MAX = 20_000
#: quiet after a batch until `rest` runs
QUIET_S = 0.2
#: batches after which `rest` runs even if it never gets quiet
BUSY_BATCHES = 256

Function = Callable[[Any], Any]


class Outcome(NamedTuple):
    """What became of one function."""

    value: object = None
    error: BaseException | None = None


class _Call(NamedTuple):
    fn: Function
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Lane:
    """`carry_out` gets the functions of a batch and returns one outcome each; it never raises. `rest` (if any) runs when it has
    been quiet for a moment after work, and once more at the end."""

    def __init__(
        self, name: str, carry_out: Callable[[Sequence[Function]], list[Outcome]], rest: Callable[[], None] | None = None
    ):
        self._name = name
        self._carry_out = carry_out
        self._rest = rest
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        #: nothing may be queued behind the end mark, or its caller would wait for ever
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Function) -> asyncio.Future[Any]:
        """Queue a function of the running event loop. Raises NoRoom when too many wait."""
        if self._queue.qsize() >= WAITING_MAX:
            raise NoRoom("The store has too much to do at this moment. Try again.", code="store-busy", detail=self._name)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._gate:
            if self._closed:
                raise EdgeFailed("The store is closed.", code="store-failed", detail=self._name)
            self._queue.put(_Call(fn, future, loop))
        return future

    def close(self) -> None:
        """Carry out what waits, then end the thread. Blocks; harmless when called twice."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        restless = 0
        going_on = True
        while going_on:
            try:
                first = self._queue.get(timeout=QUIET_S if restless and self._rest else None)
            except queue.Empty:
                self._take_rest()
                restless = 0
                continue
            batch, going_on = self._take_batch(first)
            if batch:
                self._settle(batch, self._carry_out([call.fn for call in batch]))
                restless += 1
            if restless >= BUSY_BATCHES:
                self._take_rest()
                restless = 0
        self._take_rest()

    def _take_rest(self) -> None:
        if self._rest is not None:
            self._rest()

    def _take_batch(self, first: _Call | None) -> tuple[list[_Call], bool]:
        """Everything that waits now, and whether the lane goes on. Calls that were given up while they waited are dropped."""
        batch: list[_Call] = []
        call = first
        while call is not None:
            if not call.future.cancelled():
                batch.append(call)
            if len(batch) >= BATCH_MAX:
                return batch, True
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    @staticmethod
    def _settle(batch: Sequence[_Call], outcomes: Sequence[Outcome]) -> None:
        """Hand the outcomes over: one wake-up of the event loop for all of them."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Outcome]]] = {}
        for call, outcome in zip(batch, outcomes, strict=True):
            by_loop.setdefault(call.loop, []).append((call.future, outcome))
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, pairs)
            except RuntimeError:
                # The loop is closed: whoever asked is gone, and what was done stays done.
                continue


def _resolve(pairs: Sequence[tuple[asyncio.Future[Any], Outcome]]) -> None:
    for future, (value, error) in pairs:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        elif isinstance(error, StopIteration):
            # A future refuses StopIteration; raising here would leave all the others of the batch waiting for ever.
            future.set_exception(RuntimeError("a function of the store raised StopIteration"))
        else:
            future.set_exception(error)
