"""How far had this store come? A small fsynced file beside it, the only witness when the store itself is lost or rolled back.

It holds the counters (with the number of commits) as of some moment not long ago: written after the commits that it tells of,
so it is never ahead of an undamaged store. It lags by the last busy moment; a rollback within that lag goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.errors import StoreDamaged

#: counts the transactions that changed something; kept with the other counters
COMMITS = "commit"


class Mark(msgspec.Struct, frozen=True):
    """Content of `<store>.mark`."""

    counters: dict[str, int]


def mark_path(store: Path) -> Path:
    return store.with_name(f"{store.name}.mark")


def load_mark(store: Path) -> Mark | None:
    """None where no store was ever opened. A mark that can't be read is refused: without it a rollback can't be ruled out."""
    path = mark_path(store)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as err:
        raise StoreDamaged(
            f"{path} is damaged ({err}), so it can't be told whether {store} lost anything. Nothing was changed. "
            f"If you trust the store, remove {path} and start again; it is written anew.",
            detail=str(err),
        ) from err


def save_mark(store: Path, counters: Mapping[str, int]) -> None:
    """Raises OSError."""
    write_file(mark_path(store), msgspec.json.encode(Mark(dict(counters))))


def check_rollback(mark: Mark | None, counters: Mapping[str, int]) -> str | None:
    """What the store lost against the mark, as a clause; None when nothing."""
    if mark is None:
        return None
    lost = [
        f"{name} {counters.get(name, 0)} (was {value})" for name, value in mark.counters.items() if counters.get(name, 0) < value
    ]
    return "it is older than what Steelyard last had: " + ", ".join(sorted(lost)) if lost else None
