"""What would a layer unpack to? Reads a tar stream's headers and counts, without writing anything.

Bytes in, counts out; whatever is over a limit, damaged or not a tar raises `BadLayer` with a sentence. Runs in the jail beside
umoci, which does the writing: a bomb is stopped while it still inflates. Formats: pax and GNU long names and sparse files, as
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html and tar(5) of libarchive tell.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import BinaryIO

from steelyard.runtime.oci import RATIO_FROM_BYTES, Limits

BLOCK = 512
_CHUNK = 1 << 20
#: a name or pax header longer than this has no honest reason
_META_MAX = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: extensions whose content describes the entry behind it
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_SPARSE = b"S"
#: only these have content; of any other a size says nothing (POSIX)
_EMPTY = frozenset(b"123456")
_GNU_SPARSE_SIZES = (b"GNU.sparse.realsize", b"GNU.sparse.size")


class BadLayer(Exception):
    """A sentence for people, without a full stop: what is wrong with the image."""


class LayerCheck:
    """One for all layers of an image: entries and bytes count together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.entries = 0
        #: content of files, holes of sparse ones included
        self.file_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._skip = self._padding = 0
        self._meta: bytes | None = None
        self._meta_left = 0
        self._buffer = b""
        self._pax: dict[bytes, bytes] = {}
        self._name = b""
        self._ended = False
        self._meta_bytes = 0

    def check(self, file: BinaryIO, digest: str) -> None:
        """Read one layer to its end. `digest` is the hex SHA-256 that the file must have."""
        self._begin()
        seen, gzipped = hashlib.sha256(), False
        self._read = self._unpacked = 0
        inflate = None
        while chunk := file.read(_CHUNK):
            if not self._read:
                if chunk.startswith(_ZSTD):
                    raise BadLayer("a layer is compressed with zstd, and was to be gzip")
                gzipped = chunk.startswith(_GZIP)
            seen.update(chunk)
            self._read += len(chunk)
            if not gzipped:
                self._take(chunk)
            while gzipped and chunk:
                inflate = inflate or zlib.decompressobj(31)
                self._take(_inflate(inflate, chunk))
                chunk = inflate.unconsumed_tail
                if inflate.eof:  # another member may follow
                    chunk, inflate = inflate.unused_data, None
        if seen.hexdigest() != digest:
            raise BadLayer(f"a layer is not what its digest sha256:{digest[:12]}... says")
        if inflate is not None:
            self._take(inflate.flush())
            if not inflate.eof:
                raise BadLayer("a layer ends in the middle")
        # umoci itself writes layers without the last file's padding; all its readers take them
        if self._skip > self._padding or self._buffer or self._meta is not None:
            raise BadLayer("a layer ends in the middle")

    def _take(self, data: bytes) -> None:
        self._unpacked += len(data)
        if self._unpacked > max(RATIO_FROM_BYTES, self._read * self.limits.ratio_max):
            raise BadLayer(f"a layer unpacks to more than {self.limits.ratio_max} times its size")
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Some bytes of the unpacked tar stream, cut anywhere."""
        at, end = 0, len(data)
        while at < end and not self._ended:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                continue
            wanted = self._meta_left if self._meta is not None else BLOCK
            piece = data[at : at + wanted - len(self._buffer)]
            self._buffer += piece
            at += len(piece)
            if len(self._buffer) < wanted:
                return
            whole, self._buffer = self._buffer, b""
            if self._meta is not None:
                self._take_meta(self._meta, whole)
            else:
                self._take_header(whole)

    def _take_header(self, block: bytes) -> None:
        if block == bytes(BLOCK):
            self._ended = True  # what follows is padding
            return
        if _checksum(block) != _number(block[148:156]):
            raise BadLayer("a layer is no tar archive")
        kind, size = block[156:157], _number(block[124:136])
        if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
            if size > _META_MAX:
                raise BadLayer("a layer has a name or header longer than 1 MiB")
            self._meta, self._meta_left = kind, -(-size // BLOCK) * BLOCK
            self._meta_bytes = size
            if not size:
                self._take_meta(kind, b"")
            return
        pax, name = self._pax, self._name
        self._pax, self._name = {}, b""
        stored = _decimal(pax.get(b"size")) if b"size" in pax else size
        holes = next((_decimal(pax[key]) for key in _GNU_SPARSE_SIZES if key in pax), None)
        if kind == _SPARSE:
            holes = _number(block[483:495])
            if block[482]:
                raise BadLayer("a layer has a sparse file with more holes than its header can tell")
        if kind[0] in _EMPTY:
            stored = 0
        self._count(pax.get(b"path") or name or _header_name(block), max(stored, holes or 0))
        self._skip = -(-stored // BLOCK) * BLOCK
        self._padding = self._skip - stored

    def _take_meta(self, kind: bytes, content: bytes) -> None:
        content = content[: self._meta_bytes]
        self._meta = None
        if kind == _GNU_NAME:
            self._name = content.rstrip(b"\0")
        elif kind == _PAX:
            self._pax = _parse_pax(content)
        elif kind == _PAX_GLOBAL and not _parse_pax(content).keys().isdisjoint({b"size", b"path", *_GNU_SPARSE_SIZES}):
            raise BadLayer("a layer says sizes or names of all its files at once")

    def _count(self, name: bytes, size: int) -> None:
        limits = self.limits
        self.entries += 1
        self.file_bytes += size
        if self.entries > limits.entries_max:
            raise BadLayer(f"it has more than {limits.entries_max} files")
        if self.file_bytes > limits.bytes_max:
            raise BadLayer(f"it unpacks to more than {limits.bytes_max} bytes")
        if name.count(b"/") >= limits.depth_max:
            raise BadLayer(f"it has folders more than {limits.depth_max} deep")


def _inflate(inflate: zlib._Decompress, chunk: bytes) -> bytes:  # pyright: ignore[reportPrivateUsage]
    try:
        return inflate.decompress(chunk, _CHUNK)
    except zlib.error as err:
        raise BadLayer(f"a layer is damaged ({err})") from None


def _checksum(block: bytes) -> int:
    return sum(block) - sum(block[148:156]) + 8 * 0x20


def _number(field: bytes) -> int:
    """Octal, or base 256 when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            raise BadLayer("a layer has a file of a negative size")
        return value
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise BadLayer("a layer is no tar archive") from None


def _decimal(text: bytes | None) -> int:
    if text is None or not text.isdigit() or len(text) > 20:
        raise BadLayer("a layer has a file whose size is no number")
    return int(text)


def _header_name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0", 1)[0], b""
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix else name


def _parse_pax(content: bytes) -> dict[bytes, bytes]:
    """Records `<length> <key>=<value>\\n`."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        if content[at] == 0:
            break
        length, space, _ = content[at : at + 21].partition(b" ")
        if not space or not length.isdigit() or not at < at + int(length) <= len(content):
            raise BadLayer("a layer has a damaged pax header")
        key, equals, value = content[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if not equals:
            raise BadLayer("a layer has a damaged pax header")
        found[key] = value
        at += int(length)
    return found
