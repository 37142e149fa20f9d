"""The rule for replicas: a case table, invariants, and two stories on a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.function import FunctionSpec, ScaleOn
from steelyard.scaling.explain import render_decision
from steelyard.scaling.replicas import (
    METRIC_PATIENCE_NS,
    PANIC_NS,
    PATIENCE_NS,
    Bound,
    Memory,
    ReplicasDecision,
    ReplicaSeen,
    ReplicasSeen,
    Rule,
    decide_replicas,
)

S = 1_000_000_000
MS = 1_000_000
NOW = 1000 * S


def spec(least: int = 0, most: int = 4, concurrency: int = 8, idle_s: float = 60.0) -> FunctionSpec:
    return FunctionSpec(replicas_min=least, replicas_max=most, concurrency=concurrency, idle_timeout_s=idle_s)


def serving(name: str, connections: int = 0, busy: int = 0, idle_s: float = 0.0) -> ReplicaSeen:
    return ReplicaSeen(name, "serving", connections, busy, NOW - round(idle_s * S))


def starting(name: str) -> ReplicaSeen:
    return ReplicaSeen(name, "starting", last_active_ns=NOW)


def retiring(name: str, connections: int = 0) -> ReplicaSeen:
    return ReplicaSeen(name, "retiring", connections, connections, NOW)


FULL = serving("a", 8, 8)
OLD = NOW - PATIENCE_NS
#: sentence, spec, queued, pending, replicas, backlog since, starts, retirements
CASES: list[tuple[str, FunctionSpec, int, int, tuple[ReplicaSeen, ...], int | None, int, tuple[str, ...]]] = [
    ("nothing to do", spec(), 0, 0, (), None, 0, ()),
    ("one waits in the socket", spec(), 1, 0, (), None, 1, ()),
    ("one waits in Envoy", spec(), 0, 1, (), None, 1, ()),
    ("200 wait for nobody: one at first sight", spec(), 200, 0, (), None, 1, ()),
    ("200 wait for nobody and did before", spec(), 200, 0, (), OLD, 4, ()),
    ("a caller without a memory", spec(), 20, 0, (), 0, 3, ()),
    ("the starting one will take them", spec(), 8, 0, (starting("a"),), OLD, 0, ()),
    ("more than the starting one will take", spec(), 9, 0, (starting("a"),), OLD, 1, ()),
    ("free places are there", spec(), 3, 0, (serving("a", 5, 5),), OLD, 0, ()),
    ("a backlog at first sight", spec(), 1, 0, (FULL,), None, 0, ()),
    ("a backlog a moment old", spec(), 1, 0, (FULL,), OLD + 1, 0, ()),
    ("a backlog that persists", spec(), 1, 0, (FULL,), OLD, 1, ()),
    ("held and waiting count together", spec(most=9), 9, 8, (FULL,), OLD, 3, ()),
    ("starting ones are counted", spec(), 17, 0, (FULL, starting("b")), OLD, 2, ()),
    ("never over the most", spec(most=2), 900, 100, (FULL,), OLD, 1, ()),
    ("at the most already", spec(most=2), 900, 100, (FULL, starting("b")), OLD, 0, ()),
    ("retiring ones are no help", spec(), 1, 0, (retiring("a", 3),), None, 1, ()),
    ("retiring ones take no place", spec(most=1), 1, 0, (retiring("a", 8), retiring("b")), None, 1, ()),
    ("the least is kept up", spec(least=3), 0, 0, (serving("a"),), None, 2, ()),
    ("the least above the most", spec(least=3, most=1), 0, 0, (), None, 3, ()),
    ("idle long enough", spec(), 0, 0, (serving("a", idle_s=60),), None, 0, ("a",)),
    ("idle not quite", spec(), 0, 0, (serving("a", idle_s=59.99),), None, 0, ()),
    ("idle, and the last of the least", spec(least=1), 0, 0, (serving("a", idle_s=99),), None, 0, ()),
    ("a quiet stream is activity", spec(), 0, 0, (serving("a", 1, 1, idle_s=999),), None, 0, ()),
    ("a connection without a request yet is activity", spec(), 0, 0, (serving("a", 1, 0, idle_s=999),), None, 0, ()),
    ("somebody waits: nobody goes", spec(), 1, 0, (serving("a", idle_s=999),), None, 0, ()),
    ("one at a time, the longest idle first", spec(), 0, 0, (serving("a", idle_s=70), serving("b", idle_s=80)), None, 0, ("b",)),
    ("equals by name", spec(), 0, 0, (serving("b", idle_s=70), serving("a", idle_s=70)), None, 0, ("a",)),
    ("the busy one stays", spec(), 0, 0, (serving("a", 1, 1, idle_s=90), serving("b", idle_s=70)), None, 0, ("b",)),
    ("a starting one is not idle", spec(), 0, 0, (ReplicaSeen("a", "starting", 0, 0, 1),), None, 0, ()),
    ("a retiring one is not retired again", spec(), 0, 0, (retiring("a"),), None, 0, ()),
    ("too many: the least busy goes, idle or not", spec(most=1), 0, 0, (serving("a", 3, 3), serving("b", 1, 1)), None, 0, ("b",)),
]


@pytest.mark.parametrize(
    ("asked", "queued", "pending", "replicas", "since", "start", "retire"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_case(
    asked: FunctionSpec,
    queued: int,
    pending: int,
    replicas: tuple[ReplicaSeen, ...],
    since: int | None,
    start: int,
    retire: tuple[str, ...],
) -> None:
    decision = decide_replicas(NOW, asked, ReplicasSeen(queued, pending, replicas, Memory(since)))
    assert (decision.start, decision.retire) == (start, retire)


def test_backlog_is_remembered_until_it_is_gone() -> None:
    first = decide_replicas(NOW, spec(), ReplicasSeen(1, 0, (FULL,)))
    assert (first.start, first.memory.backlog_since_ns) == (0, NOW)
    later = decide_replicas(NOW + 5 * MS, spec(), ReplicasSeen(1, 0, (FULL,), first.memory))
    assert (later.start, later.memory.backlog_since_ns) == (0, NOW)
    gone = decide_replicas(NOW + 10 * MS, spec(), ReplicasSeen(1, 0, (serving("a", 7, 7),), later.memory))
    assert (gone.start, gone.memory.backlog_since_ns) == (0, None)


replicas_seen = st.builds(
    ReplicaSeen,
    id=st.uuids().map(str),
    state=st.sampled_from(["starting", "serving", "retiring"]),
    connections=st.integers(0, 20),
    busy=st.integers(0, 20),
    last_active_ns=st.integers(1, NOW),
)
specs = st.builds(spec, st.integers(0, 6), st.integers(1, 12), st.integers(1, 20), st.floats(0.1, 2000))
looks = st.builds(
    ReplicasSeen,
    st.integers(0, 500),
    st.integers(0, 500),
    st.lists(replicas_seen, max_size=15).map(tuple),
    st.builds(Memory, st.none() | st.integers(0, NOW)),
)


@given(specs, looks)
def test_bounds_and_never_both(asked: FunctionSpec, seen: ReplicasSeen) -> None:
    decision = decide_replicas(NOW, asked, seen)
    present = [replica for replica in seen.replicas if replica.state != "retiring"]
    most = max(asked.replicas_min, asked.replicas_max)
    assert not (decision.start and decision.retire)
    assert decision.start >= 0 and len(decision.retire) <= 1
    assert set(decision.retire) <= {replica.id for replica in present}
    if decision.start:
        assert asked.replicas_min <= len(present) + decision.start <= most
    if decision.retire:
        assert len(present) - 1 >= asked.replicas_min
    if len(present) < asked.replicas_min or (not present and seen.queued + seen.pending):
        assert decision.start


@given(specs, looks)
def test_starting_what_was_decided_settles_it(asked: FunctionSpec, seen: ReplicasSeen) -> None:
    decision = decide_replicas(NOW, asked, ReplicasSeen(seen.queued, seen.pending, seen.replicas, Memory(0)))
    started = tuple(starting(f"new-{number}") for number in range(decision.start))
    again = decide_replicas(NOW, asked, ReplicasSeen(seen.queued, seen.pending, seen.replicas + started, Memory(0)))
    assert again.start == 0


@given(specs, looks)
def test_retiring_one_by_one_ends_within_the_bounds(asked: FunctionSpec, seen: ReplicasSeen) -> None:
    replicas = list(seen.replicas)
    for _ in range(len(replicas) + 1):
        decision = decide_replicas(NOW, asked, ReplicasSeen(0, 0, tuple(replicas)))
        if not decision.retire:
            break
        replicas = [retiring(replica.id) if replica.id in decision.retire else replica for replica in replicas]
    assert not decision.retire
    assert len([replica for replica in replicas if replica.state != "retiring"]) <= max(asked.replicas_min, asked.replicas_max)


@dataclass
class Story:
    """Requests of equal length in one shared backlog, replicas that start after a while, a look every 20 ms."""

    asked: FunctionSpec
    service_ms: int
    start_ms: int
    waiting: int
    replicas: dict[str, int] = field(default_factory=dict)  # name -> serves from (ms)
    ends: dict[str, list[int]] = field(default_factory=dict)

    def run(self, look_ms: int = 20) -> int:
        """Milliseconds until everything was answered."""
        memory = Memory()
        for now in range(100_000):
            for name, begun in self.replicas.items():
                self.ends[name] = [end for end in self.ends[name] if end > now]
                while now >= begun and self.waiting and len(self.ends[name]) < self.asked.concurrency:
                    self.ends[name].append(now + self.service_ms)
                    self.waiting -= 1
            if not self.waiting and not any(self.ends.values()):
                return now
            if now % look_ms == 0:
                memory = self._look(now, memory)
        raise AssertionError("never done")

    def _look(self, now: int, memory: Memory) -> Memory:
        now_ns = now * MS + 1
        held = {name: len(ends) for name, ends in self.ends.items()}
        seen = tuple(
            ReplicaSeen(name, "serving" if now >= begun else "starting", held[name], held[name], now_ns)
            for name, begun in self.replicas.items()
        )
        decision = decide_replicas(now_ns, self.asked, ReplicasSeen(self.waiting, 0, seen, memory))
        for _ in range(decision.start):
            name = str(len(self.replicas))
            self.replicas[name], self.ends[name] = now + self.start_ms, []
        return decision.memory


@pytest.mark.parametrize("look_offset_ms", range(0, 20, 5))
def test_300_waiting_requests_take_at_most_a_tenth_more_than_ideal(look_offset_ms: int) -> None:
    story = Story(spec(most=2), service_ms=50, start_ms=10, waiting=300, replicas={"first": 0}, ends={"first": []})
    story.start_ms += look_offset_ms
    ideal_ms = -(-300 // 16) * 50
    assert story.run() <= 1.1 * ideal_ms
    assert len(story.replicas) == 2


def test_burst_that_one_replica_takes_within_a_tick_starts_no_second() -> None:
    story = Story(spec(most=9), service_ms=2, start_ms=4, waiting=40)
    story.run()
    assert len(story.replicas) == 1


def test_stampede_starts_the_wanted_number_at_the_second_look() -> None:
    story = Story(spec(most=9), service_ms=100, start_ms=2000, waiting=64)
    # eight replicas, side by side: one start, one tick, one service
    assert story.run() <= 2000 + 20 + 100
    assert len(story.replicas) == 8


# -- targets, the buffer, the window and the panic


def full(name: str, took_ms: int = 100, finished: int = 10) -> ReplicaSeen:
    return ReplicaSeen(name, "serving", 8, 8, NOW, finished, finished * took_ms * MS)


def look(asked: FunctionSpec, waiting: int, *replicas: ReplicaSeen, share: int | None = None) -> ReplicasDecision:
    return decide_replicas(NOW, asked, ReplicasSeen(waiting, 0, replicas, Memory(OLD), share))


#: sentence, options, waiting, replicas, share, replicas wanted, rule, bound
TARGETS: list[tuple[str, dict[str, object], int, tuple[ReplicaSeen, ...], int | None, int, Rule, Bound]] = [
    ("the last waits within the target", {"target_wait_ms": 200}, 7, (full("a"),), None, 1, Rule.ENOUGH, Bound.NONE),
    ("it is not", {"target_wait_ms": 50}, 7, (full("a"),), None, 2, Rule.TARGET_WAIT, Bound.NONE),
    ("slower requests need more", {"target_wait_ms": 1000}, 7, (full("a", 5000),), None, 2, Rule.TARGET_WAIT, Bound.NONE),
    ("a jump is not measured by what was", {"target_wait_ms": 9000}, 8, (full("a"),), None, 2, Rule.BACKLOG, Bound.NONE),
    ("nothing was measured yet", {"target_wait_ms": 9000}, 7, (full("a", finished=2),), None, 2, Rule.BACKLOG, Bound.NONE),
    ("half of the places are the target", {"target_busy": 0.5}, 0, (full("a"),), None, 2, Rule.TARGET_BUSY, Bound.NONE),
    ("a third of them", {"target_busy": 0.1}, 0, (serving("a", 1, 1),), None, 2, Rule.TARGET_BUSY, Bound.NONE),
    ("one ready beyond", {"buffer_replicas": 1}, 0, (serving("a", 1, 1),), None, 2, Rule.BUFFER, Bound.NONE),
    ("none for a sleeper", {"buffer_replicas": 1}, 0, (serving("a", idle_s=60),), None, 0, Rule.SURPLUS, Bound.NONE),
    ("the most", {}, 90, (full("a"),), None, 4, Rule.BACKLOG, Bound.REPLICAS_MAX),
    ("its share", {}, 90, (full("a"),), 2, 2, Rule.BACKLOG, Bound.FAIR_SHARE),
    ("a share of nothing is one", {}, 90, (), 0, 1, Rule.BACKLOG, Bound.FAIR_SHARE),
    ("the least is no matter of shares", {"replicas_min": 3}, 0, (), 1, 3, Rule.MINIMUM, Bound.NONE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "waiting", "replicas", "share", "wanted", "rule", "bound"),
    [row[1:] for row in TARGETS],
    ids=[row[0] for row in TARGETS],
)
def test_target(
    options: dict[str, object],
    waiting: int,
    replicas: tuple[ReplicaSeen, ...],
    share: int | None,
    wanted: int,
    rule: Rule,
    bound: Bound,
) -> None:
    told = look(msgspec.structs.replace(spec(), **options), waiting, *replicas, share=share)
    assert (told.wanted, told.rule, told.bound) == (wanted, rule, bound)
    assert told.start == max(0, wanted - len(replicas))


# -- metrics of their own

MODEL = msgspec.structs.replace(spec(concurrency=64), scale_on=(ScaleOn("waiting", 4.0), ScaleOn("tokens", 1000.0)))


def model(name: str, *metrics: float | None, busy: int = 5) -> ReplicaSeen:
    return ReplicaSeen(name, "serving", busy, busy, NOW, metrics=metrics)


def told_since(since_ns: int | None, *replicas: ReplicaSeen) -> ReplicasDecision:
    return decide_replicas(NOW, MODEL, ReplicasSeen(0, 0, replicas, Memory(metric_since_ns=since_ns)))


LONG_AGO = NOW - METRIC_PATIENCE_NS

#: sentence, replicas, since when more was asked for, replicas wanted, rule
METRICS: list[tuple[str, tuple[ReplicaSeen, ...], int | None, int, Rule]] = [
    ("the queue of one is too long", (model("a", 9.0, 0.0),), LONG_AGO, 3, Rule.METRIC),
    ("it is for the first time", (model("a", 9.0, 0.0),), None, 1, Rule.ENOUGH),
    ("the largest wish counts", (model("a", 5.0, 2900.0),), LONG_AGO, 3, Rule.METRIC),
    ("what all say is summed", (model("a", 5.0, 0.0), model("b", 4.0, 0.0)), LONG_AGO, 3, Rule.METRIC),
    ("it is at its target", (model("a", 4.0, 1000.0),), LONG_AGO, 1, Rule.ENOUGH),
    ("one tells, and one does not", (model("a", 9.0, None), model("b")), LONG_AGO, 3, Rule.METRIC),
    ("none tells", (model("a", None, None),), LONG_AGO, 1, Rule.ENOUGH),
    ("nobody asks, whatever is told", (model("a", 99.0, 0.0, busy=0),), LONG_AGO, 0, Rule.KEPT),
    ("those that start count", (model("a", 9.0, 0.0), starting("b"), starting("c")), LONG_AGO, 3, Rule.METRIC),
    ("nonsense is below zero", (model("a", -9.0, -1.0),), LONG_AGO, 1, Rule.ENOUGH),
    ("and beyond all numbers", (model("a", 1e300, 0.0),), LONG_AGO, 4, Rule.METRIC),
]  # fmt: skip


@pytest.mark.parametrize(("replicas", "since", "wanted", "rule"), [row[1:] for row in METRICS], ids=[row[0] for row in METRICS])
def test_metrics_of_their_own(replicas: tuple[ReplicaSeen, ...], since: int | None, wanted: int, rule: Rule) -> None:
    told = told_since(since, *replicas)
    assert (told.wanted, told.rule) == (wanted, rule)
    assert told.start == max(0, wanted - len(replicas))


def test_a_metric_that_asks_for_more_is_remembered_and_forgotten() -> None:
    assert told_since(None, model("a", 9.0, 0.0)).memory.metric_since_ns == NOW
    assert told_since(NOW - 1, model("a", 9.0, 0.0)).memory.metric_since_ns == NOW - 1
    assert told_since(NOW - 1, model("a", 3.0, 0.0)).memory.metric_since_ns is None


def test_what_the_replicas_say_is_told_and_what_they_do_not_say_too() -> None:
    text = render_decision(MODEL, told_since(LONG_AGO, model("a", 9.0, None)))
    assert text == (
        "5 of 64 places busy, 0 requests wait: 3 replicas by what they say of themselves. waiting is 9 in 1 replica, with a "
        "target of 4 for each. No replica tells tokens: requests alone decide."
    )


def test_a_model_sleeps_at_zero_whatever_its_metrics_say() -> None:
    idle = msgspec.structs.replace(model("a", 99.0, 99.0, busy=0), last_active_ns=NOW - 61 * S)
    assert told_since(LONG_AGO, idle).retire == ("a",)


def test_a_replica_that_somebody_is_inside_of_is_not_retired_for_want_of_requests() -> None:
    held = msgspec.structs.replace(serving("a", idle_s=9999), held=True)
    seen = ReplicasSeen(0, 0, (held, serving("b", idle_s=100)))
    assert decide_replicas(NOW, spec(), seen).retire == ("b",)
    assert decide_replicas(NOW, spec(), ReplicasSeen(0, 0, (held,))).retire == ()
    # beyond what it may have somebody has to go, the one with nobody inside first
    assert decide_replicas(NOW, spec(most=1), seen).retire == ("b",)
    assert decide_replicas(NOW, spec(), ReplicasSeen(0, 0, (held, held), share=1)).retire == ("a",)


def test_more_than_the_share_are_retired_one_by_one() -> None:
    assert look(spec(), 5, full("a"), full("b"), serving("c", 1, 1), share=2).retire == ("c",)


def test_light_load_spread_over_many_replicas_gives_them_up_after_the_window() -> None:
    """Each of four is asked every few seconds, so none is ever idle for long; one would do."""
    asked, memory, left, at = spec(idle_s=10.0), Memory(), 4, NOW
    history: list[tuple[float, int]] = []
    for step in range(600):
        at = NOW + step * 100 * MS
        replicas = tuple(
            ReplicaSeen(str(name), "serving", int(step % left == name), int(step % left == name), at) for name in range(left)
        )
        told = decide_replicas(at, asked, ReplicasSeen(0, 0, replicas, memory))
        memory = told.memory
        if told.retire:
            left -= 1
            history.append(((at - NOW) / S, left))
    assert left == 1
    assert 9.0 <= history[0][0] <= 12.0, "not before the window is over, and soon after"


def test_busy_moment_is_remembered_for_the_window_and_no_longer() -> None:
    asked, memory = spec(idle_s=10.0), Memory()
    gone: list[float] = []
    for step in range(400):
        at = NOW + step * 100 * MS
        busy = 8 if step == 50 else 1  # both full once, 5 s after the begin
        replicas = (
            () if len(gone) > 1 else tuple(ReplicaSeen(name, "serving", busy, busy, at) for name in ("a", "b")[: 2 - len(gone)])
        )
        told = decide_replicas(at, asked, ReplicasSeen(0, 0, replicas, memory))
        memory = told.memory
        if told.retire:
            gone.append(step / 10)
    assert len(gone) == 1 and 14.0 <= gone[0] <= 18.0


def test_panic_ends_nobody() -> None:
    jump = look(spec(most=2), 90, full("a"), full("b"))
    assert jump.memory.panic_until_ns == NOW + PANIC_NS
    idle = (serving("a", idle_s=99), serving("b", idle_s=99))
    during = decide_replicas(NOW + PANIC_NS - 1, spec(most=2), ReplicasSeen(0, 0, idle, jump.memory))
    assert (during.retire, during.rule) == ((), Rule.KEPT)
    assert decide_replicas(NOW + PANIC_NS, spec(most=2), ReplicasSeen(0, 0, idle, jump.memory)).retire


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0.1, 1.0), st.none() | st.floats(50, 5000), st.integers(0, 2))
def test_constant_demand_settles_and_stays(
    demand: int, concurrency: int, target_busy: float, target_wait_ms: float | None, buffer: int
) -> None:
    """Fluid: what fits is held, the rest waits; replicas serve at once."""
    asked = msgspec.structs.replace(
        spec(most=9, concurrency=concurrency, idle_s=2.0),
        target_busy=target_busy,
        target_wait_ms=target_wait_ms,
        buffer_replicas=buffer,
    )
    memory, count, changes, last = Memory(), 0, 0, 0
    for step in range(400):
        at = NOW + step * 20 * MS
        left, replicas = demand, []
        for name in range(count):
            here = min(concurrency, left)
            left -= here
            replicas.append(ReplicaSeen(str(name), "serving", here, here, at, 100, 100 * 50 * MS))
        told = decide_replicas(at, asked, ReplicasSeen(left, 0, tuple(replicas), memory))
        memory, count = told.memory, count + told.start - len(told.retire)
        if told.start or told.retire:
            changes, last = changes + 1, step
    assert count >= 1
    assert last <= 120, "nothing changes any more once the window has passed"
    assert changes <= 12
