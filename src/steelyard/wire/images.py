"""What does the REST API take and give of images that are built here? As `api.py`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from steelyard.model.built_image import ImageSpec


class ImageBuild(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spec: ImageSpec
    #: moves to this image from the one that has it
    name: Annotated[str, Meta(max_length=63)] = ""


class ImageLayer(msgspec.Struct, frozen=True):
    id: str
    #: the step, for people
    text: str


class ImageView(msgspec.Struct, frozen=True):
    id: str
    owner: str
    #: BUILDING, READY, FAILED, MISSING (from its machine's disk)
    state: str
    #: of its newest build
    job: str
    created_at: str
    #: to the hour
    used_at: str
    name: str = ""
    detail: str = ""
    #: full version of its interpreter; "" before it was built
    python: str = ""
    #: of all its files; shared ones are counted for each image
    size_bytes: int = 0
    #: of its last step
    added_bytes: int = 0
    built_at: str | None = None
    #: functions and jobs that it can't be removed because of
    used_by: tuple[str, ...] = ()
    #: from the base on; given when one image is asked for
    layers: tuple[ImageLayer, ...] = ()
    spec: ImageSpec | None = None
    #: as "name version"; given when one is asked for and its machine answers
    packages: tuple[str, ...] | None = None
