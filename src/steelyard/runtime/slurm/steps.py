"""Which number has a step, and may it start yet? Steps that are started side by side share the job's cores: each takes as many
slots as it needs, and waits until earlier ones have left that many.

Slots are locked files in `STEELYARD_STEPS`, a folder of the job's own; the kernel unlocks them when a step ends, however it does.
Without that folder steps are numbered 0 and never wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading

#: how often the step that waits longest looks whether it may start
_LOOK_S = 0.05


def take_number() -> int:
    folder = os.environ.get("STEELYARD_STEPS")
    if not folder:
        return 0
    try:
        os.makedirs(folder, exist_ok=True)
        file = os.open(os.path.join(folder, "number"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return 0
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = int(os.pread(file, 20, 0) or b"0")
        os.pwrite(file, str(number + 1).encode(), 0)
    finally:
        os.close(file)
    return number


def take_slots(count: int, total: int) -> list[int]:
    """Slots 0 to `total` - 1 that are this process's until it ends; waits for them, first come, first served."""
    folder = os.environ.get("STEELYARD_STEPS")
    count = min(count, total)
    # a step inside a step runs in the place of that one
    if not folder or "SLURM_STEP_ID" in os.environ:
        return list(range(count))
    try:
        os.makedirs(folder, exist_ok=True)
        queue = os.open(os.path.join(folder, "queue"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return list(range(count))
    fcntl.flock(queue, fcntl.LOCK_EX)
    pause = threading.Event()
    try:
        while True:
            held = _try(folder, count, total)
            if len(held) == count:
                return sorted(held)
            for file in held.values():
                os.close(file)
            pause.wait(_LOOK_S)
    finally:
        os.close(queue)


def _try(folder: str, count: int, total: int) -> dict[int, int]:
    """Slot -> descriptor, which stays open (and with it the lock) until the process ends."""
    held: dict[int, int] = {}
    for slot in range(total):
        if len(held) == count:
            break
        file = os.open(os.path.join(folder, f"slot-{slot}"), os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[slot] = file
        if slot not in held:
            os.close(file)
    return held
