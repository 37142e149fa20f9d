"""Did each process of a job get what its plan says? Reads it back from the kernel; a gang's proof is that of all its ranks.

Looks and compares only: what a difference means to the job is decided by whoever reads the proof.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import msgspec

from steelyard.agent.attempt import Attempt, Member
from steelyard.agent.device_proof import asked_devices, explain_share, got_devices
from steelyard.agent.holdings import Holdings
from steelyard.agent.identity import choose_ids
from steelyard.agent.job_container import JobContainers
from steelyard.agent.mpi_steps import MpiSteps
from steelyard.agent.timing import TimingKeeper
from steelyard.clock import Clock
from steelyard.config import Settings
from steelyard.host import Cgroups
from steelyard.host.proc import read_got
from steelyard.lifecycle.proof import PROCESS_TIER, check_proof, judge_tier, merge_proofs
from steelyard.model.machine import Machine
from steelyard.model.proof import Proof, ProofState
from steelyard.model.timing import Timing
from steelyard.wire.agent import AssignedJob

log = logging.getLogger(__name__)

#: crun needs 8 ms on an idle machine
CONTAINER_MADE_S = 0.05


class JobProofs:
    """`common_cpus` says what the common cpuset should be now."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        cgroups: Cgroups,
        timing: TimingKeeper,
        clock: Clock,
        holdings: Holdings,
        containers: JobContainers,
        steps: MpiSteps,
        common_cpus: Callable[[], tuple[int, ...]],
    ) -> None:
        self._settings, self._machine, self._cgroups = settings, machine, cgroups
        self._timing, self._clock, self._holdings, self._common_cpus = timing, clock, holdings, common_cpus
        self._containers, self._steps = containers, steps

    def observe_first(self, job: AssignedJob, attempt: Attempt) -> None:
        """It has just been started. What is in a container is there a moment later, and looked at then: until crun has made it, a
        look would only take its core."""
        if job.spec.contained:
            asyncio.get_running_loop().call_later(CONTAINER_MADE_S, self.observe, job, attempt)
        else:
            self.observe(job, attempt)

    def observe(self, job: AssignedJob, attempt: Attempt) -> None:
        """Make the newest proof of each of its processes that runs."""
        for member in attempt.running:
            if self._steps.covers(job.spec):
                member.proof = self._steps.prove(member.plan, job.spec, self._steps.read(job.attempt, "started")) or member.proof
                continue
            self._observe(msgspec.structs.replace(job, plan=member.plan), member, attempt.mps)

    def of(self, attempt: Attempt) -> Proof | None:
        """The newest proof; of what has ended, the last one made while it ran."""
        proofs = {member.rank: member.proof for member in attempt.members if member.proof is not None}
        if None in proofs:
            return proofs[None]
        return merge_proofs({rank: proof for rank, proof in proofs.items() if rank is not None}) if proofs else None

    def _observe(self, job: AssignedJob, member: Member, mps: bool) -> None:
        reading = self._cgroups.read(member.workload)
        pids = reading.pids or ((member.handle.pid,) if member.handle else ())
        pids = self._containers.inside(member.workload, pids)
        got = read_got(pids, reading, realtime=job.plan.timing is Timing.REALTIME)
        if got.get("cpus") is None:
            return  # it ended while we looked: the last reading stands
        got |= self._timing.got(job, pids, "cpuset" in self._cgroups.controllers)
        got |= got_devices(job.plan, pids, self._machine.topology)
        got |= self._holdings.got(member.workload, reading.io_max_bytes_s, pids, job.volumes)
        got |= self._containers.got(member.workload, pids)
        got["tier"] = judge_tier(got)
        shared, said = explain_share(job.plan, mps)
        forbidden, notes = self._timing.explain(job)
        notes = (*notes, *self._containers.explain(member.workload))
        forbidden, notes = (*forbidden, *shared, *self._holdings.explain(member.workload, job.plan)), (*notes, *said)
        asked = self._asked(job, member)
        proof = check_proof(asked, got, member.matched_before, self._clock.now_us(), forbidden, notes)
        member.matched_before = member.matched_before or set(proof.differences) <= set(forbidden)
        if proof.state is ProofState.DRIFTED and (member.proof is None or member.proof.state is not ProofState.DRIFTED):
            log.warning("%s drifted: %s", member.workload, "; ".join(proof.differences))
        member.proof = proof

    def _asked(self, job: AssignedJob, member: Member) -> dict[str, object]:
        ids = choose_ids(job.owner, job.spec.as_root, self._settings, os.geteuid())
        cpus = sorted(job.plan.cpus or self._common_cpus())
        enforced = self._cgroups.controllers
        return {
            "cpus": cpus,
            "cgroup_cpus": cpus if "cpuset" in enforced else None,
            "share": None if job.plan.cpus or job.plan.preemptible else job.plan.share,
            "memory_bytes": job.plan.memory_bytes,
            "memory_nodes": sorted(job.plan.memory_nodes) or None,
            "uid": ids[0] if ids else os.geteuid(),
            "no_new_privs": True,
            # whoever asks to be root asks for no wall
            "tier": None if (ids[0] if ids else os.geteuid()) == 0 else PROCESS_TIER,
            "gives_way": True if job.plan.preemptible else None,
            "cgroup": self._cgroups.path(member.workload) if enforced else None,
            **self._timing.asked(job),
            **asked_devices(job.plan, self._machine.topology),
            **self._holdings.asked(job.spec.each, job.plan, job.volumes),
            **self._containers.asked(member.workload),
        }
