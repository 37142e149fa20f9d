"""What can be read and written inside one SQL transaction? `steelyard.store.Tx` on one connection.

The statements are `statements.py`'s. Knows nothing of threads, commits or fsync (`sql.py` does), and lets no error of SQLAlchemy
or the driver out.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from steelyard.errors import Conflict, SteelyardError
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
from steelyard.store import Event, StoredAnswer
from steelyard.store import statements as sql
from steelyard.store.faults import damaged, translate
from steelyard.store.generation import check_generation
from steelyard.store.statement import Statement

_S = TypeVar("_S", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job)
_decode_function = msgspec.json.Decoder(Function)
_decode_revision = msgspec.json.Decoder(Revision)
_decode_key = msgspec.json.Decoder(ApiKey)
_decode_secret = msgspec.json.Decoder(Secret)
_decode_account = msgspec.json.Decoder(Account)
_decode_quota = msgspec.json.Decoder(Quota)
_decode_schedule = msgspec.json.Decoder(Schedule)
_decode_volume = msgspec.json.Decoder(Volume)
_decode_pool = msgspec.json.Decoder(Pool)
_decode_pilot = msgspec.json.Decoder(Pilot)
_decode_image = msgspec.json.Decoder(Image)
_decode_call = msgspec.json.Decoder(Call)
_decode_coldstart = msgspec.json.Decoder(ColdStart)
_decode_machine = msgspec.json.Decoder(Machine)


class SqlTx:
    """`wrote` says whether anything was changed through it, `fault` what the database itself last failed with."""

    def __init__(self, connection: sa.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        #: SQLAlchemy's, and the driver's own where it is called directly
        self._faults: tuple[type[Exception], ...] = (SQLAlchemyError, connection.dialect.loaded_dbapi.Error)
        self.wrote = False
        self.fault: SteelyardError | None = None

    # jobs

    def job(self, job: JobId) -> Job | None:
        return self._one(_decode_job, sql.JOB, {"id": job})

    def jobs(self, states: Collection[JobState] | None = None, limit: int | None = None) -> list[Job]:
        wanted: dict[str, object] = {} if states is None else {"states": list(states)}
        if limit is None:
            return self._all(_decode_job, sql.JOBS if states is None else sql.JOBS_IN, wanted)
        statement = sql.JOBS_NEWEST if states is None else sql.JOBS_IN_NEWEST
        return self._all(_decode_job, statement, {**wanted, "limit": max(0, limit)})[::-1]

    def job_heads(self, states: Collection[JobState] | None, limit: int) -> list[Job]:
        wanted: dict[str, object] = {"limit": max(0, limit)}
        wanted |= {} if states is None else {"states": list(states)}
        return self._all(_decode_job, sql.JOB_HEADS if states is None else sql.JOB_HEADS_IN, wanted)[::-1]

    def jobs_of_array(self, array: JobId) -> list[Job]:
        return self._all(_decode_job, sql.JOBS_OF_ARRAY, {"array": array})

    def jobs_changed(self, since: int) -> tuple[int, list[Job]]:
        newest = self._number(sql.LAST_CHANGE) or 0
        if since <= 0:
            return newest, self.jobs([state for state in JobState if not state.terminal])
        return newest, self._all(_decode_job, sql.JOBS_CHANGED, {"since": since}) if newest > since else []

    def put_job(self, job: Job) -> None:
        array = None if job.array is None else job.array.id
        row = {"id": job.id, "state": job.state, "submitted_at": job.submitted_at, "array_id": array}
        self._put_object(f"Job {job.id}", sql.PUT_JOB, ("id",), job, row)

    # shares, quotas and schedules

    def accounts(self) -> list[Account]:
        return self._all(_decode_account, sql.ACCOUNTS)

    def account(self, name: str) -> Account | None:
        return self._one(_decode_account, sql.ACCOUNT, {"name": name})

    def put_account(self, account: Account) -> None:
        self._put_object(f"Account {account.name}", sql.PUT_ACCOUNT, ("name",), account, {"name": account.name})

    def quotas(self) -> list[Quota]:
        return self._all(_decode_quota, sql.QUOTAS)

    def put_quota(self, quota: Quota) -> None:
        self._put_object(f"The quota of {quota.project}", sql.PUT_QUOTA, ("project",), quota, {})

    def delete_quota(self, project: ProjectName) -> bool:
        return self._change(sql.DELETE_QUOTA, {"project": project}) > 0

    def schedules(self) -> list[Schedule]:
        return self._all(_decode_schedule, sql.SCHEDULES)

    def schedule(self, project: ProjectName, name: str) -> Schedule | None:
        return self._one(_decode_schedule, sql.SCHEDULE, {"project": project, "name": name})

    def put_schedule(self, schedule: Schedule) -> None:
        self._put_object(f"Schedule {schedule.name}", sql.PUT_SCHEDULE, ("project", "name"), schedule, {"name": schedule.name})

    def delete_schedule(self, project: ProjectName, name: str) -> bool:
        return self._change(sql.DELETE_SCHEDULE, {"project": project, "name": name}) > 0

    # functions

    def function(self, project: ProjectName, name: FunctionName) -> Function | None:
        return self._one(_decode_function, sql.FUNCTION, {"project": project, "name": name})

    def functions(self) -> list[Function]:
        return self._all(_decode_function, sql.FUNCTIONS)

    def put_function(self, function: Function) -> None:
        row = {
            "name": function.name,
            "state": function.state,
            "revision": function.revision,
            "deployed_at": function.deployed_at,
        }
        self._put_object(f"Function {function.name}", sql.PUT_FUNCTION, ("project", "name"), function, row)

    def delete_function(self, project: ProjectName, name: FunctionName) -> bool:
        self.forget_revisions(project, name, keep=0)
        return self._change(sql.DELETE_FUNCTION, {"project": project, "name": name}) > 0

    def revisions(self, project: ProjectName, function: FunctionName) -> list[Revision]:
        return self._all(_decode_revision, sql.REVISIONS, {"project": project, "function": function})

    def revision(self, project: ProjectName, function: FunctionName, revision: int) -> Revision | None:
        return self._one(_decode_revision, sql.REVISION, {"project": project, "function": function, "revision": revision})

    def put_revision(self, revision: Revision) -> None:
        row = {"function": revision.function, "revision": revision.revision}
        what = f"Revision {revision.revision} of {revision.function}"
        self._put_object(what, sql.PUT_REVISION, ("project", "function", "revision"), revision, row)

    def forget_revisions(self, project: ProjectName, function: FunctionName, keep: int) -> None:
        self._change(sql.FORGET_REVISIONS, {"project": project, "function": function, "keep": keep})

    # calls

    def call(self, call: CallId) -> Call | None:
        return self._one(_decode_call, sql.CALL, {"id": call})

    def calls(
        self, function: FunctionName | None = None, states: Collection[CallState] | None = None, limit: int = 1000
    ) -> list[Call]:
        wanted: dict[str, object] = {"limit": max(0, limit)}
        wanted |= {} if function is None else {"function": function}
        wanted |= {} if states is None else {"states": list(states)}
        return self._all(_decode_call, sql.CALLS_NEWEST[function is not None, states is not None], wanted)[::-1]

    def calls_changed(self, since: int) -> tuple[int, list[Call]]:
        newest = self._number(sql.LAST_CALL_CHANGE) or 0
        if since <= 0:
            living = [state for state in CallState if not state.terminal]
            return newest, self._all(_decode_call, sql.CALLS_IN, {"states": living})
        return newest, self._all(_decode_call, sql.CALLS_CHANGED, {"since": since}) if newest > since else []

    def put_call(self, call: Call) -> None:
        row = {"id": call.id, "function": call.function, "state": call.state, "ended_at": call.ended_at}
        self._put_object(f"Call {call.id}", sql.PUT_CALL, ("id",), call, row)

    def call_ids(self) -> set[CallId]:
        return {row[0] for row in self._rows(sql.CALL_IDS)}

    def forget_calls(self, before: int, limit: int) -> list[CallId]:
        ids = [CallId(row[0]) for row in self._rows(sql.CALLS_ENDED, {"before": before, "limit": limit})]
        for id_ in ids:
            self._change(sql.DELETE_CALL, {"id": id_})
            self._change(sql.DELETE_EVENTS, {"kind": "call", "subject": id_})
        return ids

    # keys

    def keys(self) -> list[ApiKey]:
        return self._all(_decode_key, sql.KEYS)

    def put_key(self, key: ApiKey) -> None:
        self._put_object(
            f"Key {key.name}", sql.PUT_KEY, ("project", "name"), key, {"name": key.name, "created_at": key.created_at}
        )

    def delete_key(self, project: ProjectName, name: str) -> bool:
        return self._change(sql.DELETE_KEY, {"project": project, "name": name}) > 0

    # secrets

    def secrets(self) -> list[Secret]:
        return self._all(_decode_secret, sql.SECRETS)

    def secret(self, project: ProjectName, name: str) -> Secret | None:
        return self._one(_decode_secret, sql.SECRET, {"project": project, "name": name})

    def put_secret(self, secret: Secret) -> None:
        self._put_object(f"Secret {secret.name}", sql.PUT_SECRET, ("project", "name"), secret, {"name": secret.name})

    def delete_secret(self, project: ProjectName, name: str) -> bool:
        return self._change(sql.DELETE_SECRET, {"project": project, "name": name}) > 0

    # volumes

    def volumes(self) -> list[Volume]:
        return self._all(_decode_volume, sql.VOLUMES)

    def volume(self, project: ProjectName, name: str) -> Volume | None:
        return self._one(_decode_volume, sql.VOLUME, {"project": project, "name": name})

    def put_volume(self, volume: Volume) -> None:
        self._put_object(f"Volume {volume.name}", sql.PUT_VOLUME, ("project", "name"), volume, {"name": volume.name})

    def delete_volume(self, project: ProjectName, name: str) -> bool:
        return self._change(sql.DELETE_VOLUME, {"project": project, "name": name}) > 0

    # pools

    def pools(self) -> list[Pool]:
        return self._all(_decode_pool, sql.POOLS)

    def pool(self, name: str) -> Pool | None:
        return self._one(_decode_pool, sql.POOL, {"name": name})

    def put_pool(self, pool: Pool) -> None:
        self._put_object(f"Pool {pool.name}", sql.PUT_POOL, ("name",), pool, {"name": pool.name})

    def delete_pool(self, name: str) -> bool:
        return self._change(sql.DELETE_POOL, {"name": name}) > 0

    def pilots(self, *, ended: bool = False) -> list[Pilot]:
        return self._all(_decode_pilot, sql.PILOTS if ended else sql.PILOTS_LIVING)

    def pilot(self, pilot: MachineId) -> Pilot | None:
        return self._one(_decode_pilot, sql.PILOT, {"id": pilot})

    def put_pilot(self, pilot: Pilot) -> None:
        row = {"id": pilot.id, "pool": pilot.pool, "ended_at": pilot.ended_at}
        self._put_object(f"Pilot {pilot.id}", sql.PUT_PILOT, ("id",), pilot, row)

    def forget_pilots(self, before: int) -> None:
        self._change(sql.FORGET_PILOTS, {"before": before})

    # images

    def images(self) -> list[Image]:
        return self._all(_decode_image, sql.IMAGES)

    def image(self, uid: int, image: ImageId) -> Image | None:
        return self._one(_decode_image, sql.IMAGE, {"owner_uid": uid, "id": image})

    def put_image(self, image: Image) -> None:
        self._put_object(f"Image {image.id}", sql.PUT_IMAGE, ("owner_uid", "id"), image, {"id": image.id})

    def delete_image(self, uid: int, image: ImageId) -> bool:
        return self._change(sql.DELETE_IMAGE, {"owner_uid": uid, "id": image}) > 0

    # history

    def add_coldstarts(self, rows: Sequence[ColdStart]) -> None:
        """The owner is the function's; NULL when that is gone already."""
        if not rows:
            return
        owners: dict[tuple[str, str], tuple[object, object]] = {(row.project, row.function): (None, None) for row in rows}
        for project, name in owners:
            for user, uid in self._rows(sql.FUNCTION_OWNER, {"project": project, "name": name}):
                owners[project, name] = (user, uid)
        self._change(
            sql.ADD_COLDSTART,
            [
                {
                    "id": row.id,
                    "project": row.project,
                    "owner_user": owners[row.project, row.function][0],
                    "owner_uid": owners[row.project, row.function][1],
                    "generation": 1,
                    "function": row.function,
                    "at": row.at,
                    **_content(row),
                }
                for row in rows
            ],
        )

    def coldstarts(self, function: FunctionName | None = None, limit: int = 1000) -> list[ColdStart]:
        if function is None:
            return self._all(_decode_coldstart, sql.COLDSTARTS, {"limit": max(0, limit)})[::-1]
        return self._all(_decode_coldstart, sql.COLDSTARTS_OF, {"function": function, "limit": max(0, limit)})[::-1]

    def answer(self, project: ProjectName, key: str) -> StoredAnswer | None:
        for row in self._rows(sql.ANSWER, {"project": project, "key": key}):
            return StoredAnswer(key=key, project=project, request_hash=row[0], status=row[1], body=row[2], at=row[3])
        return None

    def put_answer(self, answer: StoredAnswer) -> None:
        row = {**msgspec.structs.asdict(answer), "owner_user": None, "owner_uid": None, "generation": 1}
        if not self._change(sql.PUT_ANSWER, row):
            raise Conflict(f"The answer to the key {answer.key} is stored already.")

    def forget_answers(self, before: int) -> None:
        self._change(sql.FORGET_ANSWERS, {"before": before})

    def add_event(self, event: Event) -> None:
        row = msgspec.structs.asdict(event)
        self._change(sql.ADD_EVENT, {**row, "owner_user": row.pop("owner"), "owner_uid": None, "generation": 1})

    def events(self, kind: str | None = None, subject: str | None = None, limit: int = 1000) -> list[Event]:
        wanted: dict[str, object] = {"limit": max(0, limit)}
        wanted |= {} if kind is None else {"kind": kind}
        wanted |= {} if subject is None else {"subject": subject}
        statement = sql.EVENTS[kind is not None, subject is not None]
        return [Event(*row) for row in self._rows(statement, wanted)][::-1]

    # the site

    def machine(self, machine: MachineId = OWN_MACHINE) -> Machine | None:
        return next(iter(self._machines(sql.POOL_MACHINE, {"id": machine}) if machine else self._machines(sql.OWN_MACHINE)), None)

    def machines(self) -> list[Machine]:
        return [*self._machines(sql.OWN_MACHINE), *self._machines(sql.POOL_MACHINES)]

    def _machines(self, statement: Statement, wanted: Mapping[str, object] = {}) -> list[Machine]:
        try:
            return [_read_machine(body, crc) for body, crc in self._rows(statement, wanted)]
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as err:
            raise damaged(self._path, f"the content of a row is not what was written ({err})", detail="machine") from err

    def put_machine(self, machine: Machine) -> None:
        hello = (self._number(sql.LAST_HELLO) or 0) + 1
        self._change(sql.PUT_MACHINE, {"id": machine.id, "hello": hello, "pool": machine.pool, **_content(machine)})

    def delete_machine(self, machine: MachineId) -> bool:
        return self._change(sql.DELETE_MACHINE, {"id": machine}) > 0

    def counter(self, name: str) -> int:
        return self._number(sql.COUNTER, {"name": name}) or 0

    def bump(self, name: str) -> int:
        self.wrote = True
        return self._number(sql.BUMP, {"name": name}) or 0

    def counters(self) -> dict[str, int]:
        """All counters; for the mark beside the store."""
        return {row[0]: row[1] for row in self._rows(sql.COUNTERS)}

    def raise_counters(self, least: Mapping[str, int]) -> None:
        """Bring every counter to at least this, so that nothing numbered before is numbered so again."""
        for name, value in least.items():
            self._change(sql.RAISE, {"name": name, "value": value})

    # the connection

    def _put_object(
        self,
        what: str,
        statements: sql.Put,
        identity: Sequence[str],
        thing: Job | Function | Revision | ApiKey | Secret | Account | Quota | Schedule | Call | Volume | Image | Pool | Pilot,
        columns: Mapping[str, object],
    ) -> None:
        insert, update, generation = statements
        row = {
            **columns,
            "project": thing.project,
            "owner_user": thing.owner.user,
            "owner_uid": thing.owner.uid,
            "generation": thing.generation,
            **_content(thing),
        }
        same = {f"id_{name}": row[name] for name in identity}
        if thing.generation == 1:
            changed = self._change(insert, row)
        else:
            changed = self._change(update, {**row, **same, "generation_before": thing.generation - 1})
        if not changed:
            conflict = check_generation(what, self._number(generation, same), thing.generation)
            raise conflict or damaged(self._path, f"the row of {what} can't be written")

    def _change(self, statement: Statement, values: Mapping[str, object] | list[dict[str, object]]) -> int:
        """Rows changed."""
        self.wrote = True
        try:
            return statement.change(self._connection, values)
        except self._faults as err:
            raise self._fail(err, "writing") from err

    def _rows(self, statement: Statement, values: Mapping[str, object] = {}) -> Sequence[Any]:
        try:
            return statement.rows(self._connection, values)
        except self._faults as err:
            raise self._fail(err, "reading") from err

    def _fail(self, err: BaseException, doing: str) -> SteelyardError:
        self.fault = translate(err, self._path, doing)
        return self.fault

    def _number(self, statement: Statement, values: Mapping[str, object] = {}) -> int | None:
        """First column of the first row."""
        rows = self._rows(statement, values)
        return rows[0][0] if rows else None

    def _one(self, decoder: msgspec.json.Decoder[_S], statement: Statement, values: Mapping[str, object] = {}) -> _S | None:
        found = self._all(decoder, statement, values)
        return found[0] if found else None

    def _all(self, decoder: msgspec.json.Decoder[_S], statement: Statement, values: Mapping[str, object] = {}) -> list[_S]:
        """Bodies as objects. One that is not what we wrote means damage that left the file's structure whole."""
        rows = self._rows(statement, values)
        try:
            return [decoder.decode(_check_content(row[0], row[1])) for row in rows]
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as err:
            detail = " ".join(str(statement).split())
            raise damaged(self._path, f"the content of a row is not what was written ({err})", detail=detail) from err


@functools.lru_cache(maxsize=4)
def _read_machine(body: str, crc: int) -> Machine:
    """Every submit reads the machine, which is tens of kilobytes and hardly ever changes; frozen, so it may be shared."""
    return _decode_machine.decode(_check_content(body, crc))


def _content(thing: msgspec.Struct) -> dict[str, object]:
    body = _encode(thing)
    return {"body": body.decode(), "body_crc": zlib.crc32(body)}


def _check_content(body: str, crc: int) -> bytes:
    content = body.encode()
    if zlib.crc32(content) != crc:
        raise ValueError("its checksum differs")
    return content
