"""Is a streamed file there whole, or not at all?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from steelyard.wire.landing import GATHER_BYTES, Landing, remove_parts


def test_a_landed_file_is_whole_and_an_empty_one_too(tmp_path: Path) -> None:
    async def story() -> None:
        async with Landing(tmp_path / "a") as file:
            for _ in range(3):
                await file.write(b"x" * (GATHER_BYTES // 2 + 1))
            assert not (tmp_path / "a").exists()
            await file.land()
        assert (tmp_path / "a").stat().st_size == file.size_bytes == 3 * (GATHER_BYTES // 2 + 1)
        async with Landing(tmp_path / "b") as file:
            await file.land()

    asyncio.run(story())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"] and (tmp_path / "b").read_bytes() == b""
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_what_was_not_landed_leaves_nothing_and_not_the_old_one_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    async def story() -> None:
        async with Landing(tmp_path / "a") as file:
            await file.write(b"x" * (GATHER_BYTES + 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(story())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_being_cancelled_while_a_thread_writes_leaves_nothing(tmp_path: Path) -> None:
    async def write() -> None:
        async with Landing(tmp_path / "a") as file:
            while True:
                await file.write(b"x" * GATHER_BYTES)

    async def story() -> None:
        task = asyncio.create_task(write())
        while not list(tmp_path.iterdir()):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_killed_program_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.0011.part", "b", ".c"):
        (tmp_path / name).write_bytes(b"")
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c", "b"]
