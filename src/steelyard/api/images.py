"""Routes of images: build, list, look, remove. Building is a job; asking for an image that is there, or under way, starts none
more."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.params import Parameter

from steelyard.api.auth import caller_of
from steelyard.api.bundles import bundle_path
from steelyard.api.door import Finding
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.image_use import find_own_image
from steelyard.api.jobs import WaitS
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.api.submission import insert_jobs
from steelyard.api.views import image_view
from steelyard.control import ASSIGNMENT, IMAGES, JOBS
from steelyard.control.images import find_users, living
from steelyard.control.watch import wait_for
from steelyard.errors import Conflict, NotFound, Refused, SteelyardError
from steelyard.lifecycle.image import check_spec, name_layers
from steelyard.model.built_image import Image, ImageState
from steelyard.model.ids import DEFAULT_PROJECT, NAME, JobId
from steelyard.model.job import JobSpec, Owner, Resources
from steelyard.model.machine import Machine
from steelyard.store import Event, Tx
from steelyard.wire.images import ImageBuild, ImageView

ImagePath = Annotated[str, Parameter(min_length=1, max_length=64, description="An image's name, id, or the beginning of its id.")]

#: what a build may take: compilers need memory, but not all of a small machine's
BUILD_MEMORY_BYTES = 8 << 30
BUILD_MAX_S = 2 * 3600.0


@post("/v1/images", status_code=201, before_request=require_json, responses=errors(404, 413, 415, 422, 429, 507))
async def build_image(request: Request[Any, Any, Any], data: ImageBuild, idempotency_key: IdempotencyKey) -> Response[ImageView]:
    """Have an image made, unless it is there or being made."""
    services = services_of(request)
    now = services.clock.now_us()

    def build(tx: Tx) -> ImageView:
        _check(services, data)
        owner = services.owner
        id_ = name_layers(data.spec)[-1]
        before = tx.image(owner.uid, id_)
        if data.name:
            _take_name(tx, owner, data.name, id_)
        if before is None or before.state in (ImageState.FAILED, ImageState.MISSING):
            (job,) = insert_jobs(tx, _make_job(id_, tx.machine()), owner, now, root=services.root)
            made = Image(id_, DEFAULT_PROJECT, owner, 1, data.spec, job.id, now, now)
            if before is not None:
                made = msgspec.structs.replace(
                    before, generation=before.generation + 1, job=job.id, state=ImageState.BUILDING, detail="", used_at=now
                )
            tx.add_event(Event(now, DEFAULT_PROJECT, owner.user, "image", id_, f"being built by {job.id}"))
        else:
            made = msgspec.structs.replace(before, generation=before.generation + 1, used_at=now)
        made = msgspec.structs.replace(made, name=data.name or made.name)
        tx.put_image(made)
        return image_view(made)

    answer = await mutate(request, idempotency_key, 201, build)
    # first of all that its layers may stay
    services.driver.poke(ASSIGNMENT, JOBS, IMAGES)
    return answer


@get("/v1/images", responses=errors())
async def list_images(request: Request[Any, Any, Any]) -> list[ImageView]:
    """The oldest first."""
    services = services_of(request)

    def read(tx: Tx) -> list[ImageView]:
        images = tx.images()
        users = find_users(tx, living(tx, services.live)) if images else {}
        return [image_view(image, users.get((image.owner.uid, image.id), ())) for image in images]

    return await services.store.read(read)


@get("/v1/images/{image:str}", responses=errors(404))
async def get_image(request: Request[Any, Any, Any], image: ImagePath, wait_s: WaitS = 0.0) -> ImageView:
    """With `wait_s`: waits until it has been built, or not."""
    services, caller = services_of(request), caller_of(request)

    def read(tx: Tx) -> tuple[Image, tuple[str, ...]]:
        if caller is not None and not _builds(tx, caller.name, image):
            raise NotFound(f"There is no image {image} that this job builds.")
        owner = services.owner if caller is None else caller.owner(tx)
        row = find_own_image(tx, owner, image)
        return row, find_users(tx, living(tx, services.live)).get((row.owner.uid, row.id), ())

    deadline_ns = services.clock.mono_ns() + int(wait_s * 1e9)
    row, users = await services.store.read(read)
    with services.watch.subscribe(f"image/{row.id}") as news:
        while True:
            row, users = await services.store.read(read)
            left_s = (deadline_ns - services.clock.mono_ns()) / 1e9
            if row.state is not ImageState.BUILDING or left_s <= 0 or services.watch.stopping:
                break
            await wait_for(news, left_s)
    view = image_view(row, users, whole=True)
    if caller is None and row.state is ImageState.READY:
        try:
            answer = await services.hub.ask("image-packages", f"{row.owner.uid}/{row.id}")
        except SteelyardError:
            return view
        if not answer.error:
            return msgspec.structs.replace(view, packages=msgspec.json.decode(answer.data, type=tuple[str, ...]))
    return view


@delete("/v1/images/{image:str}", status_code=204, responses=errors(404, 409, 422, 507))
async def delete_image(request: Request[Any, Any, Any], image: ImagePath, idempotency_key: IdempotencyKey) -> Response[None]:
    """Steps that other images begin with stay. Refused while something needs it."""
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        row = find_own_image(tx, services.owner, image)
        users = find_users(tx, living(tx, services.live)).get((row.owner.uid, row.id), ())
        if users:
            raise Conflict(
                f"The image {image} is needed by {', '.join(users[:5])}{' and more' if len(users) > 5 else ''}. Nothing was "
                "removed. Delete or stop these first.",
                code="image-used",
            )
        if row.state is ImageState.BUILDING:
            raise Conflict(f"The image {image} is being built. `steelyard stop {row.job}` ends that.", code="image-building")
        tx.delete_image(row.owner.uid, row.id)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "image", row.id, "removed"))

    answer = await mutate(request, idempotency_key, 204, commit)
    services.driver.poke(ASSIGNMENT)
    return answer


def _check(services: Services, data: ImageBuild) -> None:
    found = [Finding("bad-image", text) for text in check_spec(data.spec)]
    if data.name and not NAME.fullmatch(data.name):
        found.append(Finding("bad-name", f"{data.name!r} can't be an image's name: up to 63 of a-z, 0-9 and -, no - at the ends"))
    refuse_findings(found)
    for files in sorted(data.spec.bundles):
        if not bundle_path(services.bundles, files).exists():
            raise Refused(f"The bundle {files} is not here. Upload it first: PUT /v1/bundles/<sha256>.", code="no-bundle")


def _take_name(tx: Tx, owner: Owner, name: str, id_: str) -> None:
    for other in tx.images():
        if other.owner.uid == owner.uid and other.name == name and other.id != id_:
            tx.put_image(msgspec.structs.replace(other, generation=other.generation + 1, name=""))


def make_build_resources(machine: Machine | None) -> Resources:
    memory_bytes = BUILD_MEMORY_BYTES if machine is None else min(BUILD_MEMORY_BYTES, machine.memory_bytes // 2)
    return Resources(cpus=1.0, memory_bytes=memory_bytes)


def _make_job(id_: str, machine: Machine | None) -> JobSpec:
    return JobSpec(
        name=f"image-{id_[:12]}",
        argv=("steelyard-image-build", id_),
        cwd="/",
        builds=id_,
        resources=make_build_resources(machine),
        max_duration_s=BUILD_MAX_S,
    )


def _builds(tx: Tx, job: str, image: str) -> bool:
    row = tx.job(JobId(job))
    return row is not None and row.spec.builds == image


IMAGE_ROUTES = (build_image, list_images, get_image, delete_image)
