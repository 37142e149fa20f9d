"""How well does the number of replicas follow real arrivals? Requests to generative-AI endpoints as they were recorded, on a
virtual clock; the decisions are those that the agent makes, by the same code.

The trace (Alibaba GenTD26) has arrival and execution time of each request, and the model that it asked. Each model is a function
of its own, one request a replica at a time. Time is compressed `COMPRESSED` x: gaps and execution times alike. A start takes
`START_S`, which the request that caused it waits for too. Beside it, in the same simulation:

- one replica for each model, always; and as many as keep up with each model's busiest moment, always;
- a rule like Knative's: the average concurrency over a stable window of 60 s and a panic window of 6 s, a target of 0.7 of a
  replica's places, panic at twice what the replicas hold, no step down in a panic, zero after 30 s without a request.

Waits are from arrival to the begin of the execution. Replica-seconds count from the start to the end, idle or not.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from bench.figures import Figure, percentile
from steelyard.model.function import FunctionSpec
from steelyard.scaling.replicas import Memory, ReplicaSeen, ReplicasSeen, decide_replicas

COMPRESSED = 60.0
START_S = 0.5
LOOK_S = 0.02
#: Knative looks at its averages every two seconds
KNATIVE_LOOK_S = 2.0
REPLICAS_MAX = 32
NS = 1_000_000_000


class Request(NamedTuple):
    at_s: float
    takes_s: float


def read_arrivals(path: Path) -> dict[str, list[Request]]:
    """Model -> its requests in order, compressed. Rows without a time or an execution time are left out."""
    found: dict[str, list[Request]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                at = datetime.fromisoformat(row["gmt_create"]).replace(tzinfo=UTC).timestamp()
                takes_s = float(row["exec_time_seconds"])
            except ValueError:
                continue
            found.setdefault(row["checkpoint_model_version_id"], []).append(
                Request(at / COMPRESSED, max(0.001, takes_s / COMPRESSED))
            )
    first = min(requests[0].at_s for requests in map(sorted, found.values()))
    return {
        model: sorted(Request(request.at_s - first, request.takes_s) for request in requests) for model, requests in found.items()
    }


@dataclass
class Replica:
    id: str
    begun_s: float
    ready_s: float
    busy: int = 0
    finished: int = 0
    service_s: float = 0.0
    last_s: float = 0.0


@dataclass
class World:
    """One function: what a rule sees."""

    now_s: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    replicas: list[Replica] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        return len(self.waiting) + sum(replica.busy for replica in self.replicas)


class Ruling(NamedTuple):
    start: int = 0
    retire: tuple[str, ...] = ()
    #: ask again at that time, also if nothing happens; None: when something happens
    again_s: float | None = None


class Policy(Protocol):
    def look(self, world: World) -> Ruling: ...


class Steelyard:
    """The agent's own rule, asked as the agent asks: when something happens, at the next tick, and while anything is awake."""

    def __init__(self, spec: FunctionSpec) -> None:
        self._spec, self._memory = spec, Memory()

    def look(self, world: World) -> Ruling:
        seen = ReplicasSeen(
            queued=len(world.waiting),
            pending=0,
            replicas=tuple(
                ReplicaSeen(
                    replica.id,
                    "serving" if replica.ready_s <= world.now_s else "starting",
                    replica.busy,
                    replica.busy,
                    max(1, round(replica.last_s * NS)),
                    replica.finished,
                    round(replica.service_s * NS),
                )
                for replica in world.replicas
            ),
            memory=self._memory,
        )
        told = decide_replicas(max(1, round(world.now_s * NS)), self._spec, seen)
        self._memory = told.memory
        left = len(world.replicas) + told.start - len(told.retire)
        if not left:
            self._memory = Memory()
        # between events nothing changes but the time; a tenth of the window is how finely the rule itself remembers
        soon = told.memory.backlog_since_ns is not None or told.retire
        again_s = world.now_s + (LOOK_S if soon else self._spec.idle_timeout_s / 10)
        return Ruling(told.start, told.retire, again_s if left else None)


class Fixed:
    def __init__(self, count: int) -> None:
        self._count = count

    def look(self, world: World) -> Ruling:
        return Ruling(start=self._count - len(world.replicas))


