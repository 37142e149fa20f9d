"""How an MPI job ended, by what the ranks that Slurm started wrote, and by what srun had to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steelyard.agent.attempt import MemberEnd
from steelyard.agent.job_files import JobFiles
from steelyard.agent.mpi_steps import MpiSteps
from steelyard.config import Settings
from steelyard.errors import EdgeFailed
from steelyard.model.batch import Gang, Launcher
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.model.reason import Reason
from steelyard.wire.agent import AssignedJob

ID = AttemptId("j-1.1")
SPEC = JobSpec("x", ("solve",), "/", gang=Gang(tasks_per_node=3, launcher=Launcher.MPI))
BAD = MemberEnd(900, Reason.EXITED_NONZERO, exit_code=137)


class World:
    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.files = JobFiles(folder)
        settings = Settings(1, "127.0.0.1", 1, "127.0.0.1", 18080, 0, 0, "tester", 0, pilot="mpi-1")
        self.steps = MpiSteps(settings, self.files, environ)

    def write(self, name: str, rank: int, **fields: object) -> None:
        record = {"rank": rank, "started_at": 1, "host": "n1", "cpus": [rank], **fields}
        (self.files.make_ranks(ID, None) / f"rank.{rank}.{name}").write_text(json.dumps(record))

    def say(self, text: str) -> None:
        (self.files.make_folder(ID) / "stderr").write_text(text)

    def end(self, end: MemberEnd = BAD) -> MemberEnd:
        return self.steps.explain(ID, SPEC, end, self.steps.read(ID, "exit"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, {})


def test_the_rank_that_ended_badly_first_says_how_all_ended(world: World) -> None:
    world.write("exit", 0, exit_code=0, ended_at=3, cpu_ms=10, peak_memory_bytes=5)
    world.write("exit", 1, exit_code=None, signal=9, ended_at=8)
    world.write("exit", 2, exit_code=4, ended_at=7)
    end = world.end()
    assert (end.reason, end.exit_code, end.signum) == (Reason.EXITED_NONZERO, 4, None)
    assert end.detail == "rank 2 exited with code 4; the other rank was ended with it."
    assert end.peak_memory_bytes == 5


def test_a_program_that_is_not_there_is_told_by_its_name(world: World) -> None:
    world.write("exit", 0, exit_code=127, ended_at=3, not_started="No such file or directory")
    assert (world.end().reason, world.end().detail) == (
        Reason.START_FAILED, "solve could not be executed on n1: No such file or directory",
    )  # fmt: skip


def test_where_no_rank_began_srun_says_why(world: World) -> None:
    world.say("srun: error: Couldn't find the specified plugin name for mpi/pmix\nsrun: error: cannot create mpi context\nx\n")
    end = world.end(MemberEnd(9, Reason.EXITED_NONZERO, exit_code=1))
    assert end.reason is Reason.START_FAILED
    assert end.detail.startswith("Slurm did not start the ranks: Couldn't find the specified plugin name for mpi/pmix; cannot")
    assert "libpmix" in end.detail


def test_ended_by_force_before_any_rank_could_tell(world: World) -> None:
    world.write("started", 0)
    assert (world.end().reason, world.end().signum, world.end().exit_code) == (Reason.KILLED_BY_SIGNAL, 9, None)


def test_a_node_that_failed_is_the_reason_whatever_ranks_wrote(world: World) -> None:
    world.write("exit", 0, exit_code=1, ended_at=3)
    world.say("some words\nsrun: error: Node failure on n2\n")
    assert world.end().reason is Reason.NODE_LOST


def test_what_is_no_record_is_passed_over(world: World) -> None:
    world.write("exit", 0, exit_code=0, ended_at=3)
    folder = world.files.ranks(ID)
    (folder / "rank.1.exit").write_text("{")
    (folder / "rank.2.exit").mkdir()
    (folder / "other").write_text("x")
    assert [each.rank for each in world.steps.read(ID, "exit")] == [0]


def test_without_an_allocation_nothing_is_begun(tmp_path: Path) -> None:
    job = AssignedJob(ID, JobId("j-1"), DEFAULT_PROJECT, Owner("ann", 7), SPEC, Plan(), None, 10.0)
    with pytest.raises(EdgeFailed, match="There is no srun"):
        World(tmp_path, {"PATH": "/nowhere"}).steps.make(job, None)
    (tmp_path / "srun").touch(0o755)
    told = {"PATH": str(tmp_path), "SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}
    made = World(tmp_path, told).steps.make(job, None)
    assert (made.job, made.nodes, made.cpus) == ("12", ("n1",), ((),))


def test_srun_is_given_none_of_slurms_variables_and_no_key_to_our_api(world: World) -> None:
    env = {"A": "1", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3", "STEELYARD_TOKEN": "t", "STEELYARD_API_URL": "http://127.0.0.1:1"}
    assert world.steps.clean(env) == {"A": "1"}
