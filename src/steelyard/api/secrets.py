"""Routes of secrets: create, list, delete. Values come in and never go out again, but to the agent, for the work that names them.

What is stored is sealed (`store/secret_box.py`). A request is remembered for its Idempotency-Key by a digest that is worth
nothing without the key file, so that nobody can try values against it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.params import Parameter

from steelyard.api.auth import is_agent, peer_of
from steelyard.api.door import Finding
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.clock import rfc3339
from steelyard.control import ASSIGNMENT
from steelyard.control.assignment import name_uses, name_version
from steelyard.control.live import refresh
from steelyard.errors import Conflict, NoRoom, NotFound, Refused, Unauthorized
from steelyard.lifecycle.redaction import Redactor
from steelyard.lifecycle.registry_login import Login, login_of_secret
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, JobId
from steelyard.model.job import Job, Owner
from steelyard.model.secret import PAST_MAX, Secret, SecretUse, check_secret, measure
from steelyard.store import Event, Tx
from steelyard.store.secret_box import SecretBox
from steelyard.wire.api import SecretPut, SecretValues, SecretView

#: more would be somebody's loop that makes them
SECRETS_MAX = 10_000
#: who uses a secret is told of so many
SHOWN_MAX = 5

SecretPath = Annotated[str, Parameter(min_length=1, max_length=255, description="A secret's name.")]
Force = Annotated[bool, Parameter(description="Also while something uses it: what starts afterwards fails.")]


@get("/v1/secrets", responses=errors())
async def list_secrets(request: Request[Any, Any, Any]) -> list[SecretView]:
    """Names, keys and who uses them. Values are never shown."""
    services = services_of(request)
    await refresh(services.live, services.store)
    jobs = _living(services)

    def read(tx: Tx) -> list[SecretView]:
        rows = tx.secrets()
        users = find_users(tx, jobs) if rows else {}
        return [_view(row, users.get((row.owner.user, row.name), ())) for row in rows]

    return await services.store.read(read)


@post("/v1/secrets", status_code=201, before_request=require_json, responses=errors(409, 413, 415, 422, 502, 507))
async def create_secret(
    request: Request[Any, Any, Any], data: SecretPut, idempotency_key: IdempotencyKey
) -> Response[SecretView]:
    """Store a secret, or replace one. Work that starts afterwards gets the new values; what runs keeps those it has."""
    services = services_of(request)
    now = services.clock.now_us()
    if (wrong := check_secret(data.name, data.values)) is not None:
        raise Refused(f"{wrong}. Nothing was stored.", code="bad-secret")

    def commit(tx: Tx) -> SecretView:
        stored = tx.secrets()
        before = next((row for row in stored if row.name == data.name), None)
        if before is not None and before.owner != services.owner:
            text = f"The name {data.name} is taken by a secret of {before.owner.user}. Choose another."
            raise Conflict(text, code="name-taken")
        if before is not None and not data.replace:
            raise Conflict(
                f"There is a secret {data.name} already. Nothing was changed. Replace all of it with --replace, or choose "
                "another name.",
                code="name-taken",
            )
        if before is None and len(stored) >= SECRETS_MAX:
            raise NoRoom(f"There are {SECRETS_MAX} secrets already. Delete some first.", code="too-many-secrets")
        sealed = services.box.seal(data.name, data.values, stored)
        row = Secret(
            name=data.name,
            project=DEFAULT_PROJECT,
            owner=services.owner,
            generation=1 if before is None else before.generation + 1,
            keys=tuple(sorted(data.values)),
            size_bytes=measure(data.values),
            created_at=now if before is None else before.created_at,
            changed_at=now,
            sealed=sealed,
            past=() if before is None else (before.sealed, *before.past)[:PAST_MAX],
        )
        tx.put_secret(row)
        text = "created" if before is None else "replaced"
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "secret", data.name, text))
        return _view(row)

    content = None
    if idempotency_key is not None:
        any_stored = await services.store.read(lambda tx: bool(tx.secrets()))
        content = services.box.digest(await request.body(), any_stored)
    answer = await mutate(request, idempotency_key, 201, commit, content=content)
    services.driver.poke(ASSIGNMENT)
    return answer


@delete("/v1/secrets/{name:str}", status_code=204, responses=errors(404, 409, 422, 507))
async def delete_secret(
    request: Request[Any, Any, Any], name: SecretPath, idempotency_key: IdempotencyKey, force: Force = False
) -> Response[None]:
    """Refused while a deployed function, a schedule or a job that has not ended uses it, unless forced."""
    services = services_of(request)
    now = services.clock.now_us()
    await refresh(services.live, services.store)
    jobs, since = _living(services), services.live.change

    def commit(tx: Tx) -> None:
        row = tx.secret(DEFAULT_PROJECT, name)
        if row is None:
            raise NotFound(f"There is no secret {name}. `steelyard secrets list` lists them.")
        newer = {job.id: job for job in tx.jobs_changed(since)[1]}
        users = find_users(tx, {**jobs, **newer}).get((row.owner.user, name), [])
        if users and not force:
            raise Conflict(
                f"{name} is used by {_tell(users)}. Nothing was deleted. Delete or stop these first; with --force it is deleted "
                "all the same, and what starts afterwards fails.",
                code="secret-used",
            )
        tx.delete_secret(DEFAULT_PROJECT, name)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "secret", name, "deleted"))

    answer = await mutate(request, idempotency_key, 204, commit)
    services.driver.poke(ASSIGNMENT)
    return answer


@get("/v1/secret-values/{owner:str}/{name:str}", include_in_schema=False)
async def get_values(request: Request[Any, Any, Any], owner: SecretPath, name: SecretPath) -> Response[SecretValues]:
    """For the agent, of what its assignment names."""
    services = services_of(request)
    if not is_agent(request):
        raise Unauthorized("Values of secrets are given to the machine's agent, and to nobody else.", code="never-shown")
    peer = peer_of(request)
    machine = OWN_MACHINE if peer is None else peer.machine
    row = await services.store.read(lambda tx: tx.secret(DEFAULT_PROJECT, name))
    if row is None or row.owner.user != owner or not services.hub.names_secret(machine, owner, name):
        raise NotFound(f"No work of {owner} is assigned that names a secret {name}.")
    values = SecretValues(name_version(row).version, services.box.open(row.name, row.sealed))
    return Response(values, headers={"Cache-Control": "no-store"})


def find_missing(tx: Tx, owner: Owner, uses: Sequence[SecretUse]) -> list[Finding]:
    """What work of that owner asks for and can't be given. `tx` is not read where nothing is asked for."""
    findings: list[Finding] = []
    given: dict[str, str] = {}
    for use in uses:
        row = tx.secret(DEFAULT_PROJECT, use.name)
        if row is None or row.owner != owner:
            text = f"{owner.user} has no secret {use.name}: make it with `steelyard secrets create {use.name}`"
            findings.append(Finding("no-such-secret", text))
            continue
        for key in () if use.as_files or use.for_registry else row.keys:
            if key in given:
                text = f"the secrets {given[key]} and {use.name} both have {key}, and a variable has one value: take one as files"
                findings.append(Finding("secret-twice", text))
            given[key] = use.name
    return findings


