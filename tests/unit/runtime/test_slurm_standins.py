"""What the stand-ins understand: host lists, ids, command lines, formats. As real programs they are tried in tests/live."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.runtime.slurm import mpi, scancel, squeue, srun_table
from steelyard.runtime.slurm.client import Failed, parse_id, show_id
from steelyard.runtime.slurm.getopt import MAY, NONE, NotUnderstood, Option, read_options
from steelyard.runtime.slurm.names import expand_hosts, expand_numbers, join_hosts, join_numbers
from steelyard.runtime.slurm.sbatch import clean
from steelyard.runtime.slurm.sbatch_table import OPTIONS, read_sbatch
from steelyard.runtime.slurm_bin import make_slurm_bin

TABLE = (Option("alpha", "a"), Option("alpine", "p", NONE), Option("beta", "b", MAY), Option("gamma", "", NONE))


@pytest.mark.parametrize(
    ("words", "found", "rest"),
    [
        (["-a1", "x"], ["--alpha=1"], ["x"]),
        (["-a", "1", "--alpine", "x", "-a2"], ["--alpha=1", "--alpine"], ["x", "-a2"]),
        (["-pa1"], ["--alpine", "--alpha=1"], []),
        (["--alpha=", "--ga"], ["--alpha=", "--gamma"], []),
        (["-b", "x"], ["--beta"], ["x"]),
        (["-bx", "--beta=y"], ["--beta=x", "--beta=y"], []),
        (["--", "-a"], [], ["-a"]),
        (["-"], [], ["-"]),
        (["--alpha", "--gamma"], ["--alpha=--gamma"], []),
    ],
)
def test_command_lines_are_read_as_getopt_does(words: list[str], found: list[str], rest: list[str]) -> None:
    given_options, at = read_options(TABLE, words)
    assert ([each.text for each in given_options], words[at:]) == (found, rest)


@pytest.mark.parametrize("words", [["--al=1"], ["--no"], ["-x"], ["--alpha"], ["-a"], ["--gamma=1"], ["-a=1"]])
def test_what_is_not_understood_is_said_with_its_place(words: list[str]) -> None:
    with pytest.raises(NotUnderstood) as refused:
        read_options(TABLE, ["-p", *words])
    assert refused.value.at == 1


@pytest.mark.parametrize("table", [OPTIONS, srun_table.OPTIONS, squeue.OPTIONS, scancel.OPTIONS])
def test_no_name_and_no_letter_is_there_twice(table: tuple[Option, ...]) -> None:
    names, letters = [option.name for option in table], [option.short for option in table if option.short]
    assert len(set(names)) == len(names) and len(set(letters)) == len(letters)


def test_older_names_mean_todays() -> None:
    assert [each.text for each in read_sbatch(["--tasks-per-node=2", "--workdir=/x"])[0]] == ["--ntasks-per-node=2", "--chdir=/x"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a[1-3],b", ["a1", "a2", "a3", "b"]),
        ("n[08-10,20]-ib", ["n08-ib", "n09-ib", "n10-ib", "n20-ib"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_hosts_are_expanded(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize("text", ["", "a,,b", "a[", "a]1", "a[x]", "a[3-1]", "a[1-99999999]", "a[1-999]b[1-999]c[1-999]"])
def test_what_is_no_list_of_hosts_is_said(text: str) -> None:
    with pytest.raises(ValueError):
        expand_hosts(text)


@given(st.lists(st.from_regex(r"[a-z]{1,3}[0-9]{0,3}", fullmatch=True), min_size=1, max_size=20, unique=True))
def test_a_joined_list_of_hosts_names_the_same(names: list[str]) -> None:
    assert sorted(expand_hosts(join_hosts(names))) == sorted(names)


def test_hosts_and_numbers_are_joined_in_runs() -> None:
    assert join_hosts(["a1", "a2", "a3", "b", "c01"]) == "a[1-3],b,c01" or join_hosts(["a1", "a2", "a3"]) == "a[1-3]"
    assert join_numbers([3, 1, 2, 7]) == "1-3,7"
    assert expand_numbers("0-2,5") == ["0", "1", "2", "5"]


@pytest.mark.parametrize(
    ("text", "job"),
    [("12", "j-000012"), ("12_3", "j-000012_3"), ("12_*", "j-000012"), ("12_[1-5]", "j-000012"), ("j-000012", "j-000012"),
     ("j-000012_3", "j-000012_3"), ("12000000091", "j-000012_7"), ("12.batch", "j-000012"), ("1234567", "j-1234567")],
)  # fmt: skip
def test_every_way_to_name_a_job_is_understood(text: str, job: str) -> None:
    assert parse_id(text) == job


def test_what_names_no_job_is_said() -> None:
    for text in ("", "x", "-1", "12_x", "j-"):
        with pytest.raises(Failed, match="Invalid job id"):
            parse_id(text)
    assert show_id("j-000012_3") == "12_3"


JOB = {
    "id": "j-000012_3", "name": "a name that is long", "owner": "eve", "state": "RUNNING", "reason": None, "exit_code": None,
    "submitted_at": "2023-11-14T22:00:00.000000Z", "started_at": "2023-11-14T22:13:20.000000Z", "ended_at": None,
    "argv": ["a.sh", "1"], "cpus": [], "detail": "",
}  # fmt: skip


def test_squeue_fills_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    values = squeue.describe(JOB, datetime(2023, 11, 14, 23, 14, 25, tzinfo=UTC))
    assert squeue._line(squeue.FORMAT, values) == "              12_3 steelyard a name t      eve  R    1:01:05      1 n1"
    assert squeue._line("%F|%K|%T|%o", values) == "12|3|RUNNING|a.sh 1"
    waiting = squeue.describe({**JOB, "state": "QUEUED", "reason": "dependency"}, datetime.now(UTC))
    assert (waiting["t"], waiting["R"]) == ("PD", "(Dependency)")


def test_a_failed_job_says_why_in_slurms_words() -> None:
    assert squeue.state_of({**JOB, "state": "FAILED", "reason": "max-duration"}) == ("TO", "TIMEOUT")
    assert squeue.state_of({**JOB, "state": "SUCCEEDED"}) == ("CD", "COMPLETED")


def test_a_format_that_is_not_known_is_named() -> None:
    with pytest.raises(Failed, match="%X"):
        squeue.check_format("%i %X")


def test_only_text_is_handed_on() -> None:
    assert clean({"A": "1", "B": "\udcff", "C": "é"}) == {"A": "1", "C": "é"}


def test_a_script_is_no_mpi_program(tmp_path: Path) -> None:
    script = tmp_path / "x"
    script.write_text("#!/bin/sh\n# \0libmpi.so\n")
    script.chmod(0o755)
    assert not mpi.links_mpi(str(script), None) and not mpi.links_mpi("/no/such", None)
    script.write_bytes(b"\x7fELF....\0libmpi.so.40\0")
    assert mpi.links_mpi(str(script), None)


def test_mpirun_binds_nothing_in_cores_that_are_shared(tmp_path: Path) -> None:
    (tmp_path / "mpirun").write_text("")
    (tmp_path / "mpirun").chmod(0o755)
    env = {"PATH": str(tmp_path)}
    shared, alone = mpi.mpirun_command(2, ["x"], env, False), mpi.mpirun_command(2, ["x"], env, True)
    assert shared is not None and alone is not None
    assert shared[0] == [str(tmp_path / "mpirun"), "-n", "2", "x"]
    assert "OMPI_MCA_hwloc_base_binding_policy" in shared[1] and "OMPI_MCA_hwloc_base_binding_policy" not in alone[1]
    assert mpi.mpirun_command(2, ["x"], {"PATH": "/nowhere"}, False) is None


def test_the_folder_is_made_once_and_everybody_may_read_it(tmp_path: Path) -> None:
    made = make_slurm_bin(tmp_path / "slurm", "/usr/bin/python3")
    assert sorted(file.name for file in made.iterdir()) == ["sbatch", "scancel", "scontrol", "squeue", "srun"]
    for file in (made.parent, *made.parent.rglob("*")):
        wanted = 0o755 if file.is_dir() or file.parent == made else 0o644
        assert file.stat().st_mode & 0o777 == wanted, file
    assert make_slurm_bin(tmp_path / "slurm", "/usr/bin/python3") == made
    assert make_slurm_bin(tmp_path / "slurm", "/other/python3") != made
    assert not list((tmp_path / "slurm").glob(".making*"))
