"""The agent's keeper of jobs over a real spawner and real control groups, without a server: a test says what is assigned."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from spawner_rig import LIMIT_S, WORK_GID, WORK_UID, Rig, open_rig, until

from agent_parts import no_secrets
from steelyard.agent.cleanup import Cleanup
from steelyard.agent.container_images import ContainerImages
from steelyard.agent.device_grants import DeviceGrants
from steelyard.agent.devices import DeviceKeeper
from steelyard.agent.holdings import Holdings
from steelyard.agent.job_container import JobContainers
from steelyard.agent.jobs import JobKeeper
from steelyard.agent.presence import Presence
from steelyard.agent.scratch import ScratchKeeper
from steelyard.agent.terminals import TerminalKeeper
from steelyard.agent.timing import TimingKeeper
from steelyard.agent.usage import UsageKeeper
from steelyard.clock import SystemClock
from steelyard.config import Paths, Settings
from steelyard.host.cdi import CdiReader
from steelyard.host.journal import SettingsJournal
from steelyard.host.machine import observe_machine
from steelyard.host.proc import boot_id, observe_processes
from steelyard.host.scratch import ScratchDisk
from steelyard.host.volumes import VolumeFolders
from steelyard.model.batch import Gang
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.model.machine import Machine
from steelyard.runtime.container import Containers
from steelyard.wire.agent import AssignedJob, AttemptState
from steelyard.wire.spawn import Running

SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=WORK_UID, work_gid=WORK_GID, admin_user="root", admin_uid=0)
OWNER = Owner("tester", WORK_UID)
A = AttemptId("j-000001.1")
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def make_job(*argv: str, plan: Plan | None = None, ranks: int = 0, **fields: Any) -> AssignedJob:
    """`ranks`: a gang of so many on this machine. `fields` are the assignment's, the rest of them the spec's."""
    of_assignment = {name: fields.pop(name) for name in AssignedJob.__struct_fields__ if name in fields}
    if ranks:
        fields["gang"] = Gang(tasks_per_node=ranks)
        plan = plan or Plan(share=0.1 * ranks, tasks=(Plan(share=0.1),) * ranks)
    spec = JobSpec(**{"name": "a", "argv": argv, "cwd": "/", "env": ENV, **fields})
    return AssignedJob(**{
        "attempt": A, "job": JobId("j-000001"), "project": DEFAULT_PROJECT, "owner": OWNER,
        "spec": spec, "plan": plan or Plan(share=0.1), **of_assignment,
    })  # fmt: skip


class KeeperRig:
    """One agent at a time; `restart` lets another take over, as after kill -9."""

    def __init__(self, rig: Rig, machine: Machine, root: Path) -> None:
        self.rig, self.machine, self.root = rig, machine, root
        self.paths = Paths(home=rig.folder, run=rig.folder / "run")
        self.assigned: dict[AttemptId, AssignedJob] = {}
        self.changed = asyncio.Event()
        self.witness = rig.folder / "witness"
        self.witness.touch()
        self.witness.chmod(0o666)
        self.keeper, self.dropped = self._make_keeper(), False
        self._pump = asyncio.create_task(self._take_exits())

    def _make_keeper(self) -> JobKeeper:
        clock, runtime = SystemClock(), self.rig.make_runtime()
        containers = Containers(self.paths.containers, self.paths.images, "h")
        cleanup = Cleanup(runtime, self.paths, containers)
        self.paths.run.mkdir(exist_ok=True)
        journal = SettingsJournal(self.paths.run, boot_id())
        self.timing = TimingKeeper(self.paths, runtime, cleanup, clock, journal, root=False)
        self.devices = DeviceKeeper(self.paths.agent, lambda: (), lambda: (), lambda: None, lambda text: None)
        self.runtime = runtime
        scratch = ScratchKeeper(ScratchDisk(self.paths.home, cgroup_tag(self), configured=self.paths.home))
        usage = UsageKeeper(self.rig.cgroups, clock, None, scratch.peak_bytes)
        volumes = VolumeFolders(self.paths.volumes, ())
        images = ContainerImages(containers, SETTINGS)
        grants = DeviceGrants(CdiReader(self.root), self.machine.topology)
        terminals = TerminalKeeper(self.rig.client, clock)
        holdings = Holdings(scratch, usage, self.rig.cgroups, volumes, no_secrets(), terminals)
        return JobKeeper(
            self.paths, SETTINGS, self.machine, runtime, cleanup, self.rig.cgroups, clock, self.timing, self.changed.set,
            self.devices, Presence(self.machine.topology, self.root),
            holdings,
            "/nonexistent", JobContainers(containers, images, grants),
        )  # fmt: skip

    async def _take_exits(self) -> None:
        while True:
            exited = await self.rig.exits.get()
            if not self.dropped:
                self.keeper.on_exit(exited)

    def assign(self, *jobs: AssignedJob) -> None:
        self.assigned = {job.attempt: job for job in jobs}
        self.keeper.reconcile(jobs)

    def change(self, **fields: Any) -> None:
        """The assignment of the one job says something else now."""
        (job,) = self.assigned.values()
        self.assign(msgspec.structs.replace(job, **fields))

    def state(self, attempt: str = A) -> AttemptState | None:
        return next((state for state in self.keeper.attempts() if state.attempt == attempt), None)

    async def until_phase(self, *phases: str, attempt: str = A) -> AttemptState:
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        while True:
            state = self.state(attempt)
            if state is not None and state.phase in phases:
                return state
            self.changed.clear()
            left = deadline - asyncio.get_running_loop().time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), min(0.05, max(0.0, left)))
            assert left > 0, f"waited for {phases}: {state}"

    async def until_witness(self, lines: int) -> list[str]:
        await until(lambda: len(self.witness.read_text().splitlines()) >= lines, f"{lines} lines of witness")
        return sorted(self.witness.read_text().splitlines())

    def drop_agent(self) -> None:
        """It is gone from one moment to the next: its timers and tasks with it, and nobody hears of exits."""
        self.dropped = True
        timer = self.keeper._timer
        if timer is not None:
            timer.cancel()
        for task in self.keeper._tasks:
            task.cancel()

    async def restart(self) -> None:
        self.drop_agent()
        await self.adopt(await self.rig.connect())

    async def adopt(self, running: Running) -> None:
        self.keeper, self.dropped = self._make_keeper(), False
        self.keeper.adopt(self.runtime.adopt(running), self.assigned.values())
        self.keeper.reconcile(self.assigned.values())

    def pids(self) -> list[int]:
        """Every process of a workload of this rig, by their control groups."""
        return sorted(pid for workload in self.rig.cgroups.workloads() for pid in self.rig.cgroups.pids(workload))

    def log(self, workload: str = A, stream: str = "stdout") -> str:
        return self.keeper.files.read_output(workload, stream, 0, 1 << 20).plain[0].decode()

    def end(self) -> None:
        self._pump.cancel()
        self.drop_agent()
        self.devices.close()


def stopped(pid: int) -> bool:
    """By a signal or by the v1 freezer, which shows as D in newer kernels."""
    seen = observe_processes().get(pid)
    return seen is not None and seen.state in "TtD"


def play(
    script: Callable[[KeeperRig], Coroutine[Any, Any, None]], machine: Machine | None = None, root: Path = Path("/")
) -> None:
    """`root`: below which the machine's devices are shown."""

    async def main() -> None:
        async with asyncio.timeout(60), open_keeper(machine, root) as rig:
            await script(rig)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def open_keeper(machine: Machine | None = None, root: Path = Path("/")) -> AsyncIterator[KeeperRig]:
    async with open_rig() as rig:
        keeper = KeeperRig(rig, machine or observe_machine(), root)
        try:
            yield keeper
        finally:
            keeper.end()


def open_folder(rig: KeeperRig, name: str) -> Path:
    """One that work may write."""
    folder = rig.rig.folder / name
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def cgroup_tag(rig: KeeperRig) -> str:
    return f"rig-{os.getpid()}-{rig.rig.folder.name[-6:].replace('_', 'x')}"
