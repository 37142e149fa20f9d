"""A noisy neighbour of our own, where stress-ng is not installed: `python -m steelyard.runtime.burner SECONDS CPUS MEMORY`

CPUS processes that compute and MEMORY processes that map, fill, copy and unmap memory. Each ends by itself when its time is over,
and at once when whoever started it is gone: noise must never outlive a measurement that was killed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable

from steelyard.clock import SystemClock

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
#: beyond any cache
_BLOCK_BYTES = 64 << 20


def burn(until_ns: int) -> None:
    clock, value = SystemClock(), 1
    while clock.mono_ns() < until_ns:
        for _ in range(100_000):
            value = value * 1_103_515_245 + 12_345 & 0x7FFF_FFFF


def churn(until_ns: int) -> None:
    clock = SystemClock()
    source = b"\xa5" * _BLOCK_BYTES
    while clock.mono_ns() < until_ns:
        with mmap.mmap(-1, _BLOCK_BYTES) as block:
            block[:] = source


def main(argv: list[str]) -> int:
    if len(argv) != 3:
        sys.stderr.write("usage: python -m steelyard.runtime.burner SECONDS CPUS MEMORY\n")
        return 2
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL))
    until_ns = SystemClock().mono_ns() + round(float(argv[0]) * 1e9)
    works: list[Callable[[int], None]] = [burn] * int(argv[1]) + [churn] * int(argv[2])
    for work in works:
        if os.fork() == 0:
            libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL))
            work(until_ns)
            os._exit(0)
    for _ in works:
        os.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
