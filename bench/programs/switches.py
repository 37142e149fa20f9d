"""How many context switches a second? Two processes hand one byte to and fro through two pipes: each hand-over is a switch.
Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import time

ROUNDS = 40_000
WARM = 2_000


def answer(read_fd: int, write_fd: int) -> None:
    """The other process: gives back every byte until there is none."""
    while byte := os.read(read_fd, 1):
        os.write(write_fd, byte)


def main() -> None:
    there_read, there_write = os.pipe()
    back_read, back_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(there_write)
        os.close(back_read)
        answer(there_read, back_write)
        os._exit(0)
    os.close(there_read)
    os.close(back_write)
    began = 0.0
    for at in range(WARM + ROUNDS):
        if at == WARM:
            began = time.perf_counter()
        os.write(there_write, b"x")
        assert os.read(back_read, 1) == b"x"
    took_s = time.perf_counter() - began
    os.close(there_write)
    os.waitpid(child, 0)
    print(json.dumps({"figure": "context switches", "value": 2 * ROUNDS / took_s, "unit": "1/s", "higher_is_better": True}))


if __name__ == "__main__":
    main()
