"""What does the REST API take and give of images, those that are built here and those of containers? As `api.py`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from steelyard.model.built_image import DebianBase, ImageSpec, Step
from steelyard.model.image import REFERENCE_MAX
from steelyard.wire.agent import PullStart


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
    #: tells it from those of containers where both are listed
    kind: str = "environment"
    #: as "name version"; given when one is asked for and its machine answers
    packages: tuple[str, ...] | None = None


class ContainerImageView(msgspec.Struct, frozen=True):
    """An image of the machine's cache, which all its users share."""

    #: hex SHA-256 of its manifest in the OCI format
    id: str
    #: what it is known as here
    references: tuple[str, ...]
    #: unpacked, and as it came
    size_bytes: int
    files: int
    used_at: str
    #: jobs, functions and schedules that name it, and what runs on it now
    used_by: tuple[str, ...] = ()
    #: what the image says of running it
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    ports: tuple[int, ...] = ()
    kind: str = "container"


class Pull(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A container image that is to be on the machine."""

    image: Annotated[str, Meta(min_length=1, max_length=REFERENCE_MAX)]
    #: whose USERNAME and PASSWORD are the login at its registry; "": the owner's own, where there is one
    secret: Annotated[str, Meta(max_length=63)] = ""


class PullState(StrEnum):
    FETCHING = "FETCHING"
    UNPACKING = "UNPACKING"
    READY = "READY"
    FAILED = "FAILED"


class PullView(msgspec.Struct, frozen=True):
    #: of the pull, for as long as its agent runs
    id: str
    image: str
    state: PullState = PullState.FETCHING
    fetched_bytes: int = 0
    #: of the image, once it is there: hex digest, and bytes that it takes on the disk
    digest: str = ""
    size_bytes: int = 0
    #: why it failed, for people and for programs
    detail: str = ""
    code: str = ""


#: header with the SHA-256 of a packed image
PACKED_DIGEST = "Steelyard-Sha256"


class HomePull(msgspec.Struct, frozen=True):
    """What a machine of a pool asks the home for."""

    wanted: PullStart
    #: one that is under way, by its id
    pull: str = ""


class ContainerStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step upon a container image that is on the machine, or a Debian, which needs none."""

    step: Step | DebianBase
    #: the image that it begins with, and its digest; "" for a Debian
    image: Annotated[str, Meta(max_length=REFERENCE_MAX)] = ""
    below: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    #: as of a pull
    secret: Annotated[str, Meta(max_length=63)] = ""


class ContainerStepView(msgspec.Struct, frozen=True):
    #: hex; also the digest of the image
    id: str
    #: what the image is named by
    reference: str
    #: the step, for people
    text: str
    #: it is there; else `job` makes it
    ready: bool
    job: str = ""
