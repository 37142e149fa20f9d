"""Routes of volumes: create, list, delete.

The machine's agent makes the folder before the volume is stored, and deletes it before the volume is forgotten: killed at any
moment, a volume that is listed has its folder, or says that it is being deleted, and asking again goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.params import Parameter

from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.services import Services, services_of
from steelyard.api.views import volume_view
from steelyard.control import ASSIGNMENT
from steelyard.errors import Conflict, NotFound, Refused, SteelyardError
from steelyard.model.function import Function, FunctionState
from steelyard.model.ids import DEFAULT_PROJECT, NAME
from steelyard.model.job import JobState
from steelyard.model.mount import VolumeMount
from steelyard.model.volume import Volume, VolumeSeen
from steelyard.store import Event, Tx
from steelyard.wire.agent import VolumeMake
from steelyard.wire.api import VolumeCreate, VolumeView

VolumePath = Annotated[str, Parameter(min_length=1, max_length=255, description="A volume's name.")]
Force = Annotated[bool, Parameter(description="Also where only what does not run at this moment uses it.")]


class Use(msgspec.Struct, frozen=True):
    """What mounts a volume."""

    #: for people, such as "function embed"
    what: str
    #: no process of it runs, nor will one by itself
    rests: bool


@post("/v1/volumes", status_code=201, before_request=require_json, responses=errors(409, 413, 415, 422, 503, 507))
async def create_volume(
    request: Request[Any, Any, Any], data: VolumeCreate, idempotency_key: IdempotencyKey
) -> Response[VolumeView]:
    """Make a volume: an empty folder on the machine that outlives what mounts it, or a name for a folder that is there."""
    services = services_of(request)
    if not NAME.fullmatch(data.name):
        raise Refused("A volume's name has up to 63 of a-z, 0-9 and -, with no - at the ends.", code="bad-name")
    if data.path is not None and not data.path.startswith("/"):
        raise Refused("The path of a volume is absolute.", code="bad-path")
    before = await services.store.read(lambda tx: tx.volume(DEFAULT_PROJECT, data.name))
    if before is None:
        body = msgspec.json.encode(VolumeMake(services.owner, data.path or ""))
        made = await _ask(services, "volume-make", data.name, body)
    else:
        made = b""
    now = services.clock.now_us()

    def create(tx: Tx) -> VolumeView:
        if tx.volume(DEFAULT_PROJECT, data.name) is not None or before is not None:
            text = f"There is a volume {data.name} already. Use it, or choose another name."
            raise Conflict(text, code="name-taken")
        volume = Volume(data.name, DEFAULT_PROJECT, services.owner, 1, made.decode(), now, external=data.path is not None)
        tx.put_volume(volume)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "volume", data.name, f"created at {volume.path}"))
        return volume_view(volume, None, ())

    return await mutate(request, idempotency_key, 201, create)


@get("/v1/volumes", responses=errors())
async def list_volumes(request: Request[Any, Any, Any]) -> list[VolumeView]:
    """With what is in them as it was measured last, and who uses them. Without an agent nobody can tell sizes."""
    services = services_of(request)

    def read(tx: Tx) -> list[tuple[Volume, list[Use]]]:
        return [(volume, find_uses(tx, volume.name)) for volume in tx.volumes()]

    rows = await services.store.read(read)
    seen: dict[str, VolumeSeen] = {}
    if rows:
        try:
            paths = list(dict.fromkeys(volume.path for volume, _ in rows))
            answer = await _ask(services, "volumes", "", msgspec.json.encode(paths))
            seen = {each.path: each for each in msgspec.json.decode(answer, type=list[VolumeSeen])}
        except SteelyardError as err:
            seen = {volume.path: VolumeSeen(volume.path, error=err.public) for volume, _ in rows}
    return [volume_view(volume, seen.get(volume.path), [use.what for use in uses]) for volume, uses in rows]


@delete("/v1/volumes/{name:str}", status_code=204, responses=errors(404, 409, 422, 503, 507))
async def delete_volume(
    request: Request[Any, Any, Any], name: VolumePath, idempotency_key: IdempotencyKey, force: Force = False
) -> Response[None]:
    """Delete a volume and what is in it; of one with a path of its own only the name. Refused while anything uses it."""
    services = services_of(request)
    now = services.clock.now_us()

    def begin(tx: Tx) -> Volume | None:
        volume = tx.volume(DEFAULT_PROJECT, name)
        if volume is None:
            return None
        uses = find_uses(tx, name)
        if any(not (use.rests and force) for use in uses):
            raise Conflict(_explain_uses(name, uses), code="in-use")
        if volume.deleting:
            return volume
        volume = msgspec.structs.replace(volume, generation=volume.generation + 1, deleting=True)
        tx.put_volume(volume)
        return volume

    def finish(tx: Tx) -> None:
        if not tx.delete_volume(DEFAULT_PROJECT, name):
            raise NotFound(f"There is no volume {name}. `steelyard volumes list` shows them.")
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "volume", name, "deleted"))

    volume = await services.store.write(begin)
    if volume is not None and not volume.external:
        await _ask(services, "volume-delete", name)
    answer = await mutate(request, idempotency_key, 204, finish)
    services.driver.poke(ASSIGNMENT)
    return answer


def find_uses(tx: Tx, name: str) -> list[Use]:
    """Living jobs, deployed functions and schedules that mount it."""
    living = tx.jobs([state for state in JobState if not state.terminal])
    uses = [Use(f"job {job.id}", rests=False) for job in living if _names(job.spec.volumes, name)]
    uses += [
        Use(f"function {function.name}", _sleeps(function))
        for function in tx.functions()
        if any(_names(live.spec.volumes, name) for live in function.live.values())
    ]
    return uses + [
        Use(f"schedule {row.name}", rests=True)
        for row in tx.schedules()
        if row.spec is not None and _names(row.spec.volumes, name)
    ]


def _names(volumes: Iterable[VolumeMount], name: str) -> bool:
    return any(volume.name == name for volume in volumes)


def _sleeps(function: Function) -> bool:
    return function.state in (FunctionState.SLEEPING, FunctionState.FAILED) and not function.replicas and not function.waking


def _explain_uses(name: str, uses: list[Use]) -> str:
    told = ", ".join(use.what for use in uses[:5]) + (f" and {len(uses) - 5} more" if len(uses) > 5 else "")
    if all(use.rests for use in uses):
        return f"Volume {name} is used by {told}. Nothing was deleted. None of it runs now: with --force it goes all the same."
    return f"Volume {name} is used by {told}. Nothing was deleted. Stop or delete that first."


async def _ask(services: Services, what: str, name: str, body: bytes = b"") -> bytes:
    answer = await services.hub.ask(what, name, body=body)
    if answer.error:
        raise Refused(answer.error, code="volume-refused")
    return answer.data


VOLUME_ROUTES = (create_volume, list_volumes, delete_volume)
