"""The SLURM_* variables of a job, word for word."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from steelyard.api.sbatch_script import parse_script
from steelyard.lifecycle.slurm_environment import ELEMENT_STRIDE, array_number, job_number, make_slurm_environment
from steelyard.model.batch import ArrayPlace, Gang
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import JobId
from steelyard.model.job import JobSpec, Plan, Resources
from steelyard.runtime.slurm import client

SCRIPTS = Path(__file__).parents[1] / "api" / "sbatch_scripts"


def test_a_submitted_script_finds_what_slurm_would_tell_it() -> None:
    submission = parse_script((SCRIPTS / "ddp.sh").read_text(), (), (), "/home/eve", {}, name="ddp.sh")
    plan = Plan(memory_bytes=64 << 30, gpus=("0000:3b:00.0", "0000:5e:00.0"))
    found = make_slurm_environment(
        JobId("j-000012"),
        submission.spec,
        plan,
        hostname="node7.example",
        user="eve",
        uid=1000,
        gid=100,
        restarts=2,
        started_at=1_700_000_000_000_000,
        gpu_indices={"0000:3b:00.0": 2, "0000:5e:00.0": 3},
    )
    assert found == {
        "ENVIRONMENT": "BATCH",
        "SLURMD_NODENAME": "node7",
        "SLURM_CLUSTER_NAME": "steelyard",
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_GPUS_PER_NODE": "a100:2",
        "SLURM_GTIDS": "0",
        "SLURM_JOBID": "12",
        "SLURM_JOB_ACCOUNT": "eve",
        "SLURM_JOB_CPUS_PER_NODE": "16",
        "SLURM_JOB_END_TIME": "1700172800",
        "SLURM_JOB_GID": "100",
        "SLURM_JOB_GPUS": "2,3",
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NAME": "ddp-resnet",
        "SLURM_JOB_NODELIST": "node7",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_PARTITION": "gpu",
        "SLURM_JOB_QOS": "normal",
        "SLURM_JOB_START_TIME": "1700000000",
        "SLURM_JOB_UID": "1000",
        "SLURM_JOB_USER": "eve",
        "SLURM_LOCALID": "0",
        "SLURM_MEM_PER_NODE": "65536",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "node7",
        "SLURM_NPROCS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": "0",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_SUBMIT_DIR": "/home/eve",
        "SLURM_SUBMIT_HOST": "node7",
        "SLURM_TASKS_PER_NODE": "2",
        "SLURM_TOPOLOGY_ADDR": "node7",
        "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
    }


def test_an_element_of_an_array_has_a_number_of_its_own() -> None:
    place = ArrayPlace(JobId("j-000012"), 7, 50, 1, 99, 2)
    spec = JobSpec("x", ("x",), "/w", resources=Resources(0.5))
    found = make_slurm_environment(JobId("j-000012_7"), spec, Plan(), hostname="n", user="u", array=place)
    assert {name: value for name, value in found.items() if "ARRAY" in name} == {
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_COUNT": "50",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_MAX": "99",
        "SLURM_ARRAY_TASK_STEP": "2",
    }
    assert found["SLURM_JOB_ID"] == str(12 * ELEMENT_STRIDE + 7)
    assert found["SLURM_CPUS_ON_NODE"] == "1" and "SLURM_MEM_PER_NODE" not in found and "SLURM_RESTART_COUNT" not in found


def test_a_rank_of_a_gang_knows_its_place() -> None:
    spec = JobSpec("x", ("x",), "/w", resources=Resources(2, 1 << 30, gpus=GpuDemand()), gang=Gang(1, 4))
    found = make_slurm_environment(JobId("j-000003"), spec, Plan(), hostname="n", user="u", rank=3, local_rank=3)
    asked = ("PROCID", "LOCALID", "NTASKS", "CPUS_PER_TASK", "CPUS_ON_NODE", "TASKS_PER_NODE", "MEM_PER_NODE")
    assert [found[f"SLURM_{name}"] for name in asked] == ["3", "3", "4", "2", "8", "4", "4096"]


def test_what_slurm_was_told_never_says_who_the_job_is() -> None:
    spec = JobSpec("x", ("x",), "/w", slurm={"SLURM_JOB_ID": "1", "SLURM_JOB_PARTITION": "gpu", "SLURM_NTASKS": "many"})
    found = make_slurm_environment(JobId("j-000003"), spec, Plan(), hostname="n", user="u")
    assert (found["SLURM_JOB_ID"], found["SLURM_JOB_PARTITION"]) == ("3", "gpu")


@given(st.integers(1, 10**8), st.none() | st.integers(0, 4_194_303))
def test_a_jobs_number_leads_back_to_its_id(number: int, index: int | None) -> None:
    job = JobId(f"j-{number:06d}" + ("" if index is None else f"_{index}"))
    assert client.parse_id(str(job_number(job))) == job
    assert client.parse_id(client.show_id(job)) == job
    assert array_number(job) == number
    assert client.ELEMENT_STRIDE == ELEMENT_STRIDE


@given(st.text(max_size=20))
def test_an_odd_id_gives_a_number_all_the_same(job: str) -> None:
    assert job_number(JobId(job)) >= 0
