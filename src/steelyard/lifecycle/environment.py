"""What does a process have to know about the place it was given? Environment variables for CUDA, ROCm, NCCL, UCX and OpenMP.

Pure: a plan and the machine's topology in, variables out. GPUs are named by UUID where the source knew it, because indices are
each driver's own affair. What the user sets wins, except over the variables that say which devices are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steelyard.model.cores import Core
from steelyard.model.job import Plan
from steelyard.model.timing import Timing
from steelyard.model.topology import Gpu, Nic, Topology

#: variables by which programs choose devices: ours win, otherwise a job could take its neighbour's by mistake
OWNED = frozenset(
    {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "STEELYARD_CPUS",
        "STEELYARD_GPUS",
        "STEELYARD_MEMORY_NODES",
        "STEELYARD_NICS",
        "STEELYARD_TIMING",
    }
)


def make_environment(
    plan: Plan, topology: Topology | None, user: Mapping[str, str], *, threads: bool = True, mps: bool = False
) -> dict[str, str]:
    """`user` with what the place adds. Work without GPUs on a machine that has some is told that it has none. Without `threads`
    nothing is said of OpenMP: a template must not start threads before it forks. `mps`: NVIDIA's sharing daemon runs here."""
    topology = topology or Topology()
    ours = {
        **(_threads(plan, topology) if threads else {}),
        **_gpus(plan, topology),
        **(_share(plan, topology) if mps else {}),
        **_nics(plan, topology),
        **_mask(plan),
    }
    # What we would have said but had nothing to say of is not the user's to claim either.
    kept = {
        name: value
        for name, value in user.items()
        if name not in OWNED or (name not in ours and not name.startswith("STEELYARD_"))
    }
    return {**ours, **kept}


def _mask(plan: Plan) -> dict[str, str]:
    """What was planned, in words that any program can read."""
    return {
        "STEELYARD_TIMING": plan.timing.value,
        # A realtime program's heap is kept once it has grown, and nothing is mapped and unmapped per allocation, so that memory
        # once touched faults no more (glibc's own settings).
        **({"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"} if plan.timing is Timing.REALTIME else {}),
        **({"STEELYARD_CPUS": ",".join(map(str, plan.cpus))} if plan.cpus else {}),
        **({"STEELYARD_MEMORY_NODES": ",".join(map(str, plan.memory_nodes))} if plan.memory_nodes else {}),
        **({"STEELYARD_GPUS": ",".join(plan.gpus)} if plan.gpus else {}),
        **({"STEELYARD_NICS": ",".join(plan.nics)} if plan.nics else {}),
    }


def _threads(plan: Plan, topology: Topology) -> dict[str, str]:
    """OpenMP: one thread per core of its own, each bound to its core. In the common cores programs decide for themselves."""
    if not plan.cpus:
        return {}
    own = set(plan.cpus)
    cores = [core for core in topology.cores if own & set(core.cpus)]
    return {"OMP_NUM_THREADS": str(max(1, len(cores))), "OMP_PLACES": _places(cores), "OMP_PROC_BIND": "close"}


def _places(cores: Sequence[Core]) -> str:
    return ",".join("{" + ",".join(map(str, core.cpus)) + "}" for core in cores)


def _gpus(plan: Plan, topology: Topology) -> dict[str, str]:
    makers = {gpu.vendor for gpu in topology.gpus}
    by_id = {gpu.id: gpu for gpu in topology.gpus}
    mine = [by_id[gpu] for gpu in plan.gpus if gpu in by_id]
    found: dict[str, str] = {}
    if "NVIDIA" in makers:
        names = list(plan.mig_instances) or [_cuda_name(gpu) for gpu in mine if gpu.vendor == "NVIDIA"]
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        found["CUDA_VISIBLE_DEVICES"] = ",".join(names)
        found["NVIDIA_VISIBLE_DEVICES"] = ",".join(names) or "void"
    if "AMD" in makers:
        # ROCr takes UUIDs too, but not every card has one; its own order is the driver's.
        names = [gpu.uuid or str(gpu.index) for gpu in mine if gpu.vendor == "AMD" and (gpu.uuid or gpu.index is not None)]
        found["ROCR_VISIBLE_DEVICES"] = ",".join(names)
    return found


def _share(plan: Plan, topology: Topology) -> dict[str, str]:
    """How MPS is told to hold a client to its share: of the multiprocessors, and of each visible GPU's memory."""
    if plan.gpu_fraction >= 1 or plan.mig_instances:
        return {}
    sizes = {gpu.id: gpu.memory_bytes for gpu in topology.gpus}
    limits = [
        f"{place}={int(size * plan.gpu_fraction) >> 20}M" for place, gpu in enumerate(plan.gpus) if (size := sizes.get(gpu))
    ]
    found = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(max(1, round(plan.gpu_fraction * 100)))}
    return found | ({"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": ",".join(limits)} if limits else {})


def read_gpus(environ: Mapping[str, str], topology: Topology) -> list[str] | None:
    """The GPUs that a process sees by its environment, as ids; None where it was told nothing."""
    told = environ.get("CUDA_VISIBLE_DEVICES", environ.get("ROCR_VISIBLE_DEVICES"))
    if told is None:
        return None
    names = {part.uuid or "": gpu.id for gpu in topology.gpus for part in gpu.mig_instances}
    names |= {str(gpu.index): gpu.id for gpu in topology.gpus if gpu.index is not None}
    names |= {gpu.id: gpu.id for gpu in topology.gpus} | {gpu.uuid: gpu.id for gpu in topology.gpus if gpu.uuid}
    return sorted({names.get(name, name) for name in told.split(",") if name})


def _cuda_name(gpu: Gpu) -> str:
    """The UUID; without one the index, which CUDA_DEVICE_ORDER makes the driver's own."""
    return gpu.uuid or str(gpu.index if gpu.index is not None else gpu.id)


def _nics(plan: Plan, topology: Topology) -> dict[str, str]:
    """NCCL and UCX take the cards that were chosen near the GPUs, and no others."""
    by_id = {nic.id: nic for nic in topology.nics}
    mine = [by_id[nic] for nic in plan.nics if nic in by_id]
    rdma = [port for nic in mine if nic.rdma for port in _rdma_ports(nic)]
    if rdma:
        return {"NCCL_IB_HCA": "=" + ",".join(rdma), "UCX_NET_DEVICES": ",".join(rdma)}
    plain = [nic.name for nic in mine if nic.name]
    return {"NCCL_SOCKET_IFNAME": "=" + ",".join(plain), "UCX_NET_DEVICES": ",".join(plain)} if plain else {}


def _rdma_ports(nic: Nic) -> list[str]:
    """`mlx5_0:1`, which both libraries understand."""
    names = [port.name for port in nic.ports if port.up is not False] or [nic.name]
    return [name if ":" in name else f"{name}:1" for name in names if name]
