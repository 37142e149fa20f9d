"""What TensorFlow finds in TF_CONFIG: the workers' addresses, and which of them it is. The first one waits for the others there.

steelyard run --tasks-per-node 2 -- python with_tf_config.py

With TensorFlow, `tf.distribute.MultiWorkerMirroredStrategy()` reads the variable by itself; here the standard library does, so
that it runs anywhere.
"""

from __future__ import annotations

import json
import os
import socket
import time


def main() -> None:
    config = json.loads(os.environ["TF_CONFIG"])
    workers, index = config["cluster"]["worker"], config["task"]["index"]
    host, _, port = workers[0].rpartition(":")
    if index == 0:
        total = gather(host, int(port), len(workers) - 1) + 1
        print(f"{config['task']['type']} 0 of {len(workers)}, sum of all {total}", flush=True)
    else:
        tell(host, int(port), index + 1)
        print(f"{config['task']['type']} {index} of {len(workers)} at {workers[index]}", flush=True)


def gather(host: str, port: int, others: int) -> int:
    total = 0
    with socket.create_server((host, port)) as server:
        for _ in range(others):
            peer, _ = server.accept()
            with peer:
                total += int(peer.recv(16))
    return total


def tell(host: str, port: int, number: int) -> None:
    """The first worker may not listen yet."""
    end = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((host, port)) as peer:
                peer.sendall(str(number).encode())
                return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
