"""Routes of uploaded code: content-addressed, so that an upload is true or refused, and repeating it changes nothing.

A bundle is a tar.gz named by its sha256. It is written beside its final name, checked, synced and moved in (R12).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from litestar import Request, Response, get, head, put
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from litestar.response import File

from steelyard.api.auth import Caller, caller_of
from steelyard.api.problems import errors, refuse_disk
from steelyard.api.services import services_of
from steelyard.errors import NotFound, Refused
from steelyard.model.ids import ImageId, JobId
from steelyard.store import Tx
from steelyard.wire.landing import Landing

BUNDLE_MAX_BYTES = 256 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")

Sha256 = Annotated[str, Parameter(pattern="^[0-9a-f]{64}$", description="The sha256 of the bundle, in hex.")]
_BYTES = {
    200: ResponseSpec(data_container=bytes, generate_examples=False, media_type="application/gzip", description="The bundle")
}


def bundle_path(folder: Path, sha256: str) -> Path:
    return folder / f"{sha256}.tar.gz"


@head("/v1/bundles/{sha256:str}", responses=errors(404))
async def head_bundle(request: Request[Any, Any, Any], sha256: Sha256) -> Response[None]:
    """Is it here already?"""
    _find(request, sha256)
    return Response(None, media_type="text/plain")


@get("/v1/bundles/{sha256:str}", media_type="application/gzip", responses={**errors(404), **_BYTES})
async def get_bundle(request: Request[Any, Any, Any], sha256: Sha256) -> File:
    caller = caller_of(request)
    if caller is not None and not await services_of(request).store.read(lambda tx: _is_built_from(tx, caller, sha256)):
        raise NotFound(f"There is no bundle {sha256} that this job builds an image from.")
    path = _find(request, sha256)
    return File(path, filename=path.name, media_type="application/gzip")


@put(
    "/v1/bundles/{sha256:str}",
    status_code=204,
    request_max_body_size=BUNDLE_MAX_BYTES,
    responses=errors(413, 422, 502, 507),
    response_headers=[ResponseHeader(name="content-length", value="0", documentation_only=True)],
)
async def put_bundle(request: Request[Any, Any, Any], sha256: Sha256) -> Response[None]:
    """Upload code as a tar.gz; the content must have the sha256 that the path names."""
    path = bundle_path(services_of(request).bundles, sha256)
    try:
        async with Landing(path) as file:
            found = await _receive(request, file)
            if found != sha256:
                raise Refused(
                    f"The upload's sha256 is {found}, not the one in the path. Upload it again.", code="bundle-mismatch"
                )
            if not path.exists():  # sent again without asking: small ones are
                await file.land()
    except OSError as err:
        raise refuse_disk(err, "bundle", path) from err
    return Response(None, status_code=204)


async def _receive(request: Request[Any, Any, Any], file: Landing) -> str:
    """Stream the body to `file`; returns its sha256. Never holds more than a megabyte in memory."""
    digest = hashlib.sha256()
    first = b""
    async for chunk in request.stream():
        if file.size_bytes + len(chunk) > BUNDLE_MAX_BYTES:
            raise Refused(f"A bundle is at most {BUNDLE_MAX_BYTES >> 20} MiB.", code="body-too-large")
        if len(first) < 2:
            first += chunk[:2]
        digest.update(chunk)
        await file.write(chunk)
    if first[:2] != b"\x1f\x8b":
        raise Refused("A bundle is a tar.gz, and this is no gzip.", code="bad-bundle")
    return digest.hexdigest()


def _is_built_from(tx: Tx, caller: Caller, sha256: str) -> bool:
    """A job may read what the image is made of that it builds, and nothing else."""
    job = tx.job(JobId(caller.name)) if caller.kind == "job" else None
    image = tx.image(job.owner.uid, ImageId(job.spec.builds)) if job is not None and job.spec.builds else None
    return image is not None and sha256 in image.spec.bundles


def _find(request: Request[Any, Any, Any], sha256: str) -> Path:
    path = bundle_path(services_of(request).bundles, sha256)
    if not _SHA256.fullmatch(sha256) or not path.exists():
        raise NotFound(f"There is no bundle {sha256}.")
    return path


BUNDLE_ROUTES = (head_bundle, get_bundle, put_bundle)
