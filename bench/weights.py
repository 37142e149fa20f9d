"""What does a model's wake cost when its weights are in the page cache, and when they must come from disk?

The example's server on the CPU, behind the relay, with weights of random numbers. Both kinds of round in turns: with the weights
dropped from the cache just before the wake, and as Steelyard keeps them: dropped while the model still serves, read back while it
sleeps. Beside them the time that a bare copy of the same bytes takes, from the cache and from disk.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure, ratio_of_pairs
from bench.installation import EXAMPLES, Installation, installation
from bench.load import Target, request_once
from steelyard.host.page_cache import list_files, measure_resident

NAME = "weights"
KEPT_WITHIN_S = 120


def measure_weights(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds, hidden, layers = (2, "768", "4") if quick else (10, "2048", "10")
    kept: list[float] = []
    cold: list[float] = []
    copies: dict[str, list[float]] = {"cache": [], "disk": []}
    with installation() as steelyard:
        model = steelyard.folder / "model"
        say("writing the weights")
        subprocess.run([sys.executable, str(EXAMPLES / "llm" / "transformer.py"), str(model), hidden, layers], check=True)
        _drop(model)
        if measure_resident(list_files(model)):
            return [_figure([], [], copies, 0, "NOT MEASURED: this file system does not let go of its pages.")]
        command = [sys.executable, str(EXAMPLES / "llm" / "server.py"), "serve", str(model), "--port", "$PORT"]
        options = ["--port", "0", "--readiness", "/health", "--public", "--idle-timeout", "1s", "--weights", str(model)]
        steelyard.cli("deploy", "--name", NAME, *options, "--", *command)
        target = Target(path=f"/{NAME}/v1/models", port=steelyard.gateway_port)
        for at in range(rounds):
            say(f"round {at + 1}/{rounds}")
            steelyard.wait_asleep(NAME, wakes=2 * at)
            _wait_kept(steelyard, model)
            copies["cache"].append(_copy(model))
            _drop(model)
            copies["disk"].append(_copy(model))
            _drop(model)
            cold.append(asyncio.run(request_once(target)).first_byte_s)
            _drop(model)
            steelyard.wait_asleep(NAME, wakes=2 * at + 1)
            _wait_kept(steelyard, model)
            kept.append(asyncio.run(request_once(target)).first_byte_s)
        steelyard.wait_asleep(NAME, wakes=2 * rounds)
        size = sum(file.size for file in list_files(model))
    return [_figure(kept, cold, copies, size, "")]


def _drop(folder: Path) -> None:
    for file in list_files(folder):
        fd = os.open(file.path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _wait_kept(steelyard: Installation, folder: Path) -> None:
    files, end = list_files(folder), time.monotonic() + KEPT_WITHIN_S
    while (measure_resident(files) or 0) < 0.98 * sum(file.size for file in files):
        if time.monotonic() > end:
            raise RuntimeError(f"the weights were not read back: {steelyard.cli('why', NAME)}")
        time.sleep(0.05)


def _copy(folder: Path) -> float:
    """Seconds that a plain read of all of it takes."""
    piece, began = bytearray(4 << 20), time.monotonic()
    for file in list_files(folder):
        with open(file.path, "rb", buffering=0) as opened:
            while opened.readinto(piece):
                pass
    return time.monotonic() - began


def _figure(kept: list[float], cold: list[float], copies: dict[str, list[float]], size: int, missing: str) -> Figure:
    what, goal = "wake of a model's server, weights kept in the page cache against read from disk", "< 1, pair by pair"
    if missing:
        return Figure("weights", what, None, "x", goal, None, missing)
    ratio, low, high = ratio_of_pairs(kept, cold)
    detail = (
        "The example's server (numpy, CPU): request at the gateway to first byte, the start of Python in it. "
        "What a GPU's copy over PCIe adds, and whether pinned memory would gain, is UNKNOWN: no GPU was measured."
    )
    more = {
        "interval, low": low,
        "interval, high": high,
        "weights (GB)": size / 1e9,
        "kept p50 (s)": statistics.median(kept),
        "from disk p50 (s)": statistics.median(cold),
        "bare read from the cache p50 (s)": statistics.median(copies["cache"]),
        "bare read from disk p50 (s)": statistics.median(copies["disk"]),
    }
    return Figure("weights", what, ratio, "x", goal, high < 1 if high < 1 or low > 1 else None, detail, more)
