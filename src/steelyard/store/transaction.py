"""What can be read and written inside one SQL transaction? `steelyard.store.Tx` on one connection.

Statements are built once, at import, and compiled once by SQLAlchemy's cache (10 us a statement). Knows nothing of threads,
commits or fsync (`sql.py` does), and lets no error of SQLAlchemy or the driver out.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError

from steelyard.errors import Conflict, SteelyardError
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import ApiKey, Function
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId, ProjectName
from steelyard.model.job import Job, JobState
from steelyard.model.machine import Machine
from steelyard.model.site import Account, Quota, Schedule
from steelyard.store import Event, StoredAnswer, tables
from steelyard.store.faults import damaged, translate
from steelyard.store.generation import check_generation

_S = TypeVar("_S", bound=msgspec.Struct)

_p = sa.bindparam
_job, _fn, _key = tables.job.c, tables.function.c, tables.api_key.c
_acc, _quo, _sched = tables.account.c, tables.quota.c, tables.schedule.c
_cold, _ans, _ev = tables.coldstart.c, tables.answer.c, tables.event.c


#: an index that is read from its end: a few microseconds, and no row of its own to lock
_NEXT_CHANGE = sa.select(sa.func.coalesce(sa.func.max(_job.change), 0) + 1).scalar_subquery()


def _put(table: sa.Table, *identity: str) -> tuple[sa.Executable, sa.Executable, sa.Executable]:
    """(insert unless there, update of exactly the generation before, stored generation) of an object table."""
    same = sa.and_(*(table.c[name] == _p(f"id_{name}") for name in identity))
    columns: dict[str, sa.ColumnElement[object]] = {column.name: _p(column.name) for column in table.c if column.name != "seq"}
    if "change" in columns:
        columns["change"] = _NEXT_CHANGE
    return (
        upsert(table).values(columns).on_conflict_do_nothing(),
        sa.update(table).where(same, table.c.generation == _p("generation_before")).values(columns),
        sa.select(table.c.generation).where(same),
    )


_JOB = sa.select(_job.body, _job.body_crc).where(_job.id == _p("id"))
_JOBS = sa.select(_job.body, _job.body_crc).order_by(_job.seq)
_JOBS_NEWEST = sa.select(_job.body, _job.body_crc).order_by(_job.seq.desc()).limit(_p("limit"))
_IN_STATES = _job.state.in_(_p("states", expanding=True))
_JOBS_IN = _JOBS.where(_IN_STATES)
_JOBS_IN_NEWEST = _JOBS_NEWEST.where(_IN_STATES)
_JOBS_OF_ARRAY = _JOBS.where(_job.array_id == _p("array"))
_LAST_CHANGE = sa.select(sa.func.coalesce(sa.func.max(_job.change), 0))
_JOBS_CHANGED = sa.select(_job.body, _job.body_crc).where(_job.change > _p("since")).order_by(_job.seq)
_PUT_JOB = _put(tables.job, "id")

_FUNCTION = sa.select(_fn.body, _fn.body_crc).where(_fn.project == _p("project"), _fn.name == _p("name"))
_FUNCTIONS = sa.select(_fn.body, _fn.body_crc).order_by(_fn.seq)
_PUT_FUNCTION = _put(tables.function, "project", "name")
_DELETE_FUNCTION = sa.delete(tables.function).where(_fn.project == _p("project"), _fn.name == _p("name"))

_KEYS = sa.select(_key.body, _key.body_crc).order_by(_key.seq)
_PUT_KEY = _put(tables.api_key, "project", "name")
_DELETE_KEY = sa.delete(tables.api_key).where(_key.project == _p("project"), _key.name == _p("name"))

_ACCOUNTS = sa.select(_acc.body, _acc.body_crc).order_by(_acc.seq)
_ACCOUNT = _ACCOUNTS.where(_acc.name == _p("name"))
_PUT_ACCOUNT = _put(tables.account, "name")

_QUOTAS = sa.select(_quo.body, _quo.body_crc).order_by(_quo.seq)
_PUT_QUOTA = _put(tables.quota, "project")
_DELETE_QUOTA = sa.delete(tables.quota).where(_quo.project == _p("project"))

_SCHEDULES = sa.select(_sched.body, _sched.body_crc).order_by(_sched.seq)
_ONE_SCHEDULE = sa.and_(_sched.project == _p("project"), _sched.name == _p("name"))
_SCHEDULE = _SCHEDULES.where(_ONE_SCHEDULE)
_PUT_SCHEDULE = _put(tables.schedule, "project", "name")
_DELETE_SCHEDULE = sa.delete(tables.schedule).where(_ONE_SCHEDULE)

_COLDSTARTS = sa.select(_cold.body, _cold.body_crc).order_by(_cold.seq.desc()).limit(_p("limit"))
_COLDSTARTS_OF = _COLDSTARTS.where(_cold.function == _p("function"))
_ADD_COLDSTARTS = upsert(tables.coldstart).on_conflict_do_nothing()
_FUNCTION_OWNER = sa.select(_fn.owner_user, _fn.owner_uid).where(_fn.project == _p("project"), _fn.name == _p("name"))

_ANSWER = sa.select(_ans.request_hash, _ans.status, _ans.body, _ans.at).where(
    _ans.project == _p("project"), _ans.key == _p("key")
)
_PUT_ANSWER = upsert(tables.answer).on_conflict_do_nothing()
_FORGET_ANSWERS = sa.delete(tables.answer).where(_ans.at < _p("before"))

_ADD_EVENT = sa.insert(tables.event)
_EVENTS = (
    sa.select(_ev.at, _ev.project, _ev.owner_user, _ev.kind, _ev.subject, _ev.text).order_by(_ev.seq.desc()).limit(_p("limit"))
)

_MACHINE = sa.select(tables.machine.c.body, tables.machine.c.body_crc).order_by(tables.machine.c.hello.desc()).limit(1)
_LAST_HELLO = sa.select(sa.func.coalesce(sa.func.max(tables.machine.c.hello), 0))
_insert_machine = upsert(tables.machine).values(
    id=_p("id"), project=DEFAULT_PROJECT, generation=1, hello=_p("hello"), body=_p("body"), body_crc=_p("body_crc")
)
_PUT_MACHINE = _insert_machine.on_conflict_do_update(
    index_elements=["id"],
    set_={
        "generation": tables.machine.c.generation + 1,
        "hello": _insert_machine.excluded.hello,
        "body": _insert_machine.excluded.body,
        "body_crc": _insert_machine.excluded.body_crc,
    },
)

_COUNTER = sa.select(tables.counter.c.generation).where(tables.counter.c.name == _p("name"))
_COUNTERS = sa.select(tables.counter.c.name, tables.counter.c.generation)
_add_to_counter = upsert(tables.counter).values(name=_p("name"), project=DEFAULT_PROJECT, generation=1)
_BUMP = _add_to_counter.on_conflict_do_update(
    index_elements=["name"], set_={"generation": tables.counter.c.generation + 1}
).returning(tables.counter.c.generation)
_raise_counter = upsert(tables.counter).values(name=_p("name"), project=DEFAULT_PROJECT, generation=_p("value"))
_RAISE = _raise_counter.on_conflict_do_update(
    index_elements=["name"], set_={"generation": sa.func.max(tables.counter.c.generation, _raise_counter.excluded.generation)}
)

_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job)
_decode_function = msgspec.json.Decoder(Function)
_decode_key = msgspec.json.Decoder(ApiKey)
_decode_account = msgspec.json.Decoder(Account)
_decode_quota = msgspec.json.Decoder(Quota)
_decode_schedule = msgspec.json.Decoder(Schedule)
_decode_coldstart = msgspec.json.Decoder(ColdStart)
_decode_machine = msgspec.json.Decoder(Machine)


class SqlTx:
    """`wrote` says whether anything was changed through it, `fault` what the database itself last failed with."""

    def __init__(self, connection: sa.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self.wrote = False
        self.fault: SteelyardError | None = None

    # jobs

    def job(self, job: JobId) -> Job | None:
        return self._one(_decode_job, _JOB, {"id": job})

    def jobs(self, states: Collection[JobState] | None = None, limit: int | None = None) -> list[Job]:
        wanted: dict[str, object] = {} if states is None else {"states": list(states)}
        if limit is None:
            return self._all(_decode_job, _JOBS if states is None else _JOBS_IN, wanted)
        statement = _JOBS_NEWEST if states is None else _JOBS_IN_NEWEST
        return self._all(_decode_job, statement, {**wanted, "limit": max(0, limit)})[::-1]

    def jobs_of_array(self, array: JobId) -> list[Job]:
        return self._all(_decode_job, _JOBS_OF_ARRAY, {"array": array})

    def jobs_changed(self, since: int) -> tuple[int, list[Job]]:
        newest = self._number(_LAST_CHANGE) or 0
        if since <= 0:
            return newest, self.jobs([state for state in JobState if not state.terminal])
        return newest, self._all(_decode_job, _JOBS_CHANGED, {"since": since}) if newest > since else []

    def put_job(self, job: Job) -> None:
        array = None if job.array is None else job.array.id
        row = {"id": job.id, "state": job.state, "submitted_at": job.submitted_at, "array_id": array}
        self._put_object(f"Job {job.id}", _PUT_JOB, ("id",), job, row)

    # shares, quotas and schedules

    def accounts(self) -> list[Account]:
        return self._all(_decode_account, _ACCOUNTS)

    def account(self, name: str) -> Account | None:
        return self._one(_decode_account, _ACCOUNT, {"name": name})

    def put_account(self, account: Account) -> None:
        self._put_object(f"Account {account.name}", _PUT_ACCOUNT, ("name",), account, {"name": account.name})

    def quotas(self) -> list[Quota]:
        return self._all(_decode_quota, _QUOTAS)

    def put_quota(self, quota: Quota) -> None:
        self._put_object(f"The quota of {quota.project}", _PUT_QUOTA, ("project",), quota, {})

    def delete_quota(self, project: ProjectName) -> bool:
        return self._change(_DELETE_QUOTA, {"project": project}) > 0

    def schedules(self) -> list[Schedule]:
        return self._all(_decode_schedule, _SCHEDULES)

    def schedule(self, project: ProjectName, name: str) -> Schedule | None:
        return self._one(_decode_schedule, _SCHEDULE, {"project": project, "name": name})

    def put_schedule(self, schedule: Schedule) -> None:
        self._put_object(f"Schedule {schedule.name}", _PUT_SCHEDULE, ("project", "name"), schedule, {"name": schedule.name})

    def delete_schedule(self, project: ProjectName, name: str) -> bool:
        return self._change(_DELETE_SCHEDULE, {"project": project, "name": name}) > 0

    # functions and keys

    def function(self, project: ProjectName, name: FunctionName) -> Function | None:
        return self._one(_decode_function, _FUNCTION, {"project": project, "name": name})

    def functions(self) -> list[Function]:
        return self._all(_decode_function, _FUNCTIONS)

    def put_function(self, function: Function) -> None:
        row = {
            "name": function.name,
            "state": function.state,
            "revision": function.revision,
            "deployed_at": function.deployed_at,
        }
        self._put_object(f"Function {function.name}", _PUT_FUNCTION, ("project", "name"), function, row)

    def delete_function(self, project: ProjectName, name: FunctionName) -> bool:
        return self._change(_DELETE_FUNCTION, {"project": project, "name": name}) > 0

    def keys(self) -> list[ApiKey]:
        return self._all(_decode_key, _KEYS)

    def put_key(self, key: ApiKey) -> None:
        self._put_object(f"Key {key.name}", _PUT_KEY, ("project", "name"), key, {"name": key.name, "created_at": key.created_at})

    def delete_key(self, project: ProjectName, name: str) -> bool:
        return self._change(_DELETE_KEY, {"project": project, "name": name}) > 0

    # history

    def add_coldstarts(self, rows: Sequence[ColdStart]) -> None:
        """The owner is the function's; NULL when that is gone already."""
        if not rows:
            return
        owners: dict[tuple[str, str], tuple[object, object]] = {(row.project, row.function): (None, None) for row in rows}
        for project, name in owners:
            for user, uid in self._rows(_FUNCTION_OWNER, {"project": project, "name": name}):
                owners[project, name] = (user, uid)
        self._change(
            _ADD_COLDSTARTS,
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
            return self._all(_decode_coldstart, _COLDSTARTS, {"limit": max(0, limit)})[::-1]
        return self._all(_decode_coldstart, _COLDSTARTS_OF, {"function": function, "limit": max(0, limit)})[::-1]

    def answer(self, project: ProjectName, key: str) -> StoredAnswer | None:
        for row in self._rows(_ANSWER, {"project": project, "key": key}):
            return StoredAnswer(key=key, project=project, request_hash=row[0], status=row[1], body=row[2], at=row[3])
        return None

    def put_answer(self, answer: StoredAnswer) -> None:
        row = {**msgspec.structs.asdict(answer), "owner_user": None, "owner_uid": None, "generation": 1}
        if not self._change(_PUT_ANSWER, row):
            raise Conflict(f"The answer to the key {answer.key} is stored already.")

    def forget_answers(self, before: int) -> None:
        self._change(_FORGET_ANSWERS, {"before": before})

    def add_event(self, event: Event) -> None:
        row = msgspec.structs.asdict(event)
        self._change(_ADD_EVENT, {**row, "owner_user": row.pop("owner"), "owner_uid": None, "generation": 1})

    def events(self, kind: str | None = None, subject: str | None = None, limit: int = 1000) -> list[Event]:
        statement, wanted = _EVENTS, {"limit": max(0, limit)}
        if kind is not None:
            statement, wanted = statement.where(_ev.kind == _p("kind")), {**wanted, "kind": kind}
        if subject is not None:
            statement, wanted = statement.where(_ev.subject == _p("subject")), {**wanted, "subject": subject}
        return [Event(*row) for row in self._rows(statement, wanted)][::-1]

    # the site

    def machine(self) -> Machine | None:
        rows = self._rows(_MACHINE)
        try:
            return _read_machine(rows[0][0], rows[0][1]) if rows else None
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as err:
            raise damaged(self._path, f"the content of a row is not what was written ({err})", detail="machine") from err

    def put_machine(self, machine: Machine) -> None:
        hello = (self._number(_LAST_HELLO) or 0) + 1
        self._change(_PUT_MACHINE, {"id": machine.id, "hello": hello, **_content(machine)})

    def counter(self, name: str) -> int:
        return self._number(_COUNTER, {"name": name}) or 0

    def bump(self, name: str) -> int:
        self.wrote = True
        return self._number(_BUMP, {"name": name}) or 0

    def counters(self) -> dict[str, int]:
        """All counters; for the mark beside the store."""
        return {row[0]: row[1] for row in self._rows(_COUNTERS)}

    def raise_counters(self, least: Mapping[str, int]) -> None:
        """Bring every counter to at least this, so that nothing numbered before is numbered so again."""
        for name, value in least.items():
            self._change(_RAISE, {"name": name, "value": value})

    # the connection

    def _put_object(
        self,
        what: str,
        statements: tuple[sa.Executable, sa.Executable, sa.Executable],
        identity: Sequence[str],
        thing: Job | Function | ApiKey | Account | Quota | Schedule,
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

    def _change(self, statement: sa.Executable, values: Any) -> int:
        """Rows changed."""
        self.wrote = True
        try:
            return self._connection.execute(statement, values).rowcount
        except SQLAlchemyError as err:
            raise self._fail(err, "writing") from err

    def _rows(self, statement: sa.Executable, values: Any = None) -> Sequence[Any]:
        try:
            return self._connection.execute(statement, values).all()
        except SQLAlchemyError as err:
            raise self._fail(err, "reading") from err

    def _fail(self, err: SQLAlchemyError, doing: str) -> SteelyardError:
        self.fault = translate(err, self._path, doing)
        return self.fault

    def _number(self, statement: sa.Executable, values: Any = None) -> int | None:
        """First column of the first row."""
        rows = self._rows(statement, values)
        return rows[0][0] if rows else None

    def _one(self, decoder: msgspec.json.Decoder[_S], statement: sa.Executable, values: Any = None) -> _S | None:
        found = self._all(decoder, statement, values)
        return found[0] if found else None

    def _all(self, decoder: msgspec.json.Decoder[_S], statement: sa.Executable, values: Any = None) -> list[_S]:
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
