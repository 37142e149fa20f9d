"""An environment goes to another machine as one file: its interpreter comes along, or is said to be missing."""

from __future__ import annotations

import io
import os
import subprocess
from http.client import HTTPResponse
from pathlib import Path
from typing import cast

import msgspec
import pytest

from steelyard.agent.server_files import download
from steelyard.errors import EdgeFailed, NotFound
from steelyard.model.ids import ImageId
from steelyard.runtime.image.land import land
from steelyard.runtime.image.layer import FILES, MARKER, PYTHONS, VENV, Marker, read_layer
from steelyard.runtime.image.pack import KEPT_S, pack_environment
from steelyard.wire.images import PACKED_DIGEST

BASE, TOP = ImageId("a" * 64), ImageId("b" * 64)
NOW_S = 1_000_000.0


def make_home(folder: Path, python: str) -> Path:
    """A base, and a layer upon it that has nothing but variables. `python`: what its interpreter is."""
    home = folder / "home" / "1000"
    venv = home / BASE / VENV
    (venv / "bin").mkdir(parents=True)
    (home / BASE / FILES).mkdir()
    (home / BASE / FILES / "helper.py").write_text("WORD = 1")
    (venv / "bin" / "python").symlink_to(python.format(home=home))
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(python.format(home=home))}\n")
    (home / TOP).mkdir()
    for layer in (BASE, TOP):
        marker = Marker(layer, BASE, {"COLOUR": "blue"}, "3.11", 1, 1, 1)
        (home / layer / MARKER).write_bytes(msgspec.json.encode(marker))
    return home


def send(packed: Path, target: Path) -> str:
    """Lands what was packed, as the program does."""
    target.mkdir(exist_ok=True)
    with open(packed, "rb") as file:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            return land(target, TOP)
        finally:
            os.dup2(saved, 0)
            os.close(saved)


def test_layers_and_the_interpreter_that_was_fetched_for_them_come_along(tmp_path: Path) -> None:
    home = make_home(tmp_path, "{home}/python/cpython-3.11/bin/python3.11")
    program = home / PYTHONS / "cpython-3.11.9" / "bin" / "python3.11"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o755)
    (home / PYTHONS / "cpython-3.11").symlink_to("cpython-3.11.9")
    place = tmp_path / "packed" / "one.tar"
    pack_environment(home, TOP, place, NOW_S)
    far = tmp_path / "far" / "1000"
    far.parent.mkdir()
    home.rename(tmp_path / "home" / "gone")  # nothing of it may be needed
    assert send(place, far) == ""
    marker = read_layer(far, TOP)
    assert marker is not None and marker.env == {"COLOUR": "blue"}
    assert subprocess.check_output([far / BASE / VENV / "bin" / "python"]) == b"it runs\n"
    assert (far / BASE / VENV / "pyvenv.cfg").read_text() == f"home = {far}/python/cpython-3.11/bin\n"
    assert (far / BASE / FILES / "helper.py").read_text() == "WORD = 1"
    assert send(place, far) == "" and not list(far.glob(".making-*")), "once more changes nothing"


def test_an_interpreter_of_the_system_that_is_not_there_is_named(tmp_path: Path) -> None:
    system = tmp_path / "usr" / "python3.12"
    system.parent.mkdir()
    system.write_text("")
    home, place = make_home(tmp_path, str(system)), tmp_path / "packed" / "one.tar"
    pack_environment(home, TOP, place, NOW_S)
    system.unlink()
    wrong = send(place, tmp_path / "far")
    assert f"made with the interpreter {system}, which this machine does not have" in wrong
    with pytest.raises(NotFound, match="Build it again"):
        pack_environment(home, TOP, place, NOW_S)


def test_it_is_packed_once_for_all_that_ask_and_goes_when_nobody_does(tmp_path: Path) -> None:
    home, folder = make_home(tmp_path, "/bin/sh"), tmp_path / "packed"
    first = pack_environment(home, TOP, folder / "one.tar", NOW_S)
    written = (folder / "one.tar").stat().st_ino
    assert pack_environment(home, TOP, folder / "one.tar", NOW_S + KEPT_S) == first
    assert (folder / "one.tar").stat().st_ino == written
    pack_environment(home, BASE, folder / "two.tar", NOW_S + 2 * KEPT_S)
    assert sorted(path.name for path in folder.iterdir()) == ["one.json", "one.tar", "two.json", "two.tar"]
    pack_environment(home, BASE, folder / "three.tar", NOW_S + 2 * KEPT_S + 1)
    assert not (folder / "one.tar").exists() and not (folder / "one.json").exists()


class Answered(io.BytesIO):
    def __init__(self, content: bytes, digest: str) -> None:
        super().__init__(content)
        self.headers = {PACKED_DIGEST: digest}


@pytest.mark.parametrize("digest", ["", "0" * 64])
def test_what_has_another_digest_than_was_told_is_not_kept(tmp_path: Path, digest: str) -> None:
    with pytest.raises(EdgeFailed, match="arrived damaged"):
        download(cast("HTTPResponse", Answered(b"content", digest)), tmp_path / "file", "It", "x")
    assert not (tmp_path / "file").exists()
