"""Which calls have been kept long enough? Seven days after their end their rows, history and results go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.lifecycle.call import KEPT_US
from steelyard.model.ids import CallId
from steelyard.store import Store, Tx
from steelyard.store.call_files import CallFiles

#: in one transaction
BATCH = 500


class Seen(msgspec.Struct, frozen=True):
    """Nothing needs to be read: the store deletes by time."""


class Actions(msgspec.Struct, frozen=True):
    #: forget what ended before this wall time, microseconds
    before: int


class Report(msgspec.Struct, frozen=True):
    forgotten: tuple[CallId, ...]


async def load(store: Store) -> Seen:
    del store
    return Seen()


def decide(seen: Seen, now: int) -> Actions:
    del seen
    return Actions(before=now - KEPT_US)


async def carry_out(store: Store, files: CallFiles, actions: Actions) -> Report:
    """Rows first: a result without a row is swept, a row without its result would promise one."""
    forgotten = await store.write(lambda tx: tx.forget_calls(actions.before, BATCH))
    if forgotten:
        await asyncio.to_thread(files.forget, forgotten)
    return Report(tuple(forgotten))


class KeptCallsLoop:
    name = "kept-calls"
    tick_s = 3600.0

    def __init__(self, store: Store, clock: Clock, files: CallFiles) -> None:
        self._store, self._clock, self._files = store, clock, files

    async def activate(self) -> Sequence[str]:
        report = await carry_out(self._store, self._files, decide(await load(self._store), self._clock.now_us()))
        return [self.name] if len(report.forgotten) == BATCH else []


async def sweep_calls(store: Store, files: CallFiles) -> None:
    """Take away what a killed server left beside the rows. Once per start, before anything is served."""

    def read(tx: Tx) -> tuple[set[CallId], set[CallId]]:
        return {call.id for call in tx.calls_changed(0)[1]}, tx.call_ids()

    living, kept = await store.read(read)
    await asyncio.to_thread(files.sweep, living, kept)
