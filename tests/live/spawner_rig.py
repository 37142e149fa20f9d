"""A real spawner on its own socket, folder and control groups, for tests; ends everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from steelyard.clock import SystemClock
from steelyard.errors import Unreachable
from steelyard.host import Cgroups
from steelyard.host.cgroup import open_cgroups
from steelyard.host.proc import boot_id
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime.launcher import find_launchers
from steelyard.runtime.process import ProcessRuntime
from steelyard.runtime.procstat import process_runs
from steelyard.runtime.record_lane import RecordLane
from steelyard.runtime.records import Handle
from steelyard.runtime.spawner_client import SpawnerClient
from steelyard.wire import spawn as wire
from steelyard.wire.spawn import Exited, Running

PLAIN_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
#: nobody's, when root can give processes away; our own otherwise
WORK_UID = 65534 if os.geteuid() == 0 else os.geteuid()
WORK_GID = 65534 if os.geteuid() == 0 else os.getegid()
LIMIT_S = 20.0


class Rig:
    def __init__(self, folder: Path, cgroups: Cgroups) -> None:
        self.folder = folder
        self.socket = folder / "spawner.sock"
        self.agent_dir = folder / "agent"
        self.workloads = folder / "workloads"
        self.cgroups = cgroups
        self.exits: asyncio.Queue[Exited] = asyncio.Queue()
        self.client = SpawnerClient(self.socket, self.exits.put_nowait)
        self.held: dict[str, int] = {}
        self.spawner: subprocess.Popen[bytes] | None = None
        self.log = open(folder / "spawner.log", "ab")  # noqa: SIM115 - closed by end()

    async def start_spawner(self) -> Running:
        self.spawner = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "steelyard.runtime.spawner",
                "--socket",
                str(self.socket),
                "--exits",
                str(self.agent_dir / "exits"),
            ],
            stderr=self.log,
            start_new_session=True,
        )
        return await self.connect()

    async def connect(self) -> Running:
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        while True:
            try:
                self.held, running = await self.client.connect()
                return running
            except Unreachable:
                assert self.spawner is not None and self.spawner.poll() is None, (self.folder / "spawner.log").read_text()
                assert asyncio.get_running_loop().time() < deadline, "the spawner does not come up"
                await asyncio.sleep(0.005)

    def make_runtime(self) -> ProcessRuntime:
        return ProcessRuntime(self.agent_dir, self.workloads, self.cgroups, self.client, SystemClock(), boot_id(), RecordLane())

    async def run(self, runtime: ProcessRuntime, workload: str, *argv: str, **more: object) -> Handle:
        arguments: dict[str, object] = {
            "env": PLAIN_ENV,
            "cwd": "/",
            "uid": WORK_UID,
            "gid": WORK_GID,
            "plan": Plan(),
            "kind": "job",
            **more,
        }
        return await runtime.start(WorkloadId(workload), argv=argv, **arguments)  # type: ignore[arg-type]

    async def next_exit(self, workload: str | None = None) -> Exited:
        exited = await asyncio.wait_for(self.exits.get(), LIMIT_S)
        assert workload is None or exited.workload == workload
        return exited

    def kill_spawner(self) -> None:
        assert self.spawner is not None
        self.spawner.kill()
        self.spawner.wait(LIMIT_S)

    async def end(self) -> None:
        self.cgroups.destroy()
        await self.client.close()
        if self.spawner is not None and self.spawner.poll() is None:
            self.spawner.send_signal(signal.SIGCONT)
            for pid in children_of(self.spawner.pid):  # what a failed test left, and no control group knows
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.spawner.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.spawner.wait(5)
            self.spawner.kill()
            self.spawner.wait()
        self.log.close()
        shutil.rmtree(self.folder)


@contextlib.asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """A running spawner, connected. The folder can be entered by unprivileged workloads."""
    folder = Path(tempfile.mkdtemp(prefix="steelyard-rig-"))
    folder.chmod(0o755)
    cgroups = open_cgroups(f"rig-{os.getpid()}-{folder.name[-6:].replace('_', 'x')}")
    cgroups.prepare(tuple(sorted(os.sched_getaffinity(0))), ())
    rig = Rig(folder, cgroups)
    try:
        await rig.start_spawner()
        yield rig
    finally:
        await rig.end()


def children_of(pid: int) -> list[int]:
    """All but its launchers."""
    launchers = find_launchers(pid)
    return [child for child in all_children_of(pid) if child not in launchers]


def all_children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def until(condition: object, what: str) -> None:
    """Wait for something that nobody announces (a file, a process of somebody else)."""
    assert callable(condition)
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.005)


def all_gone(processes: Sequence[tuple[int, int]]) -> bool:
    return not any(process_runs(pid, start_time) for pid, start_time in processes)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT VERIFIED without root: giving processes to another uid")
W = WorkloadId("job-1.1")


def play(script: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), open_rig() as rig:
            await script(rig)

    asyncio.run(main())


def read_log(rig: Rig, workload: str, stream: str = "stdout") -> str:
    return (rig.workloads / workload / stream).read_text()


def make_fifo(rig: Rig, name: str) -> Path:
    """A workload that opens it waits until the test writes."""
    path = rig.folder / name
    os.mkfifo(path)
    path.chmod(0o666)
    return path


def spawner_pid(rig: Rig) -> int:
    assert rig.spawner is not None
    return rig.spawner.pid


def open_descriptors(rig: Rig) -> int:
    return len(os.listdir(f"/proc/{spawner_pid(rig)}/fd"))


def spawn_request(rig: Rig, workload: str, *argv: str, **more: Any) -> wire.Spawn:
    logs = rig.folder / "raw"
    logs.mkdir(exist_ok=True)
    return wire.Spawn(
        WorkloadId(workload), argv, PLAIN_ENV, "/", str(logs / f"{workload}.out"), str(logs / f"{workload}.err"), **more
    )
