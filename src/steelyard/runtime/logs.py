"""What did a workload print? Reads its log files by a byte offset that stays true for ever, and keeps them bounded.

A log is an O_APPEND file that the workload writes without us. `rotate` copies its last part to `<name>.old` and truncates it
under the writer, who never notices; `<name>.offsets` says which offsets of the endless stream the two files hold now. What was
cut out shows as a line in the text. Bytes that arrive between the last look at the size and the truncation (microseconds) are
lost uncounted. A rename would lose none, but the workload holds the descriptor and would write on into the old file for ever.

Offsets, sizes and limits are bytes; contents may be binary. One process rotates and reads (the agent). Never blocks on a writer.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from steelyard.errors import EdgeFailed

_COPY_PASSES = 3
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Layout(msgspec.Struct, frozen=True):
    """Where the stream's bytes are: [old_start, old_start + old_bytes) in `.old`, from `live_start` on in the live file."""

    old_start: int = 0
    old_bytes: int = 0
    live_start: int = 0
    #: a rotation is under way: the live file is at least this large until it was truncated, and then holds `live_start` on
    truncating: int = 0


class Part(msgspec.Struct, frozen=True):
    """Where to read next. `dropped` bytes before `offset` are gone."""

    dropped: int
    #: in the stream
    offset: int
    in_old: bool
    #: in that file
    position: int
    length: int


def find_part(layout: Layout, live_bytes: int, offset: int, limit: int) -> Part:
    """Pure. An offset beyond the end comes back to the end (somebody truncated the live file)."""
    old_end = layout.old_start + layout.old_bytes
    live_end = layout.live_start + live_bytes
    begin = min(max(offset, 0), live_end)
    if layout.old_bytes and begin < old_end:
        start = max(begin, layout.old_start)
        return Part(start - begin, start, True, start - layout.old_start, min(limit, old_end - start))
    start = max(begin, layout.live_start)
    return Part(start - begin, start, False, start - layout.live_start, min(limit, live_end - start))


class Piece(msgspec.Struct, frozen=True):
    """What a reader gets at a time, and what stands around it, by which is decided what of it may be shown."""

    data: bytes
    #: in the stream: where to go on
    next_offset: int
    #: a line about bytes that are gone before `data`
    gap: bytes = b""
    #: what comes right before and right behind, as many bytes as were asked for where there are so many
    before: bytes = b""
    after: bytes = b""
    #: nothing will ever come right behind that is not there yet
    cut: bool = False

    @property
    def plain(self) -> tuple[bytes, int]:
        """All of it, and where to go on."""
        return self.gap + self.data, self.next_offset


def read_log(path: Path, offset: int, limit: int, margin: int = 0) -> Piece:
    """At most `limit` (> 0) bytes of the stream from `offset` on. Nothing new, or no file yet: b"" and the end."""
    try:
        live = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return Piece(b"", 0)
    except OSError as err:
        raise EdgeFailed(f"log {path} cannot be read: {err.strerror}") from err
    try:
        live_bytes = os.fstat(live).st_size
        layout = _settle(_load_layout(path), live_bytes)
        part = find_part(layout, live_bytes, offset, limit)
        end = part.offset + part.length
        first, last, cut = find_margins(layout, live_bytes, part, margin)
        data, before, after = (
            _read_range(live, path, layout, start, stop)
            for start, stop in ((part.offset, end), (first, part.offset), (end, last))
        )
    except OSError as err:
        raise EdgeFailed(f"log {path} cannot be read: {err.strerror}") from err
    finally:
        os.close(live)
    # a workload may have truncated its own log since the look at its size
    return Piece(data, part.offset + len(data), render_gap(part.dropped), before, after, cut)


def find_margins(layout: Layout, live_bytes: int, part: Part, margin: int) -> tuple[int, int, bool]:
    """Pure. From where to where in the stream `margin` bytes around a part reach, over no gap; and whether the stream breaks off
    there, because what came next is gone."""
    old_end, end = layout.old_start + layout.old_bytes, part.offset + part.length
    whole = not layout.old_bytes or old_end == layout.live_start
    first = layout.old_start if layout.old_bytes and (part.in_old or whole) else layout.live_start
    last = old_end if part.in_old and not whole else layout.live_start + live_bytes
    return max(first, part.offset - margin), min(last, end + margin), part.in_old and not whole


