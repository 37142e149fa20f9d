"""How many replicas should one revision of a function have on this machine? A look at them goes in, starts and retirements come
out.

Never reads the clock, the disk or the network; time is an argument. What must be remembered between two looks is in the
decision and is handed back with the next one.

The rule, in order:
1. `replicas_min` are started at once. Somebody waits and there is no replica: one is started at once.
2. Whoever waits and still fits into the free places of the replicas that are there, starting ones counted, starts nothing.
3. More wait than fit: that is a backlog. When it is still one at the next look (`PATIENCE_NS`, just under the agent's 20 ms
   tick), replicas are added until there are ceil((held + waiting) / concurrency) of them, at most `replicas_max`, all at once.
   Why wait at all: a replica that serves 8 requests of 2 ms has taken 80 of them by the next look, and a start costs more
   than that. Why only so long: a tick is a fifteenth of the 0.3 s after which a second replica must bring 300 waiting
   requests within 1.1 x of the ideal time, and a forked replica serves a few milliseconds later. (Rejected: averages over
   a window as Knative keeps them. The queue's length is exact, so there is nothing to smooth.)
4. Nobody waits, more than `replicas_min` are there, and one had nothing to do for `idle_timeout_s` and holds no connection:
   the least busy one is retired, one for each look. Envoy drops unused connections after half that time at the latest, so
   one that is still held is a request, a stream or a WebSocket. More than `replicas_max` are brought down the same way, idle
   or not.
5. Retiring replicas count for nothing: they take no new request, and those they hold they finish by themselves.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from steelyard.model.function import FunctionSpec

#: a backlog seen at two looks this far apart persists; a little under the tick, so that the very next look decides
PATIENCE_NS = 15_000_000


class ReplicaSeen(msgspec.Struct, frozen=True):
    """One replica, as its page shows it."""

    id: str
    state: Literal["starting", "serving", "retiring"]
    #: accepted and not closed
    connections: int = 0
    #: requests being handled
    busy: int = 0
    #: CLOCK_MONOTONIC of its last request, or of when it began to serve; never 0
    last_active_ns: int = 0


class ReplicasSeen(msgspec.Struct, frozen=True):
    """One look at a revision."""

    #: connections waiting in the listening socket
    queued: int
    #: requests waiting in Envoy
    pending: int
    replicas: tuple[ReplicaSeen, ...] = ()
    #: what the last decision said; None when it saw no backlog. 0 for a caller that keeps no memory: every backlog is an old one
    backlog_since_ns: int | None = 0


class ReplicasDecision(msgspec.Struct, frozen=True):
    """Either `start` or `retire` is empty."""

    start: int = 0
    #: ids of replicas that should take no further request and end when they hold none
    retire: tuple[str, ...] = ()
    #: to be handed back with the next look
    backlog_since_ns: int | None = None


def decide_replicas(now_ns: int, spec: FunctionSpec, seen: ReplicasSeen) -> ReplicasDecision:
    """The rule above. `now_ns` is CLOCK_MONOTONIC."""
    present = [replica for replica in seen.replicas if replica.state != "retiring"]
    concurrency, most = max(1, spec.concurrency), max(spec.replicas_min, spec.replicas_max)
    waiting = seen.queued + seen.pending
    held = sum(replica.connections for replica in present)
    free = sum(max(0, concurrency - replica.connections) for replica in present)

    since: int | None = None
    if waiting > free:
        since = now_ns if seen.backlog_since_ns is None else seen.backlog_since_ns

    wanted = max(spec.replicas_min, len(present), 1 if waiting else 0)
    if since is not None and now_ns - since >= PATIENCE_NS:
        wanted = max(wanted, -(-(held + waiting) // concurrency))
    if (start := min(wanted, most) - len(present)) > 0:
        return ReplicasDecision(start=start, backlog_since_ns=since)
    return ReplicasDecision(retire=_retire(now_ns, spec, present, most, waiting), backlog_since_ns=since)


def _retire(now_ns: int, spec: FunctionSpec, present: list[ReplicaSeen], most: int, waiting: int) -> tuple[str, ...]:
    # the least busy; of equals the one that was idle longest; of these the first by name, so that two looks choose the same
    order = sorted(present, key=lambda replica: (replica.busy, replica.connections, replica.last_active_ns, replica.id))
    if len(present) > most:
        return (order[0].id,)
    if waiting or len(present) <= spec.replicas_min:
        return ()
    idle_ns = round(spec.idle_timeout_s * 1e9)
    idle = (
        replica.id
        for replica in order
        if replica.state == "serving"
        and not replica.busy
        and not replica.connections
        and now_ns - replica.last_active_ns >= idle_ns
    )
    return tuple(idle)[:1]
