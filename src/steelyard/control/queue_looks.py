"""What does the attached cluster's queue hold? One look serves all loops that ask.

Looks are paced here: never sooner than a caller wants one, later where the cluster takes long to answer or holds thousands of
jobs. A look that failed is one too: it says that the cluster was silent, and is not repeated before its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from steelyard.clock import Clock
from steelyard.engine import Engine
from steelyard.errors import SteelyardError
from steelyard.model.slurm import QueueEntry

#: a cluster that takes long to answer is asked for that share of the time at most; and one that holds many jobs so much later for
#: each of them: it costs squeue and us some 10 us at every look (bench: `watching`), which is to stay below 2 % of a core in all
LOOK_SHARE, LOOK_EACH_S, LOOK_MAX_S = 0.1, 0.0008, 10.0
#: looks that failed, one after the other, before anybody is told that the cluster is silent
SILENT_LOOKS = 2
_log = logging.getLogger("steelyard.looks")


class Look(msgspec.Struct, frozen=True):
    #: when it began, monotonic: what was true of the queue before that is in it
    at_ns: int
    #: None: the cluster did not answer
    queue: Mapping[str, QueueEntry] | None


class QueueLooks:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._one = asyncio.Lock()
        self._engine: Engine | None = None
        self._newest: Look | None = None
        self._ended_ns = 0
        self._rest_s = 0.0
        self._failed = 0
        self._complaint = ""

    @property
    def silent(self) -> str:
        """Why nothing is known of the queue now; "" where something is."""
        return self._complaint if self._failed >= SILENT_LOOKS else ""

    def due_ns(self, every_s: float) -> int:
        """Monotonic: when the next one may be, for whoever wants one that often."""
        return self._ended_ns + int(max(every_s, self._rest_s) * 1e9)

    async def take(self, engine: Engine, since_ns: int, every_s: float) -> Look | None:
        """One that began after `since_ns`: of somebody else's, or a new one; None where that is not due yet."""
        async with self._one:
            if engine is not self._engine:
                self._engine, self._newest = engine, None
            newest = self._newest
            if newest is not None and newest.at_ns > since_ns:
                return newest
            if newest is not None and self._clock.mono_ns() < self.due_ns(every_s):
                return None
            self._newest = await self._look(engine)
            return self._newest

    async def _look(self, engine: Engine) -> Look:
        began_ns = self._clock.mono_ns()
        queue: Mapping[str, QueueEntry] | None = None
        try:
            queue = await engine.look()
            self._failed, self._complaint = 0, ""
        except SteelyardError as err:
            self._failed, self._complaint = self._failed + 1, err.public
            _log.warning("the cluster did not tell of its jobs: %s", err.public)
        self._ended_ns = self._clock.mono_ns()
        took_s = 0.0 if queue is None else (self._ended_ns - began_ns) / 1e9
        self._rest_s = min(max(took_s / LOOK_SHARE, LOOK_EACH_S * len(queue or ())), LOOK_MAX_S)
        return Look(began_ns, queue)
