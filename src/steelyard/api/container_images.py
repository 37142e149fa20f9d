"""Routes of container images: fetch one ahead of need, list those of the machine, remove one. The machine's agent knows them;
nothing of them is stored here."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.params import Parameter

from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.secrets import find_login
from steelyard.api.services import Services, services_of
from steelyard.api.views import container_image_view
from steelyard.control.images import find_users, living
from steelyard.errors import Conflict, NotFound, Refused
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.model.image import parse_image
from steelyard.store import Event, Tx
from steelyard.wire.agent import ContainerImageSeen, PullStart
from steelyard.wire.images import ContainerImageView, Pull, PullView

PullPath = Annotated[str, Parameter(min_length=1, max_length=32, description="The id of a pull.")]
Digest = Annotated[str, Parameter(min_length=1, max_length=64, description="The digest of a container image, 64 hex digits.")]


@post("/v1/pulls", status_code=201, before_request=require_json, responses=errors(413, 415, 422, 503))
async def start_pull(request: Request[Any, Any, Any], data: Pull) -> PullView:
    """Have a container image fetched, or join who fetches it already. One that is there is READY at once."""
    services = services_of(request)
    reference = parse_image(data.image).text
    login = await services.store.read(lambda tx: find_login(tx, services, data.secret)) if data.secret else None
    body = msgspec.json.encode(PullStart(reference, services.owner, login))
    return msgspec.json.decode(await _ask(services, "image-pull", "", body), type=PullView)


@get("/v1/pulls/{pull:str}", responses=errors(404, 422, 503))
async def get_pull(request: Request[Any, Any, Any], pull: PullPath) -> PullView:
    """How far it is. Known to the machine for as long as its agent runs."""
    told = await _ask(services_of(request), "image-pull-state", pull)
    if not told:
        raise NotFound("There is no such pull, or it was forgotten. Ask for the image again: what came whole is kept.")
    return msgspec.json.decode(told, type=PullView)


@get("/v1/container-images", responses=errors(422, 503))
async def list_container_images(request: Request[Any, Any, Any]) -> list[ContainerImageView]:
    """The one that was used last comes first."""
    return await _list(services_of(request))


@delete("/v1/container-images/{digest:str}", status_code=204, responses=errors(404, 409, 422, 503, 507))
async def delete_container_image(request: Request[Any, Any, Any], digest: Digest) -> Response[None]:
    """Its files, and what no other image shares. Refused while something names it or runs on it."""
    services = services_of(request)
    now = services.clock.now_us()
    found = next((each for each in await _list(services) if each.id == digest), None)
    if found is None:
        raise NotFound(f"There is no container image {digest[:12]}. `steelyard image ls` shows them.")
    name = found.references[0] if found.references else digest[:12]
    if found.used_by:
        users = ", ".join(found.used_by[:5]) + (" and more" if len(found.used_by) > 5 else "")
        raise Conflict(
            f"The image {name} is needed by {users}. Nothing was removed. Delete or stop these first.", code="image-used"
        )
    await _ask(services, "image-remove", digest)
    await services.store.write(
        lambda tx: tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "image", digest, f"{name} removed"))
    )
    return Response(None, status_code=204)


async def _list(services: Services) -> list[ContainerImageView]:
    seen = msgspec.json.decode(await _ask(services, "container-images"), type=list[ContainerImageSeen])

    def read(tx: Tx) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for (_, image), whats in find_users(tx, living(tx, services.live)).items() if seen else ():
            users.setdefault(image, []).extend(whats)
        return users

    users = await services.store.read(read)
    return [
        container_image_view(each, tuple(what for name in each.references for what in users.get(name, ())) or each.used_by)
        for each in seen
    ]


async def _ask(services: Services, what: str, subject: str = "", body: bytes = b"") -> bytes:
    answer = await services.hub.ask(what, subject, body=body)
    if answer.error:
        raise Refused(answer.error, code="image-refused")
    return answer.data


CONTAINER_IMAGE_ROUTES = (start_pull, get_pull, list_container_images, delete_container_image)
