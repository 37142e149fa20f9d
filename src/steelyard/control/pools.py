"""Which pilots should there be, and what has become of those that are?

A pool's pilots are jobs of the attached cluster's queue, found again by their comment as attempts of direct jobs are. Rows are
written before anything is asked for: a pilot whose `sbatch` was lost is asked for again only when a look `SETTLE_NS` later does
not show it, and of two allocations for one pilot only the first begins (`cli/pilot.py`).

A pilot is told to end when nothing runs there any more: idle, near its time limit, or its pool is deleted. What still runs there
when the cluster says that its allocation is over is lost with it; nothing else makes a pilot's work count as lost. Pilots of one
allocation drain and end together; when the node of one fails, it alone is lost, and the others drain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, JOBS, PLACES, POOLS
from steelyard.control.direct import SETTLE_NS
from steelyard.control.live import LiveJobs, refresh
from steelyard.control.machines import lose_machine
from steelyard.control.queue_looks import QueueLooks
from steelyard.control.watch import Watch
from steelyard.engine import Engine
from steelyard.errors import Refused, SteelyardError
from steelyard.lifecycle.pilot import (
    apply_entry,
    drain_pilot,
    end_pilot,
    ends_within,
    fail_pool,
    find_drain,
    greet_pilot,
    judge_pool,
)
from steelyard.model.function import Function
from steelyard.model.ids import JobId, MachineId
from steelyard.model.job import Job
from steelyard.model.machine import Machine
from steelyard.model.pool import Pilot, PilotState, Pool, make_pilot_id
from steelyard.model.reason import Reason
from steelyard.model.slurm import PENDING, RUNNING, QueueEntry
from steelyard.scaling.pools import Demand, Standing, decide_pilots
from steelyard.scheduling.snapshot import Why
from steelyard.store import Event, Store, Tx

#: without a pool it looks this often; with one every second at what waits, and so often at the cluster's queue
IDLE_S, TICK_S, LOOK_S = 60.0, 1.0, 2.0
#: told once more to end when it is still there after that long
CANCEL_NS = 20 * 1_000_000_000
#: before the drain, so that what comes in its place is there in time
REPLACE_S = 60.0
#: what has ended is shown that long
KEPT_S = 86400.0
#: why a job waits, where no further machine would help it
_NOT_ROOM = frozenset(
    {
        Reason.HELD, Reason.BEGINS_LATER, Reason.BACKOFF, Reason.DEPENDENCY, Reason.ARRAY_LIMIT, Reason.QUOTA,
        Reason.CORES_BEYOND_MACHINE, Reason.MEMORY_BEYOND_MACHINE, Reason.GPUS_BEYOND_MACHINE, Reason.NICS_BEYOND_MACHINE,
        Reason.NO_SUCH_GPU,
    }
)  # fmt: skip

_log = logging.getLogger("steelyard.pools")


class Known(msgspec.Struct):
    """What this server knows of a pilot. Forgotten with the server: then looks have to tell. Monotonic."""

    #: of the newest submission
    submitted_ns: int | None = None
    #: of the newest look that showed it
    seen_ns: int | None = None
    idle_since_ns: int | None = None
    cancelled_ns: int | None = None


class Seen(msgspec.Struct, frozen=True):
    pools: tuple[Pool, ...] = ()
    #: that live
    pilots: tuple[Pilot, ...] = ()
    #: of pools, by their ids: those whose agents said hello
    machines: Mapping[MachineId, Machine] = {}
    #: machines on which something runs, or may
    busy: frozenset[MachineId] = frozenset()
    #: what waits, by pool
    demands: Mapping[str, Sequence[Demand]] = {}
    #: what the cluster knows; None: it was not asked now, or did not answer
    queue: Mapping[str, QueueEntry] | None = None
    #: the last words of pilots that may have ended
    words: Mapping[MachineId, str] = {}
    #: when the look began, monotonic
    looked_ns: int = 0
    attached: bool = True


class Actions(msgspec.Struct, frozen=True):
    #: pairs of before and after
    pilots: tuple[tuple[Pilot, Pilot], ...] = ()
    pools: tuple[tuple[Pool, Pool], ...] = ()
    #: pool -> so many pilots more
    more: Mapping[str, int] = {}
    #: were asked for already, and never arrived
    again: tuple[Pilot, ...] = ()
    #: one of each allocation
    cancels: tuple[Pilot, ...] = ()
    #: were deleted and have no pilot any more
    gone: tuple[Pool, ...] = ()


def decide(seen: Seen, known: Mapping[MachineId, Known], began_ns: int, now_ns: int, now: int) -> Actions:
    """`known` has each pilot. `began_ns`: since when this server looks; with `now_ns` monotonic, `now` is wall time."""
    pools = {pool.name: pool for pool in seen.pools}
    pilots: dict[str, list[Pilot]] = {name: [] for name in pools}
    moved: dict[MachineId, Pilot] = {}
    again: list[Pilot] = []
    failed: set[MachineId] = set()
    for before in seen.pilots:
        pilot = observe_pilot(before, known[before.id], seen, began_ns, now)
        if pilot is None:
            again.append(before)
            pilot = before
        moved[before.id] = pilot
        judged = judge_pool(pools[pilot.pool], before, pilot, now)
        if judged.failures <= pools[pilot.pool].failures or pilot.queue_id not in failed:
            pools[pilot.pool] = judged
        if not pilot.living:
            failed.add(pilot.queue_id)
        if pilot.living:
            pilots[pilot.pool].append(pilot)
    more: dict[str, int] = {}
    for name, pool in pools.items():
        drains, lacking = _decide_pool(pool, pilots[name], seen, known, now_ns, now)
        for pilot in pilots[name]:
            if pilot.id in drains:
                moved[pilot.id] = drain_pilot(pilot, drains[pilot.id])
        if lacking:
            more[name] = lacking
    _drain_together(moved)
    return Actions(
        tuple((before, moved[before.id]) for before in seen.pilots if moved[before.id] != before),
        tuple((before, pools[before.name]) for before in seen.pools if pools[before.name] != before),
        more,
        tuple(pilot for pilot in again if moved[pilot.id] == pilot),
        tuple(_find_cancels(seen, moved, known, now_ns)),
        tuple(pool for name, pool in pools.items() if pool.deleting and not pilots[name]),
    )


def _drain_together(moved: dict[MachineId, Pilot]) -> None:
    """Nothing new comes to an allocation that is to go, or has lost a node."""
    going = {pilot.queue_id: pilot for pilot in moved.values() if pilot.state is PilotState.DRAINING}
    lost = {pilot.queue_id: pilot for pilot in moved.values() if not pilot.living}
    for pilot in moved.values():
        if pilot.allocation and pilot.living:
            if pilot.queue_id in lost:
                why = f"its allocation has lost {lost[pilot.queue_id].id}"
            elif pilot.queue_id in going:
                why = going[pilot.queue_id].detail
            else:
                continue
            moved[pilot.id] = drain_pilot(pilot, why)


def _find_cancels(seen: Seen, moved: Mapping[MachineId, Pilot], known: Mapping[MachineId, Known], now_ns: int) -> list[Pilot]:
    """Of each allocation that may end now, its first pilot that lives."""
    allocations: dict[MachineId, list[Pilot]] = {}
    for before in seen.pilots:
        if moved[before.id].living:
            allocations.setdefault(before.queue_id, []).append(before)
    return [
        pilot
        for some in allocations.values()
        # what drained when work was looked at: since then nothing can have been placed there
        if all(before.state is PilotState.DRAINING and before.id not in seen.busy for before in some)
        and (pilot := moved[some[0].id]).number
        and _is_due(known[pilot.id].cancelled_ns, now_ns)
    ]


def observe_pilot(pilot: Pilot, about: Known, seen: Seen, began_ns: int, now: int) -> Pilot | None:
    """Its next state by what was seen; None where it is certain that the cluster never got it."""
    machine = seen.machines.get(pilot.id)
    if machine is not None:
        pilot = greet_pilot(pilot, machine.hostname, now)
    entry = None if seen.queue is None else seen.queue.get(pilot.queue_id)
    words = seen.words.get(pilot.id, "")
    if entry is not None:
        return apply_entry(pilot, entry, words, now)
    if seen.queue is None or seen.looked_ns - _last_ns(about, began_ns) < SETTLE_NS:
        return pilot
    if not pilot.number and pilot.ready_at is None:
        return None if pilot.state is not PilotState.DRAINING else end_pilot(pilot, "", "", now)
    return end_pilot(pilot, "Slurm no longer knows it", words, now)


def _last_ns(about: Known, began_ns: int) -> int:
    """When it was certainly in the queue, or on its way into it, last."""
    return max(began_ns, about.submitted_ns or 0, about.seen_ns or 0)


def _decide_pool(
    pool: Pool, pilots: Sequence[Pilot], seen: Seen, known: Mapping[MachineId, Known], now_ns: int, now: int
) -> tuple[dict[MachineId, str], int]:
    """Which of its pilots are to drain, and why; and how many are lacking."""
    if pool.deleting:
        return {pilot.id: "its pool was deleted" for pilot in pilots}, 0
    demands = seen.demands.get(pool.name, ())
    standings: list[Standing] = []
    for pilot in pilots:
        about, busy = known[pilot.id], pilot.id in seen.busy
        if busy or demands:
            about.idle_since_ns = None
        elif about.idle_since_ns is None:
            about.idle_since_ns = now_ns
        idle_s = 0.0 if about.idle_since_ns is None else (now_ns - about.idle_since_ns) / 1e9
        left_s = None if pilot.ends_at is None else (pilot.ends_at - now) / 1e6
        standings.append(Standing(pilot, busy, idle_s, ends_within(pilot, pool, REPLACE_S, now), left_s))
    example = next((machine for machine in seen.machines.values() if machine.pool == pool.name), None)
    wanted = decide_pilots(pool.spec, standings, demands, example)
    drains = {pilot.id: f"nothing ran on it for {pool.spec.idle_s:g} s" for pilot in wanted.spare}
    drains |= {pilot.id: why for pilot in pilots if (why := find_drain(pilot, pool, now))}
    rests = pool.not_before is not None and now < pool.not_before
    return drains, 0 if rests or not seen.attached else wanted.more


def _is_due(cancelled_ns: int | None, now_ns: int) -> bool:
    return cancelled_ns is None or now_ns - cancelled_ns >= CANCEL_NS


def put_change(tx: Tx, before: Pilot, after: Pilot, now: int) -> list[Job]:
    """Store a pilot's next state with all that follows from it; the jobs that were lost with it. Raises Conflict where it has
    moved on."""
    tx.put_pilot(msgspec.structs.replace(after, generation=before.generation + 1))
    if after.state is before.state:
        return []
    words = [str(after.state), *([f"on {after.node}"] if after.node and after.state is not PilotState.ENDED else [])]
    text = f"pilot {after.id}: {' '.join(words)}" + (f": {after.detail}" if after.detail else "")
    tx.add_event(Event(now, after.project, after.owner.user, "pool", after.pool, text))
    if not after.living:
        return lose_machine(tx, after.id, f"pilot {after.id} ended" + (f": {after.detail}" if after.detail else ""), now)
    machine = tx.machine(after.id)
    if machine is not None and after.state is PilotState.DRAINING:
        tx.put_machine(msgspec.structs.replace(machine, draining=after.detail))
    return []


def find_demands(
    jobs: Sequence[Job], functions: Sequence[Function], why: Callable[[Job], Reason | None]
) -> dict[str, list[Demand]]:
    """What waits for machines of pools, by pool: jobs, and functions that are on none, or on none that stays. `why` a job waits,
    as far as it is known."""
    found: dict[str, list[Demand]] = {}
    for function in functions:
        if function.spec.pool and function.reason is Reason.NO_MACHINE:
            found.setdefault(function.spec.pool, []).append(Demand(1, function.spec.reserved or function.spec.resources))
    for job in jobs:
        if job.spec.pool and not job.held and why(job) not in _NOT_ROOM:
            nodes = 1 if job.spec.gang is None else job.spec.gang.nodes
            demand = Demand(nodes, job.spec.demand, job.spec.max_duration_s, job.spec.in_one_allocation)
            found.setdefault(job.spec.pool, []).append(demand)
    return found


class Link(Protocol):
    """The agents, as far as this loop needs them (`api/agents.py`)."""

    def drop(self, machine: MachineId) -> None:
        """It is gone for good."""
        ...


class PoolsLoop:
    """`make_pass` writes what a pilot's program shows the server; Refused where nobody may come in."""

    name = POOLS

    def __init__(
        self,
        store: Store,
        clock: Clock,
        watch: Watch,
        live: LiveJobs,
        link: Link,
        why: Callable[[JobId], Why | None],
        find_engine: Callable[[], Engine | None],
        looks: QueueLooks,
        make_pass: Callable[[Pool, Pilot], bytes],
    ) -> None:
        self._store, self._clock, self._watch, self._live, self._link = store, clock, watch, live, link
        self._why, self._find_engine, self._looks, self._make_pass = why, find_engine, looks, make_pass
        self._began_ns = clock.mono_ns()
        self._known: dict[MachineId, Known] = {}
        #: when the newest look began that was judged here
        self._looked_ns = -1
        self.tick_s = TICK_S

    @property
    def silent(self) -> str:
        """Why nothing is known of the pilots now; "" where something is."""
        return self._looks.silent

    async def activate(self) -> Sequence[str]:
        pools, pilots = await self._store.read(lambda tx: (tx.pools(), tx.pilots()))
        self.tick_s = TICK_S if pools else IDLE_S
        if not pools:
            return ()
        engine = self._find_engine()
        seen = await self._load(engine, pools, pilots)
        now, now_ns = self._clock.now_us(), self._clock.mono_ns()
        actions = decide(seen, self._known, self._began_ns, now_ns, now)
        fresh, lost = await self._store.write(lambda tx: self._commit(tx, actions, now)) if _writes(actions) else ([], [])
        for job in lost:
            self._watch.notify(f"job/{job.id}")
        if engine is not None:
            await self._carry_out(engine, actions, fresh, {pool.name: pool for pool in pools})
        ended = [after.id for _, after in actions.pilots if not after.living]
        for pilot in ended:
            self._known.pop(pilot, None)
            self._link.drop(pilot)
        if any(after.state is not before.state for before, after in actions.pilots):
            return [JOBS, ASSIGNMENT, PLACES]
        # from now on it is known for how long there may be work on it
        timed = any((a.started_at, a.ends_at) != (b.started_at, b.ends_at) for b, a in actions.pilots)
        return [JOBS] if timed else []

    async def _load(self, engine: Engine | None, pools: Sequence[Pool], pilots: Sequence[Pilot]) -> Seen:
        await refresh(self._live, self._store)
        stored, functions = await self._store.read(lambda tx: (tx.machines(), tx.functions()))
        machines = {each.id: each for each in stored if each.pool}
        look = await self._looks.take(engine, self._looked_ns, LOOK_S) if engine is not None and pilots else None
        self._looked_ns = self._looked_ns if look is None else look.at_ns
        queue = None if look is None else look.queue
        words: dict[MachineId, str] = {}
        for pilot in pilots:
            about = self._known.setdefault(pilot.id, Known())
            entry = None if queue is None else queue.get(pilot.queue_id)
            if entry is not None and entry.state in PENDING | RUNNING:
                about.seen_ns = self._looked_ns
            elif queue is not None and engine is not None and pilot.ready_at is None and (entry is not None or pilot.number):
                words[pilot.id] = await self._read_words(engine, pilot)
        return Seen(
            tuple(pools),
            tuple(pilots),
            machines,
            frozenset(machine for job in self._live.holding for machine in job.machines if machine)
            | {place.machine for function in functions for place in function.places}
            | {machine.id for machine in stored if machine.finishing},
            find_demands(
                self._live.queued, functions, lambda job: why.reason if (why := self._why(job.id)) is not None else None
            ),
            queue,
            words,
            self._looked_ns,
            engine is not None,
        )

    async def _read_words(self, engine: Engine, pilot: Pilot) -> str:
        try:
            return await engine.read_pilot_words(pilot)
        except SteelyardError as err:
            return err.public

    def _commit(self, tx: Tx, actions: Actions, now: int) -> tuple[list[Pilot], list[Job]]:
        """Pilots to ask for, and the jobs that were lost with others."""
        lost: list[Job] = []
        for before, after in actions.pilots:
            lost += put_change(tx, before, after, now)
        for before, after in actions.pools:
            tx.put_pool(msgspec.structs.replace(after, generation=before.generation + 1))
            if after.complaint and after.complaint != before.complaint:
                tx.add_event(Event(now, after.project, after.owner.user, "pool", after.name, after.complaint))
        fresh: list[Pilot] = []
        for name, count in actions.more.items():
            pool = tx.pool(name)
            if pool is None or pool.deleting:
                continue
            together = pool.spec.nodes_per_allocation
            for place in range(count):
                id_ = make_pilot_id(name, tx.bump("pilot"))
                pilot = Pilot(id_, name, pool.project, pool.owner, 1, PilotState.SUBMITTED, now)
                if together > 1:
                    first = fresh[-(place % together)].id if place % together else id_
                    pilot = msgspec.structs.replace(pilot, allocation=first, place=place % together)
                tx.put_pilot(pilot)
                fresh.append(pilot)
        for pool in actions.gone:
            tx.delete_pool(pool.name)
            tx.add_event(Event(now, pool.project, pool.owner.user, "pool", pool.name, "deleted"))
        tx.forget_pilots(now - round(KEPT_S * 1e6))
        return fresh, lost

    async def _carry_out(self, engine: Engine, actions: Actions, fresh: Sequence[Pilot], pools: Mapping[str, Pool]) -> None:
        allocations: dict[MachineId, list[Pilot]] = {}
        for pilot in (*fresh, *actions.again):
            allocations.setdefault(pilot.queue_id, []).append(pilot)
        for pilots in allocations.values():
            await self._submit(engine, pools[pilots[0].pool], pilots)
        for pilot in actions.cancels:
            about = self._known[pilot.id]
            force, about.cancelled_ns = about.cancelled_ns is not None, self._clock.mono_ns()
            try:
                await engine.cancel_pilot(pilot, force=force)
            except SteelyardError as err:
                _log.warning("%s could not be given back: %s", pilot.id, err.public)
        for _, pilot in actions.pilots:
            if not pilot.living:
                try:
                    await engine.forget_pilot(pilot)
                except SteelyardError as err:
                    _log.warning("what lies of %s could not be removed: %s", pilot.id, err.public)

    async def _submit(self, engine: Engine, pool: Pool, pilots: Sequence[Pilot]) -> None:
        """`pilots`: of one allocation."""
        self._note_submitted(pilots)
        refused = ""
        try:
            await engine.submit_pilots(pool, pilots, [self._make_pass(pool, pilot) for pilot in pilots])
        except Refused as err:
            refused = err.public
        except SteelyardError as err:
            _log.warning("whether %s was taken is not known: %s", pilots[0].id, err.public)
        self._note_submitted(pilots)
        if refused:
            now = self._clock.now_us()
            await self._store.write(lambda tx: _refuse(tx, pilots, refused, now))

    def _note_submitted(self, pilots: Sequence[Pilot]) -> None:
        for pilot in pilots:
            self._known.setdefault(pilot.id, Known()).submitted_ns = self._clock.mono_ns()


def _refuse(tx: Tx, pilots: Sequence[Pilot], why: str, now: int) -> None:
    pool = tx.pool(pilots[0].pool)
    living = [stored for pilot in pilots if (stored := tx.pilot(pilot.id)) is not None and stored.living]
    if not living or pool is None:
        return
    for stored in living:
        put_change(tx, stored, end_pilot(stored, why, "", now), now)
    failed = fail_pool(pool, why, now)
    tx.put_pool(msgspec.structs.replace(failed, generation=pool.generation + 1))


def _writes(actions: Actions) -> bool:
    return bool(actions.pilots or actions.pools or actions.more or actions.gone)
