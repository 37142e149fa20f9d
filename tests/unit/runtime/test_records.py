"""Records: what was written is read back, what is damaged stops the reader with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.errors import StoreDamaged
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime import records
from steelyard.runtime.records import Handle, Intent
from steelyard.runtime.spare_files import SpareFiles

W = WorkloadId("job-1.1")
INTENT = Intent(W, "boot", "job", 1, Plan(cpus=(1, 2), memory_bytes=5), "10:100", {"function": "hello"})
HANDLE = Handle(W, "boot", 7, 70, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records.make_folders(tmp_path)
    return tmp_path


def test_what_was_written_is_read_back(folder: Path) -> None:
    records.write_intent(folder, INTENT)
    records.write_handle(folder, HANDLE)
    assert records.load_intents(folder) == {W: INTENT}
    assert records.load_handles(folder) == {W: HANDLE}
    assert records.load_exits(folder) == {}
    assert records.load_intent(folder, W) == INTENT
    assert records.load_exit(folder, W) is None
    assert records.intent_path(folder, W).stat().st_mode & 0o777 == 0o600


def test_forgetting_removes_all_three_and_may_be_repeated(folder: Path) -> None:
    other = Handle(WorkloadId("job-2.1"), "boot", 8, 80, 2)
    records.write_intent(folder, INTENT)
    records.write_handle(folder, HANDLE)
    records.write_handle(folder, other)
    records.exit_path(folder, W).write_text("{}")
    spares = SpareFiles()
    records.forget(folder, W, spares.add)
    records.forget(folder, W, spares.add)
    assert records.load_intents(folder) == {}
    assert records.load_handles(folder) == {other.workload: other}
    assert records.load_exits(folder) == {}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"workload": "job-1.1"}',
        b'{"workload":"job-2.1","boot_id":"b","pid":1,"start_time":1,"at":1}',
    ],
)
def test_a_damaged_record_is_named(folder: Path, damage: bytes) -> None:
    path = records.handle_path(folder, W)
    path.write_bytes(damage)
    with pytest.raises(StoreDamaged, match=str(path)):
        records.load_handles(folder)
    assert path.read_bytes() == damage


def test_a_truncated_record_is_named_at_every_length(folder: Path) -> None:
    records.write_intent(folder, INTENT)
    path = records.intent_path(folder, W)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreDamaged):
            records.load_intents(folder)


def test_a_folder_in_a_records_place_is_named(folder: Path) -> None:
    records.exit_path(folder, W).mkdir()
    with pytest.raises(StoreDamaged, match=r"job-1\.1\.json"):
        records.load_exits(folder)


def test_writes_cut_short_before_their_rename_never_happened(folder: Path) -> None:
    (folder / "intents" / ".job-1.1.json.99.tmp").write_bytes(b"{")
    assert records.load_intents(folder) == {}


@pytest.mark.parametrize("bad", ["", ".", "..", ".x", "a/b", "a\n", "a b", "ä", "x" * 201])
def test_ids_that_are_no_file_names_are_none(bad: str) -> None:
    assert not records.WORKLOAD_ID.match(bad)


@pytest.mark.parametrize("good", ["job-1.1", "hello.2.17", "_x", "A", "x" * 200])
def test_ids_of_attempts_and_replicas_are_fine(good: str) -> None:
    assert records.WORKLOAD_ID.match(good)
