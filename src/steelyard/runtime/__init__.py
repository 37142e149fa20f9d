"""What does the agent ask of a machine's processes? The interface; `process.py` is the real one, `fake.py` its in-memory twin.

A workload is started at most once. Its exit record on disk, not a message, is the truth about how it ended. Both variants are
held by tests/contracts/test_runtime.py. Kept free of imports at run time, because the tiny spawner passes through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steelyard.model.ids import WorkloadId
    from steelyard.model.job import Plan
    from steelyard.model.mount import Mounts
    from steelyard.runtime.process import Adopted
    from steelyard.runtime.records import Handle
    from steelyard.wire.spawn import Outputs, Rootfs, Running


class Wanted(NamedTuple):
    """A workload that is to be started."""

    workload: WorkloadId
    plan: Plan
    labels: Mapping[str, str] = {}


class Runtime(Protocol):
    """Every method takes effect before it returns. Exits are told by whoever watches the spawner, never from here."""

    def prepare(
        self,
        workload: WorkloadId,
        *,
        kind: str,
        plan: Plan,
        labels: Mapping[str, str] | None = None,
        inside: WorkloadId | None = None,
    ) -> None:
        """Intent and cgroup, nothing runs yet. Conflict when the workload was prepared or started before. `inside`: it gets no
        cgroup of its own but joins that workload's, and ends with it."""
        ...

    async def prepare_all(self, wanted: Sequence[Wanted], *, kind: str) -> None:
        """`prepare` for several at once: all intents are on disk before the first cgroup is made."""
        ...

    async def renew(self, workloads: Sequence[WorkloadId]) -> None:
        """What was prepared, and is yet to be launched, is for the spawner that lives now. Unreachable when there is none."""
        ...

    async def launch(
        self,
        workload: WorkloadId,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        uid: int | None,
        gid: int | None,
        fds: Sequence[int] = (),
        fd_numbers: Sequence[int] = (),
        listen_fds: int = 0,
        rlimits: Sequence[tuple[str, int, int]] = (),
        logs: str | None = None,
        outputs: Outputs = ...,
        rootfs: Rootfs | None = None,
        mounts: Mounts | None = None,
        terminal: int | None = None,
    ) -> Handle:
        """Run a prepared workload. EdgeFailed (code start-failed): nothing runs. Unreachable: it may run, adopt() tells.
        `logs`: the folder beside the workloads' own for stdout and stderr, shared by all that name it; its own by default.
        `outputs`: files that get its output instead; one that can't be opened fails the start (`detail` of the error: output).
        `rootfs`: its program is a container runtime, and this is mounted for it alone.
        `mounts`: what it sees that others don't; one that can't be had fails the start (detail: volumes). A workload inside
        another sees what that sees. `terminal`: a descriptor of one, which becomes its session's, its input and its output."""
        ...

    async def start(
        self,
        workload: WorkloadId,
        *,
        kind: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        uid: int | None,
        gid: int | None,
        plan: Plan,
        fds: Sequence[int] = (),
        fd_numbers: Sequence[int] = (),
        listen_fds: int = 0,
        rlimits: Sequence[tuple[str, int, int]] = (),
        logs: str | None = None,
        outputs: Outputs = ...,
        rootfs: Rootfs | None = None,
        mounts: Mounts | None = None,
        terminal: int | None = None,
        labels: Mapping[str, str] | None = None,
        inside: WorkloadId | None = None,
    ) -> Handle:
        """prepare + launch."""
        ...

    def claim(self, workload: WorkloadId, pid: int, start_time: int) -> Handle:
        """A template forked this process for a prepared workload: write its handle, and have it watched. Unreachable: it runs,
        and nobody would record its end."""
        ...

    def stop(self, workload: WorkloadId, signum: int) -> None:
        """Signal every process of the workload. Nothing happens when none is left."""
        ...

    def signal_leader(self, workload: WorkloadId, signum: int) -> bool:
        """Signal its first process alone (a relay ends its own child when the last request is done). False when it is gone."""
        ...

    def signal_session(self, workload: WorkloadId, inside: WorkloadId, signum: int) -> bool:
        """Signal the processes of one that runs in another's cgroup, by their session, as a terminal does. False when its first
        process is gone."""
        ...

    def kill(self, workload: WorkloadId) -> None:
        """SIGKILL whatever is in its cgroup."""
        ...

    def forget(self, workload: WorkloadId) -> bool:
        """Remove cgroup and records; logs stay. False, with the records kept, while a process is left."""
        ...

    def adopt(self, running: Running) -> list[Adopted]:
        """What is true of every workload known here, by id, after a restart or whenever in doubt."""
        ...
