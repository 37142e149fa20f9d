"""Which stored answers to mutating calls are too old to be asked for again? Kept 24 h (R2), then forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.store import Store

KEPT_US = 24 * 3600 * 1_000_000


class Seen(msgspec.Struct, frozen=True):
    """Nothing needs to be read: the store deletes by time."""


class Actions(msgspec.Struct, frozen=True):
    #: forget answers from before this wall time, microseconds
    before: int


class Report(msgspec.Struct, frozen=True):
    before: int


async def load(store: Store) -> Seen:
    del store
    return Seen()


def decide(seen: Seen, now: int) -> Actions:
    del seen
    return Actions(before=now - KEPT_US)


async def carry_out(store: Store, actions: Actions) -> Report:
    await store.write(lambda tx: tx.forget_answers(actions.before))
    return Report(actions.before)


class AnswersLoop:
    name = "answers"
    tick_s = 3600.0

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def activate(self) -> Sequence[str]:
        await carry_out(self._store, decide(await load(self._store), self._clock.now_us()))
        return ()
