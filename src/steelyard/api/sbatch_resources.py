"""How large is the place that `sbatch` options ask for? Nodes, tasks, cores, memory, GPUs. Pure; raises Refused.

As in Slurm a script runs once and has the whole allocation; `srun` inside it starts the tasks. So what is asked of the machine is
one place that holds all tasks of one node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from steelyard.api.sbatch_options import parse_count, parse_gpus, parse_gres, parse_memory, parse_nodes
from steelyard.errors import Refused
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.job import Resources

#: more than any machine has; beyond it numbers are typing errors
_MANY = 1_000_000


class Size(NamedTuple):
    nodes: int
    ntasks: int
    tasks_per_node: int
    #: of one node
    resources: Resources
    #: the `SLURM_*` variables that tell of it
    facts: dict[str, str]


def measure(values: Mapping[str, str | None]) -> Size:
    """`values`: option name -> value, the last one given. Options that exclude each other have been sorted out before."""

    def number(option: str) -> int | None:
        value = values.get(option)
        return None if value is None else parse_count(value, option)

    per_node, per_task, per_gpu = number("ntasks-per-node"), number("cpus-per-task") or 1, number("cpus-per-gpu")
    nodes_asked = None if values.get("nodes") is None else parse_nodes(values["nodes"] or "")
    gpus = _find_gpus(values)
    ntasks = number("ntasks")
    if (tasks_per_gpu := number("ntasks-per-gpu")) is not None:
        gpus, ntasks = _match_gpus(gpus, ntasks, tasks_per_gpu)
    if nodes_asked is None:
        nodes = -(-ntasks // per_node) if ntasks is not None and per_node is not None else 1
    else:
        nodes = min(nodes_asked, ntasks) if ntasks is not None else nodes_asked
    if ntasks is None:
        ntasks = nodes * (per_node or 1)
    tasks_here = -(-ntasks // nodes)
    gpus = _gpus_here(values, gpus, nodes, tasks_here)
    cores = 1 if "overcommit" in values else tasks_here * per_task
    if per_gpu is not None and gpus is not None:
        cores = max(cores, per_gpu * gpus.count)
    cores = max(cores, number("mincpus") or 1)
    if max(cores, nodes, ntasks) > _MANY:
        raise Refused(f"that is more than {_MANY} cores, nodes or tasks", code="bad-number")
    memory, memory_facts = _find_memory(values, cores, gpus)
    exclusive = "exclusive" in values and not values["exclusive"]
    facts = {
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(ntasks),
        "SLURM_NPROCS": str(ntasks),
        "SLURM_TASKS_PER_NODE": str(tasks_here) + (f"(x{nodes})" if nodes > 1 else ""),
        **memory_facts,
    }
    if "overcommit" in values:
        facts["SLURM_OVERCOMMIT"] = "1"
    if values.get("cpus-per-task") is not None:
        facts["SLURM_CPUS_PER_TASK"] = str(per_task)
    if values.get("ntasks-per-node") is not None:
        facts["SLURM_NTASKS_PER_NODE"] = str(per_node)
    facts |= {f"SLURM_{name.upper().replace('-', '_')}": values[name] or "" for name in _GPU_OPTIONS if values.get(name)}
    return Size(nodes, ntasks, tasks_here, Resources(float(cores), memory, exclusive, gpus=gpus), facts)


#: options of GPUs that Slurm repeats in the environment as they were given
_GPU_OPTIONS = ("gpus", "gpus-per-node", "gpus-per-task")


def _find_gpus(values: Mapping[str, str | None]) -> GpuDemand | None:
    """In all, where that is said without knowing nodes or tasks."""
    value = values.get("gpus")
    if value is not None:
        return parse_gpus(value, "gpus")
    value = values.get("gpus-per-node")
    return None if value is None else parse_gpus(value, "gpus-per-node")


def _match_gpus(gpus: GpuDemand | None, ntasks: int | None, tasks_per_gpu: int) -> tuple[GpuDemand | None, int | None]:
    """--ntasks-per-gpu: whichever of both was not given."""
    if gpus is not None and ntasks is None:
        return gpus, gpus.count * tasks_per_gpu
    if gpus is None and ntasks is not None:
        return GpuDemand(count=-(-ntasks // tasks_per_gpu)), ntasks
    if gpus is None:
        raise Refused("--ntasks-per-gpu needs --ntasks or --gpus beside it", code="bad-gpus")
    return gpus, ntasks


def _gpus_here(values: Mapping[str, str | None], gpus: GpuDemand | None, nodes: int, tasks: int) -> GpuDemand | None:
    """On one node, by all options that speak of GPUs; what contradicts is refused."""
    found: dict[str, GpuDemand] = {}
    if gpus is not None:
        whole = values.get("gpus") is not None or values.get("gpus-per-node") is None
        name = "gpus" if whole else "gpus-per-node"
        found[name] = msgspec.structs.replace(gpus, count=-(-gpus.count // nodes)) if whole else gpus
    if (value := values.get("gpus-per-node")) is not None and (each := parse_gpus(value, "gpus-per-node")):
        found["gpus-per-node"] = each
    if (value := values.get("gres")) is not None and (each := parse_gres(value)):
        found["gres"] = each
    if (value := values.get("gpus-per-task")) is not None and (each := parse_gpus(value, "gpus-per-task")):
        found["gpus-per-task"] = msgspec.structs.replace(each, count=each.count * tasks)
    counts = {demand.count for demand in found.values()}
    kinds = {msgspec.structs.replace(demand, count=1) for demand in found.values()} - {GpuDemand()}
    if len(counts) > 1 or len(kinds) > 1:
        names = " and ".join(f"--{name}={values.get(name)}" for name in found)
        raise Refused(f"{names} contradict each other: say once how many GPUs of which type", code="bad-gpus")
    if not counts:
        return None
    return msgspec.structs.replace(next(iter(kinds), GpuDemand()), count=counts.pop())


def _find_memory(values: Mapping[str, str | None], cores: int, gpus: GpuDemand | None) -> tuple[int | None, dict[str, str]]:
    """Bytes on one node, and what Slurm tells the job of it."""
    if (value := values.get("mem")) is not None:
        return parse_memory(value, "mem") or None, {}
    if (value := values.get("mem-per-cpu")) is not None:
        each = parse_memory(value, "mem-per-cpu")
        return each * cores or None, {"SLURM_MEM_PER_CPU": str(each >> 20)}
    if (value := values.get("mem-per-gpu")) is not None:
        if gpus is None:
            raise Refused("--mem-per-gpu needs GPUs: --gpus, --gpus-per-node or --gres=gpu beside it", code="bad-memory")
        each = parse_memory(value, "mem-per-gpu")
        return each * gpus.count or None, {"SLURM_MEM_PER_GPU": str(each >> 20)}
    return None, {}
