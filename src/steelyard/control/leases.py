"""Which ephemeral functions has nobody renewed? They are deleted, as `steelyard run` would have done had it not been killed.

The loop sleeps until the earliest lease ends; renewals need not poke it, since it reads anew then. Without a lease it does not
wake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, CALLS, JOBS, LEASES
from steelyard.control.places import end_function
from steelyard.control.watch import Watch
from steelyard.model.function import Function
from steelyard.model.ids import MachineId
from steelyard.store import Event, Store, Tx

#: nothing has a lease
IDLE_S = 86_400.0
#: the wall clock may be set while we sleep by the other one
SLEEP_MAX_S = 60.0


class Seen(msgspec.Struct, frozen=True):
    #: those with a lease
    functions: tuple[Function, ...]


class Actions(msgspec.Struct, frozen=True):
    expired: tuple[Function, ...]
    now: int
    #: when the next lease ends; None: there is none
    next_at: int | None


class Report(msgspec.Struct, frozen=True):
    deleted: tuple[str, ...] = ()


async def load(store: Store) -> Seen:
    return Seen(tuple(row for row in await store.read(lambda tx: tx.functions()) if row.expires_at is not None))


def decide(seen: Seen, now: int) -> Actions:
    ends = [(row.expires_at, row) for row in seen.functions if row.expires_at is not None]
    return Actions(
        expired=tuple(row for end, row in ends if end <= now),
        now=now,
        next_at=min((end for end, _ in ends if end > now), default=None),
    )


async def carry_out(store: Store, actions: Actions, is_lost: Callable[[MachineId], bool]) -> Report:
    if not actions.expired:
        return Report()

    def commit(tx: Tx) -> Report:
        deleted: list[str] = []
        for row in actions.expired:
            stored = tx.function(row.project, row.name)
            # renewed, or deployed to stay, since it was read
            if stored is None or stored.expires_at is None or stored.expires_at > actions.now:
                continue
            end_function(tx, row, is_lost)
            text = "deleted: its lease was not renewed"
            tx.add_event(Event(actions.now, row.project, row.owner.user, "function", row.name, text))
            deleted.append(row.name)
        return Report(tuple(deleted))

    return await store.write(commit)


class LeasesLoop:
    name = LEASES

    def __init__(self, store: Store, clock: Clock, watch: Watch, is_lost: Callable[[MachineId], bool]) -> None:
        self._store = store
        self._clock = clock
        self._watch = watch
        self._is_lost = is_lost
        self._next_at: int | None = None

    @property
    def tick_s(self) -> float:
        if self._next_at is None:
            return IDLE_S
        return min(SLEEP_MAX_S, max(0.0, (self._next_at - self._clock.now_us()) / 1e6) + 0.001)

    async def activate(self) -> Sequence[str]:
        actions = decide(await load(self._store), self._clock.now_us())
        self._next_at = actions.next_at
        report = await carry_out(self._store, actions, self._is_lost)
        for name in report.deleted:
            self._watch.notify(f"function/{name}")
        return [JOBS, ASSIGNMENT, CALLS] if report.deleted else []