class KnativeLike:
    """Written from the documented behaviour of Knative's pod autoscaler, for a concurrency of one."""

    STABLE_S, PANIC_S, TARGET, PANIC_AT, GRACE_S = 60.0, 6.0, 0.7, 2.0, 30.0

    def __init__(self) -> None:
        #: (from, concurrency)
        self._steps: deque[tuple[float, int]] = deque()
        self._next_s = 0.0
        self._panic_until_s = -1.0
        self._panic_most = 0
        self._zero_since_s: float | None = None

    def look(self, world: World) -> Ruling:
        now_s = world.now_s
        if not self._steps or self._steps[-1][1] != world.in_flight:
            self._steps.append((now_s, world.in_flight))
        count = len(world.replicas)
        if world.waiting and not count:  # the activator pokes the autoscaler for the first one
            return Ruling(start=1, again_s=now_s + KNATIVE_LOOK_S)
        if now_s < self._next_s:
            return Ruling(again_s=self._next_s if count else None)
        self._next_s = now_s + KNATIVE_LOOK_S
        while len(self._steps) > 1 and self._steps[1][0] <= now_s - self.STABLE_S:
            self._steps.popleft()
        stable = self._wanted(self._average(now_s, self.STABLE_S))
        panic = self._wanted(self._average(now_s, self.PANIC_S))
        if panic >= self.PANIC_AT * max(1, count):
            self._panic_until_s = now_s + self.STABLE_S
        if now_s < self._panic_until_s:
            self._panic_most = max(self._panic_most, panic, count)
            wanted = self._panic_most
        else:
            self._panic_most, wanted = 0, stable
        wanted = min(REPLICAS_MAX, wanted)
        if wanted == 0:
            self._zero_since_s = now_s if self._zero_since_s is None else self._zero_since_s
            wanted = 0 if now_s - self._zero_since_s >= self.GRACE_S else 1
        else:
            self._zero_since_s = None
        idle = [replica.id for replica in world.replicas if not replica.busy]
        retire = tuple(idle[: max(0, count - wanted)])
        left = count + max(0, wanted - count) - len(retire)
        return Ruling(max(0, wanted - count), retire, self._next_s if left else None)

    def _wanted(self, concurrency: float) -> int:
        return int(-(-concurrency / self.TARGET // 1))

    def _average(self, now_s: float, window_s: float) -> float:
        begin, total = max(0.0, now_s - window_s), 0.0
        ends = [step[0] for step in itertools.islice(self._steps, 1, None)] + [now_s]
        for (since_s, level), end_s in zip(self._steps, ends, strict=True):
            total += level * max(0.0, end_s - max(begin, since_s))
        return total / max(1e-9, now_s - begin)


class Outcome(msgspec.Struct):
    waits_s: list[float] = []
    replica_s: float = 0.0
    starts: int = 0
    #: requests that found nobody serving
    cold: int = 0


def replay(requests: Iterable[Request], policy: Policy, ready: int = 0) -> Outcome:
    """One function from its first arrival until its last answer and its last retirement. `ready` replicas are there at first."""
    world, outcome = World(), Outcome()
    events: list[tuple[float, int, str, object]] = []
    order = itertools.count()
    arrivals = deque(requests)
    last_s = arrivals[-1].at_s
    numbers = itertools.count()

    def push(at_s: float, what: str, subject: object = None) -> None:
        heapq.heappush(events, (at_s, next(order), what, subject))

    def start(takes_s: float) -> None:
        replica = Replica(str(next(numbers)), world.now_s, world.now_s + takes_s, last_s=world.now_s)
        world.replicas.append(replica)
        outcome.starts += 1
        push(replica.ready_s, "ready")

    def end(replica: Replica) -> None:
        world.replicas.remove(replica)
        outcome.replica_s += world.now_s - replica.begun_s

    world.now_s = arrivals[0].at_s
    for _ in range(ready):
        start(0.0)
    push(arrivals[0].at_s, "arrival")
    retiring: set[str] = set()
    looked = -1.0
    while events:
        world.now_s, _, what, subject = heapq.heappop(events)
        if what == "arrival":
            request = arrivals.popleft()
            if not any(replica.ready_s <= world.now_s for replica in world.replicas):
                outcome.cold += 1
            world.waiting.append(request)
            if arrivals:
                push(arrivals[0].at_s, "arrival")
        elif what == "done":
            assert isinstance(subject, tuple)
            replica, takes_s = subject
            replica.busy, replica.finished, replica.service_s = 0, replica.finished + 1, replica.service_s + takes_s
            replica.last_s = world.now_s
            if replica.id in retiring:
                end(replica)
        elif what == "look":
            looked = -1.0
        for replica in world.replicas:
            if world.waiting and not replica.busy and replica.ready_s <= world.now_s and replica.id not in retiring:
                request = world.waiting.popleft()
                outcome.waits_s.append(world.now_s - request.at_s)
                replica.busy, replica.last_s = 1, world.now_s
                push(world.now_s + request.takes_s, "done", (replica, request.takes_s))
        if isinstance(policy, Fixed) and not arrivals and not world.in_flight:
            break
        seen = World(world.now_s, world.waiting, [replica for replica in world.replicas if replica.id not in retiring])
        ruling = policy.look(seen)
        for _ in range(ruling.start):
            start(START_S)
        for name in ruling.retire:
            replica = next(replica for replica in world.replicas if replica.id == name)
            retiring.add(name)
            if not replica.busy:
                end(replica)
        again_s = ruling.again_s
        if (ruling.start or ruling.retire) and again_s is not None:
            again_s = min(again_s, world.now_s + LOOK_S)
        if again_s is not None and (looked < world.now_s or again_s < looked):
            looked = again_s
            push(again_s, "look")
    world.now_s = max(world.now_s, last_s)
    for replica in list(world.replicas):
        end(replica)
    return outcome


def busiest(requests: list[Request]) -> int:
    """Replicas with which nobody ever waits."""
    changes = sorted([(request.at_s, 1) for request in requests] + [(request.at_s + request.takes_s, -1) for request in requests])
    return max(itertools.accumulate(change for _, change in changes))


def measure_arrivals(say: Callable[[str], None], quick: bool) -> list[Figure]:
    folder = Path(os.environ.get("STEELYARD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    path = folder / "genai" / "lora_request_trace.csv"
    if not path.exists():
        return [
            Figure(
                "arrivals", "replicas that follow recorded arrivals", None, "", "", None, f"Not measured: no {path.name} here."
            )
        ]
    models = read_arrivals(path)
    if quick:
        models = dict(sorted(models.items(), key=lambda item: len(item[1]))[-20:])
    spec = FunctionSpec(replicas_max=REPLICAS_MAX, concurrency=1, idle_timeout_s=60.0)
    half = msgspec.structs.replace(spec, idle_timeout_s=30.0)
    frugal = msgspec.structs.replace(spec, idle_timeout_s=20.0, target_wait_ms=1000.0)
    policies: dict[str, Callable[[list[Request]], tuple[Policy, int]]] = {
        "Steelyard": lambda _: (Steelyard(spec), 0),
        "Steelyard, idle_timeout 30 s": lambda _: (Steelyard(half), 0),
        "Steelyard, idle_timeout 20 s, target_wait_ms 1000": lambda _: (Steelyard(frugal), 0),
        "a rule like Knative's": lambda _: (KnativeLike(), 0),
        "always one": lambda _: (Fixed(1), 1),
        "always as many as the busiest moment needs": lambda requests: (Fixed(busiest(requests)), busiest(requests)),
    }
    told: dict[str, Outcome] = {}
    for name, make in policies.items():
        total = told[name] = Outcome()
        for at, requests in enumerate(models.values()):
            say(f"{name}: model {at + 1}/{len(models)}")
            policy, ready = make(requests)
            one = replay(requests, policy, ready)
            total.waits_s += one.waits_s
            total.replica_s += one.replica_s
            total.starts, total.cold = total.starts + one.starts, total.cold + one.cold
    return _figures(told, len(models))


def _figures(told: dict[str, Outcome], models: int) -> list[Figure]:
    ours, knative = told["Steelyard, idle_timeout 30 s"], told["a rule like Knative's"]
    more: dict[str, float] = {}
    for name, outcome in told.items():
        for share in (0.5, 0.95, 0.99):
            more[f"{name}: wait, p{share * 100:.0f} (s)"] = percentile(outcome.waits_s, share)
        more[f"{name}: replica-seconds"] = outcome.replica_s
        more[f"{name}: starts"] = float(outcome.starts)
        more[f"{name}: requests that found nobody awake"] = float(outcome.cold)
    waits = [(percentile(ours.waits_s, share), percentile(knative.waits_s, share)) for share in (0.95, 0.99)]
    ratio = ours.replica_s / knative.replica_s
    note = (
        f"{len(ours.waits_s):,} recorded requests to {models} models, time compressed {COMPRESSED:.0f} x, a start {START_S} s; "
        "virtual clock, the agent's own decisions. The default idle_timeout, 60 s, waits less for more replica-seconds"
    )
    return [
        Figure(
            "arrivals",
            "replica-seconds for recorded arrivals, against a rule like Knative's, idle_timeout 30 s",
            ratio,
            "x",
            "< 1 with waits p95 and p99 no longer",
            ratio < 1 and all(mine <= theirs for mine, theirs in waits),
            note,
            more,
        )
    ]
