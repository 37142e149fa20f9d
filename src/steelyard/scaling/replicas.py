"""How many replicas should one revision of a function have on this machine? A look at them goes in, starts and retirements come
out, with the rule and the numbers that decided.

Never reads the clock, the disk or the network; time is an argument. What must be remembered between two looks is the decision's
`memory` and is handed back with the next one.

The rule, in order:
1. `replicas_min` are started at once. Somebody waits and there is no replica: one is started at once.
2. Whoever waits and still fits into the free places of the replicas that are there, starting ones counted, starts nothing.
3. More wait than fit: that is a backlog. When it is still one at the next look (`PATIENCE_NS`, just under the agent's 20 ms
   tick), replicas are added until there are ceil((held + waiting) / concurrency) of them, all at once.
   Why wait at all: a replica that serves 8 requests of 2 ms has taken 80 of them by the next look, and a start costs more
   than that. Why only so long: a tick is a fifteenth of the 0.3 s after which a second replica must bring 300 waiting
   requests within 1.1 x of the ideal time, and a forked replica serves a few milliseconds later. (Rejected: averages over
   a window as Knative keeps them. The queue's length is exact, so there is nothing to smooth.)
4. With `target_wait_ms` a backlog adds only as many as are needed for the last who waits to be taken in within it, by what a
   request took so far on average. Where that is not known yet, or demand has just jumped to `PANIC_RATIO` x what is there
   (for `PANIC_NS`: what came may be unlike what was measured), rule 3 alone decides.
5. `target_busy` below 1: as many as keep the busy share of the places below it. `scale_on`: while somebody asks, as many as bring
   what the replicas say of themselves down to the target for each, once that has been more than there are for
   `METRIC_PATIENCE_NS` (a model takes long to load, and what queues for one step of it is no queue). Who says nothing counts as
   nothing: what waits here still adds replicas. `buffer_replicas`: that many more than is needed otherwise, while the function
   is awake.
6. Nobody gets more than `replicas_max`, nor than its fair share while the machine is full (`share.py`).
7. Nobody waits: what was needed at the busiest moment of the last `idle_timeout_s` is kept; beyond that the least busy one is
   retired, one for each look, but none in a panic. The last one goes when it had nothing to do for `idle_timeout_s` and holds no
   connection. Envoy drops unused connections after half that time at the latest, so one that is still held is a request, a
   stream or a WebSocket. More than rule 6 allows are brought down the same way, idle or not.
8. Retiring replicas count for nothing: they take no new request, and those they hold they finish by themselves.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from steelyard.model.function import FunctionSpec, ScaleOn

#: a backlog seen at two looks this far apart persists; a little under the tick, so that the very next look decides
PATIENCE_NS = 15_000_000
METRIC_PATIENCE_NS = 1_000_000_000
PANIC_RATIO = 2
PANIC_NS = 6_000_000_000
#: pieces that the time of `idle_timeout_s` is remembered in
PIECES = 10
#: replicas; a metric may say anything
_METRIC_ASKED_MAX = 10_000
#: finished requests that an average is worth something from
MEASURED_MIN = 3


class Rule(StrEnum):
    """What decided the number of replicas."""

    #: nothing is asked of it
    IDLE = "idle"
    #: what is there is enough
    ENOUGH = "enough"
    MINIMUM = "minimum"
    #: somebody waits, and nobody serves
    WAKE = "wake"
    BACKLOG = "backlog"
    TARGET_WAIT = "target-wait"
    TARGET_BUSY = "target-busy"
    METRIC = "metric"
    BUFFER = "buffer"
    #: more are there than are needed, but were needed a while ago
    KEPT = "kept"
    SURPLUS = "surplus"


class Bound(StrEnum):
    """What kept it from more."""

    NONE = ""
    REPLICAS_MAX = "replicas-max"
    #: the machine is full, and it has its share
    FAIR_SHARE = "fair-share"


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
    #: requests that have ended, and how long they took together
    finished: int = 0
    service_ns: int = 0
    #: of `scale_on`, in its order, what it says of itself; None, or nothing at all: it does not tell
    metrics: tuple[float | None, ...] = ()
    #: somebody is inside: it is not retired for want of requests
    held: bool = False


class MetricSeen(msgspec.Struct, frozen=True):
    """What the replicas together say of one metric of `scale_on`."""

    metric: str
    target: float
    #: None: none of them tells it
    value: float | None
    #: those that tell it
    replicas: int
    #: replicas that would bring it down to the target for each
    asked: int


class Memory(msgspec.Struct, frozen=True):
    """What one look leaves to the next."""

    #: None: there was no backlog. 0, of a caller that keeps no memory: every backlog is an old one
    backlog_since_ns: int | None = None
    panic_until_ns: int = 0
    #: since when metrics have asked for more than there are; None: they do not
    metric_since_ns: int | None = None
    #: (piece of time, most replicas needed in it), the oldest first
    peaks: tuple[tuple[int, int], ...] = ()


class ReplicasSeen(msgspec.Struct, frozen=True):
    """One look at a revision."""

    #: connections waiting in the listening socket
    queued: int
    #: requests waiting in Envoy
    pending: int
    replicas: tuple[ReplicaSeen, ...] = ()
    memory: Memory = Memory()
    #: its fair share of a full machine, in replicas; None: the machine is not full
    share: int | None = None


class ReplicasDecision(msgspec.Struct, frozen=True):
    """Either `start` or `retire` is empty."""

    start: int = 0
    #: ids of replicas that should take no further request and end when they hold none
    retire: tuple[str, ...] = ()
    memory: Memory = Memory()
    #: replicas that it should have, before and after what bounds them
    asked: int = 0
    wanted: int = 0
    rule: Rule = Rule.IDLE
    bound: Bound = Bound.NONE
    present: int = 0
    waiting: int = 0
    busy: int = 0
    #: how long a request took on average; 0: not known
    service_ms: float = 0.0
    metrics: tuple[MetricSeen, ...] = ()


def decide_replicas(now_ns: int, spec: FunctionSpec, seen: ReplicasSeen) -> ReplicasDecision:
    """The rule above. `now_ns` is CLOCK_MONOTONIC."""
    present = [replica for replica in seen.replicas if replica.state != "retiring"]
    concurrency, count = max(1, spec.concurrency), len(present)
    waiting = seen.queued + seen.pending
    busy = sum(replica.busy for replica in present)
    held = sum(replica.connections for replica in present)
    free = sum(max(0, concurrency - replica.connections) for replica in present)
    service_ns = _service_ns(present)

    since: int | None = None
    if waiting > free:
        since = now_ns if seen.memory.backlog_since_ns is None else seen.memory.backlog_since_ns
    persists = since is not None and now_ns - since >= PATIENCE_NS
    panic_until = seen.memory.panic_until_ns if seen.memory.panic_until_ns > now_ns else 0
    if persists and count and held + waiting >= PANIC_RATIO * count * concurrency:
        panic_until = now_ns + PANIC_NS

    metrics = tuple(_read_metric(at, on, present) for at, on in enumerate(spec.scale_on))
    by_metric = max((each.asked for each in metrics), default=0) if busy + waiting else 0
    metric_since: int | None = None
    if by_metric > count:
        metric_since = now_ns if seen.memory.metric_since_ns is None else seen.memory.metric_since_ns
        if now_ns - metric_since < METRIC_PATIENCE_NS:
            by_metric = count
    needed, rule = _needed(now_ns, spec, seen, present, busy + waiting, by_metric)
    peaks = _remember(now_ns, spec, seen.memory.peaks, needed)
    asked, rule = (spec.replicas_min, Rule.MINIMUM) if spec.replicas_min > needed else (needed, rule)
    if waiting and asked < 1:
        asked, rule = 1, Rule.WAKE
    if persists:
        backlog, cause = -(-(held + waiting) // concurrency), Rule.BACKLOG
        if spec.target_wait_ms is not None and service_ns and not panic_until:
            in_time = -(-waiting * service_ns // max(1, round(spec.target_wait_ms * 1e6 * concurrency)))
            backlog, cause = min(backlog, max(count, in_time)), Rule.TARGET_WAIT
        if backlog > asked:
            asked, rule = backlog, cause
    most, bound = _bound(spec, seen.share, asked)
    told = ReplicasDecision(
        memory=Memory(since, panic_until, metric_since, peaks),
        asked=asked,
        wanted=min(asked, most),
        rule=rule,
        bound=bound,
        present=count,
        waiting=waiting,
        busy=busy,
        service_ms=service_ns / 1e6,
        metrics=metrics,
    )
    if (start := told.wanted - count) > 0:
        return msgspec.structs.replace(told, start=start)
    retire: tuple[str, ...] = ()
    if count > most or not (waiting or panic_until):
        retire = _retire(now_ns, spec, present, most, max(needed, spec.replicas_min), peaks)
    return msgspec.structs.replace(told, retire=retire, rule=_why_none(told, bool(retire)))


def _why_none(told: ReplicasDecision, retires: bool) -> Rule:
    """Nothing is started: because of what?"""
    if retires:
        return Rule.SURPLUS
    if told.asked < told.present:
        return Rule.KEPT
    if told.asked == told.present and told.rule in (Rule.IDLE, Rule.WAKE, Rule.BACKLOG, Rule.TARGET_WAIT):
        return Rule.ENOUGH if told.present else Rule.IDLE
    return told.rule


def _read_metric(at: int, on: ScaleOn, present: list[ReplicaSeen]) -> MetricSeen:
    told = [value for replica in present if at < len(replica.metrics) and (value := replica.metrics[at]) is not None]
    value = sum(told) if told else None
    asked = 0 if value is None else min(_METRIC_ASKED_MAX, _ceil(max(0.0, value) / on.target))
    return MetricSeen(on.metric, on.target, value, len(told), asked)


def _needed(
    now_ns: int, spec: FunctionSpec, seen: ReplicasSeen, present: list[ReplicaSeen], demand: int, by_metric: int
) -> tuple[int, Rule]:
    """What rule 5 asks for. Without a target never more than there are: then only a backlog asks for more."""
    needed = _ceil(demand / (max(1, spec.concurrency) * spec.target_busy))
    asked, rule = needed, Rule.TARGET_BUSY
    if spec.target_busy >= 1:
        asked, rule = min(needed, len(present)), Rule.IDLE
    if by_metric > asked:
        asked, rule = by_metric, Rule.METRIC
    if spec.buffer_replicas:
        idle_ns = round(spec.idle_timeout_s * 1e9)
        if demand or any(now_ns - replica.last_active_ns < idle_ns for replica in present):
            asked, rule = asked + spec.buffer_replicas, Rule.BUFFER
    return asked, rule


def _ceil(value: float) -> int:
    # a hair above a whole number is rounding, not demand
    return int(-(-(value - 1e-9) // 1))


def _service_ns(present: list[ReplicaSeen]) -> int:
    finished = sum(replica.finished for replica in present)
    return sum(replica.service_ns for replica in present) // finished if finished >= MEASURED_MIN else 0


def _bound(spec: FunctionSpec, share: int | None, asked: int) -> tuple[int, Bound]:
    most, bound = max(spec.replicas_min, spec.replicas_max), Bound.REPLICAS_MAX
    if share is not None and share < most:
        most, bound = max(spec.replicas_min, 1, share), Bound.FAIR_SHARE
    return most, bound if asked > most else Bound.NONE


def _remember(now_ns: int, spec: FunctionSpec, peaks: tuple[tuple[int, int], ...], needed: int) -> tuple[tuple[int, int], ...]:
    """The pieces of the last `idle_timeout_s`, this look among them. The same object when nothing changed: most looks."""
    piece_ns = _piece_ns(spec)
    piece = now_ns // piece_ns
    if peaks and peaks[-1][0] == piece:
        return peaks if needed <= peaks[-1][1] else (*peaks[:-1], (piece, needed))
    return (*(old for old in peaks if old[0] >= piece - PIECES), (piece, needed))


def _piece_ns(spec: FunctionSpec) -> int:
    return max(1, round(spec.idle_timeout_s * 1e9) // PIECES)


def _retire(
    now_ns: int, spec: FunctionSpec, present: list[ReplicaSeen], most: int, needed: int, peaks: tuple[tuple[int, int], ...]
) -> tuple[str, ...]:
    # the least busy; of equals the one that was idle longest; of these the first by name, so that two looks choose the same
    order = sorted(present, key=lambda each: (each.held, each.busy, each.connections, each.last_active_ns, each.id))
    if len(present) > most:
        return (order[0].id,)
    if len(present) <= needed:
        return ()
    serving = [replica for replica in order if replica.state == "serving" and not replica.held]
    watched = bool(peaks) and peaks[-1][0] - peaks[0][0] >= PIECES
    if watched and len(present) > max(1, spec.replicas_min, max(peak for _, peak in peaks)):
        return tuple(replica.id for replica in serving)[:1]
    idle_ns = round(spec.idle_timeout_s * 1e9)
    idle = (
        replica.id
        for replica in serving
        if not replica.busy and not replica.connections and now_ns - replica.last_active_ns >= idle_ns
    )
    return tuple(idle)[:1]
