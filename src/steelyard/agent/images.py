"""What images lie on this machine, who enters one, and who builds one?

Each owner's lie in a folder that is the owner's own (`runtime/image` says what is in it): the builder runs as the owner and
writes there, we look, and remove what the assignment no longer names. Nothing in there is trusted: what it says of itself
concerns its owner alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from steelyard.agent.identity import PATH
from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed
from steelyard.lifecycle.image import image_environment
from steelyard.model.built_image import ImageSeen
from steelyard.model.ids import ImageId
from steelyard.model.job import Owner
from steelyard.model.reason import Reason
from steelyard.runtime.image.layer import Marker, list_layers, read_layer, sweep
from steelyard.runtime.uv import find_uv
from steelyard.wire.agent import AssignedFunction, AssignedImages, AssignedJob, ImagesSeen

log = logging.getLogger(__name__)

MISSING = str(Reason.IMAGE_MISSING)
#: what of our own environment builds are given: how the site reaches package indexes
SITE_VARIABLES = (
    *("UV_CONFIG_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *(each for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for each in (name, name.lower())),
)
#: of the home's disk, unless `up` was told
DISK_SHARE = 0.25


def image_folder(images: Path, owner: Owner) -> Path:
    return images / str(owner.uid)


def find_layer(images: Path, owner: Owner, image: str) -> tuple[Path, Marker]:
    """The folder with its venv and files, and what it says of itself. EdgeFailed (code image-missing)."""
    folder = image_folder(images, owner)
    marker = read_layer(folder, ImageId(image))
    if marker is None:
        raise EdgeFailed(
            f"The image {image[:12]} is not on this machine any more, or the interpreter that it was made with. Build it again: "
            f"`steelyard image inspect {image[:12]}` shows its steps",
            code=MISSING,
        )
    return folder / marker.tree, marker


def enter_function(images: Path, function: AssignedFunction) -> AssignedFunction:
    """With the interpreter and the variables of its image. Raises EdgeFailed (code image-missing). Safe to repeat."""
    spec = function.spec
    if not spec.image or spec.contained:
        return function
    folder, marker = find_layer(images, function.owner, spec.image)
    env = image_environment(str(folder), marker.env, PATH, spec.env)
    spec = msgspec.structs.replace(spec, env=env, python=f"{folder}/venv/bin/python")
    return msgspec.structs.replace(function, spec=spec)


def enter_job(images: Path, job: AssignedJob, env: dict[str, str]) -> dict[str, str]:
    """The job's own variables, within those of its image. Raises EdgeFailed (code image-missing)."""
    if not job.spec.image:
        return env
    folder, marker = find_layer(images, job.owner, job.spec.image)
    return image_environment(str(folder), marker.env, PATH, env)


def start_builder(images: Path, job: AssignedJob, ids: tuple[int, int] | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Command and variables of a build, whose owner's folder is there then. Raises EdgeFailed."""
    folder = make_image_folder(images, job.owner, ids)
    argv = (sys.executable, "-I", "-m", "steelyard.runtime.image.build", job.spec.builds)
    site = {name: os.environ[name] for name in SITE_VARIABLES if name in os.environ}
    return argv, site | {"STEELYARD_IMAGES": str(folder), "STEELYARD_UV": find_uv()}


def make_image_folder(images: Path, owner: Owner, ids: tuple[int, int] | None) -> Path:
    """That owner's, which is there then. Raises EdgeFailed."""
    folder = image_folder(images, owner)
    try:
        images.mkdir(mode=0o711, exist_ok=True)
        images.chmod(0o711)  # whatever the umask says: owners go through, and read no names
        folder.mkdir(mode=0o700, exist_ok=True)
        if ids is not None:
            os.chown(folder, *ids)
    except OSError as err:
        raise EdgeFailed(f"{folder} could not be made: {err.strerror}", code="start-failed") from err
    return folder


class ImageKeeper:
    """Looks at the disk when the assignment changes what may stay and when a build has ended, in a thread of its own."""

    def __init__(self, paths: Paths, settings: Settings, changed: Callable[[], None]) -> None:
        self._images, self._settings, self._changed = paths.environments, settings, changed
        self._wanted: tuple[AssignedImages, ...] | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False
        #: when the folders had last changed at the last look
        self._looked_at: dict[str, int] = {}
        self.seen: ImagesSeen | None = None

    def reconcile(self, wanted: Sequence[AssignedImages] | None) -> None:
        wanted = None if wanted is None else tuple(wanted)
        if wanted != self._wanted or self.seen is None:
            self._wanted = wanted
            self.look()

    def check(self) -> None:
        """Look where something came or went since the last look, whoever did it."""
        if self._task is None and self._stamp() != self._looked_at:
            self.look()

    def look(self) -> None:
        """Soon; many calls become one look."""
        self._again = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            while self._again:
                self._again = False
                # before the look: what comes meanwhile is looked at again
                self._looked_at = self._stamp()
                seen = await asyncio.to_thread(self._observe, self._wanted)
                if seen != self.seen:
                    self.seen = seen
                    self._changed()
        except OSError as err:
            log.warning("images could not be looked at: %s", err)
        finally:
            self._task = None

    def _observe(self, wanted: Sequence[AssignedImages] | None) -> ImagesSeen:
        """Removes what is not wanted; what is there then."""
        layers: list[ImageSeen] = []
        keep = None if wanted is None else {str(each.owner.uid): each.layers for each in wanted}
        for folder in sorted(self._images.iterdir()) if self._images.is_dir() else ():
            if not folder.name.isdigit():
                continue
            if keep is not None and (gone := sweep(folder, frozenset(keep.get(folder.name, ())))):
                log.info("%d folders of images of uid %s were removed", gone, folder.name)
            layers += [
                ImageSeen(each.id, int(folder.name), each.python, each.size_bytes, each.added_bytes, each.built_at)
                for each in list_layers(folder)
            ]
        return ImagesSeen(tuple(layers), self._budget_bytes())

    def _stamp(self) -> dict[str, int]:
        with contextlib.suppress(OSError):
            return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(self._images)}
        return {}

    def _budget_bytes(self) -> int:
        return self._settings.image_space_bytes or round(shutil.disk_usage(self._images.parent).total * DISK_SHARE)

    def packages(self, subject: str) -> tuple[str, ...] | None:
        """Of the image `<uid>/<id>`; None when it is not here."""
        uid, _, image = subject.partition("/")
        if not uid.isdigit():
            return None
        marker = read_layer(self._images / uid, ImageId(image))
        return None if marker is None else marker.packages
