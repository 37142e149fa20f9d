"""The server's questions about volumes are answered from the disk, and sizes with their age."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import msgspec

from steelyard.agent.volumes import VolumeKeeper
from steelyard.clock import SystemClock
from steelyard.config import Settings
from steelyard.host.volumes import VolumeFolders
from steelyard.model.owner import Owner
from steelyard.model.volume import VolumeSeen
from steelyard.wire.agent import Answer, Ask, VolumeMake

MINE = Owner("me", os.geteuid() or os.getuid())


def play(folder: Path, *asked: tuple[str, str, object]) -> list[Answer]:
    settings = cast(Settings, type("Work", (), {"work_uid": os.geteuid(), "work_gid": os.getegid()})())

    async def life() -> list[Answer]:
        keeper = VolumeKeeper(VolumeFolders(folder, ()), settings, SystemClock())
        return [
            await keeper.answer(Ask(1, what, name, body=b"" if body is None else msgspec.json.encode(cast(Any, body))))
            for what, name, body in asked
        ]

    return asyncio.run(life())


def test_a_volume_is_made_measured_and_deleted(tmp_path: Path) -> None:
    path = str(tmp_path / "volumes" / "data")
    (made,) = play(tmp_path / "volumes", ("volume-make", "data", VolumeMake(MINE)))
    assert made.data.decode() == path
    (Path(path) / "file").write_bytes(b"x" * 10_000)
    (told,) = play(tmp_path / "volumes", ("volumes", "", [path, str(tmp_path / "none")]))
    seen, gone = msgspec.json.decode(told.data, type=list[VolumeSeen])
    assert seen.size_bytes is not None and 10_000 <= seen.size_bytes < 100_000
    assert seen.measured_at and seen.free_bytes and not seen.error
    assert gone.error == "its folder is not there" and gone.free_bytes is None
    assert play(tmp_path / "volumes", ("volume-delete", "data", None))[0].error == ""
    assert not Path(path).exists()


def test_what_can_not_be_one_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answers = play(
        tmp_path / "volumes",
        ("volume-make", "own", VolumeMake(MINE, str(tmp_path / "none"))),
        ("volume-make", "own", VolumeMake(MINE, str(tmp_path / "file"))),
        ("volume-make", "own", VolumeMake(MINE, "/etc")),
    )
    assert [words in answer.error for answer, words in zip(answers, ("Make it first", "is no folder", "/etc"), strict=True)] == [
        True
    ] * 3
