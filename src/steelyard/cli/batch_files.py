"""What has been asked, what was answered, and where does a second run go on? The files of one batch.

Line N of the output answers line N of the input, so the output itself says how far the batch came: no position is kept beside it
that could disagree after a crash. Beside `out.jsonl` lie `out.errors.jsonl` (rows without an answer; their line of the output is
`null`) and `out.batch.json` (which input and function it belongs to; also the lock of the batch). A row's error is written
before its line, so that cutting errors beyond the last whole line leaves exactly those that stand. Asks nothing of anybody.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from steelyard.errors import Conflict, EdgeFailed, NotFound, Refused

#: longer lines are rows that failed: a request of that size belongs into a file or a bucket
LINE_MAX = 64 << 20
_PIECE = 1 << 20
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
STATE_VERSION = 1


class Row(NamedTuple):
    """A line of the input, counted from 1."""

    number: int
    body: bytes
    #: why it can't be asked
    error: str = ""


class Answer(NamedTuple):
    """What became of a row: a line of JSON, or a message."""

    number: int
    line: bytes | None
    #: HTTP status; None where there was no answer
    status: int | None = None
    message: str = ""


class RowError(msgspec.Struct, frozen=True):
    """A line of the errors file."""

    row: int
    status: int | None
    message: str


class Source(msgspec.Struct, frozen=True):
    """The input as it was read. The stamp spares reading it all again; the hash decides."""

    sha256: str
    rows: int
    #: size, mtime and ctime in nanoseconds, inode
    stamp: tuple[int, int, int, int]


class State(msgspec.Struct, frozen=True):
    version: int
    function: str
    path: str
    source: Source


class Files(NamedTuple):
    output: Path
    errors: Path
    state: Path


def make_files(output: Path) -> Files:
    stem = output.name.removesuffix(output.suffix) or output.name
    return Files(output, output.with_name(f"{stem}.errors.jsonl"), output.with_name(f"{stem}.batch.json"))


class Input:
    """Rows of a file that is read once, in order; never more of it in memory than one line."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb")
        except FileNotFoundError as err:
            raise NotFound(f"There is no file {path}. Nothing was asked.", code="no-input") from err
        except OSError as err:
            raise Refused(f"{path} can't be read ({err.strerror}). Nothing was asked.", code="input-unreadable") from err
        self.path = path
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise Refused(
                f"{path} is no regular file: a second run could not find the place where the first one stopped. "
                "Write it into a file first.",
                code="input-not-a-file",
            )

    def close(self) -> None:
        self._file.close()

    def stamp(self) -> tuple[int, int, int, int]:
        seen = os.fstat(self._file.fileno())
        return (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)

    def identify(self, known: Source | None) -> Source:
        """Reads all of it, unless it has the stamp that it had."""
        stamp = self.stamp()
        if known is not None and known.stamp == stamp:
            return known
        digest = hashlib.sha256()
        lines = rows = 0
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            digest.update(piece)
            told = piece.rstrip(_BLANK)
            if told:
                # blank lines at the end are no rows
                rows = lines + told.count(b"\n") + 1
            lines += piece.count(b"\n")
        return Source(digest.hexdigest(), rows, stamp)

    def rows(self, source: Source, done: int) -> Iterator[Row]:
        """Those after the first `done`. Refused when it ends earlier than it did before."""
        self._file.seek(0)
        for number in range(1, source.rows + 1):
            line = self._file.readline(LINE_MAX + 1)
            if not line or self.stamp()[:2] != source.stamp[:2]:
                raise Refused(f"{self.path} was changed while it was read. `--restart` begins anew.", code="input-changed")
            too_long = len(line) > LINE_MAX
            while too_long and not line.endswith(b"\n") and (line := self._file.readline(LINE_MAX)):
                pass
            if number > done:
                yield _make_row(number, line, too_long)


def _make_row(number: int, line: bytes, too_long: bool) -> Row:
    if too_long:
        return Row(number, b"", f"the line is longer than {LINE_MAX >> 20} MiB")
    body = (line.removeprefix(_BOM) if number == 1 else line).strip(_BLANK)
    if not body:
        return Row(number, b"", "the line is empty")
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        return Row(number, b"", f"not JSON: {err}")
    return Row(number, body)


