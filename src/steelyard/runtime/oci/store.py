"""Which images are on this machine? A cache of one home, shared by its users: fetched once, unpacked once, evicted when unused.

    <images>/blobs/sha256/<hex>        as they came, named by their content
    <images>/refs/<key>.json           what a reference means here, written last
    <images>/roots/<hex>/rootfs        the unpacked files; <hex> is the manifest's digest
    <images>/roots/<hex>/image.json    what the image says of running it; its time of change is that of the last use
    <images>/steps/<hex>               what steps of builds write, see steps.py
    <images>/work, <images>/locks      what is under way, and who is at it

A folder in `roots` appears by rename, whole or not at all; what a killed process left in `work` counts for nothing and goes at
the next `sweep`. A tag is resolved once and then means the same here until it is evicted. Blocks: call from threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.errors import EdgeFailed, NoRoom, Refused, SteelyardError
from steelyard.model import words
from steelyard.model.image import Image, ImageReference, UserIds, find_user
from steelyard.runtime.mount_calls import read_inside
from steelyard.runtime.oci import FETCH_ID, Limits, Tell, jail, say_nothing
from steelyard.runtime.oci.fetch import fetch, missing, remove_folder
from steelyard.runtime.oci.manifest import Described, describe
from steelyard.runtime.oci.steps import StepMade, begin_step, lay_over, read_step

log = logging.getLogger(__name__)

#: of the disk that the home is on
BUDGET_SHARE = 0.25
#: of /etc/passwd and /etc/group
USERS_MAX = 1 << 20
_IMAGE, _ROOT = "image.json", "rootfs"


class _Ref(msgspec.Struct, frozen=True):
    reference: str
    digest: str
    #: of a user's folder or archive: changes when it does
    stamp: str = ""
    #: whose login it was fetched with, and who alone may have it without one; "" when it needed none
    private_to: str = ""


class RegistryLogin(msgspec.Struct, frozen=True):
    #: as containers-auth.json(5) says
    content: bytes
    #: names who has it, without telling it
    whose: str


class Kept(msgspec.Struct, frozen=True):
    """An image that is here."""

    image: Image
    #: all that it is known as here, in order
    references: tuple[str, ...]
    #: microseconds, wall clock
    used_at: int


class ImageStore:
    """`in_use` tells the digests of what runs now; these are never evicted."""

    def __init__(
        self,
        folder: Path,
        in_use: Callable[[], Collection[str]],
        *,
        budget_bytes: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._folder, self._in_use, self._budget_bytes = folder, in_use, budget_bytes
        self._limits = limits or Limits()

    def root(self, digest: str) -> Path:
        return self._folder / "roots" / digest / _ROOT

    def ensure(
        self,
        reference: ImageReference,
        ids: tuple[int, int] | None,
        stamp: str = "",
        tell: Tell = say_nothing,
        login: RegistryLogin | None = None,
    ) -> Image:
        """The unpacked image, fetched when it is not here. However many ask at a time, of whatever process, it is fetched once.
        `ids`: for whom. `stamp`: of a user's folder or archive, which they may read; it changes when that does. What was fetched
        with a `login` others get when their own, or none, opens the registry to them. Raises SteelyardError; nothing counts as
        being here then."""
        whose = login.whose if login is not None else ""
        found = self.find_here(reference, stamp, whose)
        if found is not None:
            return found
        try:
            self._make_folders()
            # all who ask wait for the same one, whatever their logins: what the first fetched the others need not
            with self._lock(_key(reference)):
                found = self.find_here(reference, stamp, whose)  # somebody else may have been faster
                if found is None:
                    found = self._fetch(reference, ids, stamp, tell, login)
        except OSError as err:
            raise self._explain(reference, err) from err
        self.evict(keep=found.digest)
        return found

    def _explain(self, reference: ImageReference, err: OSError) -> SteelyardError:
        why = f"{self._folder} can't be written ({err.strerror})"
        text = f"The image {reference.text} could not be kept: {why}. Nothing was started."
        if err.errno == errno.ENOSPC:
            return NoRoom(f"{text} Free space there, and try again.", code="disk-full")
        return EdgeFailed(f"{text} Look at its disk, and try again.", code="cache-unwritable")

    def adopt(self, reference: ImageReference, digest: str, whose: str, packed: Path | None) -> Image | None:
        """What another cache calls so, for that user alone: as it is here, or else as it was `packed` there (a folder of that
        name). None where neither is. Raises SteelyardError."""
        try:
            self._make_folders()
            with self._lock(digest):
                image = self._load(digest)
                if image is None and packed is None:
                    return None
                image = image or self._place(digest, packed)
            ref = _Ref(reference.text, digest, "", whose)
            write_file(self._folder / "refs" / f"{_key(reference, whose)}.json", msgspec.json.encode(ref), 0o644)
        except OSError as err:
            raise self._explain(reference, err) from err
        self.evict(keep=digest)
        return image

    def _place(self, digest: str, packed: Path | None) -> Image:
        work = self._folder / "work" / digest
        remove_folder(work)
        work.mkdir(mode=0o711)
        try:
            argv = ("tar", "-xpf", str(packed), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(work))
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines()[-1:] or [f"tar ended with code {done.returncode}"]
                raise EdgeFailed(
                    f"The image {digest[:12]} could not be unpacked: {said[0]}. Nothing was started.", code="unpack-failed"
                )
            os.rename(work / digest, self._folder / "roots" / digest)
        finally:
            remove_folder(work)
        image = self._load(digest)
        if image is None:
            raise EdgeFailed(f"The image {digest[:12]} arrived without its files. Nothing was started.", code="unpack-failed")
        return image

    def find(self, reference: ImageReference, whose: str) -> Image:
        """The unpacked image as it was fetched last; nobody is asked. Raises EdgeFailed."""
        if (image := self.find_here(reference, None, whose)) is not None:
            return image
        raise EdgeFailed(f"The image {reference.text} is not on this machine any more", code="image-missing")

    # -- what is built here

    def begin_step(self, made: StepMade) -> Path:
        """The folder that the step's container writes into. An earlier try's is gone."""
        self._make_folders()
        folder = self._step(made.image.digest)
        with self._lock(made.image.digest):
            begin_step(folder, made)
        return folder

    def built(self, reference: ImageReference, whose: str) -> Image:
        """The image that a step made, taken over from what its container wrote when this is asked for the first time. Raises
        EdgeFailed (code image-missing) when no step of theirs that ended well is here."""
        if (found := self.find_here(reference, None, whose)) is not None:
            return found
        digest = reference.name
        self._make_folders()
        with self._lock(digest):
            made = read_step(self._step(digest))
            if (found := self._load(digest)) is None and made is not None and made.private_to == whose:
                found = self._take_over(made)
            if found is None or made is None or made.private_to != whose:
                raise EdgeFailed(
                    f"The image {reference.text} is not on this machine any more: deploy, or build, again what names it",
                    code="image-missing",
                )
            ref = _Ref(reference.text, digest, "", whose)
            write_file(self._folder / "refs" / f"{_key(reference, whose)}.json", msgspec.json.encode(ref), 0o644)
            remove_folder(self._step(digest))
        self.evict(keep=digest)
        return found

    def drop_step(self, digest: str) -> None:
        """Its container has ended: what did not end well is of no use."""
        if read_step(self._step(digest)) is None:
            remove_folder(self._step(digest))

    def _take_over(self, made: StepMade) -> Image:
        digest = made.image.digest
        work = self._folder / "work" / digest
        remove_folder(work)
        work.mkdir(mode=0o711)
        try:
            files, size = lay_over(self.root(made.below) if made.below else None, self._step(digest) / "upper", work / _ROOT)
            passwd, group = (read_inside(str(work / _ROOT), f"/etc/{name}", USERS_MAX) for name in ("passwd", "group"))
            files, size = made.image.files + files, made.image.bytes_on_disk + size
            ids = _find_ids(made.image, passwd, group)
            image = msgspec.structs.replace(made.image, ids=ids, files=files, bytes_on_disk=size)
            work.chmod(0o711)
            write_file(work / _IMAGE, msgspec.json.encode(image), 0o644)
            os.rename(work, self._folder / "roots" / digest)
        except Refused:  # no later look would find anything else
            remove_folder(self._step(digest))
            raise
        finally:
            remove_folder(work)
        return image

    def _step(self, digest: str) -> Path:
        return self._folder / "steps" / digest

    def list(self) -> list[Image]:
        """The one that was used last comes first."""
        return [each.image for each in self.look()]

    def look(self) -> list[Kept]:
        """The one that was used last comes first."""
        names: dict[str, list[str]] = {}
        for _, ref in self._refs():
            names.setdefault(ref.digest, []).append(ref.reference)
        found: list[Kept] = []
        for path in self._folder.glob(f"roots/*/{_IMAGE}"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                used_at = path.stat().st_mtime_ns // 1000
                image = msgspec.json.decode(path.read_bytes(), type=Image)
                found.append(Kept(image, tuple(sorted(set(names.get(image.digest, ())))), used_at))
        return sorted(found, key=lambda each: -each.used_at)

    # -- finding

    def find_here(self, reference: ImageReference, stamp: str | None, whose: str) -> Image | None:
        """What everybody may have, or what was fetched with a login of theirs; nobody is asked. `stamp`: None for any."""
        for private_to in dict.fromkeys(("", whose)):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                path = self._folder / "refs" / f"{_key(reference, private_to)}.json"
                ref = msgspec.json.decode(path.read_bytes(), type=_Ref)
                if stamp in (None, ref.stamp) and (image := self._load(ref.digest)) is not None:
                    return image
        return None

    def _refs(self) -> Iterator[tuple[Path, _Ref]]:
        for path in self._folder.glob("refs/*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                yield path, msgspec.json.decode(path.read_bytes(), type=_Ref)

    def _load(self, digest: str) -> Image | None:
        path = self._folder / "roots" / digest / _IMAGE
        try:
            image = msgspec.json.decode(path.read_bytes(), type=Image)
            os.utime(path)
        except (OSError, msgspec.MsgspecError):
            return None
        return image

    # -- fetching

    def _fetch(
        self,
        reference: ImageReference,
        ids: tuple[int, int] | None,
        stamp: str,
        tell: Tell,
        login: RegistryLogin | None,
    ) -> Image:
        layout = self._folder / "work" / _key(reference)
        remove_folder(layout)
        layout.mkdir(mode=0o700)
        secret, whose = (None, "") if login is None else (login.content, login.whose)
        try:
            index = fetch(reference, ids, self._blobs, layout, self._limits, tell, secret)
            described = describe(index, self._blobs, reference.text, os.uname().machine)
        finally:
            remove_folder(layout)
        digest = described.image.digest
        tell(None)
        with self._lock(digest):
            image = self._load(digest) or self._unpack(described)
        ref = _Ref(reference.text, digest, stamp, whose)
        write_file(self._folder / "refs" / f"{_key(reference, whose)}.json", msgspec.json.encode(ref), 0o644)
        return image

    def _unpack(self, described: Described) -> Image:
        image = described.image
        work = self._folder / "work" / image.digest
        remove_folder(work)
        (work / "jail").mkdir(parents=True)
        (work / "out").mkdir()
        order = jail.Order(
            blobs=str(self._blobs), root=str(work / "jail"), out=str(work / "out"), manifest=image.digest,
            manifest_bytes=described.manifest.size, media_type=described.manifest.media_type, layers=described.layers,
            limits=self._limits,
        )  # fmt: skip
        try:
            seen = _run_jail(order, image.reference, self._folder)
            ids = _find_ids(image, seen.passwd, seen.group)
            done = msgspec.structs.replace(image, files=seen.files, bytes_on_disk=image.bytes_on_disk + seen.bytes, ids=ids)
            (work / "out").chmod(0o711)
            os.chown(work / "out", 0, 0)
            write_file(work / "out" / _IMAGE, msgspec.json.encode(done), 0o644)
            os.rename(work / "out", self._folder / "roots" / image.digest)
        except SteelyardError as err:
            if isinstance(err, Refused):  # a damaged blob must not be what the next try finds
                self._drop_blobs(image.blobs)
            raise
        finally:
            remove_folder(work)
        return done

    # -- making room

    def evict(self, keep: str = "") -> None:
        """Until all together fit the budget: what was used longest ago goes first, never what runs."""
        images = self.list()
        budget = self._budget()
        total = sum(image.bytes_on_disk for image in images)
        held = {*self._in_use(), keep} if total > budget else set()
        for image in reversed(images):
            if total <= budget:
                return
            if image.digest not in held and self.remove(image.digest):
                log.info("evicted the image %s (%s)", image.reference, words.exact_size(image.bytes_on_disk))
                total -= image.bytes_on_disk

    def remove(self, digest: str) -> bool:
        """False when somebody is unpacking it now. The caller knows that nothing runs on it."""
        with self._lock(digest, wait=False) as got:
            if not got:
                return False
            gone = self._folder / "work" / f"{digest}.gone"
            image = self._load(digest)
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._folder / "roots" / digest, gone)
            remove_folder(gone)
            if image is not None:
                self._drop_blobs(image.blobs)
        for path, ref in self._refs():
            if ref.digest == digest:
                path.unlink(missing_ok=True)
        return True

    def sweep(self, steps: Collection[str] = ()) -> None:
        """What killed processes left. `steps` are carried out at this moment."""
        for path in self._folder.glob("steps/*"):
            if path.name not in steps:
                self.drop_step(path.name)
        for path in self._folder.glob("work/*"):
            with self._lock(path.name.partition(".")[0], wait=False) as got:
                if got:
                    remove_folder(path)

    def _drop_blobs(self, blobs: Collection[str]) -> None:
        kept = {blob for image in self.list() for blob in image.blobs}
        for blob in set(blobs) - kept:
            (self._blobs / blob).unlink(missing_ok=True)

    def _budget(self) -> int:
        if self._budget_bytes is not None:
            return self._budget_bytes
        disk = os.statvfs(self._folder)
        return round(disk.f_blocks * disk.f_frsize * BUDGET_SHARE)

    # -- folders

    @property
    def _blobs(self) -> Path:
        return self._folder / "blobs" / "sha256"

    def _make_folders(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        for name in ("refs", "roots", "work", "locks"):
            (self._folder / name).mkdir(exist_ok=True)
        for folder in (self._folder, self._folder / "roots", self._folder / "work"):
            folder.chmod(0o711)
        os.chown(self._blobs, FETCH_ID, FETCH_ID)

    @contextlib.contextmanager
    def _lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Among threads and processes; the kernel lets go of a dead one's. Its holder's time is bounded."""
        fd = os.open(self._folder / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(fd)


def _key(reference: ImageReference, private_to: str = "") -> str:
    text = f"{reference.text}\0{private_to}" if private_to else reference.text
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _find_ids(image: Image, passwd: str, group: str) -> UserIds:
    """By the image's own files. Raises Refused."""
    if (ids := find_user(image.user, passwd, group)) is not None:
        return ids
    raise Refused(
        f"The image {image.reference} runs as {image.user!r}, and its /etc/passwd and /etc/group have no such user. "
        "Nothing was started. Name a user that is there, with USER or user(...) where the image is built.",
        code="no-such-user",
    )


def _run_jail(order: jail.Order, reference: str, folder: Path) -> jail.Unpacked:
    argv = (sys.executable, "-P", "-m", "steelyard.runtime.oci.jail", msgspec.json.encode(order).decode())
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=order.limits.unpack_s,
            start_new_session=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EdgeFailed(
            f"The image {reference} could not be unpacked within {order.limits.unpack_s:.0f} s. Nothing was started.",
            code="unpack-failed",
        ) from None
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=jail.Unpacked)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it ended without a word"]
    if any("no space left on device" in line for line in lines):
        raise NoRoom(
            f"The image {reference} could not be unpacked: the disk of {folder} is full. Nothing was started. Free space there, "
            "and try again.",
            code="disk-full",
        )
    said = next((line for line in lines if line.startswith(("image: ", "machine: "))), lines[-1])
    kind, _, sentence = said.partition(": ")
    if "umoci" in sentence and "not found" in sentence:
        raise missing("umoci")
    if kind == "machine":
        raise EdgeFailed(f"The image {reference} could not be unpacked: {sentence}. Nothing was started.", code="unpack-failed")
    why = sentence if kind == "image" else said.removeprefix("⨯ ")[-300:]
    raise Refused(f"The image {reference} was refused: {why}. Nothing of it was kept; nothing was started.", code="image-refused")
