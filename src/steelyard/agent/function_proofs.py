"""Did each replica of a function get what its plan says, and which walls stand around it? Read back from the kernel, when asked.

Looks and compares only. What sleeps has nothing, so there is nothing to read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from steelyard.agent.container_proof import asked_walls, explain_container, got_walls
from steelyard.agent.device_proof import asked_devices, got_devices
from steelyard.agent.edges import Edges
from steelyard.agent.job_container import inside_of
from steelyard.agent.replica import Replica
from steelyard.agent.revision import RevisionHost
from steelyard.host.proc import observe_root, observe_walls, read_environment, read_got
from steelyard.host.volumes import observe_mounted
from steelyard.lifecycle.mounts import render_mount
from steelyard.lifecycle.proof import CONTAINER_TIER, PROCESS_TIER, check_proof, judge_tier
from steelyard.model.proof import Proof, ReplicaProof
from steelyard.runtime.container import Made

#: a variable that everything of a function is told, in one way or another
TOLD = "STEELYARD_API_URL"


def prove_replicas(edges: Edges, hosts: Sequence[RevisionHost], common_cpus: tuple[int, ...]) -> tuple[ReplicaProof, ...]:
    """Of all that are there, the newest revision's first; those that have just ended left out."""
    found: list[ReplicaProof] = []
    for host in sorted(hosts, key=lambda each: -each.function.revision):
        for replica in host.replicas.values():
            proof = _prove(edges, host, replica, common_cpus)
            if proof is not None:
                state = "trial" if replica.trial else replica.state
                found.append(ReplicaProof(replica.workload, host.function.revision, state, proof))
    return tuple(found)


def _prove(edges: Edges, host: RevisionHost, replica: Replica, common_cpus: tuple[int, ...]) -> Proof | None:
    reading = edges.cgroups.read(replica.workload)
    pids = reading.pids or ((replica.pid,) if replica.pid is not None else ())
    if not pids:
        return None
    made: Made | None = None
    if host.image is not None:
        pids = inside_of(pids) or pids
        around = edges.containers.around(min(pids))
        made = edges.containers.made(replica.workload) or (edges.containers.made(around) if around is not None else None)
    got = read_got(pids, reading)
    if got.get("cpus") is None:
        return None
    got |= {"root": observe_root(pids), **observe_walls(pids)} if made is None else got_walls(made, pids)
    # what is forked was told in a way that can't be read from outside; a container shows its device files
    told = made is None and TOLD in read_environment(min(pids))
    got |= got_devices(host.plan, pids, edges.machine.topology) if told else {}
    volumes = host.function.volumes
    got["volumes"] = observe_mounted(pids[0], volumes) if volumes else None
    got["tier"] = judge_tier(got)
    asked = _asked(edges, host, replica, made, common_cpus) | (asked_devices(host.plan, edges.machine.topology) if told else {})
    notes = () if made is None else explain_container(made)
    if not told and made is None and host.plan.gpus:
        notes = (*notes, "which GPUs a forked replica uses can't be read from outside: NOT VERIFIED")
    proof = check_proof(asked, got, replica.matched_before, edges.clock.now_us(), (), notes)
    replica.matched_before = replica.matched_before or not proof.differences
    return proof


def _asked(
    edges: Edges, host: RevisionHost, replica: Replica, made: Made | None, common_cpus: tuple[int, ...]
) -> dict[str, object]:
    plan, spec, enforced = host.plan, host.function.spec, edges.cgroups.controllers
    cpus = sorted(plan.cpus or common_cpus)
    root = os.geteuid() == 0 and host.ids is not None and host.ids[0] == 0
    mounted = [render_mount(each.name, each.path, each.read_only) for each in host.function.volumes if each.path]
    return {
        # whoever asks to be root asks for no wall
        "tier": None if root else PROCESS_TIER if host.image is None else CONTAINER_TIER,
        "cpus": cpus,
        "cgroup_cpus": cpus if "cpuset" in enforced else None,
        "share": None if plan.cpus else spec.resources.cpus,
        "memory_bytes": spec.resources.memory_bytes,
        "memory_nodes": sorted(plan.memory_nodes) or None,
        "uid": host.ids[0] if host.ids else os.geteuid(),
        "no_new_privs": True,
        "cgroup": edges.cgroups.path(replica.workload) if enforced else None,
        "volumes": mounted or None,
        **({} if made is None else asked_walls(made)),
    }
