"""What must the agent still know after a kill -9? The newest assignment and, per function, the revisions that Envoy routes to;
the earlier revisions that still hold requests; and, only to be fast, which packages a function's code was seen to import.

One file each, written whole by temp + fsync + rename (but see `Ledger.note`). Intents, handles and exits are the business of
`runtime.records`.
A damaged file stops the agent with its name: guessing here could start a job twice.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec

from steelyard.config import write_file
from steelyard.errors import StoreDamaged
from steelyard.model.ids import FunctionName
from steelyard.runtime.record_lane import RecordLane
from steelyard.wire.agent import AssignedFunction, AssignedJob, Assignment
from steelyard.wire.parts import PartWriter

T = TypeVar("T")

ASSIGNMENT = "assignment.json"
ROUTED = "routed.json"
DRAINING = "draining.json"
LEARNED = "learned.json"


class Ledger:
    """The agent's durable memory under `<home>/agent`."""

    def __init__(self, folder: Path, lane: RecordLane) -> None:
        self._folder = folder
        self._lane = lane
        self._jobs = PartWriter[AssignedJob](msgspec.json.encode)
        self.assignment = _load(folder / ASSIGNMENT, Assignment, Assignment(epoch=0, generation=0))
        routed = _load(folder / ROUTED, dict[FunctionName, AssignedFunction | tuple[AssignedFunction, ...]], {})
        #: an older agent routed to one revision of each
        self.routed: dict[FunctionName, tuple[AssignedFunction, ...]] = {
            name: found if isinstance(found, tuple) else (found,) for name, found in routed.items()
        }
        self.draining: tuple[AssignedFunction, ...] = _load(folder / DRAINING, tuple[AssignedFunction, ...], ())
        self.learned: dict[FunctionName, tuple[str, ...]] = _load(folder / LEARNED, dict[FunctionName, tuple[str, ...]], {})

    def follows(self, assignment: Assignment) -> bool:
        """Is it no older than what is here?"""
        return (assignment.epoch, assignment.generation) >= (self.assignment.epoch, self.assignment.generation)

    def note(self, assignment: Assignment) -> None:
        """Put one that follows where an agent that is started after this one was killed finds it; `accept`, which has to follow,
        also keeps it over a loss of power. Raises OSError."""
        write_file(self._folder / ASSIGNMENT, self._render(assignment), in_memory=True)

    def _render(self, assignment: Assignment) -> bytes:
        return msgspec.json.encode(msgspec.structs.replace(assignment, jobs=self._jobs.write(assignment.jobs)))

    async def accept(self, assignment: Assignment) -> bool:
        """Keep a newer assignment (fsynced). False for one older than what is already here: it must not be acted on. Not to be
        called again before it has returned."""
        if not self.follows(assignment):
            return False
        if assignment != self.assignment:
            await self._lane.write([(self._folder / ASSIGNMENT, self._render(assignment))])
            self.assignment = assignment
        return True

    def set_routed(self, name: FunctionName, functions: tuple[AssignedFunction, ...]) -> None:
        """Remember which revisions get a function's traffic, each with its share and tags; none: forget the function."""
        routed = {key: value for key, value in self.routed.items() if key != name}
        if functions:
            routed[name] = functions
        if routed != self.routed:
            write_file(self._folder / ROUTED, msgspec.json.encode(routed))
            self.routed = routed

    def set_draining(self, function: AssignedFunction, holds: bool) -> None:
        """Remember (or forget) that a revision without new traffic still holds requests, which must not be cut."""
        others = tuple(each for each in self.draining if (each.name, each.revision) != (function.name, function.revision))
        draining = (*others, function) if holds else others
        if draining != self.draining:
            write_file(self._folder / DRAINING, msgspec.json.encode(draining))
            self.draining = draining

    def set_learned(self, name: FunctionName, packages: tuple[str, ...]) -> None:
        """Remember which packages the function's newest code imports (none: forget it)."""
        learned = {key: value for key, value in self.learned.items() if key != name and key in self.routed}
        if packages:
            learned[name] = packages
        if learned != self.learned:
            write_file(self._folder / LEARNED, msgspec.json.encode(learned))
            self.learned = learned


def serves_functions(folder: Path) -> bool:
    """Does the agent there send requests to functions, or wait for some to be answered? For others than the agent."""
    with contextlib.suppress(StoreDamaged):
        return bool(_load(folder / ROUTED, dict[str, msgspec.Raw], {}) or _load(folder / DRAINING, list[msgspec.Raw], []))
    return False


def _load(path: Path, kind: type[T], default: T) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return default
    except msgspec.MsgspecError as err:
        raise StoreDamaged(
            f"{path} is damaged ({err}). Running work was not touched. Restore the file from a backup; or, if no job runs, "
            "move it away: the server sends the assignment again."
        ) from err
