"""The route of steps upon container images: a step that was carried out is found, one that was not becomes a job.

The same step upon the same image is carried out once, however often it is asked for; nothing but its job is stored here.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, post

from steelyard.api.bundles import bundle_path
from steelyard.api.door import Finding
from steelyard.api.images import BUILD_MAX_S, make_build_resources
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.api.submission import insert_jobs
from steelyard.control import JOBS
from steelyard.control.images import living
from steelyard.errors import Refused
from steelyard.lifecycle.container_step import check_container_step, make_command, make_image_step, name_step
from steelyard.lifecycle.image import describe_part
from steelyard.model.image import ImageSource, parse_image
from steelyard.model.job import JobSpec
from steelyard.model.secret import SecretUse
from steelyard.store import Tx
from steelyard.wire.agent import PullStart
from steelyard.wire.images import ContainerStep, ContainerStepView, PullState, PullView


@post("/v1/container-steps", status_code=201, before_request=require_json, responses=errors(413, 415, 422, 429, 503, 507))
async def take_step(request: Request[Any, Any, Any], data: ContainerStep) -> ContainerStepView:
    """Have a step carried out upon a container image, unless it was, or is being."""
    services = services_of(request)
    refuse_findings([Finding("bad-image", text) for text in check_container_step(data.step, data.below)])
    files = getattr(data.step, "files", "")
    if files and not bundle_path(services.bundles, files).exists():
        raise Refused(f"The bundle {files} is not here. Upload it first: PUT /v1/bundles/<sha256>.", code="no-bundle")
    id_ = name_step(services.owner.uid, data.below, data.step)
    reference = f"{ImageSource.BUILT.value}:{id_}"
    text = describe_part(data.step)
    if await _is_there(services, reference):
        return ContainerStepView(id_, reference, text, ready=True)
    now = services.clock.now_us()

    def submit(tx: Tx) -> str:
        for job in living(tx, services.live):
            if job.spec.makes is not None and job.spec.makes.id == id_:
                return job.id
        spec = JobSpec(
            name=f"image-{id_[:12]}",
            argv=make_command(data.step),
            cwd="",
            image=parse_image(data.image or reference).text,
            makes=make_image_step(id_, data.below, data.step),
            resources=make_build_resources(tx.machine()),
            secrets=(SecretUse(data.secret, for_registry=True),) if data.secret else (),
            max_duration_s=BUILD_MAX_S,
        )
        return insert_jobs(tx, spec, services.owner, now, root=services.root)[0].id

    job = await services.store.write(submit)
    services.driver.poke(JOBS)
    return ContainerStepView(id_, reference, text, ready=False, job=job)


async def _is_there(services: Services, reference: str) -> bool:
    """What ended well is taken over by the machine when it is asked for first."""
    answer = await services.hub.ask("image-pull", "", body=msgspec.json.encode(PullStart(reference, services.owner)))
    while True:
        if answer.error:
            raise Refused(answer.error, code="image-refused")
        view = msgspec.json.decode(answer.data, type=PullView)
        if view.state is PullState.READY:
            return True
        if view.state is PullState.FAILED:
            if view.code != "image-missing":
                raise Refused(view.detail, code=view.code)
            return False
        answer = await services.hub.ask("image-pull-state", view.id)


CONTAINER_STEP_ROUTES = (take_step,)
