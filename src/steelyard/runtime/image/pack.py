"""How does an image get from the home to a machine of a pool? As one file, packed once, that whoever lacks the image fetches.

    <home>/server/packed/<name>.tar    by GNU tar; complete once it has its name
    <home>/server/packed/<name>.json   its size and SHA-256

The environment of a user is packed with that user's rights: nothing in its folder is trusted. Blocks: call from threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.errors import EdgeFailed, NotFound
from steelyard.model.ids import ImageId
from steelyard.runtime.image.layer import PYTHONS, VENV, read_layer

#: packed images that nobody has asked for in that time are removed when the next one is made
KEPT_S = 3600.0


class Packed(msgspec.Struct, frozen=True):
    sha256: str
    size_bytes: int


def pack_environment(folder: Path, image: ImageId, place: Path, now_s: float) -> Packed:
    """`folder`: its owner's; `place`: where the file appears; `now_s`: wall time. Raises NotFound or EdgeFailed."""
    marker = read_layer(folder, image)
    if marker is None:
        raise NotFound(f"The image {image[:12]} is not on the home's machine any more. Build it again.", code="image-missing")
    parts = [image, *([marker.tree] if marker.tree != image else []), *_find_pythons(folder, marker.tree)]
    told = folder.stat()
    return pack(folder, parts, place, (told.st_uid, told.st_gid), now_s)


def _find_pythons(folder: Path, tree: str) -> list[str]:
    """Interpreters that were fetched for it, with the link that names them; one of the system is on each machine, or is not."""
    python = folder / tree / VENV / "bin" / "python"
    found: dict[str, None] = {}
    for path in (os.readlink(python), os.path.realpath(python)):
        head, inside, tail = path.partition(f"/{folder.name}/{PYTHONS}/")
        if inside and (folder / PYTHONS / (name := tail.partition("/")[0])).exists() and head:
            found[f"{PYTHONS}/{name}"] = None
    return [*found]


def pack(folder: Path, parts: Sequence[str], place: Path, ids: tuple[int, int], now_s: float) -> Packed:
    """`parts` of a folder, read with the rights of `ids`, or with ours where we are not root. Raises EdgeFailed."""
    note = place.with_suffix(".json")
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        packed = msgspec.json.decode(note.read_bytes(), type=Packed)
        if place.stat().st_size == packed.size_bytes:
            os.utime(place, (now_s, now_s))
            return packed
    place.parent.mkdir(mode=0o700, exist_ok=True)
    _sweep(place.parent, now_s - KEPT_S)
    coming = place.with_name(f".{place.name}.{os.getpid()}")
    root = os.geteuid() == 0
    user = {"user": ids[0], "group": ids[1], "extra_groups": ()} if root else {}
    argv = ("tar", "-cf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(folder), "--", *parts)
    try:
        with open(coming, "wb") as file:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False, **user)
            os.fsync(file.fileno())
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"tar ended with {done.returncode}"]
            raise EdgeFailed(f"The image could not be packed: {said[0]}.", code="image-not-packed")
        with open(coming, "rb") as file:
            packed = Packed(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)
        os.rename(coming, place)
        write_file(note, msgspec.json.encode(packed), 0o600)
    except OSError as err:
        raise EdgeFailed(f"The image could not be packed into {place.parent}: {err.strerror}.", code="image-not-packed") from err
    finally:
        coming.unlink(missing_ok=True)
    return packed


def _sweep(folder: Path, before_s: float) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix != ".json" and path.stat().st_mtime < before_s:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)
