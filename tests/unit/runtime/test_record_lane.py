"""Many records at the price of one: each caller hears of its own files, and only of those."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from steelyard.runtime.record_lane import RecordLane
from steelyard.runtime.spare_files import SpareFiles


def test_what_is_asked_for_meanwhile_is_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    write = SpareFiles.write

    def counted(spares: SpareFiles, files: list[tuple[Path, bytes]]) -> list[OSError | None]:
        batches.append(len(files))
        return write(spares, files)

    monkeypatch.setattr(SpareFiles, "write", counted)

    async def story() -> None:
        lane = RecordLane()
        await asyncio.gather(*(lane.write([(tmp_path / f"{n}", b"x" * n)]) for n in range(20)))
        lane.close()

    asyncio.run(story())
    assert sum(batches) == 20 and len(batches) == 1
    assert [(tmp_path / f"{n}").stat().st_size for n in range(20)] == list(range(20))


def test_a_file_that_fails_fails_its_own_caller_only(tmp_path: Path) -> None:
    async def story() -> list[object]:
        lane = RecordLane()
        asked = [[(tmp_path / "a", b"a")], [(tmp_path / "gone" / "b", b"b")], [(tmp_path / "c", b"c")]]
        found = await asyncio.gather(*(lane.write(files) for files in asked), return_exceptions=True)
        await lane.write([(tmp_path / "d", b"d")])
        lane.close()
        return list(found)

    first, second, third = asyncio.run(story())
    assert first is None and isinstance(second, FileNotFoundError) and third is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"], "no temporary file is left"
