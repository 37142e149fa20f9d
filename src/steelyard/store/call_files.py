"""Where do inputs and results of durable calls lie? A file each beside the store, by the call's id.

An input is there before the row that names it, a result before the row that tells of it, and both go after the row has: a crash
leaves a file too many at most, which `sweep` takes away at the next start.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from steelyard.model.ids import CallId
from steelyard.wire.landing import remove_parts

INPUT, RESULT = ".input", ".result"


class CallFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def input(self, call: CallId) -> Path:
        return self.folder / f"{call}{INPUT}"

    def result(self, call: CallId) -> Path:
        return self.folder / f"{call}{RESULT}"

    def forget_input(self, call: CallId) -> None:
        """It has ended, and is not asked again."""
        self.input(call).unlink(missing_ok=True)

    def forget(self, calls: Iterable[CallId]) -> None:
        for call in calls:
            self.forget_input(call)
            self.result(call).unlink(missing_ok=True)

    def sweep(self, living: set[CallId], kept: set[CallId]) -> None:
        """Take away inputs of others than `living`, results of others than `kept`, and what was left unfinished."""
        remove_parts(self.folder)
        for file in self.folder.iterdir():
            if file.suffix in (INPUT, RESULT) and file.stem not in (living if file.suffix == INPUT else kept):
                file.unlink(missing_ok=True)
