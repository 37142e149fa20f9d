"""A workload that writes as fast as it can: its log stays bounded and can be followed all the while."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from spawner_rig import Rig, open_rig

from steelyard.runtime.logs import read_log, rotate

TOTAL_BYTES = 1 << 30
KEEP_BYTES = 8 << 20


def used_bytes(folder: Path) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))


# rotated at the test's own pace: how much a truncation meets depends on what else runs
@pytest.mark.alone
def test_a_gigabyte_of_output_stays_bounded() -> None:
    async def script(rig: Rig) -> None:
        handle = await rig.run(
            rig.make_runtime(), "w", "dd", "if=/dev/zero", "bs=64k", f"count={TOTAL_BYTES >> 16}", "status=none"
        )
        log, peak, offset, between = rig.workloads / "w" / "stdout", 0, 0, 0
        while rig.exits.empty():
            before = log.stat().st_size
            rotate(log, KEEP_BYTES)
            between = max(between, before)
            data, offset = read_log(log, offset, 65536).plain
            assert data.strip(b"\0") == b"" or data.startswith(b"\n[steelyard: ")
            peak = max(peak, used_bytes(log.parent))
            await asyncio.sleep(0.002)
        assert (await rig.next_exit()).exit_code == 0
        rotate(log, KEEP_BYTES)
        assert used_bytes(log.parent) <= KEEP_BYTES
        # while it writes: what is kept, and what came between two rotations (the test's own pace, 2 ms and the copy)
        assert peak <= KEEP_BYTES + 4 * between
        assert peak < TOTAL_BYTES / 2
        while (following := read_log(log, offset, 1 << 20).next_offset) != offset:
            offset = following
        assert TOTAL_BYTES * 0.9 < offset <= TOTAL_BYTES, "offsets are those of the whole stream, but for what a truncation met"
        assert handle.pid > 0

    async def main() -> None:
        async with asyncio.timeout(60), open_rig() as rig:
            await script(rig)

    asyncio.run(main())
