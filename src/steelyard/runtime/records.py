"""What did the agent intend, what did it start, how did it end? A JSON file per workload and kind, under the agent's folder:

    intents/<workload>.json   fsynced before anything is made for it       written by the agent
    handles/<workload>.json   fsynced once it runs                         written by the agent
    exits/<workload>.json     fsynced before anybody is told that it ended written by the spawner

A record that cannot be read stops the reader with its name (StoreDamaged): guessing could start work twice.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from steelyard.config import write_file
from steelyard.errors import StoreDamaged
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime.spare_files import hide
from steelyard.wire.spawn import Exited

#: ids name files and cgroups: no separators, nothing hidden, room for a suffix within 255 bytes
WORKLOAD_ID = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\Z", re.ASCII)


class Intent(msgspec.Struct, frozen=True):
    """Written before the first trace of a workload appears anywhere."""

    workload: WorkloadId
    boot_id: str
    #: "job", "replica", "template": whatever the agent wants to find again
    kind: str
    #: wall clock, microseconds
    at: int
    plan: Plan
    #: which life of the spawner was to start it, as `<pid>:<start time>`; one that ended took its memory with it
    spawner: str
    #: the agent's own notes (function, revision, page, ...)
    labels: dict[str, str] = {}
    #: it has no control group of its own, but runs in that workload's
    inside: WorkloadId | None = None


class Handle(msgspec.Struct, frozen=True):
    """The process that is the workload: its first one, leader of its session."""

    workload: WorkloadId
    boot_id: str
    pid: int
    #: clock ticks since boot
    start_time: int
    #: wall clock, microseconds
    at: int


Record = TypeVar("Record", Intent, Handle, Exited)


def make_folders(agent_dir: Path) -> tuple[Path, ...]:
    """Returns those that the agent writes into."""
    intents, handles, exits = (agent_dir / name for name in ("intents", "handles", "exits"))
    for folder in (intents, handles, exits):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return intents, handles


def intent_path(agent_dir: Path, workload: WorkloadId) -> Path:
    return agent_dir / "intents" / f"{workload}.json"


def handle_path(agent_dir: Path, workload: WorkloadId) -> Path:
    return agent_dir / "handles" / f"{workload}.json"


def exit_path(agent_dir: Path, workload: WorkloadId) -> Path:
    return agent_dir / "exits" / f"{workload}.json"


def write_intent(agent_dir: Path, intent: Intent) -> None:
    write_file(*render_intent(agent_dir, intent))


def write_handle(agent_dir: Path, handle: Handle) -> None:
    write_file(*render_handle(agent_dir, handle))


def render_intent(agent_dir: Path, intent: Intent) -> tuple[Path, bytes]:
    return intent_path(agent_dir, intent.workload), msgspec.json.encode(intent)


def render_handle(agent_dir: Path, handle: Handle) -> tuple[Path, bytes]:
    return handle_path(agent_dir, handle.workload), msgspec.json.encode(handle)


def load_intents(agent_dir: Path) -> dict[WorkloadId, Intent]:
    return _load(agent_dir / "intents", Intent)


def load_handles(agent_dir: Path) -> dict[WorkloadId, Handle]:
    return _load(agent_dir / "handles", Handle)


def load_exits(agent_dir: Path) -> dict[WorkloadId, Exited]:
    return _load(agent_dir / "exits", Exited)


def load_intent(agent_dir: Path, workload: WorkloadId) -> Intent | None:
    return _load_one(intent_path(agent_dir, workload), Intent)


def load_handle(agent_dir: Path, workload: WorkloadId) -> Handle | None:
    return _load_one(handle_path(agent_dir, workload), Handle)


def load_exit(agent_dir: Path, workload: WorkloadId) -> Exited | None:
    return _load_one(exit_path(agent_dir, workload), Exited)


def forget(agent_dir: Path, workload: WorkloadId, drop: Callable[[Path], None]) -> None:
    """Take all three away, our own by `drop`. The exit goes last, so that a removal cut short never leaves work that looks
    unexplained. Not synced: what a power loss brings back is of another boot, nobody assigns it, and it is forgotten again."""
    drop(intent_path(agent_dir, workload))
    drop(handle_path(agent_dir, workload))
    with contextlib.suppress(FileNotFoundError):
        hide(exit_path(agent_dir, workload))  # the spawner finds it


def _load(folder: Path, kind: type[Record]) -> dict[WorkloadId, Record]:
    found: dict[WorkloadId, Record] = {}
    for name in sorted(os.listdir(folder)):
        # dot files are spares, or writes that were cut short before their rename: they never happened
        if name.startswith(".") or not name.endswith(".json"):
            continue
        record = _load_one(folder / name, kind)
        if record is not None:
            found[record.workload] = record
    return found


def _load_one(path: Path, kind: type[Record]) -> Record | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise StoreDamaged(f"{path} cannot be read ({err.strerror}). Nothing was changed.", code="record-damaged") from err
    try:
        record = msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise StoreDamaged(
            f"{path} is damaged ({err}). Nothing was changed. Look at what it describes, then remove that one file.",
            code="record-damaged",
        ) from err
    if f"{record.workload}.json" != path.name:
        raise StoreDamaged(f"{path} is damaged (it describes {record.workload!r}). Nothing was changed.", code="record-damaged")
    return record
