"""Is what an attempt gets beside its logs there, and nobody's to change? What is read back of its output?"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from steelyard.agent.attempt import Progress
from steelyard.agent.job_files import JobFiles, find_ports, read_users_file
from steelyard.errors import EdgeFailed
from steelyard.host.as_user import find_newest
from steelyard.model.batch import Gang
from steelyard.model.ids import AttemptId
from steelyard.model.reason import Reason
from steelyard.wire.spawn import Outputs

A = AttemptId("j-1.1")
UID = os.geteuid()


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


def test_a_script_and_a_hostfile_are_not_the_jobs_to_change(files: JobFiles) -> None:
    script = Path(files.write_script(A, "#!/bin/sh\ntrue\n", None))
    assert (script.read_text(), stat.S_IMODE(script.stat().st_mode)) == ("#!/bin/sh\ntrue\n", 0o550)
    hostfile = Path(files.write_hostfile(A, Gang(1, 2), ("h",)))
    assert (hostfile.read_text(), stat.S_IMODE(hostfile.stat().st_mode)) == ("h slots=2\n", 0o444)
    files.write_script(A, "other", None)
    assert script.read_text() == "other"


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgeFailed, match=r"file/j-1\.1 could not be made"):
        JobFiles(tmp_path / "file").write_script(A, "x", None)


def test_a_heartbeat_is_the_time_of_its_file(files: JobFiles) -> None:
    path = Path(files.make_beat(A, None))
    assert files.observe_beat(A) is None
    path.touch()
    os.utime(path, ns=(5, 7))
    assert files.observe_beat(A) == 7


def test_progress_survives_and_damage_costs_only_itself(files: JobFiles, tmp_path: Path) -> None:
    assert files.load_progress(A) == Progress()
    files.save_progress(A, Progress())  # no folder: only said in the log
    files.make_folder(A)
    kept = Progress(5, 6, True, Reason.MAX_DURATION)
    files.save_progress(A, kept)
    assert files.load_progress(A) == kept
    (tmp_path / A / "progress.json").write_text("{")
    assert files.load_progress(A) == Progress()


def test_output_of_a_rank_is_found_in_its_log_or_in_the_attempts_file(files: JobFiles, tmp_path: Path) -> None:
    log = tmp_path / f"{A}.0"
    log.mkdir()
    (log / "stdout").write_text("of rank 0")
    assert files.read_output(f"{A}.0", "stdout", 3, 100).plain == (b"rank 0", 9)
    assert files.read_output(A, "stdout", 0, 2).plain == (b"of", 2)
    assert files.read_output(f"{A}.9", "stdout", 0, 2).plain == (b"", 0)
    out = tmp_path / "out"
    out.write_text("mine")
    files.write_outputs(A, Outputs(stdout=str(out)), None)
    assert files.read_output(f"{A}.0", "stdout", 1, 100).plain == (b"ine", 4)
    (log / "stderr").write_text("log")
    assert files.read_output(f"{A}.0", "stderr", 0, 100).plain == (b"log", 3), "that stream goes to the log as ever"


def test_what_is_no_file_of_the_user_is_said_instead_of_shown(tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert b"which is not there" in read_users_file(str(path), UID, 0, 100).data
    path.write_text("text")
    assert read_users_file(str(path), UID, 2, 1).plain == (b"x", 3)
    assert read_users_file(str(path), UID, 99, 1).plain == (b"", 4)
    said, offset = read_users_file(str(path), UID + 1, 0, 100).plain
    assert b"no file of uid" in said
    assert read_users_file(str(path), UID + 1, offset, 100).plain == (b"", offset), "and said once"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert b"not shown here" in read_users_file(str(link), UID, 0, 100).data
    os.mkfifo(tmp_path / "fifo")
    assert b"no file of uid" in read_users_file(str(tmp_path / "fifo"), UID, 0, 100).data


def test_ports_that_somebody_listens_on_or_was_given_are_passed_over() -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("", 0))
        taken.listen()
        free.bind(("", 0))
        busy, open_port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        assert find_ports([busy, open_port], 1, []) == range(open_port, open_port + 1)
        with pytest.raises(EdgeFailed, match="free TCP ports"):
            find_ports([busy, open_port], 1, [range(open_port, open_port + 1)])


def test_the_newest_entry_counts_and_hidden_ones_do_not(tmp_path: Path) -> None:
    assert find_newest(str(tmp_path / "missing"), None) == "" == find_newest(str(tmp_path), None)
    for age, name in enumerate(("b", "a", ".hidden")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(0, 1000 + age))
    assert find_newest(str(tmp_path), None) == str(tmp_path / "a")
