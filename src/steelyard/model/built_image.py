"""What is an image that is built here? A base and the steps upon it, each named by its content and by all that is below it.

Nothing here says where an image lies on a machine.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.ids import ImageId, JobId, ProjectName
from steelyard.model.job import Owner


class PythonBase(msgspec.Struct, frozen=True, tag_field="kind", tag="python", forbid_unknown_fields=True):
    """An interpreter of the machine, or one that uv brings along."""

    #: "3.11" or "3.11.9"
    version: str


class DebianBase(msgspec.Struct, frozen=True, tag_field="kind", tag="debian", forbid_unknown_fields=True):
    """The packages that every Debian or Ubuntu has. Of images of containers alone: the first step of one."""

    #: "bookworm", "stable"
    suite: str
    #: addresses, or lines of a sources.list; (): the machine's own for that suite, else Debian's
    mirrors: tuple[str, ...] = ()


class PipInstall(msgspec.Struct, frozen=True, tag_field="kind", tag="pip", forbid_unknown_fields=True):
    #: as PEP 508 writes them
    packages: tuple[str, ...] = ()
    #: sha256 of a bundle with a `requirements.txt`; "" without one
    files: str = ""
    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    #: a folder of the machine, or an address
    find_links: str = ""
    pre: bool = False


class UvSync(msgspec.Struct, frozen=True, tag_field="kind", tag="uv-sync", forbid_unknown_fields=True):
    #: sha256 of a bundle with `uv.lock` and `pyproject.toml`
    files: str
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class AptInstall(msgspec.Struct, frozen=True, tag_field="kind", tag="apt", forbid_unknown_fields=True):
    """Of images of containers alone."""

    packages: tuple[str, ...]


class SetEnv(msgspec.Struct, frozen=True, tag_field="kind", tag="env", forbid_unknown_fields=True):
    env: dict[str, str]


class SetUser(msgspec.Struct, frozen=True, tag_field="kind", tag="user", forbid_unknown_fields=True):
    """Whom it runs as. Of images of containers alone."""

    #: `user[:group]`, names of the image or numbers
    user: str


class SetCommand(msgspec.Struct, frozen=True, tag_field="kind", tag="command", forbid_unknown_fields=True):
    """What it runs where nothing else is said, in the place of an entry point. Of images of containers alone."""

    argv: tuple[str, ...]


class Copy(msgspec.Struct, frozen=True, tag_field="kind", tag="copy", forbid_unknown_fields=True):
    #: sha256 of a bundle
    files: str
    #: where its content goes, below the image's folder of files ("" is that folder), or below / of a container
    to: str = ""


class Run(msgspec.Struct, frozen=True, tag_field="kind", tag="run", forbid_unknown_fields=True):
    #: for /bin/sh, in the image's folder of files
    command: str


Base = PythonBase
Step = PipInstall | AptInstall | UvSync | SetEnv | SetUser | SetCommand | Copy | Run


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Never changes; its name is its content (`lifecycle.image.name_layers`)."""

    base: Base
    steps: tuple[Step, ...] = ()

    @property
    def bundles(self) -> frozenset[str]:
        """sha256 of all that its steps bring along."""
        return frozenset(files for step in self.steps if (files := getattr(step, "files", "")))


class ImageState(StrEnum):
    #: its job waits or runs
    BUILDING = "BUILDING"
    READY = "READY"
    #: its job failed, or was stopped
    FAILED = "FAILED"
    #: it was built, and its machine does not have it any more
    MISSING = "MISSING"


class Image(msgspec.Struct, frozen=True):
    """An image of an owner. Two owners never share one: what runs as one uid may change its files."""

    id: ImageId
    project: ProjectName
    owner: Owner
    generation: int
    spec: ImageSpec
    #: the newest build
    job: JobId
    created_at: int
    #: when something was last submitted or deployed with it, to the hour; microseconds, wall clock
    used_at: int
    state: ImageState = ImageState.BUILDING
    #: for people; one image has a name at a time
    name: str = ""
    #: why it is FAILED or MISSING
    detail: str = ""
    #: full version of its interpreter, once it is there
    python: str = ""
    #: bytes of all its files, and of those that its last step added
    size_bytes: int = 0
    added_bytes: int = 0
    built_at: int | None = None


class ImageSeen(msgspec.Struct, frozen=True):
    """What a machine says of an image, or of a step below one, that lies on it."""

    id: ImageId
    uid: int
    python: str
    size_bytes: int
    added_bytes: int
    built_at: int
