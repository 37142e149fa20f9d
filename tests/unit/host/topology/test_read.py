"""Files and folders; needs every reader, so it is skipped where one is not built in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mutated import read_or_refuse
from recorded import recorded
from steelyard.errors import Refused
from steelyard.model.topology import Topology

read = pytest.importorskip("steelyard.host.topology.read")

NCCL = b"""<system version="1"><cpu numaid="0" affinity="ff"><pci busid="0000:01:00.0" class="0x030200">
<gpu dev="0" sm="90"/></pci>
<pci busid="0000:02:00.0" class="0x030200"><gpu dev="1" sm="90"/></pci></cpu></system>"""
MATRIX = b"\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV4\t0-7\nGPU1\tNV4\t X \t0-7\n"


def test_files_of_any_name_are_read_and_merged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(NCCL)
    (tmp_path / "b.xml").write_bytes(MATRIX)
    topology = read.read_topology([tmp_path / "a.json", tmp_path / "b.xml"])
    assert [gpu.id for gpu in topology.gpus] == ["0000:01:00.0", "0000:02:00.0"]
    assert [pair.class_name for pair in topology.pairs] == ["NV4"] and len(topology.sources) == 2


def test_what_windows_writes_is_text(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_bytes(MATRIX.decode().encode("utf-16"))
    assert len(read.read_topology([tmp_path / "w.txt"]).gpus) == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"abc\0def", "NUL bytes"),
        (b"\xff\xfa\x00\x01junk", "is not text"),
        (b"\xff\xfe\x00", "is not text"),
        (b"\x7fELF\x02\x01\x01\0\0", "NUL bytes"),
    ],
)
def test_binary_junk_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "junk.xml").write_bytes(data)
    with pytest.raises(Refused, match=re.escape(sentence)):
        read.read_topology([tmp_path / "junk.xml"])


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.xml"
    with path.open("wb") as file:
        file.truncate(100 * 1024**2)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(Refused, match="larger than 64 MiB"):
        read.read_topology([path])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can't be read"):
        read.read_topology([tmp_path / "missing"])
    with pytest.raises(Refused, match="folder without sys/ and proc/"):
        read.read_topology([tmp_path])
    with pytest.raises(Refused, match="neither a file nor a folder"):
        read.read_topology([Path("/dev/null")])
    with pytest.raises(Refused, match="No file"):
        read.read_topology([])


#: folders whose every file describes a machine; the rest describe something else
_MACHINES = ("hwloc-xml", "rocm-smi", "sysfs")


def test_every_recorded_file_is_a_machine_or_refused_with_one_sentence() -> None:
    folder = recorded()
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.parent.name != "hwloc-fsroot"
    ):  # large; test_linux.py reads them
        answer = read_or_refuse(lambda *_, path=path: read.read_topology([path]), "")
        if isinstance(answer, Topology):
            assert answer.sources, path.name
        else:
            assert path.parent.name not in _MACHINES, answer
            assert "\n" not in answer and len(answer) < 400
