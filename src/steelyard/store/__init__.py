"""Where is desired state kept, and what does a caller of the store rely on?

`Store.write(fn)` runs `fn(tx)` in the one writer. When it returns, everything `fn` did is on disk (several writers waiting at the
same moment share one fsync: group commit). When `fn` raises, only its own changes are undone and the error reaches its caller.
`Store.read(fn)` sees a consistent snapshot, with everything that was committed before it was called. `fn` runs on another thread
and must not touch anything but its `tx`. Faults: NoRoom ("disk-full", "store-busy": nothing was changed, try again), EdgeFailed
("store-failed"), StoreDamaged; any of them may hit all that wait at that moment, and none needs a restart but StoreDamaged.

Variants: `sql.py` (SQLite; PostgreSQL later), `memory.py` (tests and the simulator), both held by tests/contracts/test_store.py.
Objects are put whole. `put_*` inserts at generation 1; a later generation must be exactly the stored one + 1, else `Conflict`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

import msgspec

from steelyard.model.call import Call, CallState
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import ApiKey, Function, Revision
from steelyard.model.ids import CallId, FunctionName, JobId, ProjectName
from steelyard.model.job import Job, JobState
from steelyard.model.machine import Machine
from steelyard.model.site import Account, Quota, Schedule
from steelyard.model.volume import Volume

T = TypeVar("T")


class StoredAnswer(msgspec.Struct, frozen=True):
    """What a mutating call was answered, so that a retry with the same Idempotency-Key gets the same (R2). Kept 24 h."""

    key: str
    project: ProjectName
    #: sha256 of method, path and body: the same key with another request is refused
    request_hash: str
    status: int
    body: bytes
    at: int


class Event(msgspec.Struct, frozen=True):
    """One line of history, written in the transaction that made it true (R1)."""

    at: int
    project: ProjectName
    owner: str
    #: "job", "function", "key", "machine", "schedule", "call", "volume"
    kind: str
    subject: str
    #: what happened, e.g. "submitted", "QUEUED -> STARTING"
    text: str


class Tx(Protocol):
    """One transaction. Lists are oldest first."""

    def job(self, job: JobId) -> Job | None: ...
    def jobs(self, states: Collection[JobState] | None = None, limit: int | None = None) -> list[Job]:
        """All jobs in the given states; with `limit`, the newest that many (still oldest first)."""
        ...

    def job_heads(self, states: Collection[JobState] | None, limit: int) -> list[Job]:
        """Like `jobs`, but of each array only the newest of its elements that are in these states."""
        ...

    def jobs_of_array(self, array: JobId) -> list[Job]:
        """The elements of an array; none when there is no such array."""
        ...

    def jobs_changed(self, since: int) -> tuple[int, list[Job]]:
        """What was put after the reader's last look, each once and as it is now, and the number to ask with next time. 0 asks
        for everything that is not in a terminal state."""
        ...

    def put_job(self, job: Job) -> None: ...

    def accounts(self) -> list[Account]: ...
    def account(self, name: str) -> Account | None: ...
    def put_account(self, account: Account) -> None: ...
    def quotas(self) -> list[Quota]: ...
    def put_quota(self, quota: Quota) -> None: ...
    def delete_quota(self, project: ProjectName) -> bool: ...

    def schedules(self) -> list[Schedule]: ...
    def schedule(self, project: ProjectName, name: str) -> Schedule | None: ...
    def put_schedule(self, schedule: Schedule) -> None: ...
    def delete_schedule(self, project: ProjectName, name: str) -> bool: ...

    def function(self, project: ProjectName, name: FunctionName) -> Function | None: ...
    def functions(self) -> list[Function]: ...
    def put_function(self, function: Function) -> None: ...
    def delete_function(self, project: ProjectName, name: FunctionName) -> bool:
        """With all that is remembered of its revisions."""
        ...

    def revisions(self, project: ProjectName, function: FunctionName) -> list[Revision]: ...
    def revision(self, project: ProjectName, function: FunctionName, revision: int) -> Revision | None: ...
    def put_revision(self, revision: Revision) -> None: ...
    def forget_revisions(self, project: ProjectName, function: FunctionName, keep: int) -> None:
        """All but the newest that many."""
        ...

    def call(self, call: CallId) -> Call | None: ...
    def calls(
        self, function: FunctionName | None = None, states: Collection[CallState] | None = None, limit: int = 1000
    ) -> list[Call]:
        """The newest that many."""
        ...

    def calls_changed(self, since: int) -> tuple[int, list[Call]]:
        """As `jobs_changed`."""
        ...

    def put_call(self, call: Call) -> None: ...
    def call_ids(self) -> set[CallId]:
        """Of all that are kept."""
        ...

    def forget_calls(self, before: int, limit: int) -> list[CallId]:
        """Delete those that ended before, with their history; at most so many, not the one that changed last. Answers which."""
        ...

    def keys(self) -> list[ApiKey]: ...
    def put_key(self, key: ApiKey) -> None: ...
    def delete_key(self, project: ProjectName, name: str) -> bool: ...

    def volumes(self) -> list[Volume]: ...
    def volume(self, project: ProjectName, name: str) -> Volume | None: ...
    def put_volume(self, volume: Volume) -> None: ...
    def delete_volume(self, project: ProjectName, name: str) -> bool: ...

    def add_coldstarts(self, rows: Sequence[ColdStart]) -> None:
        """Rows whose id is already there are skipped."""
        ...

    def coldstarts(self, function: FunctionName | None = None, limit: int = 1000) -> list[ColdStart]:
        """The newest `limit` rows, oldest first."""
        ...

    def answer(self, project: ProjectName, key: str) -> StoredAnswer | None: ...
    def put_answer(self, answer: StoredAnswer) -> None:
        """Conflict when the key has one: an answer that was given is never replaced (R2)."""
        ...

    def forget_answers(self, before: int) -> None: ...

    def add_event(self, event: Event) -> None: ...
    def events(self, kind: str | None = None, subject: str | None = None, limit: int = 1000) -> list[Event]: ...

    def machine(self) -> Machine | None:
        """The machine whose agent said hello last (one machine for now)."""
        ...

    def put_machine(self, machine: Machine) -> None: ...

    def counter(self, name: str) -> int:
        """A persistent counter, 0 when never bumped: "epoch" (of leaders), "job" (ids)."""
        ...

    def bump(self, name: str) -> int:
        """Add one and return the new value."""
        ...


class Store(Protocol):
    async def write(self, fn: Callable[[Tx], T]) -> T: ...
    async def read(self, fn: Callable[[Tx], T]) -> T: ...
    async def close(self) -> None: ...
