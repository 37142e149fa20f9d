"""One template process, whatever it holds: how it is started (by exec or by its parent template), found again and ended.

Its records, control group and socket are made before it runs and go with it, so that whatever kills the agent in between, the
next one finds it or nothing. Decides nothing: `template_tree.py` and `template.py` do.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from steelyard.agent.edges import Edges
from steelyard.agent.identity import PATH
from steelyard.agent.replica import open_logs
from steelyard.agent.template_box import LIB
from steelyard.errors import EdgeFailed, SteelyardError, Unreachable
from steelyard.host.proc import observe_memory
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.mount import Mounts
from steelyard.runtime.process import Adopted
from steelyard.runtime.template import Forked, Load, TemplateClient, TemplateStatus, base_command

KIND = "template"
BASE, ENVIRONMENT, REVISION = "base", "environment", "revision"
CONTROL_FD = 3
#: an adopted template has had its import behind it for long
ADOPT_S = 5.0

Ids = tuple[int, int] | None


class TemplateProcess:
    """`key` names what it holds: two processes of the same key are as good as each other."""

    def __init__(self, edges: Edges, workload: WorkloadId, role: str, key: str, parent: WorkloadId | None) -> None:
        self._edges = edges
        self.workload, self.role, self.key, self.parent = workload, role, key, parent
        #: whose child it is, and what it forks
        self.spawner = edges.spawner.instance
        self.pid: int | None = None
        self.client: TemplateClient | None = None
        self.status = TemplateStatus(state="failed")
        #: what only this process has, measured when it was ready: what its end gives back
        self.own_bytes = 0
        self.last_used_ns = edges.clock.mono_ns()
        #: microseconds since the epoch
        self.since_us = edges.clock.now_us()

    @property
    def socket_path(self) -> Path:
        # Hashed: a 63-character function name would push the path over the kernel's 107 bytes.
        return self._edges.paths.template_sockets / f"{hashlib.sha256(self.workload.encode()).hexdigest()[:16]}.sock"

    @property
    def contained(self) -> bool:
        """A base in a container."""
        return self._edges.containers.made(self.workload) is not None

    @property
    def forks(self) -> bool:
        """It can be asked, and what it forks has a parent that records its end: the spawner has not gone since."""
        lives = self.client is not None and not self.client.closed.is_set()
        return lives and self._edges.spawner.serves(self.spawner)

    @property
    def _labels(self) -> dict[str, str]:
        return {"role": self.role, "key": self.key, **({"parent": self.parent} if self.parent else {})}

    async def start(
        self,
        env: Mapping[str, str],
        python: str,
        ids: Ids,
        logs: str,
        timeout_s: float,
        *,
        mounts: Mounts | None = None,
        box: tuple[WorkloadId, int] | None = None,
    ) -> TemplateStatus:
        """A base: by exec, with what all that comes of it is to see, or in a box (`template_box.open_box`). Raises EdgeFailed
        when it can't be started; else as `_await_ready`."""
        edges = self._edges
        listener = self._listen()
        fds, rootfs = (listener.fileno(),), None
        try:
            if box is None:
                argv, own = base_command(python, lib_dir=edges.lib_dir, control_fd=CONTROL_FD)
                env = {**env, **own}
            else:
                fds = (listener.fileno(), box[1])
                argv, own = base_command(python, lib_dir=Path(LIB), control_fd=CONTROL_FD, alive_fd=CONTROL_FD + 1)
                argv, rootfs = edges.containers.enter_for_good(self.workload, box[0], argv, {**env, **own}, len(fds))
                env = {"PATH": PATH}
            handle = await edges.runtime.start(
                self.workload,
                kind=KIND,
                argv=argv,
                env=env,
                cwd="/",
                uid=ids[0] if ids else None,
                gid=ids[1] if ids else None,
                plan=Plan(),
                fds=fds,
                fd_numbers=tuple(range(CONTROL_FD, CONTROL_FD + len(fds))),
                logs=logs,
                rootfs=rootfs,
                mounts=mounts,
                labels=self._labels,
            )
        except BaseException:
            self.end()
            raise
        finally:
            listener.close()
        self.pid = handle.pid
        return await self._await_ready(timeout_s)

    async def grow(
        self,
        parent: TemplateProcess,
        ids: Ids,
        logs: str,
        timeout_s: float,
        *,
        load: Load | None = None,
        env: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
    ) -> TemplateStatus:
        """An environment or a revision: forked from its parent. Raises EdgeFailed when it can't be; else as `_await_ready`."""
        if parent.client is None or not parent.forks:
            raise EdgeFailed(f"the template {parent.workload} has gone", code="template-gone")
        fds: list[int] = []
        listener = self._listen()
        try:
            self._edges.runtime.prepare(self.workload, kind=KIND, plan=Plan(), labels=self._labels)
            fds += open_logs(self._edges.paths.workloads / logs, ids)
            fds += self._edges.cgroups.open_join(self.workload)
            forked = await parent.client.grow(
                role=self.role,
                control_fd=listener.fileno(),
                stdout_fd=fds[0],
                stderr_fd=fds[1],
                cgroup_fds=fds[2:],
                load=load,
                env=env,
                packages=packages,
            )
            if not isinstance(forked, Forked):
                raise EdgeFailed(f"{self.workload} not started: {forked.reason} {forked.detail}", code="start-failed")
            parent.used()
            self.pid = forked.pid
            self._edges.runtime.claim(self.workload, forked.pid, forked.start_time)
        except BaseException:
            self.end()
            raise
        finally:
            listener.close()
            for fd in fds:
                os.close(fd)
        return await self._await_ready(timeout_s)

    async def adopt(self, found: Adopted) -> bool:
        """Take over one that an earlier agent started. False, and it is ended, when it does not answer as ready."""
        self.pid = found.handle.pid if found.handle else None
        self.since_us = found.intent.at if found.intent else self.since_us
        try:
            return (await self._await_ready(ADOPT_S)).state == "ready"
        except (SteelyardError, OSError):
            return False

    async def _await_ready(self, timeout_s: float) -> TemplateStatus:
        """The status says failed with a text, or ready (maybe with what makes it unfit to fork). One that is not ready, says
        nothing (EdgeFailed), or has lost its spawner meanwhile (Unreachable), is ended."""
        client = TemplateClient(self.socket_path)
        try:
            await client.connect()
            self.status = await client.status(timeout_s)
        except BaseException as err:
            client.close()
            self.end()
            if isinstance(err, EdgeFailed) and err.code == "template-gone":  # not to be taken for its parent's end
                raise EdgeFailed(f"{self.workload} ended while it imported.", code="start-failed") from err
            raise
        if self.status.state != "ready":
            client.close()
            self.end()
            return self.status
        if not self._edges.spawner.serves(self.spawner):
            client.close()
            self.end()
            raise Unreachable(f"The spawner went while {self.workload} was started.", code="spawner-unreachable")
        self.client = client
        memory = observe_memory(self.pid) if self.pid is not None else None
        # an adopted one has shared its pages with its children since: what its packages took is not less for that
        self.own_bytes = max(memory.private if memory else 0, sum(each.bytes for each in self.status.packages))
        self.used()
        return self.status

    def used(self) -> None:
        self.last_used_ns = self._edges.clock.mono_ns()

    def end(self) -> None:
        """It and everything of it, now. Its exit, when it is told, is nobody's any more."""
        if self.client is not None:
            self.client.close()
            self.client = None
        self.socket_path.unlink(missing_ok=True)
        self._edges.cleanup.remove(self.workload)
        self.pid = None

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.socket_path.unlink(missing_ok=True)
            listener.bind(str(self.socket_path))
            listener.listen(128)  # each grow comes by a connection of its own
        except BaseException:
            listener.close()
            raise
        return listener


def adopted_process(edges: Edges, found: Adopted) -> TemplateProcess | None:
    """What an earlier agent noted of it; None for one from before there was a tree."""
    labels = found.intent.labels if found.intent else {}
    if "role" not in labels:
        return None
    parent = labels.get("parent")
    return TemplateProcess(
        edges, found.workload, labels["role"], labels.get("key", ""), WorkloadId(parent) if parent is not None else None
    )
