"""How does Steelyard stand on another batch system? What a queue of others has to answer, so that attempts may go through it.

`slurm/` is Slurm's; `fake.py` plays one in memory. `tests/contracts/test_engine.py` asks both the same.
`bringup/` makes a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from steelyard.model.ids import MachineId
from steelyard.model.job import Job
from steelyard.model.pool import Pilot, Pool
from steelyard.model.slurm import QueueEntry, RankRecord


class Engine(Protocol):
    """A queue of others. Everything may be asked again: each attempt is known by its id, and asking changes nothing twice."""

    def make_batches(self, jobs: Sequence[Job]) -> Sequence[tuple[Job, ...]]:
        """Which of them are handed over together; all of them, in order."""
        ...

    async def submit(self, jobs: Sequence[Job]) -> Sequence[str]:
        """Hand over the current attempts of one of `make_batches`; the queue's own names for them. Refused: the queue said no and
        has nothing of them. Any other SteelyardError: whether they were taken is not known, and `look` will tell."""
        ...

    async def submit_pilots(self, pool: Pool, pilots: Sequence[Pilot], contents: Sequence[bytes]) -> str:
        """Ask for the allocation of all of them, as `submit` does for an attempt; it is known by the first one's id. `contents`:
        a line for each, for its program's eyes alone."""
        ...

    async def cancel_pilot(self, pilot: Pilot, *, force: bool) -> None:
        """Its allocation: out of the queue, or its programs told to end, by `force` ended with all below them; nothing where it
        has ended."""
        ...

    async def read_pilot_words(self, pilot: Pilot) -> str:
        """What its program said last, in a line; "" where it said nothing."""
        ...

    def find_pilot_outputs(self, pilot: MachineId) -> Path | None:
        """The folder of what its work wrote, which outlives it; None where this machine can't see it."""
        ...

    async def forget_pilot(self, pilot: Pilot) -> None:
        """It has ended: what lies of it for its program goes, logs stay."""
        ...

    async def look(self) -> Mapping[str, QueueEntry]:
        """All attempts of this home that the queue knows of, ended ones included for some minutes, by their ids. One request."""
        ...

    async def read_records(self, jobs: Sequence[Job], name: str = "exit") -> Mapping[str, Sequence[RankRecord]]:
        """Of the current attempt of each, by its id: of each of its ranks that ended ("started": began) and could write one."""
        ...

    async def read_exit_code(self, job: Job, number: str) -> tuple[int | None, int | None]:
        """(code, signal) by the queue's own account, for an attempt that left no records."""
        ...

    async def signal(self, job: Job, number: str, signum: int) -> None:
        """To every process of its tasks; nothing where it has ended."""
        ...

    async def cancel(self, attempts: Sequence[tuple[Job, str]]) -> None:
        """Out of the queue, or ended by force; nothing where they have ended."""
        ...

    async def read_log(self, job: Job, stream: str, offset: int, limit: int) -> bytes:
        """Of the current attempt's output, from that byte on. Empty where there is nothing (yet)."""
        ...