def find_login(tx: Tx, services: Services, secret: str) -> Login:
    """At a registry, by a secret of the owner's. Raises Refused or StoreDamaged."""
    refuse_findings(find_missing(tx, services.owner, (use := SecretUse(secret, for_registry=True),)))
    row = tx.secret(DEFAULT_PROJECT, use.name)
    assert row is not None  # else it would be missing
    return login_of_secret(secret, services.box.open(row.name, row.sealed))


def make_redactor(tx: Tx, box: SecretBox, owner: Owner, uses: Iterable[SecretUse]) -> Redactor | None:
    """Of the values that work of that owner is given, and those that it was given before they were replaced. None when there are
    none. Raises StoreDamaged when they can't be had: what is not known can't be hidden."""
    found: list[tuple[str, Mapping[str, str]]] = []
    for name in dict.fromkeys(use.name for use in uses):
        row = tx.secret(DEFAULT_PROJECT, name)
        if row is not None and row.owner == owner:
            found += [(name, box.open(name, sealed)) for sealed in (row.sealed, *row.past)]
    return Redactor(found) or None


def find_users(tx: Tx, jobs: Mapping[JobId, Job]) -> dict[tuple[str, str], list[str]]:
    """(owner, secret) -> what of theirs names it."""
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    for function in tx.functions():
        for name in sorted(name_uses(function)):
            users[function.owner.user, name].append(f"function {function.name}")
    for schedule in tx.schedules():
        for use in () if schedule.spec is None else schedule.spec.secrets:
            users[schedule.owner.user, use.name].append(f"schedule {schedule.name}")
    for job in jobs.values():
        for use in () if job.state.terminal else job.spec.secrets:
            users[job.owner.user, use.name].append(f"job {job.id}")
    return users


def _living(services: Services) -> dict[JobId, Job]:
    """Only those that name any: there may be very many others."""
    return {job.id: job for job in (*services.live.queued, *services.live.holding) if job.spec.secrets}


def _tell(users: Sequence[str]) -> str:
    return ", ".join(users[:SHOWN_MAX]) + (f" and {len(users) - SHOWN_MAX} more" if len(users) > SHOWN_MAX else "")


def _view(row: Secret, users: Sequence[str] = ()) -> SecretView:
    return SecretView(
        name=row.name,
        project=row.project,
        owner=row.owner.user,
        generation=row.generation,
        keys=row.keys,
        created_at=rfc3339(row.created_at) or "",
        changed_at=rfc3339(row.changed_at) or "",
        used_by=tuple(users),
    )


SECRET_ROUTES = (list_secrets, create_secret, delete_secret, get_values)
