"""A store without a disk, for tests and the simulator. Same promises as `sql.py` but durability; no threads, so that one seed
always gives one order.

Objects are kept as they are: whoever changes a dict inside a frozen struct changes the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from steelyard.errors import Conflict, EdgeFailed
from steelyard.model.built_image import Image
from steelyard.model.call import Call, CallState
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import ApiKey, Function, Revision
from steelyard.model.ids import OWN_MACHINE, CallId, FunctionName, ImageId, JobId, MachineId, ProjectName
from steelyard.model.job import Job, JobState
from steelyard.model.machine import Machine
from steelyard.model.pool import Pilot, Pool
from steelyard.model.secret import Secret
from steelyard.model.site import Account, Quota, Schedule
from steelyard.model.volume import Volume
from steelyard.store import Event, StoredAnswer, Tx
from steelyard.store.generation import check_generation

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class _Content:
    """What is stored. Dicts keep the order of arrival."""

    def __init__(self) -> None:
        self.jobs: dict[JobId, Job] = {}
        #: job -> number of its last change, and the newest number given
        self.changes: dict[JobId, int] = {}
        self.change = 0
        self.calls: dict[CallId, Call] = {}
        self.call_changes: dict[CallId, int] = {}
        self.call_change = 0
        self.accounts: dict[str, Account] = {}
        self.quotas: dict[ProjectName, Quota] = {}
        self.schedules: dict[tuple[ProjectName, str], Schedule] = {}
        self.functions: dict[tuple[ProjectName, FunctionName], Function] = {}
        self.revisions: dict[tuple[ProjectName, FunctionName, int], Revision] = {}
        self.keys: dict[tuple[ProjectName, str], ApiKey] = {}
        self.secrets: dict[tuple[ProjectName, str], Secret] = {}
        self.volumes: dict[tuple[ProjectName, str], Volume] = {}
        self.images: dict[tuple[int, ImageId], Image] = {}
        self.coldstarts: dict[str, ColdStart] = {}
        self.answers: dict[tuple[ProjectName, str], StoredAnswer] = {}
        self.events: list[Event] = []
        #: the last one said hello last
        self.pools: dict[str, Pool] = {}
        self.pilots: dict[MachineId, Pilot] = {}
        self.machines: dict[MachineId, Machine] = {}
        self.counters: dict[str, int] = {}


class MemoryTx:
    """Changes take effect at once; `undo` takes them back in reverse order."""

    def __init__(self, content: _Content, *, writes: bool) -> None:
        self._content = content
        self._writes = writes
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    # jobs

    def job(self, job: JobId) -> Job | None:
        return self._content.jobs.get(job)

    def jobs(self, states: Collection[JobState] | None = None, limit: int | None = None) -> list[Job]:
        found = [job for job in self._content.jobs.values() if states is None or job.state in states]
        return found if limit is None else _newest(found, limit)

    def job_heads(self, states: Collection[JobState] | None, limit: int) -> list[Job]:
        # the last element of an array overwrites those before it, at its own place
        heads: dict[JobId, Job] = {}
        for job in self.jobs(states):
            key = job.id if job.array is None else JobId(f"{job.array.id}_")
            heads.pop(key, None)
            heads[key] = job
        return _newest(list(heads.values()), limit)

    def jobs_of_array(self, array: JobId) -> list[Job]:
        return [job for job in self._content.jobs.values() if job.array is not None and job.array.id == array]

    def jobs_changed(self, since: int) -> tuple[int, list[Job]]:
        newest = self._content.change
        if since <= 0:
            return newest, [job for job in self._content.jobs.values() if not job.state.terminal]
        return newest, [job for job in self._content.jobs.values() if self._content.changes[job.id] > since]

    def put_job(self, job: Job) -> None:
        self._put_object(f"Job {job.id}", self._content.jobs, job.id, job)
        # not taken back by `undo`: numbers only have to go up
        self._content.change += 1
        self._set(self._content.changes, job.id, self._content.change)

    # shares, quotas and schedules

    def accounts(self) -> list[Account]:
        return list(self._content.accounts.values())

    def account(self, name: str) -> Account | None:
        return self._content.accounts.get(name)

    def put_account(self, account: Account) -> None:
        self._put_object(f"Account {account.name}", self._content.accounts, account.name, account)

    def quotas(self) -> list[Quota]:
        return list(self._content.quotas.values())

    def put_quota(self, quota: Quota) -> None:
        self._put_object(f"The quota of {quota.project}", self._content.quotas, quota.project, quota)

    def delete_quota(self, project: ProjectName) -> bool:
        return self._drop(self._content.quotas, [project]) > 0

    def schedules(self) -> list[Schedule]:
        return list(self._content.schedules.values())

    def schedule(self, project: ProjectName, name: str) -> Schedule | None:
        return self._content.schedules.get((project, name))

    def put_schedule(self, schedule: Schedule) -> None:
        self._put_object(f"Schedule {schedule.name}", self._content.schedules, (schedule.project, schedule.name), schedule)

    def delete_schedule(self, project: ProjectName, name: str) -> bool:
        return self._drop(self._content.schedules, [(project, name)]) > 0

    # functions

    def function(self, project: ProjectName, name: FunctionName) -> Function | None:
        return self._content.functions.get((project, name))

    def functions(self) -> list[Function]:
        return list(self._content.functions.values())

    def put_function(self, function: Function) -> None:
        self._put_object(f"Function {function.name}", self._content.functions, (function.project, function.name), function)

    def delete_function(self, project: ProjectName, name: FunctionName) -> bool:
        self.forget_revisions(project, name, keep=0)
        return self._drop(self._content.functions, [(project, name)]) > 0

    def revisions(self, project: ProjectName, function: FunctionName) -> list[Revision]:
        rows = [row for key, row in self._content.revisions.items() if key[:2] == (project, function)]
        return sorted(rows, key=lambda row: row.revision)

    def revision(self, project: ProjectName, function: FunctionName, revision: int) -> Revision | None:
        return self._content.revisions.get((project, function, revision))

    def put_revision(self, revision: Revision) -> None:
        key = (revision.project, revision.function, revision.revision)
        self._put_object(f"Revision {revision.revision} of {revision.function}", self._content.revisions, key, revision)

    def forget_revisions(self, project: ProjectName, function: FunctionName, keep: int) -> None:
        rows = self.revisions(project, function)
        gone = rows[: max(0, len(rows) - keep)]
        self._drop(self._content.revisions, [(project, function, row.revision) for row in gone])

    # calls

    def call(self, call: CallId) -> Call | None:
        return self._content.calls.get(call)

    def calls(
        self, function: FunctionName | None = None, states: Collection[CallState] | None = None, limit: int = 1000
    ) -> list[Call]:
        found = [
            call
            for call in self._content.calls.values()
            if (function is None or call.function == function) and (states is None or call.state in states)
        ]
        return _newest(found, limit)

    def calls_changed(self, since: int) -> tuple[int, list[Call]]:
        newest, calls = self._content.call_change, self._content.calls.values()
        if since <= 0:
            return newest, [call for call in calls if not call.state.terminal]
        return newest, [call for call in calls if self._content.call_changes[call.id] > since]

    def put_call(self, call: Call) -> None:
        self._put_object(f"Call {call.id}", self._content.calls, call.id, call)
        self._content.call_change += 1
        self._set(self._content.call_changes, call.id, self._content.call_change)

    def call_ids(self) -> set[CallId]:
        return set(self._content.calls)

    def forget_calls(self, before: int, limit: int) -> list[CallId]:
        newest = max(self._content.call_changes.values(), default=0)
        ended = [call for call in self._content.calls.values() if call.ended_at is not None and call.ended_at < before]
        ended.sort(key=lambda call: call.ended_at or 0)
        ids = [call.id for call in ended if self._content.call_changes[call.id] < newest][: max(0, limit)]
        self._drop(self._content.calls, ids)
        self._drop(self._content.call_changes, ids)
        history = self._content.events
        self._content.events = [event for event in history if event.kind != "call" or event.subject not in ids]
        self._undo.append(lambda: setattr(self._content, "events", history))
        return ids

    # keys

    def keys(self) -> list[ApiKey]:
        return list(self._content.keys.values())

    def put_key(self, key: ApiKey) -> None:
        self._put_object(f"Key {key.name}", self._content.keys, (key.project, key.name), key)

    def delete_key(self, project: ProjectName, name: str) -> bool:
        return self._drop(self._content.keys, [(project, name)]) > 0

    # secrets

    def secrets(self) -> list[Secret]:
        return list(self._content.secrets.values())

    def secret(self, project: ProjectName, name: str) -> Secret | None:
        return self._content.secrets.get((project, name))

    def put_secret(self, secret: Secret) -> None:
        self._put_object(f"Secret {secret.name}", self._content.secrets, (secret.project, secret.name), secret)

    def delete_secret(self, project: ProjectName, name: str) -> bool:
        return self._drop(self._content.secrets, [(project, name)]) > 0

    # volumes

    def volumes(self) -> list[Volume]:
        return list(self._content.volumes.values())

    def volume(self, project: ProjectName, name: str) -> Volume | None:
        return self._content.volumes.get((project, name))

    def put_volume(self, volume: Volume) -> None:
        self._put_object(f"Volume {volume.name}", self._content.volumes, (volume.project, volume.name), volume)

    def delete_volume(self, project: ProjectName, name: str) -> bool:
        return self._drop(self._content.volumes, [(project, name)]) > 0

    # pools

    def pools(self) -> list[Pool]:
        return list(self._content.pools.values())

    def pool(self, name: str) -> Pool | None:
        return self._content.pools.get(name)

    def put_pool(self, pool: Pool) -> None:
        self._put_object(f"Pool {pool.name}", self._content.pools, pool.name, pool)

    def delete_pool(self, name: str) -> bool:
        return self._drop(self._content.pools, [name]) > 0

    def pilots(self, *, ended: bool = False) -> list[Pilot]:
        return [pilot for pilot in self._content.pilots.values() if ended or pilot.ended_at is None]

    def pilot(self, pilot: MachineId) -> Pilot | None:
        return self._content.pilots.get(pilot)

    def put_pilot(self, pilot: Pilot) -> None:
        self._put_object(f"Pilot {pilot.id}", self._content.pilots, pilot.id, pilot)

    def forget_pilots(self, before: int) -> None:
        gone = [key for key, pilot in self._content.pilots.items() if pilot.ended_at is not None and pilot.ended_at < before]
        self._drop(self._content.pilots, gone)

    # images

    def images(self) -> list[Image]:
        return list(self._content.images.values())

    def image(self, uid: int, image: ImageId) -> Image | None:
        return self._content.images.get((uid, image))

    def put_image(self, image: Image) -> None:
        self._put_object(f"Image {image.id}", self._content.images, (image.owner.uid, image.id), image)

    def delete_image(self, uid: int, image: ImageId) -> bool:
        return self._drop(self._content.images, [(uid, image)]) > 0

    # history

    def add_coldstarts(self, rows: Sequence[ColdStart]) -> None:
        for row in rows:
            if row.id not in self._content.coldstarts:
                self._set(self._content.coldstarts, row.id, row)

    def coldstarts(self, function: FunctionName | None = None, limit: int = 1000) -> list[ColdStart]:
        rows = self._content.coldstarts.values()
        return _newest([row for row in rows if function is None or row.function == function], limit)

    def answer(self, project: ProjectName, key: str) -> StoredAnswer | None:
        return self._content.answers.get((project, key))

    def put_answer(self, answer: StoredAnswer) -> None:
        self._check_writes()
        if (answer.project, answer.key) in self._content.answers:
            raise Conflict(f"The answer to the key {answer.key} is stored already.")
        self._set(self._content.answers, (answer.project, answer.key), answer)

    def forget_answers(self, before: int) -> None:
        self._drop(self._content.answers, [key for key, answer in self._content.answers.items() if answer.at < before])

    def add_event(self, event: Event) -> None:
        self._check_writes()
        self._content.events.append(event)
        self._undo.append(lambda: _take_last(self._content.events))

    def events(self, kind: str | None = None, subject: str | None = None, limit: int = 1000) -> list[Event]:
        found = [
            event
            for event in self._content.events
            if (kind is None or event.kind == kind) and (subject is None or event.subject == subject)
        ]
        return _newest(found, limit)

    # the site

    def machine(self, machine: MachineId = OWN_MACHINE) -> Machine | None:
        found = (each for each in reversed(self._content.machines.values()) if each.place == machine)
        return next(found, None)

    def machines(self) -> list[Machine]:
        own = self.machine()
        pools = [each for each in self._content.machines.values() if each.pool]
        return [*(() if own is None else (own,)), *sorted(pools, key=lambda each: (each.pool, each.id))]

    def put_machine(self, machine: Machine) -> None:
        self._drop(self._content.machines, [machine.id])
        self._set(self._content.machines, machine.id, machine)

    def delete_machine(self, machine: MachineId) -> bool:
        return bool(self._drop(self._content.machines, [machine]))

    def counter(self, name: str) -> int:
        return self._content.counters.get(name, 0)

    def bump(self, name: str) -> int:
        value = self.counter(name) + 1
        self._set(self._content.counters, name, value)
        return value

    # changes

    def _check_writes(self) -> None:
        if not self._writes:
            raise EdgeFailed("The store refused a write (this is a read).", code="store-failed")

    def _put_object(self, what: str, table: dict[K, V], key: K, thing: V) -> None:
        self._check_writes()
        stored = table.get(key)
        conflict = check_generation(what, getattr(stored, "generation", None), getattr(thing, "generation", 0))
        if conflict is not None:
            raise conflict
        self._set(table, key, thing)

    def _set(self, table: dict[K, V], key: K, value: V) -> None:
        self._check_writes()
        if key in table:
            before = table[key]
            self._undo.append(lambda: table.__setitem__(key, before))
        else:
            self._undo.append(lambda: table.__delitem__(key))
        table[key] = value

    def _drop(self, table: dict[K, V], keys: Collection[K]) -> int:
        """How many were there. Undone by putting the whole table back: a single row would come back at the end of the order."""
        self._check_writes()
        there = [key for key in keys if key in table]
        if there:
            before = dict(table)
            self._undo.append(lambda: _replace(table, before))
            for key in there:
                del table[key]
        return len(there)


class MemoryStore:
    """Starts empty."""

    def __init__(self) -> None:
        self._content = _Content()
        self._closed = False

    async def write(self, fn: Callable[[Tx], T]) -> T:
        return await self._run(fn, writes=True)

    async def read(self, fn: Callable[[Tx], T]) -> T:
        return await self._run(fn, writes=False)

    async def close(self) -> None:
        self._closed = True

    async def _run(self, fn: Callable[[Tx], T], *, writes: bool) -> T:
        if self._closed:
            raise EdgeFailed("The store is closed.", code="store-failed")
        # The real store answers later, never at once: let others run first here too.
        await asyncio.sleep(0)
        tx = MemoryTx(self._content, writes=writes)
        try:
            return fn(tx)
        except BaseException:
            tx.undo()
            raise


def _newest(rows: list[V], limit: int) -> list[V]:
    """The last `limit`; none for 0, which a plain negative slice would take for all."""
    return rows[max(0, len(rows) - max(0, limit)) :]


def _take_last(rows: list[Event]) -> None:
    rows.pop()


def _replace(table: dict[K, V], content: dict[K, V]) -> None:
    table.clear()
    table.update(content)