class Output:
    """The three files, held by one batch at a time."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._lock = _open(files.state, os.O_RDWR | os.O_CREAT)
        self._output = self._errors = -1
        #: rows that have their line, and those of them that failed
        self.done = self.failed = 0
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Conflict(
                f"Another `steelyard batch` writes {files.output} now. Nothing was changed.", code="batch-runs"
            ) from None

    def close(self) -> None:
        if not os.fstat(self._lock).st_size:
            # the lock alone: nothing has begun
            self.files.state.unlink(missing_ok=True)
        for fd in (self._errors, self._output, self._lock):
            if fd >= 0:
                os.close(fd)

    def load_state(self) -> State | None:
        """What an earlier run was about; None when there was none."""
        raw = self.files.state.read_bytes()
        if raw:
            try:
                state = msgspec.json.decode(raw, type=State)
            except msgspec.MsgspecError as err:
                raise Refused(f"{self.files.state} is damaged ({err}). `--restart` begins anew.", code="batch-damaged") from err
            if state.version == STATE_VERSION:
                return state
            raise Refused(
                f"{self.files.state} is of another version of Steelyard. `--restart` begins anew.", code="batch-version"
            )
        if self.files.output.exists() and self.files.output.stat().st_size:
            raise Refused(
                f"{self.files.output} is there already and was not written by `steelyard batch`. Nothing was changed. Name "
                "another --output, or let `--restart` overwrite it.",
                code="output-exists",
            )
        return None

    def begin(self, state: State, *, anew: bool) -> None:
        """Open for appending, with torn ends of an earlier run cut off. `anew` empties both files first."""
        self._output = _open(self.files.output, os.O_RDWR | os.O_CREAT)
        if anew:
            os.ftruncate(self._output, 0)
            self.files.errors.unlink(missing_ok=True)
            self._write_state(state)
        self.done = self._mend_output()
        if self.done > state.source.rows:
            raise Refused(
                f"{self.files.output} has {self.done} lines, the input only {state.source.rows} rows: somebody else wrote to it. "
                "Nothing was changed. `--restart` begins anew.",
                code="output-changed",
            )
        if self.files.errors.exists():
            self._errors = _open(self.files.errors, os.O_RDWR)
            self.failed = self._mend_errors()

    def append(self, answers: Sequence[Answer]) -> None:
        """Rows in order, the next after `done`."""
        failed = [RowError(each.number, each.status, each.message) for each in answers if each.line is None]
        if failed:
            if self._errors < 0:
                self._errors = _open(self.files.errors, os.O_RDWR | os.O_CREAT)
            self._write(self._errors, self.files.errors, b"".join(msgspec.json.encode(error) + b"\n" for error in failed))
        self._write(self._output, self.files.output, b"".join((each.line or b"null") + b"\n" for each in answers))
        self.done += len(answers)
        self.failed += len(failed)

    def sync(self) -> None:
        for fd in (self._errors, self._output):
            if fd >= 0:
                os.fsync(fd)

    def _write_state(self, state: State) -> None:
        # in place, not by renaming: the lock is on this very file
        raw = msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, raw, 0)
        os.fsync(self._lock)

    def _write(self, fd: int, path: Path, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError as err:
            raise EdgeFailed(
                f"{path} can't be written ({err.strerror}). What was written is kept: make room, and the same command goes on.",
                code="output-failed",
            ) from err

    def _mend_output(self) -> int:
        """Whole lines; what follows the last of them is cut off."""
        lines = size = whole = 0
        while piece := os.pread(self._output, _PIECE, size):
            lines += piece.count(b"\n")
            end = piece.rfind(b"\n")
            whole = size + end + 1 if end >= 0 else whole
            size += len(piece)
        os.ftruncate(self._output, whole)
        os.lseek(self._output, 0, os.SEEK_END)
        return lines

    def _mend_errors(self) -> int:
        """Errors of rows that have their line; what follows them is cut off."""
        found = whole = 0
        with os.fdopen(os.dup(self._errors), "rb") as file:
            for line in file:
                row = _read_row(line)
                if row is None or row > self.done:
                    break
                found += 1
                whole += len(line)
        os.ftruncate(self._errors, whole)
        os.lseek(self._errors, 0, os.SEEK_END)
        return found


def _read_row(line: bytes) -> int | None:
    try:
        return msgspec.json.decode(line, type=RowError).row if line.endswith(b"\n") else None
    except msgspec.MsgspecError:
        return None


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as err:
        raise Refused(f"{path} can't be written ({err.strerror}). Nothing was asked.", code="output-unwritable") from err