def _read_range(live: int, path: Path, layout: Layout, start: int, stop: int) -> bytes:
    """Of the stream, which holds all of it."""
    old_end = layout.old_start + layout.old_bytes
    middle = min(stop, old_end) if layout.old_bytes and start < old_end else start
    data = _read_old(path, start - layout.old_start, middle - start) if start < middle else b""
    return data + os.pread(live, stop - middle, middle - layout.live_start) if middle < stop else data


def _read_old(path: Path, position: int, length: int) -> bytes:
    with open(_old(path), "rb") as old:
        data = os.pread(old.fileno(), length, position)
    if len(data) < length:  # a reader would ask for the same bytes for ever
        raise OSError(0, f"{_old(path)} is shorter than it was")
    return data


def render_gap(dropped: int) -> bytes:
    return f"\n[steelyard: {dropped} bytes of output were dropped here]\n".encode() if dropped else b""


def rotate(path: Path, keep_bytes: int) -> bool:
    """When the live file has grown beyond a third of `keep_bytes`, keep that much of its end, and at most another third of what
    comes while copying. So both files stay below `keep_bytes` plus what is written between two calls. False: nothing to do."""
    third = max(1, keep_bytes // 3)
    try:
        live = os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        return False
    except OSError as err:
        raise EdgeFailed(f"log {path} cannot be rotated: {err.strerror}") from err
    try:
        size = os.fstat(live).st_size
        layout = _settle(_load_layout(path), size)
        if size <= third:
            return False
        begin = size - third
        copied_end = _copy(live, begin, 2 * third, path.with_name(f".{path.name}.old.tmp"))
        size = os.fstat(live).st_size
        rotated = Layout(
            old_start=layout.live_start + begin,
            old_bytes=copied_end - begin,
            live_start=layout.live_start + size,
            truncating=size,
        )
        # in this order: cut short anywhere before the truncation, the whole live file counts and the old one is ignored
        _save_layout(path, rotated)
        os.rename(path.with_name(f".{path.name}.old.tmp"), _old(path))
        # counted again with nothing in between: a fast writer adds megabytes while two small files are moved
        size = os.fstat(live).st_size
        os.ftruncate(live, 0)
        _save_layout(path, msgspec.structs.replace(rotated, live_start=layout.live_start + size, truncating=0))
    except OSError as err:
        raise EdgeFailed(f"log {path} cannot be rotated: {err.strerror}") from err
    finally:
        os.close(live)
    return True


def _copy(live: int, begin: int, limit: int, destination: Path) -> int:
    """Copy from `begin` to the end, which moves while we do; who outruns us loses, counted, what is beyond the last pass or
    the limit. Returns the position up to which it was copied."""
    out = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o640)
    position = begin
    try:
        for _ in range(_COPY_PASSES):
            end = min(os.fstat(live).st_size, begin + limit)
            while position < end:
                sent = os.sendfile(out, live, position, end - position)
                if sent == 0:  # truncated by the workload itself
                    return position
                position += sent
        return position
    finally:
        os.close(out)


def _settle(layout: Layout, live_bytes: int) -> Layout:
    """A rotation cut short before its truncation left everything in the live file, where `live_start` is not yet true."""
    if layout.truncating and live_bytes >= layout.truncating:
        return Layout(live_start=layout.live_start - layout.truncating)
    return layout


def _load_layout(path: Path) -> Layout:
    try:
        return msgspec.json.decode(_offsets(path).read_bytes(), type=Layout)
    except FileNotFoundError:
        return Layout()
    except msgspec.MsgspecError as err:
        raise EdgeFailed(f"{_offsets(path)} is damaged ({err}); remove it to read the log from its beginning") from err


def _save_layout(path: Path, layout: Layout) -> None:
    # no fsync: after a power loss the worst is a log whose offsets begin anew
    temp = path.with_name(f".{path.name}.offsets.tmp")
    temp.write_bytes(msgspec.json.encode(layout))
    os.rename(temp, _offsets(path))


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _offsets(path: Path) -> Path:
    return path.with_name(f"{path.name}.offsets")
