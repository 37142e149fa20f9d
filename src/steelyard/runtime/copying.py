"""How do files travel as one stream of bytes, and how do they land whole or not at all? The same on both ends of `steelyard cp`.

A tar archive whose names are ours: `top`, what is below it, and last `end` (or `error`, with words in it): an archive that broke
off is never taken for a whole one. Modes and times are kept, links inside stay links, owners become whoever lands it. Devices,
sockets and pipes are refused. A file lands beside its name and is renamed over it; so does a folder that is new. Nothing is ever
written through a link that came along. The standard library alone, and nothing is imported later: see `copy_inside.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

TOP, END, ERROR = "top", "end", "error"
#: pax headers: bytes of all files, nanoseconds since the epoch
_TOTAL, _MTIME = "STEELYARD.total", "STEELYARD.mtime"
_PIECE = 1 << 18
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: whose bits would give rights that nobody decided on
_MODE = 0o1777

#: called with (bytes so far, bytes in all)
Progress = Callable[[int, int], None]


class CopyFailed(Exception):
    """A sentence for whoever copies. Nothing that was there has changed, but for whole files in a folder that was there."""


class _Counted:
    """A file that tells how much was read of it, and that there is as much as was announced."""

    def __init__(self, file: BinaryIO, path: str, tell: Callable[[int], None]) -> None:
        self._file, self._path, self._tell = file, path, tell

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise CopyFailed(f"{self._path} became shorter while it was copied")
        self._tell(len(data))
        return data


# -- sending


def send(path: str, out: BinaryIO, progress: Progress | None = None) -> None:
    """Everything at `path`, which may be a link itself. What goes wrong is told to the other end, and raised as CopyFailed."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        try:
            _send(path, tar, progress)
        except (OSError, CopyFailed) as err:
            words = _explain(err)
            data = words.encode(errors="replace")
            told = tarfile.TarInfo(ERROR)
            told.size = len(data)
            tar.addfile(told, io.BytesIO(data))
            raise CopyFailed(words) from err
        tar.addfile(tarfile.TarInfo(END))


