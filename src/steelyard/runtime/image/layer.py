"""What lies in an owner's folder of images? Finds what is there, makes a layer from the one below, and sweeps what is not wanted.

All of it belongs to the owner, who may have put anything there: links are not followed and what can't be read does not count.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.model.ids import ImageId

MARKER, VENV, FILES = "image.json", "venv", "files"
MAKING, LOCK, STALE = ".making-", ".lock-", ".stale-"
CACHE, PYTHONS = "cache", "python"
MARKER_BYTES_MAX = 4 << 20
_HEX = frozenset("0123456789abcdef")


class Marker(msgspec.Struct, frozen=True):
    """image.json, written by the builder."""

    id: ImageId
    #: whose venv/ and files/ it has: its own, or those of a layer below
    tree: ImageId
    #: variables of what runs in it
    env: dict[str, str]
    #: full version of its interpreter
    python: str
    size_bytes: int
    added_bytes: int
    built_at: int
    #: installed, as "name version"
    packages: tuple[str, ...] = ()


def read_layer(folder: Path, image: ImageId) -> Marker | None:
    """None when it is not there, was not finished, or its interpreter is gone."""
    marker = _read_marker(folder / image / MARKER)
    if marker is None or marker.id != image or not _is_id(marker.tree):
        return None
    # through the link: an interpreter that was removed from the machine leaves nothing that could run
    return marker if os.path.exists(folder / marker.tree / VENV / "bin" / "python") else None


def list_layers(folder: Path) -> Iterator[Marker]:
    """Those that count."""
    for name in _names(folder):
        if _is_id(name) and (marker := read_layer(folder, ImageId(name))) is not None:
            yield marker


@contextlib.contextmanager
def hold_layer(folder: Path, image: ImageId) -> Iterator[Path]:
    """The empty folder to make it in, for one builder at a time: others wait. What is in it at the end is removed, unless it was
    put in place by `finish_layer`."""
    with contextlib.ExitStack() as stack:
        path = folder / f"{LOCK}{image}"
        while True:
            lock = stack.enter_context(open(path, "ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(lock.fileno()).st_ino:
                    break  # else it was swept while we waited, and somebody may hold the next one
            lock.close()
        making = folder / f"{MAKING}{image}"
        remove_tree(making)
        making.mkdir()
        try:
            yield making
        finally:
            remove_tree(making)


def start_from(below: Path, making: Path, *, writable: bool) -> None:
    """What the layer below has, as hard links. `writable`: its folder of files is really copied (by reference where the file
    system can), since commands may write to files in place, and a link would change the layer below."""
    how = "--reflink=auto" if writable else "-l"
    for name, option in ((VENV, "-l"), (FILES, how)):
        subprocess.run(["cp", "-a", option, "--", str(below / name), str(making / name)], check=True, stdin=subprocess.DEVNULL)
    if writable:
        for path, status in walk(making / FILES):
            if stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IWUSR:
                path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IWUSR)


def freeze(making: Path, below: Path | None) -> tuple[int, int]:
    """Takes the right to write from all files, since many names lead to each. Bytes of all of them, and of those that the layer
    below does not have."""
    known = set[int]() if below is None else {status.st_ino for name in (VENV, FILES) for _, status in walk(below / name)}
    seen: set[int] = set()
    size_bytes = added_bytes = 0
    for name in (VENV, FILES):
        for path, status in walk(making / name):
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o222:
                path.chmod(stat.S_IMODE(status.st_mode) & ~0o222)
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                size_bytes += status.st_blocks * 512
                added_bytes += 0 if status.st_ino in known else status.st_blocks * 512
    return size_bytes, added_bytes


def finish_layer(folder: Path, making: Path, marker: Marker) -> None:
    """Everything to the disk, the marker last; then it is there."""
    fd = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file_system(fd)
    finally:
        os.close(fd)
    write_file(making / MARKER, msgspec.json.encode(marker), 0o444)
    place = folder / marker.id
    if place.is_dir():  # it does not count, or it would not be made again
        os.rename(place, folder / f"{STALE}{marker.id}.{os.getpid()}")
    os.rename(making, place)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """What uv and commands wrote is theirs to sync, and they do not."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "the image could not be written to the disk")


def sweep(folder: Path, wanted: Collection[ImageId]) -> int:
    """Remove layers that are not wanted and what killed builders left; how many folders went. What a living builder holds
    stays."""
    gone = 0
    for name in _names(folder):
        image = name.removeprefix(MAKING).removeprefix(LOCK)
        if name.startswith(STALE) or (_is_id(name) and name not in wanted):
            gone += remove_tree(folder / name)
        elif name.startswith((MAKING, LOCK)) and _is_id(image):
            with _unheld(folder / f"{LOCK}{image}") as free:
                if free:
                    gone += remove_tree(folder / f"{MAKING}{image}")
                    (folder / f"{LOCK}{image}").unlink(missing_ok=True)
    if gone:
        drop_unused(folder / CACHE / "archive-v0")
    return gone


def drop_unused(archives: Path) -> None:
    """Unpacked wheels that no layer has a link of: uv fetches them again when they are asked for."""
    for name in _names(archives):
        files = [status for _, status in walk(archives / name) if stat.S_ISREG(status.st_mode)]
        if all(status.st_nlink == 1 for status in files):
            remove_tree(archives / name)


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a folder; links as links."""
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            with os.scandir(here) as found:
                entries = list(found)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            yield Path(entry.path), status
            if stat.S_ISDIR(status.st_mode):
                pending.append(Path(entry.path))


def remove_tree(folder: Path) -> bool:
    """True when it is gone and was there."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return False
    except OSError:  # a link in its place, or a folder without rights
        with contextlib.suppress(OSError):
            folder.unlink()
        return False
    return True


@contextlib.contextmanager
def _unheld(lock: Path) -> Iterator[bool]:
    """Whether no builder holds it; while this one does."""
    try:
        fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)


def _read_marker(path: Path) -> Marker | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            return msgspec.json.decode(file.read(MARKER_BYTES_MAX), type=Marker)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_id(name: str) -> bool:
    return len(name) == 64 and _HEX.issuperset(name)
