"""A bundle is fetched and unpacked once."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest

from steelyard.agent import code
from steelyard.errors import EdgeFailed


def make_bundle() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("app.py")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"x = 1"))
    return stream.getvalue()


class Paths:
    def __init__(self, folder: Path) -> None:
        self.unpacked = folder


def test_functions_that_want_one_bundle_at_a_time_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fetched = make_bundle(), []
    monkeypatch.setattr(code, "_download", lambda *_: fetched.append(1) or data)
    name = hashlib.sha256(data).hexdigest()

    async def run() -> list[Path]:
        return await asyncio.gather(*(code.ensure_code(cast(Any, Paths(tmp_path)), cast(Any, None), name) for _ in range(8)))

    folders = asyncio.run(run())
    assert set(folders) == {tmp_path / name} and fetched == [1]
    assert (tmp_path / name / "app.py").read_bytes() == b"x = 1"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_fetch_that_failed_is_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_bundle()
    name = hashlib.sha256(data).hexdigest()

    async def run() -> Path:
        monkeypatch.setattr(code, "_download", lambda *_: b"damaged")
        asked = [code.ensure_code(cast(Any, Paths(tmp_path)), cast(Any, None), name) for _ in range(2)]
        assert all(isinstance(one, EdgeFailed) for one in await asyncio.gather(*asked, return_exceptions=True))
        monkeypatch.setattr(code, "_download", lambda *_: data)
        return await code.ensure_code(cast(Any, Paths(tmp_path)), cast(Any, None), name)

    assert asyncio.run(run()).is_dir()