def _send(path: str, tar: tarfile.TarFile, progress: Progress | None) -> None:
    root = os.path.realpath(path, strict=True)
    total = sum(told.st_size for _, told in _walk(root, TOP, os.stat(root)) if stat.S_ISREG(told.st_mode))
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for name, told in _walk(root, TOP, os.stat(root)):
        source = root + name[len(TOP) :]
        entry = tarfile.TarInfo(name)
        entry.mode = stat.S_IMODE(told.st_mode) & _MODE
        entry.pax_headers = {_MTIME: str(told.st_mtime_ns), **({_TOTAL: str(total)} if name == TOP else {})}
        if stat.S_ISDIR(told.st_mode):
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        elif stat.S_ISLNK(told.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(source)
            tar.addfile(entry)
        elif stat.S_ISREG(told.st_mode):
            with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                entry.size = os.fstat(file.fileno()).st_size
                tar.addfile(entry, _Counted(file, source, tell))  # pyright: ignore[reportArgumentType]
        else:
            raise CopyFailed(f"{source} is a device, socket or pipe, and those are not copied")


def _walk(path: str, name: str, told: os.stat_result) -> Iterator[tuple[str, os.stat_result]]:
    """(name in the archive, what it is), folders before what is in them."""
    yield name, told
    if stat.S_ISDIR(told.st_mode):
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            yield from _walk(entry.path, f"{name}/{entry.name}", entry.stat(follow_symlinks=False))


# -- landing


def land(source: BinaryIO, target: str, name: str, progress: Progress | None = None) -> None:
    """What `send` sent, at `target`, or as `name` in it when it is a folder. Raises CopyFailed; nothing is left then that was
    begun."""
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            _Landing(target, name, progress).take(tar)
    except tarfile.TarError as err:
        raise CopyFailed("The copy broke off before its end") from err
    except OSError as err:
        raise CopyFailed(_explain(err)) from err


class _Landing:
    def __init__(self, target: str, name: str, progress: Progress | None) -> None:
        if os.path.isdir(target):
            target = os.path.join(target, name)
        elif target.endswith("/"):
            raise CopyFailed(f"There is no folder {target}")
        self._folder, self._name = os.path.split(target)
        if self._name in ("", ".", ".."):
            raise CopyFailed(f"{target} can't be the name of a copy")
        self._progress, self._done, self._total = progress, 0, 0
        #: of folders, set when all is in them: (parts, mode, time)
        self._late: list[tuple[list[str], int, int]] = []

    def take(self, tar: tarfile.TarFile) -> None:
        parent = os.open(self._folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        begun = f".{self._name[:200]}.{secrets.token_hex(6)}.part"
        try:
            at = self._take_all(tar, parent, begun)
            if at is not None:
                os.rename(begun, at, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            _remove(parent, begun)
            os.close(parent)

    def _take_all(self, tar: tarfile.TarFile, parent: int, begun: str) -> str | None:
        """What `begun` is to be renamed to; None when everything is where it belongs."""
        new: str | None = begun
        root = begun
        first = True
        for entry in tar:
            if entry.name == END and not first:
                self._finish(parent, root)
                return None if new is None else self._name
            if entry.name == ERROR:
                file = tar.extractfile(entry)
                raise CopyFailed("" if file is None else file.read(4096).decode(errors="replace"))
            top, *parts = entry.name.split("/")
            if top != TOP or first is not (not parts) or any(part in ("", ".", "..") or "\0" in part for part in parts):
                raise CopyFailed(f"The name {entry.name!r} has no place in a copy")
            if first:
                first, self._total = False, int(entry.pax_headers.get(_TOTAL, "0"))
                if entry.isdir() and _is_folder(parent, self._name):
                    new, root = None, self._name  # what is there stays, and files are renamed into it one by one
                elif _is_folder(parent, self._name):
                    raise CopyFailed(f"{self._name} is a folder there, and can't become a file")
            self._take_one(tar, entry, parent, [root, *parts])
        raise CopyFailed("The copy broke off before its end")

    def _take_one(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, parent: int, parts: list[str]) -> None:
        mode, time_ns = entry.mode & _MODE, int(entry.pax_headers.get(_MTIME, "0"))
        folder, name = _open_below(parent, parts[:-1]), parts[-1]
        try:
            if entry.isdir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folder)
                os.close(os.open(name, _FOLDER, dir_fd=folder))  # and no link, or file
                self._late.append((parts, mode, time_ns))
                return
            whole = name if len(parts) == 1 else f".{name[:200]}.{secrets.token_hex(6)}.part"
            try:
                if entry.issym():
                    os.symlink(entry.linkname, whole, dir_fd=folder)
                    os.utime(whole, ns=(time_ns, time_ns), dir_fd=folder, follow_symlinks=False)
                elif entry.isreg():
                    self._write(tar, entry, folder, whole, mode, time_ns)
                else:
                    raise CopyFailed(f"{entry.name} is a device, socket or pipe, and those are not copied")
                if whole != name:
                    os.rename(whole, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                if whole != name:
                    with contextlib.suppress(OSError):
                        os.unlink(whole, dir_fd=folder)
                raise
        finally:
            os.close(folder)

    def _write(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: int, name: str, mode: int, time_ns: int) -> None:
        file = tar.extractfile(entry)
        assert file is not None
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with open(fd, "wb") as out:
            left = entry.size
            while left:
                data = file.read(min(_PIECE, left))
                if not data:
                    raise CopyFailed("The copy broke off before its end")
                out.write(data)
                left -= len(data)
                self._done += len(data)
                if self._progress is not None:
                    self._progress(self._done, self._total)
            out.flush()
            os.fchmod(fd, mode)
            os.utime(fd, ns=(time_ns, time_ns))
            os.fsync(fd)

    def _finish(self, parent: int, root: str) -> None:
        for parts, mode, time_ns in reversed(self._late):
            folder = _open_below(parent, parts)
            try:
                os.fchmod(folder, mode)
                os.utime(folder, ns=(time_ns, time_ns))
            finally:
                os.close(folder)


def _open_below(parent: int, parts: list[str]) -> int:
    """The folder reached by these names, none of which may be a link."""
    folder = os.dup(parent)
    for part in parts:
        try:
            below = os.open(part, _FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder


def _is_folder(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(parent: int, name: str) -> None:
    """With all that is in it, whatever its folders' modes are."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        return
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            return
        folder = os.open(name, _FOLDER, dir_fd=parent)
        try:
            os.fchmod(folder, 0o700)
            for each in os.listdir(folder):
                _remove(folder, each)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=parent)


def _explain(err: Exception) -> str:
    if isinstance(err, OSError):
        return f"{os.fsdecode(err.filename)}: {err.strerror}" if err.filename else err.strerror or str(err)
    return str(err)
