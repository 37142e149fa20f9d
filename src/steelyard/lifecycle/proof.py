"""Is what the workload got what it asked for? Pure comparison of two dictionaries (keys: see `model.proof.Proof`).

`None` in `asked` means nothing was asked of that key, `None` (or a missing key) in `got` that it could not be read. Nothing is
rounded in the workload's favour beyond what the kernel's own units force: shares are stored as integers, memory in pages.
Never reads the kernel; `host/` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from steelyard.model.proof import Proof, ProofState

#: cpu.shares and cpu.weight are integers of 1/1024 and 1/100 of a core: less than one unit apart is the same
SHARE_TOLERANCE = 0.01
#: memory limits are kept in pages (64 KiB on some machines)
MEMORY_TOLERANCE_BYTES = 65_536


def check_proof(
    asked: Mapping[str, object],
    got: Mapping[str, object],
    matched_before: bool,
    checked_at: int | None = None,
    forbidden: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Proof:
    """`forbidden`: sentences, what was to be done beside the keys and this machine does not allow. MATCH when every asked key
    was read and fits; DRIFTED when one differs after all had fitted before; PARTIAL when one differs from the start or can't be
    read; UNKNOWN when nothing asked could be read."""
    wanted = {key: value for key, value in asked.items() if value is not None}
    unread = [key for key in wanted if got.get(key) is None]
    different = [key for key in wanted if key not in unread and not _fits(key, wanted[key], got[key])]
    differences = tuple(f"{key}: asked {_text(wanted[key])}, got {_text(got[key])}" for key in different) + tuple(
        f"{key}: asked {_text(wanted[key])}, could not be read here" for key in unread
    )
    differences += forbidden
    if wanted and len(unread) == len(wanted):
        state = ProofState.UNKNOWN
    elif different and matched_before:
        state = ProofState.DRIFTED
    elif differences:
        state = ProofState.PARTIAL
    else:
        state = ProofState.MATCH
    return Proof(state=state, asked=dict(asked), got=dict(got), differences=differences, checked_at=checked_at, notes=notes)


def _fits(key: str, asked: object, got: object) -> bool:
    if isinstance(asked, list | tuple) and isinstance(got, list | tuple):
        return sorted(cast("list[int]", asked)) == sorted(cast("list[int]", got))
    if isinstance(asked, bool) or isinstance(got, bool):
        return asked is got
    if isinstance(asked, int | float) and isinstance(got, int | float):
        if key == "share":
            return abs(asked - got) <= SHARE_TOLERANCE
        if key == "max_wakeup_us":
            return got <= asked
        if key == "scratch_bytes":
            return got >= asked
        if key == "memory_bytes":
            return abs(asked - got) < MEMORY_TOLERANCE_BYTES
    return asked == got


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in cast("list[object]", value)) or "none"
    return str(value)
