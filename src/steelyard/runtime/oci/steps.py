"""What does a step of a build leave, and how does it become the files of an image? The folder that a container wrote is laid over
those of the image below it, whose unchanged files are hard links: no byte is copied.

    <images>/steps/<id>/upper, work    of the overlay that the step's container writes
    <images>/steps/<id>/done           where it notes that it ended well
    <images>/steps/<id>/step.json      what the image will be

Nothing in `upper` is trusted. Nobody writes there any more when it is read, and no link in it is followed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.errors import EdgeFailed
from steelyard.lifecycle.container_step import MARK
from steelyard.model.image import Image
from steelyard.runtime.oci import RANGE_FIRST
from steelyard.runtime.oci.fetch import remove_folder

_STEP = "step.json"
#: of overlayfs: nothing below this folder shows through
_OPAQUE = "trusted.overlay.opaque"


class StepMade(msgspec.Struct, frozen=True):
    #: what it will be, but for the numbers of its files
    image: Image
    #: digest of the image that it begins with; "" where it begins with none
    below: str
    #: who alone may have it
    private_to: str


def begin_step(folder: Path, made: StepMade) -> None:
    """`folder` is there and empty then, whatever an earlier try left."""
    remove_folder(folder)
    folder.mkdir(parents=True, mode=0o700)
    for name in ("upper", "work", "done"):
        (folder / name).mkdir(mode=0o755)
    for name in ("upper", "done"):
        os.chown(folder / name, RANGE_FIRST, RANGE_FIRST)
    write_file(folder / _STEP, msgspec.json.encode(made))


def read_step(folder: Path) -> StepMade | None:
    """What ended well there; None when nothing did."""
    try:
        if not stat.S_ISREG((folder / "done" / MARK).lstat().st_mode):
            return None
        return msgspec.json.decode((folder / _STEP).read_bytes(), type=StepMade)
    except (OSError, msgspec.MsgspecError):
        return None


def lay_over(below: Path | None, upper: Path, out: Path) -> tuple[int, int]:
    """`out`, which is not there yet, becomes `below` (None: nothing) with what `upper` says; `upper` is used up. Files and bytes
    that it adds. Raises EdgeFailed."""
    if below is None:
        os.rename(upper, out)
        return _count(out)
    done = subprocess.run(
        ("cp", "-al", "--", str(below), str(out)), check=False, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"cp ended with code {done.returncode}"]
        raise EdgeFailed(f"The files of the image below could not be linked: {said[0]}", code="image-failed")
    try:
        return _merge(str(upper), str(out))
    except OSError as err:
        raise EdgeFailed(f"What the step wrote could not be taken over: {err.strerror}", code="image-failed") from err


def _count(folder: Path) -> tuple[int, int]:
    files = size = 0
    for path, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        for name in names:
            told = os.lstat(f"{path}/{name}")
            size += told.st_size if stat.S_ISREG(told.st_mode) else 0
    return files, size


def _merge(upper: str, out: str) -> tuple[int, int]:
    files = size = 0
    folders = [(upper, out, os.lstat(upper))]
    for source, target, _ in folders:  # grows meanwhile: what is above comes first
        with os.scandir(source) as entries:
            for entry in entries:
                place, told = f"{target}/{entry.name}", entry.stat(follow_symlinks=False)
                if stat.S_ISCHR(told.st_mode) and told.st_rdev == 0:  # it was removed
                    _remove(place)
                    continue
                files += 1
                if stat.S_ISDIR(told.st_mode):
                    if not _is_folder(place) or _is_opaque(entry.path):
                        _remove(place)
                        os.mkdir(place)
                    folders.append((entry.path, place, told))
                else:
                    _remove(place)
                    os.rename(entry.path, place)
                    size += told.st_size if stat.S_ISREG(told.st_mode) else 0
    for _, target, told in reversed(folders):  # what was put into a folder, or taken from one, changed its times
        os.chown(target, told.st_uid, told.st_gid)
        os.chmod(target, stat.S_IMODE(told.st_mode))
        os.utime(target, ns=(told.st_atime_ns, told.st_mtime_ns))
    return files, size


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def _remove(path: str) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
