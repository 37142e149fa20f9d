"""The kernel's page cache, looked at and filled; and a function whose weights come back into it while it sleeps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.host.page_cache import list_files, measure_resident, read_ahead

MIB = 1 << 20


def drop(path: Path) -> None:
    """Out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def write_weights(path: Path, mebibytes: int) -> Path:
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MIB))
    drop(path)
    if measure_resident(list_files(path)):
        pytest.skip("NOT VERIFIED: this file system does not let go of its pages")
    return path


@pytest.mark.parametrize("mebibytes", [1, 33, 300])
def test_what_is_read_ahead_is_resident(tmp_path: Path, mebibytes: int) -> None:
    path = write_weights(tmp_path / "weights", mebibytes)
    (tmp_path / "link").symlink_to(path)
    files = list_files(tmp_path)
    assert [file.size for file in files] == [mebibytes * MIB], "each file once"
    asked: list[None] = []
    read_ahead(files, lambda: len(asked) < 1 and asked.append(None) is None)
    resident = measure_resident(files)
    assert resident is not None and resident > 0 and (mebibytes <= 4 or resident < mebibytes * MIB), "it was told to stop"
    read_ahead(files, lambda: True)
    # a kernel that gives back what is cold (DAMON) may have begun with it
    assert (measure_resident(files) or 0) > 0.9 * mebibytes * MIB


def test_weights_come_into_memory_while_their_function_sleeps(shared: Cluster) -> None:
    path = write_weights(shared.folder / "weights.bin", 48)
    shared.ok(
        "deploy", "--name", "heavy", "--port", "0", "--public", "--idle-timeout", "300ms", "--weights", str(path),
        "--", sys.executable, "-m", "http.server", "$PORT", "--bind", "127.0.0.1",
    )  # fmt: skip

    def told() -> bool:
        return "Of its weights 0.1 of 0.1 GB are in the page cache" in shared.ok("why", "heavy")

    wait_until(told, 30, "the weights to be read ahead")
    assert (measure_resident(list_files(path)) or 0) > 0.9 * 48 * MIB
    shared.ok("delete", "heavy")
