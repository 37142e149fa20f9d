"""What does a job hold and use beside its processes, cores and devices? Scratch space, volumes, limits of disk traffic, its
terminal, and its counters.

Joins the keepers of each for the job keeper, which tells of starts and ends and asks for a proof's lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steelyard.agent.scratch import ScratchKeeper
from steelyard.agent.secrets import SecretKeeper
from steelyard.agent.terminals import TerminalKeeper
from steelyard.agent.usage import UsageKeeper
from steelyard.host import Cgroups
from steelyard.host.volumes import VolumeFolders, observe_mounted
from steelyard.lifecycle.mounts import render_mount
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan, Resources
from steelyard.model.mount import MountedVolume
from steelyard.model.usage import Usage
from steelyard.wire.spawn import Exited

V1_WRITES = (
    "io_max_bytes_s holds for reads and for direct and synchronous writes: with cgroup v1 the kernel writes everything else back "
    "on nobody's account"
)


class Holdings:
    def __init__(
        self,
        scratch: ScratchKeeper,
        usage: UsageKeeper,
        cgroups: Cgroups,
        volumes: VolumeFolders,
        secrets: SecretKeeper,
        terminals: TerminalKeeper,
    ) -> None:
        self.scratch, self.usage, self.volumes, self.secrets, self.terminals = scratch, usage, volumes, secrets, terminals
        self._cgroups = cgroups

    async def prepare(self, workload: WorkloadId, asked: Resources, ids: tuple[int, int] | None) -> Mapping[str, str]:
        """Before a start: what it asked for, and the variables that tell it. Raises SteelyardError; nothing is held then."""
        return await self.scratch.make(workload, asked.scratch_bytes, ids)

    def note_start(self, attempt: AttemptId, workload: WorkloadId, plan: Plan, started_at: int | None = None) -> None:
        """Before it is started, because a short one ends before that is known; or once it is found by a restarted agent."""
        self.usage.note_start(attempt, workload, plan, started_at)

    def note_end(self, workload: WorkloadId, exited: Exited | None) -> int | None:
        """Its first process has ended, and its group is still there. Returns the most memory that it had, where that is known."""
        return self.usage.note_end(workload, exited)

    def drop(self, workload: WorkloadId) -> None:
        """Nothing of it runs any more, or ever did."""
        self.usage.note_end(workload, None)
        self.scratch.release(workload)
        self.secrets.drop(workload)

    def forget(self, attempt: AttemptId) -> None:
        self.usage.forget(attempt)

    def used(self, attempt: AttemptId) -> Usage | None:
        return self.usage.usage(attempt)

    # -- the proof

    def asked(self, asked: Resources, plan: Plan, volumes: Sequence[MountedVolume]) -> dict[str, object]:
        mounted = [render_mount(each.name, each.path, each.read_only) for each in volumes if each.path]
        return {"scratch_bytes": asked.scratch_bytes, "io_max_bytes_s": plan.io_max_bytes_s, "volumes": mounted or None}

    def got(
        self, workload: WorkloadId, io_max_bytes_s: int | None, pids: Sequence[int], volumes: Sequence[MountedVolume]
    ) -> dict[str, object]:
        """`volumes` are looked at in one process: the others came from it."""
        mounted = observe_mounted(pids[0], volumes) if pids and any(each.path for each in volumes) else None
        return {**self.scratch.got(workload), "io_max_bytes_s": io_max_bytes_s, "volumes": mounted}

    def explain(self, workload: WorkloadId, plan: Plan) -> tuple[str, ...]:
        """What is asked for and not enforced, sentences."""
        v1 = plan.io_max_bytes_s is not None and self._cgroups.flavour in ("v1", "hybrid")
        return (*self.scratch.explain(workload), *((V1_WRITES,) if v1 else ()))
