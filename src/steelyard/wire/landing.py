"""How does a stream become a file that others read? Piece by piece beside its name, and in its place once it is whole (R12).

Writing and syncing are done on threads; a small file costs one hop. Lets OSError out: whoever uses it says what was not kept.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from steelyard.config import sync_folder

#: how much is gathered before it is written
GATHER_BYTES = 1 << 20
#: how files end that are not whole
PART = ".part"


class Landing:
    """`async with Landing(path) as file: await file.write(...); await file.land()`. What was not landed is gone afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._temp = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{PART}")
        self._fd: int | None = None
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    async def __aenter__(self) -> Landing:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._temp.unlink(missing_ok=True)

    async def write(self, piece: bytes) -> None:
        self._gathered.append(piece)
        self._gathered_bytes += len(piece)
        self.size_bytes += len(piece)
        if self._gathered_bytes >= GATHER_BYTES:
            await self._hop(self._flush)

    async def land(self) -> None:
        """It is there, also after a power loss, when this returns."""
        await self._hop(self._land)

    async def _hop(self, fn: Callable[[], None]) -> None:
        # shielded: a thread that still writes must not find its descriptor closed, or another file's under the same number
        task = asyncio.ensure_future(asyncio.to_thread(fn))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait((task,))
            raise

    def _flush(self) -> None:
        if self._fd is None:
            self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        view = memoryview(b"".join(self._gathered))
        self._gathered, self._gathered_bytes = [], 0
        while view:
            view = view[os.write(self._fd, view) :]

    def _land(self) -> None:
        self._flush()
        assert self._fd is not None
        os.fsync(self._fd)
        os.rename(self._temp, self.path)
        os.close(self._fd)
        self._fd = None
        sync_folder(self.path.parent)


def remove_parts(folder: Path) -> None:
    """What a killed program left unfinished."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)
