"""Which image does a job or a function mean, and may it have that? In the transaction that submits or deploys it."""

from __future__ import annotations

import msgspec

from steelyard.errors import NotFound, Refused
from steelyard.lifecycle.image import FUNCTION_PYTHON_MIN, USED_STEP_US, find_image, python_of
from steelyard.model.built_image import Image, ImageState
from steelyard.model.function import FunctionSpec
from steelyard.model.job import JobSpec, Owner
from steelyard.store import Tx


def settle_job(tx: Tx, spec: JobSpec, owner: Owner, now: int) -> JobSpec:
    """The spec with its image by id, noted as used. Raises Refused."""
    if not spec.image or spec.contained:
        return spec
    image = _usable(tx, owner, spec.image, as_root=spec.as_root, now=now)
    return msgspec.structs.replace(spec, image=image.id)


def settle_function(tx: Tx, spec: FunctionSpec, owner: Owner, now: int) -> FunctionSpec:
    """As `settle_job`."""
    if not spec.image:
        return spec
    if spec.python:
        raise Refused(
            "A function has its Python from `python` or from `image`, not from both. Leave one out.", code="two-pythons"
        )
    if spec.contained:
        return spec
    image = _usable(tx, owner, spec.image, as_root=spec.as_root, now=now)
    if python_of(image.spec.base.version) < FUNCTION_PYTHON_MIN:
        least = ".".join(map(str, FUNCTION_PYTHON_MIN))
        raise Refused(
            f"The image {spec.image} has Python {image.spec.base.version}, and functions need {least} or later.",
            code="old-python",
        )
    return msgspec.structs.replace(spec, image=image.id)


def _usable(tx: Tx, owner: Owner, text: str, *, as_root: bool, now: int) -> Image:
    image = find_own_image(tx, owner, text)
    if as_root:
        # an unprivileged uid made it and may change it
        raise Refused("Root does not run what others may change: leave out `image` or `as_root`.", code="image-as-root")
    if image.state is not ImageState.READY:
        state = "is still being built" if image.state is ImageState.BUILDING else f"is {image.state.value}: {image.detail}"
        text = f"The image {text} {state.rstrip('.')}. `steelyard image inspect {text}` tells of it."
        raise Refused(text, code="image-not-ready")
    if now - image.used_at > USED_STEP_US:
        tx.put_image(msgspec.structs.replace(image, generation=image.generation + 1, used_at=now))
    return image


def find_own_image(tx: Tx, owner: Owner, text: str) -> Image:
    """Raises NotFound."""
    row = find_image(tx.images(), owner.uid, text)
    if row is None:
        raise NotFound(
            f"There is no image {text}. `steelyard image ls` lists them, `steelyard image build` makes one. Of a "
            f"container image say from where it comes, such as docker://{text}."
        )
    return row
