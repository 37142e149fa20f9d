"""Which GPUs and network cards did a job really get, and is its share of them held by anything?

What is asked is the plan; what was got is read from the job's first process. Nothing here asks a driver.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.host.device_nodes import mps_runs
from steelyard.host.proc import read_environment
from steelyard.lifecycle.environment import read_gpus
from steelyard.model.job import Plan
from steelyard.model.topology import Topology


def shares_by_mps(plan: Plan) -> bool:
    """Is this plan's share of its GPUs held by NVIDIA's MPS? Asked at each start: the daemon comes and goes."""
    return bool(plan.gpus) and plan.gpu_fraction < 1 and mps_runs()


def asked_devices(plan: Plan, topology: Topology | None) -> dict[str, object]:
    """Also "no GPU" is asked, where the machine has some; cards are everybody's unless some were asked for."""
    gpus: dict[str, object] = {"gpus": sorted(plan.gpus)} if topology is not None and topology.gpus else {}
    return gpus | ({"nics": sorted(plan.nics)} if plan.nics else {})


def got_devices(plan: Plan, pids: Sequence[int], topology: Topology | None) -> dict[str, object]:
    """By what its first process was told; that it uses no other card, nothing enforces."""
    if topology is None or not pids or not (topology.gpus or plan.nics):
        return {}
    environ = read_environment(min(pids))
    gpus: dict[str, object] = {"gpus": read_gpus(environ, topology)} if topology.gpus else {}
    return gpus | ({"nics": sorted(filter(None, environ.get("STEELYARD_NICS", "").split(",")))} if plan.nics else {})


def explain_share(plan: Plan, mps: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what is not enforced, what to know). A MIG instance is a share that the hardware keeps apart."""
    if plan.gpu_fraction >= 1 or plan.mig_instances:
        return (), ()
    share = f"{plan.gpu_fraction:g} of {', '.join(plan.gpus)}"
    if mps:
        return (), (f"{share} is held by NVIDIA's MPS, which can't be looked at from outside: NOT VERIFIED",)
    return (f"{share} is NOT ENFORCED: neither MIG nor MPS holds it, and it may use all of the GPU",), ()
