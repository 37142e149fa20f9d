"""What does a revision remember between two looks at its replicas, and what changed their number lately? Carries the pure
`decide_replicas` through time; starts and ends nothing itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from steelyard.clock import Clock
from steelyard.model.function import FunctionSpec
from steelyard.scaling.explain import render_decision
from steelyard.scaling.replicas import Memory, ReplicasDecision, ReplicaSeen, ReplicasSeen, decide_replicas
from steelyard.scaling.share import Want
from steelyard.wire.agent import ScalingChange, ScalingSeen

#: changes that are remembered
CHANGES_MAX = 20


class Scaler:
    """Of one revision. `share` is set by whoever divides the machine."""

    def __init__(self, spec: FunctionSpec, revision: int, clock: Clock) -> None:
        self._spec, self._revision, self._clock = spec, revision, clock
        self._memory = Memory()
        self._told: ReplicasDecision | None = None
        self._changes: deque[ScalingChange] = deque(maxlen=CHANGES_MAX)
        self.share: int | None = None

    def decide(self, now_ns: int, queued: int, pending: int, replicas: Sequence[ReplicaSeen]) -> ReplicasDecision:
        seen = ReplicasSeen(queued, pending, tuple(replicas), self._memory, self.share)
        self._told = told = decide_replicas(now_ns, self._spec, seen)
        self._memory = told.memory
        if told.start or told.retire:
            self._note(told.present, told.present + told.start - len(told.retire), render_decision(self._spec, told))
        return told

    def wake(self) -> None:
        """The first replica is started by the socket, not by a look."""
        self._note(0, 1, "A request came while it slept: one replica wakes.")

    def visit(self) -> None:
        self._note(0, 1, "Somebody wants to be inside while it sleeps: one replica wakes.")

    def sleep(self) -> None:
        """No replica is left, and nobody looks any more: what was needed a while ago is forgotten."""
        self._memory, self._told = Memory(), None

    def _note(self, before: int, after: int, text: str) -> None:
        self._changes.append(ScalingChange(self._clock.now_us(), before, after, text))

    @property
    def want(self) -> Want | None:
        """What it would have if the machine were its own; None while it sleeps."""
        if self._told is None:
            return None
        asked, most = self._spec.resources, max(self._spec.replicas_min, self._spec.replicas_max)
        wanted = min(most, max(self._told.asked, self._told.present if not self._told.bound else 0, 1))
        return Want("", wanted, asked.cpus, asked.memory_bytes or 0, self._spec.replicas_min)

    def seen(self, serving: int, starting: int) -> ScalingSeen:
        told = self._told
        text = "It sleeps; the next request wakes one replica." if told is None else render_decision(self._spec, told)
        return ScalingSeen(self._revision, serving, starting, 0 if told is None else told.wanted, text, tuple(self._changes))
