"""Which files are the code of a function? Captures a folder, minus what its .gitignore files name, as a tar.gz that is the
same bytes for the same content: sorted, without times, owners and umask. Its sha256 is its name.

Never changes the folder. Links that lead out of it and things that are no files are left out and named.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from steelyard.errors import Refused

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

BUNDLE_MAX_BYTES = 256 << 20
#: before compression; a folder beyond this was not meant
RAW_MAX_BYTES = 1 << 30
#: never code, whatever .gitignore says
ALWAYS_LEFT_OUT = frozenset({".git", "__pycache__", ".venv"})
#: lies in a home of Steelyard only. Its tokens and other people's code are nothing that work may read
_HOME_MARK = "admin.token"


class Bundle(NamedTuple):
    """A captured folder. `file` is an unnamed temporary file; closing it removes it."""

    sha256: str
    size_bytes: int
    file: BinaryIO
    #: what was left out though nothing names it, a sentence each
    notes: tuple[str, ...]


class _Entry(NamedTuple):
    name: str
    path: Path
    status: os.stat_result


def capture_folder(folder: Path, *, whole: bool = False) -> Bundle:
    """`whole`: also what .gitignore names. Raises Refused when it is too large or a file can't be read."""
    notes: list[str] = []
    entries = _entries(folder, [] if whole else _outer_specs(folder), notes, whole=whole)
    return _pack(folder, sorted(entries, key=lambda entry: entry.name), notes)


def capture_files(files: Mapping[str, Path]) -> Bundle:
    """Single files, by their names in the bundle. As `capture_folder`."""
    entries = [_Entry(name, path, path.stat()) for name, path in sorted(files.items())]
    return _pack(entries[0].path.parent, entries, [])


def _pack(folder: Path, entries: list[_Entry], notes: list[str]) -> Bundle:
    raw_bytes = sum(entry.status.st_size for entry in entries if stat.S_ISREG(entry.status.st_mode))
    if raw_bytes > RAW_MAX_BYTES:
        raise _too_large(folder, entries, raw_bytes)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for entry in entries:
                    _add(tar, entry)
        size_bytes = file.tell()
        if size_bytes > BUNDLE_MAX_BYTES:
            raise _too_large(folder, entries, size_bytes)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Bundle(sha256, size_bytes, file, tuple(notes))


def _entries(folder: Path, outer: list[tuple[Path, GitIgnoreSpec]], notes: list[str], *, whole: bool) -> Iterator[_Entry]:
    """Files and links below a folder. `outer` are the ignore files of the folders around it, the innermost last."""
    pending = [(folder, outer)]
    while pending:
        here, specs = pending.pop()
        spec = None if whole else _load_spec(here)
        specs = [*specs, (here, spec)] if spec is not None else specs
        for found in _scan(here):
            path = Path(found.path)
            if found.name in ALWAYS_LEFT_OUT or _ignored(path, found.is_dir(follow_symlinks=False), specs):
                continue
            name = path.relative_to(folder).as_posix()
            status = found.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if (path / _HOME_MARK).exists():
                    notes.append(f"{name} is a home of Steelyard, with its keys, and was left out.")
                else:
                    pending.append((path, specs))
            elif stat.S_ISREG(status.st_mode) or (stat.S_ISLNK(status.st_mode) and _stays_inside(name, os.readlink(path))):
                yield _Entry(name, path, status)
            else:
                what = "a link that leads out of the folder" if stat.S_ISLNK(status.st_mode) else "no file"
                notes.append(f"{name} is {what} and was left out.")


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except PermissionError as err:
        raise Refused(
            f"{folder} can't be read. Nothing was deployed. Make it readable, or name it in .gitignore.", code="code-unreadable"
        ) from err


def _outer_specs(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """The ignore files between the repository's root and the folder: they speak about it too."""
    around: list[Path] = []
    for above in folder.parents:
        around.append(above)
        if (above / ".git").exists():
            break
    else:
        return []
    if (folder / ".git").exists():
        return []
    return [(above, spec) for above in reversed(around) if (spec := _load_spec(above)) is not None]


def _load_spec(folder: Path) -> GitIgnoreSpec | None:
    try:
        text = (folder / ".gitignore").read_text(errors="replace")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except PermissionError as err:
        raise Refused(f"{folder}/.gitignore can't be read. Nothing was deployed.", code="code-unreadable") from err
    # imported here: most folders have none, and it costs as much as all the rest of a small capture
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(text.splitlines())


def _ignored(path: Path, is_folder: bool, specs: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    """The innermost ignore file that says anything decides, as git does it."""
    for base, spec in reversed(specs):
        said = spec.check_file(path.relative_to(base).as_posix() + ("/" if is_folder else "")).include
        if said is not None:
            return said
    return False


def _stays_inside(name: str, target: str) -> bool:
    if target.startswith("/"):
        return False
    depth = 0
    for part in (*PurePosixPath(name).parent.parts, *PurePosixPath(target).parts):
        depth += -1 if part == ".." else 0 if part == "." else 1
        if depth < 0:
            return False
    return True


def _add(tar: tarfile.TarFile, entry: _Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mtime = 0
    if stat.S_ISLNK(entry.status.st_mode):
        info.type = tarfile.SYMTYPE
        info.mode = 0o777
        info.linkname = os.readlink(entry.path)
        tar.addfile(info)
        return
    # readable by the uid that work runs as; which bits beyond "executable" were set here says nothing there
    info.mode = 0o755 if entry.status.st_mode & 0o111 else 0o644
    try:
        with entry.path.open("rb") as content:
            info.size = os.fstat(content.fileno()).st_size
            tar.addfile(info, content)
    except PermissionError as err:
        raise Refused(
            f"{entry.path} can't be read. Nothing was deployed. Make it readable, or name it in .gitignore.",
            code="code-unreadable",
        ) from err
    except OSError as err:
        raise Refused(
            f"{entry.path} changed while it was read ({err}). Nothing was deployed. Try again.", code="code-changed"
        ) from err


def _too_large(folder: Path, entries: list[_Entry], size_bytes: int) -> Refused:
    largest = sorted(entries, key=lambda entry: -entry.status.st_size)[:3]
    names = ", ".join(f"{entry.name} ({entry.status.st_size >> 20} MiB)" for entry in largest)
    return Refused(
        f"The code in {folder} is {size_bytes >> 20} MiB, more than {BUNDLE_MAX_BYTES >> 20} MiB. Nothing was "
        "deployed. Name data and models in "
        f".gitignore and load them from elsewhere; the largest files are {names}.",
        code="code-too-large",
    )
