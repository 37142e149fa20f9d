"""Which statements does the store make? All of them, written once with SQLAlchemy Core, for `transaction.py` to run."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.store import tables
from steelyard.store.statement import Statement

_p = sa.bindparam
_job, _fn, _key = tables.job.c, tables.function.c, tables.api_key.c
_acc, _quo, _sched = tables.account.c, tables.quota.c, tables.schedule.c
_cold, _ans, _ev = tables.coldstart.c, tables.answer.c, tables.event.c
_machine, _counter = tables.machine.c, tables.counter.c

_call, _rev = tables.call.c, tables.revision.c
_secret, _vol, _image = tables.secret.c, tables.volume.c, tables.image.c
_pool, _pilot = tables.pool.c, tables.pilot.c

#: (insert unless there, update of exactly the generation before, stored generation)
Put = tuple[Statement, Statement, Statement]


def _columns(table: sa.Table) -> dict[str, sa.ColumnElement[object]]:
    """Every column but the order of arrival, as a parameter of its name."""
    return {column.name: _p(column.name) for column in table.c if column.name != "seq"}


def _put(table: sa.Table, *identity: str) -> Put:
    same = sa.and_(*(table.c[name] == _p(f"id_{name}") for name in identity))
    columns = _columns(table)
    if "change" in columns:
        # an index that is read from its end: a few microseconds, and no row of its own to lock
        columns["change"] = sa.select(sa.func.coalesce(sa.func.max(table.c.change), 0) + 1).scalar_subquery()
    return (
        Statement(upsert(table).values(columns).on_conflict_do_nothing()),
        Statement(sa.update(table).where(same, table.c.generation == _p("generation_before")).values(columns)),
        Statement(sa.select(table.c.generation).where(same)),
    )


_jobs = sa.select(_job.body, _job.body_crc)
_jobs_newest = _jobs.order_by(_job.seq.desc()).limit(_p("limit"))
_in_states = _job.state.in_(_p("states", expanding=True))
JOB = Statement(_jobs.where(_job.id == _p("id")))
JOBS = Statement(_jobs.order_by(_job.seq))
JOBS_NEWEST = Statement(_jobs_newest)
JOBS_IN = Statement(_jobs.order_by(_job.seq).where(_in_states))
JOBS_IN_NEWEST = Statement(_jobs_newest.where(_in_states))
_other = tables.job.alias("other").c
#: looked for forwards from each row, so that all rows together look at an array's elements about once
_later = sa.select(sa.literal(1)).where(_other.array_id == _job.array_id, _other.seq > _job.seq)
_later_in = _later.where(_other.state.in_(_p("states", expanding=True)))
JOB_HEADS = Statement(_jobs_newest.where(~_later.exists()))
JOB_HEADS_IN = Statement(_jobs_newest.where(_in_states, ~_later_in.exists()))
JOBS_OF_ARRAY = Statement(_jobs.order_by(_job.seq).where(_job.array_id == _p("array")))
LAST_CHANGE = Statement(sa.select(sa.func.coalesce(sa.func.max(_job.change), 0)))
JOBS_CHANGED = Statement(_jobs.where(_job.change > _p("since")).order_by(_job.seq))
PUT_JOB = _put(tables.job, "id")

_calls = sa.select(_call.body, _call.body_crc)
_calls_newest = _calls.order_by(_call.seq.desc()).limit(_p("limit"))
_calls_in = _call.state.in_(_p("states", expanding=True))
CALL = Statement(_calls.where(_call.id == _p("id")))
#: by what is asked for: (the function, the states)
CALLS_NEWEST = {
    (False, False): Statement(_calls_newest),
    (True, False): Statement(_calls_newest.where(_call.function == _p("function"))),
    (False, True): Statement(_calls_newest.where(_calls_in)),
    (True, True): Statement(_calls_newest.where(_call.function == _p("function"), _calls_in)),
}
CALLS_IN = Statement(_calls.order_by(_call.seq).where(_calls_in))
LAST_CALL_CHANGE = Statement(sa.select(sa.func.coalesce(sa.func.max(_call.change), 0)))
CALLS_CHANGED = Statement(_calls.where(_call.change > _p("since")).order_by(_call.seq))
PUT_CALL = _put(tables.call, "id")
CALL_IDS = Statement(sa.select(_call.id))
#: never the row that changed last: the number of its change would be given once more
_older = _call.change < sa.select(sa.func.max(_call.change)).scalar_subquery()
CALLS_ENDED = Statement(
    sa.select(_call.id).where(_call.ended_at < _p("before"), _older).order_by(_call.ended_at, _call.seq).limit(_p("limit"))
)
DELETE_CALL = Statement(sa.delete(tables.call).where(_call.id == _p("id")))
DELETE_EVENTS = Statement(sa.delete(tables.event).where(_ev.kind == _p("kind"), _ev.subject == _p("subject")))

_one_function = sa.and_(_fn.project == _p("project"), _fn.name == _p("name"))
FUNCTION = Statement(sa.select(_fn.body, _fn.body_crc).where(_one_function))
FUNCTIONS = Statement(sa.select(_fn.body, _fn.body_crc).order_by(_fn.seq))
FUNCTION_OWNER = Statement(sa.select(_fn.owner_user, _fn.owner_uid).where(_one_function))
PUT_FUNCTION = _put(tables.function, "project", "name")
DELETE_FUNCTION = Statement(sa.delete(tables.function).where(_one_function))

_all_revisions = sa.and_(_rev.project == _p("project"), _rev.function == _p("function"))
REVISIONS = Statement(sa.select(_rev.body, _rev.body_crc).where(_all_revisions).order_by(_rev.revision))
REVISION = Statement(sa.select(_rev.body, _rev.body_crc).where(_all_revisions, _rev.revision == _p("revision")))
PUT_REVISION = _put(tables.revision, "project", "function", "revision")
#: all but the newest that many
_kept_revisions = sa.select(_rev.seq).where(_all_revisions).order_by(_rev.revision.desc()).limit(_p("keep"))
FORGET_REVISIONS = Statement(sa.delete(tables.revision).where(_all_revisions, _rev.seq.not_in(_kept_revisions)))

KEYS = Statement(sa.select(_key.body, _key.body_crc).order_by(_key.seq))
PUT_KEY = _put(tables.api_key, "project", "name")
DELETE_KEY = Statement(sa.delete(tables.api_key).where(_key.project == _p("project"), _key.name == _p("name")))

_one_secret = sa.and_(_secret.project == _p("project"), _secret.name == _p("name"))
SECRETS = Statement(sa.select(_secret.body, _secret.body_crc).order_by(_secret.seq))
SECRET = Statement(sa.select(_secret.body, _secret.body_crc).where(_one_secret))
PUT_SECRET = _put(tables.secret, "project", "name")
DELETE_SECRET = Statement(sa.delete(tables.secret).where(_one_secret))

ACCOUNTS = Statement(sa.select(_acc.body, _acc.body_crc).order_by(_acc.seq))
ACCOUNT = Statement(sa.select(_acc.body, _acc.body_crc).where(_acc.name == _p("name")))
PUT_ACCOUNT = _put(tables.account, "name")

QUOTAS = Statement(sa.select(_quo.body, _quo.body_crc).order_by(_quo.seq))
PUT_QUOTA = _put(tables.quota, "project")
DELETE_QUOTA = Statement(sa.delete(tables.quota).where(_quo.project == _p("project")))

_one_schedule = sa.and_(_sched.project == _p("project"), _sched.name == _p("name"))
SCHEDULES = Statement(sa.select(_sched.body, _sched.body_crc).order_by(_sched.seq))
SCHEDULE = Statement(sa.select(_sched.body, _sched.body_crc).where(_one_schedule))
PUT_SCHEDULE = _put(tables.schedule, "project", "name")
DELETE_SCHEDULE = Statement(sa.delete(tables.schedule).where(_one_schedule))

_one_volume = sa.and_(_vol.project == _p("project"), _vol.name == _p("name"))
VOLUMES = Statement(sa.select(_vol.body, _vol.body_crc).order_by(_vol.seq))
VOLUME = Statement(sa.select(_vol.body, _vol.body_crc).where(_one_volume))
PUT_VOLUME = _put(tables.volume, "project", "name")
DELETE_VOLUME = Statement(sa.delete(tables.volume).where(_one_volume))

POOLS = Statement(sa.select(_pool.body, _pool.body_crc).order_by(_pool.seq))
POOL = Statement(sa.select(_pool.body, _pool.body_crc).where(_pool.name == _p("name")))
PUT_POOL = _put(tables.pool, "name")
DELETE_POOL = Statement(sa.delete(tables.pool).where(_pool.name == _p("name")))

_pilots = sa.select(_pilot.body, _pilot.body_crc).order_by(_pilot.seq)
PILOTS = Statement(_pilots)
PILOTS_LIVING = Statement(_pilots.where(_pilot.ended_at.is_(None)))
PILOT = Statement(_pilots.where(_pilot.id == _p("id")))
PUT_PILOT = _put(tables.pilot, "id")
FORGET_PILOTS = Statement(sa.delete(tables.pilot).where(_pilot.ended_at < _p("before")))

_one_image = sa.and_(_image.owner_uid == _p("owner_uid"), _image.id == _p("id"))
IMAGES = Statement(sa.select(_image.body, _image.body_crc).order_by(_image.seq))
IMAGE = Statement(sa.select(_image.body, _image.body_crc).where(_one_image))
PUT_IMAGE = _put(tables.image, "owner_uid", "id")
DELETE_IMAGE = Statement(sa.delete(tables.image).where(_one_image))

_coldstarts = sa.select(_cold.body, _cold.body_crc).order_by(_cold.seq.desc()).limit(_p("limit"))
COLDSTARTS = Statement(_coldstarts)
COLDSTARTS_OF = Statement(_coldstarts.where(_cold.function == _p("function")))
ADD_COLDSTART = Statement(upsert(tables.coldstart).values(_columns(tables.coldstart)).on_conflict_do_nothing())

ANSWER = Statement(
    sa.select(_ans.request_hash, _ans.status, _ans.body, _ans.at).where(_ans.project == _p("project"), _ans.key == _p("key"))
)
PUT_ANSWER = Statement(upsert(tables.answer).values(_columns(tables.answer)).on_conflict_do_nothing())
FORGET_ANSWERS = Statement(sa.delete(tables.answer).where(_ans.at < _p("before")))

_events = (
    sa.select(_ev.at, _ev.project, _ev.owner_user, _ev.kind, _ev.subject, _ev.text).order_by(_ev.seq.desc()).limit(_p("limit"))
)
ADD_EVENT = Statement(sa.insert(tables.event).values(_columns(tables.event)))
#: by what is asked for: (the kind, the subject)
EVENTS = {
    (False, False): Statement(_events),
    (True, False): Statement(_events.where(_ev.kind == _p("kind"))),
    (False, True): Statement(_events.where(_ev.subject == _p("subject"))),
    (True, True): Statement(_events.where(_ev.kind == _p("kind"), _ev.subject == _p("subject"))),
}

_machines = sa.select(_machine.body, _machine.body_crc)
OWN_MACHINE = Statement(_machines.where(_machine.pool == "").order_by(_machine.hello.desc()).limit(1))
POOL_MACHINE = Statement(_machines.where(_machine.pool != "", _machine.id == _p("id")))
POOL_MACHINES = Statement(_machines.where(_machine.pool != "").order_by(_machine.pool, _machine.id))
DELETE_MACHINE = Statement(sa.delete(tables.machine).where(_machine.id == _p("id")))
LAST_HELLO = Statement(sa.select(sa.func.coalesce(sa.func.max(_machine.hello), 0)))
_insert_machine = upsert(tables.machine).values(
    id=_p("id"),
    project=DEFAULT_PROJECT,
    generation=1,
    hello=_p("hello"),
    pool=_p("pool"),
    body=_p("body"),
    body_crc=_p("body_crc"),
)
PUT_MACHINE = Statement(
    _insert_machine.on_conflict_do_update(
        index_elements=["id"],
        set_={
            "generation": _machine.generation + 1,
            "hello": _insert_machine.excluded.hello,
            "pool": _insert_machine.excluded.pool,
            "body": _insert_machine.excluded.body,
            "body_crc": _insert_machine.excluded.body_crc,
        },
    )
)

COUNTER = Statement(sa.select(_counter.generation).where(_counter.name == _p("name")))
COUNTERS = Statement(sa.select(_counter.name, _counter.generation))
_add_to_counter = upsert(tables.counter).values(name=_p("name"), project=DEFAULT_PROJECT, generation=1)
BUMP = Statement(
    _add_to_counter.on_conflict_do_update(index_elements=["name"], set_={"generation": _counter.generation + 1}).returning(
        _counter.generation
    )
)
_raise_counter = upsert(tables.counter).values(name=_p("name"), project=DEFAULT_PROJECT, generation=_p("value"))
RAISE = Statement(
    _raise_counter.on_conflict_do_update(
        index_elements=["name"], set_={"generation": sa.func.max(_counter.generation, _raise_counter.excluded.generation)}
    )
)
