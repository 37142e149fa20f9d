"""How many messages of 1 KiB do two processes exchange a second, one at a time over a Unix socket pair? Prints one JSON line."""

from __future__ import annotations

import json
import os
import socket
import time

SIZE = 1024
ROUNDS = 27_000
WARM = 2_000


def answer(peer: socket.socket) -> None:
    """The other process: gives back every message until the line is closed."""
    while message := peer.recv(SIZE):
        peer.sendall(message)


def main() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        ours.close()
        answer(theirs)
        os._exit(0)
    theirs.close()
    message = bytes(SIZE)
    began = 0.0
    for at in range(WARM + ROUNDS):
        if at == WARM:
            began = time.perf_counter()
        ours.sendall(message)
        assert ours.recv(SIZE) == message
    took_s = time.perf_counter() - began
    ours.close()
    os.waitpid(child, 0)
    print(
        json.dumps(
            {"figure": "two-process ping-pong", "value": ROUNDS / took_s, "unit": "round trips/s", "higher_is_better": True}
        )
    )


if __name__ == "__main__":
    main()
