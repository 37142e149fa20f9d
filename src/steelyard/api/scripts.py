"""The route of scripts that were written for sbatch: read, refuse, submit."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, post

from steelyard.api.auth import caller_of
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.jobs import check_attached, check_room, submitter
from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.sbatch_script import read_script
from steelyard.api.services import services_of
from steelyard.api.submission import insert_jobs
from steelyard.control import DIRECT, JOBS
from steelyard.model.image import is_reference, parse_image
from steelyard.store import Tx
from steelyard.wire.api import ScriptSubmit, ScriptSubmitted


@post("/v1/scripts", status_code=201, before_request=require_json, responses=errors(413, 415, 422, 429, 507))
async def submit_script(
    request: Request[Any, Any, Any], data: ScriptSubmit, idempotency_key: IdempotencyKey
) -> Response[ScriptSubmitted]:
    """Queue what a script asks for in its #SBATCH lines. The answer names every option that is not acted on."""
    services = services_of(request)
    check_room(services)
    caller = caller_of(request)
    now = services.clock.now_us()
    submission = read_script(data, now)
    image = parse_image(data.image).text if is_reference(data.image) else data.image
    spec = msgspec.structs.replace(submission.spec, image=image)

    check_attached(services, spec)

    def submit(tx: Tx) -> ScriptSubmitted:
        owner = submitter(tx, services, caller)
        jobs = insert_jobs(tx, spec, owner, now, root=services.root, array=submission.array)
        place = jobs[0].array
        return ScriptSubmitted(jobs[0].id if place is None else place.id, submission.ignored, submission.array)

    answer = await mutate(request, idempotency_key, 201, submit)
    services.driver.poke(DIRECT if spec.direct else JOBS)
    return answer


SCRIPT_ROUTES = (submit_script,)
