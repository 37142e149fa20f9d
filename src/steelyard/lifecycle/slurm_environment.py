"""What does a script that was written for Slurm expect to find in its environment? The `SLURM_*` variables, from plain facts.
Pure.

Slurm's ids of jobs are numbers, and scripts calculate with them (a port from the last digits). `j-000012` is 12. An element of an
array, `j-000012_7`, needs a number of its own that leads back to it: 12 * ELEMENT_STRIDE + 7. The stride is a prime, so that
elements and arrays differ in their last digits too. The stand-ins (`runtime/slurm/client.py`) read it back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from steelyard.model.batch import ArrayPlace
from steelyard.model.ids import JobId
from steelyard.model.job import JobSpec, Plan

#: larger than any plain number of a job will become; a test holds it equal to that of the stand-ins
ELEMENT_STRIDE = 1_000_000_007

_ID = re.compile(r"\D*(\d+)(?:_(\d+))?", re.ASCII)
_MIB = 1 << 20


def job_number(job: JobId) -> int:
    """`j-000012` -> 12; `j-000012_7` -> 12000000091. 0 for what is no id of ours."""
    match = _ID.fullmatch(job)
    if match is None:
        return 0
    return int(match[1]) if match[2] is None else int(match[1]) * ELEMENT_STRIDE + int(match[2])


def array_number(job: JobId) -> int:
    """`j-000012_7` -> 12, and so is `j-000012`."""
    return job_number(JobId(job.partition("_")[0]))


def make_slurm_environment(
    job: JobId,
    spec: JobSpec,
    plan: Plan,
    *,
    hostname: str,
    hosts: Sequence[str] = (),
    user: str,
    array: ArrayPlace | None = None,
    restarts: int = 0,
    rank: int = 0,
    local_rank: int | None = None,
    node_rank: int = 0,
    uid: int | None = None,
    gid: int | None = None,
    started_at: int | None = None,
    gpu_indices: Mapping[str, int] | None = None,
    cluster: str = "steelyard",
) -> dict[str, str]:
    """For a job's only process, or for one rank of a gang. `hosts`: of a gang on several machines. `started_at`: microseconds
    since the epoch. `gpu_indices`: the driver's number of each GPU's id, where it is known. What `sbatch` was told
    (`JobSpec.slurm`) wins over what is computed here, but never over who and where the job is. Never raises."""
    number, host = str(job_number(job)), hostname.partition(".")[0]
    all_hosts = ",".join(each.partition(".")[0] for each in hosts) or host
    nodes, each = (1, 1) if spec.gang is None else (spec.gang.nodes, spec.gang.tasks_per_node)
    if spec.gang is None:
        each = _whole(spec.slurm.get("SLURM_NTASKS"), 1)
    found = {
        "SLURM_CLUSTER_NAME": cluster,
        "SLURM_JOB_PARTITION": "steelyard",
        "SLURM_JOB_QOS": "normal",
        "SLURM_JOB_ACCOUNT": spec.account or user,
        "SLURM_SUBMIT_HOST": host,
        "SLURM_SUBMIT_DIR": spec.cwd,
        **_amounts(spec, plan, nodes, each),
        **_gpus(plan, gpu_indices or {}),
        **spec.slurm,
        "SLURM_JOB_ID": number,
        "SLURM_JOBID": number,
        "SLURM_JOB_NAME": spec.name,
        "SLURM_JOB_USER": user,
        "SLURM_JOB_NODELIST": all_hosts,
        "SLURM_NODELIST": all_hosts,
        "SLURMD_NODENAME": host,
        "SLURM_TOPOLOGY_ADDR": host,
        "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
        "SLURM_NODEID": str(node_rank),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank if local_rank is None else local_rank),
        "SLURM_GTIDS": str(rank),
        "ENVIRONMENT": "BATCH",
    }
    if uid is not None:
        found["SLURM_JOB_UID"] = str(uid)
    if gid is not None:
        found["SLURM_JOB_GID"] = str(gid)
    if restarts:
        found["SLURM_RESTART_COUNT"] = str(restarts)
    if started_at is not None:
        found["SLURM_JOB_START_TIME"] = str(started_at // 1_000_000)
        if spec.max_duration_s is not None:
            found["SLURM_JOB_END_TIME"] = str(started_at // 1_000_000 + int(spec.max_duration_s))
    return found if array is None else found | tell_array(job, array)


def add_slurm(env: Mapping[str, str], folder: str, facts: Mapping[str, str], *, script: bool) -> dict[str, str]:
    """`env` with what Slurm would tell, and its stand-ins on the PATH: before a real Slurm's for scripts that were written for
    sbatch, behind everything else for work that may mean a real one."""
    path = env.get("PATH", "")
    joined = ":".join(part for part in ((folder, path) if script else (path, folder)) if part)
    return {**env, **facts, "PATH": joined}


def is_told(spec: JobSpec) -> bool:
    """Scripts for sbatch and gangs are told Slurm's variables. A plain command is not: `mpirun` and others would take them for an
    allocation of one task."""
    return bool(spec.slurm) or spec.gang is not None or spec.script is not None


def _amounts(spec: JobSpec, plan: Plan, nodes: int, each: int) -> dict[str, str]:
    """Tasks, cores, memory and GPUs, per node and in all."""
    demand = spec.demand
    cores = max(1, math.ceil(demand.cpus))
    memory = plan.memory_bytes if plan.memory_bytes is not None else demand.memory_bytes
    repeated = f"(x{nodes})" if nodes > 1 else ""
    found = {
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * each),
        "SLURM_NPROCS": str(nodes * each),
        "SLURM_TASKS_PER_NODE": f"{each}{repeated}",
        "SLURM_CPUS_ON_NODE": str(cores),
        "SLURM_JOB_CPUS_PER_NODE": f"{cores}{repeated}",
    }
    if spec.gang is not None:
        found["SLURM_NTASKS_PER_NODE"] = str(each)
        found["SLURM_CPUS_PER_TASK"] = str(max(1, math.ceil(spec.resources.cpus)))
    if memory is not None and "SLURM_MEM_PER_CPU" not in spec.slurm:
        found["SLURM_MEM_PER_NODE"] = str(memory // _MIB)
    return found


def tell_array(job: JobId, array: ArrayPlace) -> dict[str, str]:
    """What an element is told of its array."""
    return {
        "SLURM_ARRAY_JOB_ID": str(job_number(array.id) or array_number(job)),
        "SLURM_ARRAY_TASK_ID": str(array.index),
        "SLURM_ARRAY_TASK_COUNT": str(array.count),
        "SLURM_ARRAY_TASK_MIN": str(array.index_min),
        "SLURM_ARRAY_TASK_MAX": str(array.index_max),
        "SLURM_ARRAY_TASK_STEP": str(array.index_step),
    }


def _gpus(plan: Plan, indices: Mapping[str, int]) -> dict[str, str]:
    if not plan.gpus and not plan.mig_instances:
        return {}
    return {
        "SLURM_GPUS_ON_NODE": str(len(plan.mig_instances or plan.gpus)),
        "SLURM_JOB_GPUS": ",".join(str(indices.get(gpu, gpu)) for gpu in plan.gpus),
    }


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else default
