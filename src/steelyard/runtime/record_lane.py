"""How do many records become durable for the price of one? What is asked for while others are being synced is the next batch.

A start costs several fsyncs, and on a busy disk each takes milliseconds: one after the other they would bound how many jobs an
agent starts in a second. One thread, one batch at a time; whoever asked waits for its own files only. Nothing is reordered for
one caller: it goes on once its files are on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steelyard.runtime.spare_files import SpareFiles


class RecordLane:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._spares = SpareFiles()
        self._waiting: list[tuple[Sequence[tuple[Path, bytes]], asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def write(self, files: Sequence[tuple[Path, bytes]]) -> None:
        """Written, synced and in their place (R12) when it returns; else raises the OSError of the first that is not."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((files, done))
        if self._running is None:
            self._running = asyncio.create_task(self._work())
        await done

    def drop(self, path: Path) -> None:
        """Nobody needs it any more, whether it is there or not. Not synced."""
        self._spares.add(path)

    def find_spares(self, folder: Path) -> None:
        """What the one before us had dropped there."""
        self._spares.find(folder)

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                everything = [file for files, _ in batch for file in files]
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._spares.write, everything)
                at = 0
                for files, done in batch:
                    mine, at = results[at : at + len(files)], at + len(files)
                    if done.cancelled():
                        continue
                    error = next((error for error in mine if error is not None), None)
                    if error is None:
                        done.set_result(None)
                    else:
                        done.set_exception(error)
        finally:
            self._running = None
