"""Routes by which machines of pools have images from the home: a container image is fetched here first where it has to be, and
what lies here is packed into one file for all that ask (`runtime/image/pack.py`).

For agents of pools alone, and of what their assignment names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import Parameter
from litestar.response import File

from steelyard.api.auth import is_agent, peer_of
from steelyard.api.pools import PilotPath
from steelyard.api.requests import require_json
from steelyard.api.services import Services, services_of
from steelyard.errors import NotFound, Refused, Unauthorized
from steelyard.model.ids import ImageId, MachineId
from steelyard.runtime.image.pack import Packed, pack, pack_environment
from steelyard.wire.images import PACKED_DIGEST, HomePull, PullState, PullView

#: an answer tells how far a pull is when that is over
PATIENCE_S = 20.0

Digest = Annotated[str, Parameter(pattern="^[0-9a-f]{64}$", description="An environment's id, or a container image's digest.")]
Uid = Annotated[int, Parameter(ge=0, description="Whose it is.")]

_packing: dict[Path, asyncio.Future[Packed]] = {}


@post("/v1/pilots/{pilot:str}/pulls", status_code=200, before_request=require_json, include_in_schema=False)
async def pull_for_machine(request: Request[Any, Any, Any], pilot: PilotPath, data: HomePull) -> PullView:
    """Have a container image fetched to the home, as its owner would; asked again with the pull's id until that has ended."""
    services = services_of(request)
    _check(request, data.wanted.owner.uid, data.wanted.image)
    deadline_ns = services.clock.mono_ns() + int(PATIENCE_S * 1e9)
    pull = data.pull
    while True:
        what, body = ("image-pull-state", b"") if pull else ("image-pull", msgspec.json.encode(data.wanted))
        answer = await services.hub.ask(what, pull, body=body)
        if answer.error:
            raise Refused(answer.error, code="image-refused")
        if not answer.data:  # the home's agent is another one: what came whole is kept
            pull = ""
            continue
        view = msgspec.json.decode(answer.data, type=PullView)
        over = services.clock.mono_ns() >= deadline_ns or services.watch.stopping
        if view.state in (PullState.READY, PullState.FAILED) or over:
            return view
        pull = view.id


@get("/v1/packed-images/environment/{uid:int}/{id:str}", include_in_schema=False)
async def get_environment(request: Request[Any, Any, Any], uid: Uid, id: Digest) -> File:
    services = services_of(request)
    _check(request, uid, id)
    place = _place(services, f"{uid}-{id}")
    folder = services.paths.environments / str(uid)
    now_s = services.clock.now_us() / 1e6
    return await _send(place, lambda: pack_environment(folder, ImageId(id), place, now_s))


@get("/v1/packed-images/container/{uid:int}/{id:str}", include_in_schema=False)
async def get_container(request: Request[Any, Any, Any], uid: Uid, id: Digest) -> File:
    """Its unpacked files, as they lie here, for whoever knows the digest: the pull that named the image told it."""
    del uid
    services = services_of(request)
    _check_agent(request)
    place, folder = _place(services, id), services.paths.images / "roots"
    if not (folder / id).is_dir():
        raise NotFound(f"The image {id[:12]} is not on the home's machine any more. Try again.", code="image-missing")
    now_s = services.clock.now_us() / 1e6
    return await _send(place, lambda: pack(folder, [id], place, (0, 0), now_s))


async def _send(place: Path, make: Callable[[], Packed]) -> File:
    packing = _packing.get(place)
    if packing is None:
        packing = _packing[place] = asyncio.ensure_future(asyncio.to_thread(make))
        packing.add_done_callback(lambda _: _packing.pop(place, None))
    packed = await asyncio.shield(packing)
    return File(place, media_type="application/x-tar", headers={PACKED_DIGEST: packed.sha256})


def _place(services: Services, name: str) -> Path:
    return services.bundles.parent / "packed" / f"{name}.tar"


def _check(request: Request[Any, Any, Any], uid: int, image: str) -> None:
    peer = _check_agent(request)
    if not services_of(request).hub.names_image(peer, uid, image):
        raise NotFound("No work is assigned there that names such an image of theirs.")


def _check_agent(request: Request[Any, Any, Any]) -> MachineId:
    peer = peer_of(request)
    if peer is None or not is_agent(request):
        raise Unauthorized("Packed images are given to the agents of machines of pools, and to nobody else.")
    return peer.machine


MACHINE_IMAGE_ROUTES = (pull_for_machine, get_environment, get_container)
