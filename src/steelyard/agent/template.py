"""Is there a template to fork for this revision, and if not, why? Starts it, adopts it, notices its death, rebuilds, evicts.

Never forks by itself: `fork` is called by the wake.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from pathlib import Path

from steelyard.agent.edges import Edges
from steelyard.agent.replica import Slot
from steelyard.errors import SteelyardError, Unreachable
from steelyard.host.proc import rss_bytes
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.process import Adopted
from steelyard.runtime.template import Forked, ForkRefused, TemplateClient, TemplateStatus, runner_command
from steelyard.wire.agent import AssignedFunction
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

KIND = "template"
REBUILD_MIN_S, REBUILD_MAX_S = 0.2, 30.0
CONTROL_FD = 3


class TemplateKeeper:
    """The template of one revision of an ASGI function."""

    def __init__(
        self, edges: Edges, function: AssignedFunction, code: Path, logs: str, env: dict[str, str], ids: tuple[int, int] | None
    ) -> None:
        self._edges, self._function, self._code, self._logs = edges, function, code, logs
        self._env, self._ids = env, ids
        self._client: TemplateClient | None = None
        self._rebuild: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._deaths = 0
        self._closed = False
        self.workload: WorkloadId | None = None
        self.pid: int | None = None
        self.last_used_ns = edges.clock.mono_ns()
        #: since its eviction a wake had to do without it, at this time (monotonic ns)
        self.missed_ns: int | None = None
        #: what it held when it was evicted
        self.evicted_bytes = 0
        #: why it can't be forked right now; TEMPLATE_READY when it can
        self.reason = Reason.TEMPLATE_NOT_READY

    @property
    def ready(self) -> bool:
        return self.reason is Reason.TEMPLATE_READY and self._client is not None

    @property
    def socket(self) -> Path | None:
        """Where it listens for its agent, while it lives."""
        return self._socket_path(self.workload) if self.workload is not None else None

    @property
    def rss(self) -> int:
        return (rss_bytes(self.pid) or 0) if self.pid is not None else 0

    async def start(self) -> TemplateStatus:
        """Start the process and wait until the user's modules are imported. The status says failed with a traceback, or ready
        (maybe with threads that forbid forking: then wakes take the plain start). Raises EdgeFailed when it can't be started."""
        edges, function, spec = self._edges, self._function, self._function.spec
        spawner = edges.spawner.instance
        stamp = f"{edges.clock.now_us():x}"
        workload = WorkloadId(f"tmpl.{function.name}.{function.revision}.{stamp}")
        path = self._socket_path(workload)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen(4)
            argv, runner_env = runner_command(
                spec.python,
                mode="template",
                function=function.name,
                revision=function.revision,
                file=spec.file or "",
                attr=spec.attr or "",
                code_dir=str(self._code),
                concurrency=spec.concurrency,
                lib_dir=edges.lib_dir,
                control_fd=CONTROL_FD,
            )
            handle = await edges.runtime.start(
                workload,
                kind=KIND,
                argv=argv,
                env=runner_env | self._env,
                cwd=str(self._code),
                uid=self._ids[0] if self._ids else None,
                gid=self._ids[1] if self._ids else None,
                plan=Plan(),
                fds=(listener.fileno(),),
                fd_numbers=(CONTROL_FD,),
                logs=self._logs,
            )
        finally:
            listener.close()
        self.workload, self.pid = workload, handle.pid
        if not edges.spawner.serves(spawner):
            self._forget()
            raise Unreachable("The spawner went while the template was started.", code="spawner-unreachable")
        return await self._connect(workload, spec.startup_deadline_s)

    async def adopt(self, found: Adopted) -> None:
        """Take over a template that an earlier agent started; a broken one is replaced."""
        self.workload, self.pid = found.workload, found.handle.pid if found.handle else None
        try:
            status = await self._connect(found.workload, 5.0)
            if status.state == "ready":
                return
        except (SteelyardError, OSError) as err:
            log.info("template %s could not be adopted: %s", found.workload, err)
        self.kill()

    async def _connect(self, workload: WorkloadId, timeout_s: float) -> TemplateStatus:
        client = TemplateClient(self._socket_path(workload))
        await client.connect()
        try:
            status = await client.status(timeout_s)
        except BaseException:
            client.close()
            raise
        if status.state != "ready":
            client.close()
            self.reason = Reason.IMPORT_FAILED
        else:
            self._client = client
            self.reason = Reason.TEMPLATE_HAS_THREADS if status.threads else Reason.TEMPLATE_READY
            self.last_used_ns = self._edges.clock.mono_ns()
        return status

    async def fork(self, slot: Slot, listen_fd: int, private: bool) -> Forked | ForkRefused:
        """One replica from a prepared slot."""
        client = self._client
        if client is None or not self.ready:
            return ForkRefused(reason=str(self.reason), detail="")
        self.last_used_ns = self._edges.clock.mono_ns()
        try:
            return await client.fork(
                replica=slot.workload,
                listen_fd=listen_fd,
                page_fd=slot.page_fd,
                stdout_fd=slot.log_fds[0],
                stderr_fd=slot.log_fds[1],
                cgroup_fds=slot.cgroup_fds,
                cpus=slot.cpus,
                private=private,
                sent_ns=self.last_used_ns,
            )
        except (SteelyardError, OSError) as err:
            log.warning("template %s did not fork: %s", self.workload, err)
            return ForkRefused(reason=str(Reason.TEMPLATE_DIED), detail=str(err))

    def on_exit(self, exited: Exited) -> bool:
        """True when it was ours."""
        if exited.workload != self.workload:
            return False
        self._forget()
        if self.reason is not Reason.TEMPLATE_EVICTED and self.reason is not Reason.IMPORT_FAILED:
            self._lost(Reason.TEMPLATE_DIED)
        return True

    def _lost(self, reason: Reason) -> None:
        self.reason = reason
        delay_s = min(REBUILD_MAX_S, REBUILD_MIN_S * 2**self._deaths)
        self._deaths += 1
        self._rebuild_in(delay_s)

    def _rebuild_in(self, delay_s: float) -> None:
        if not self._closed:
            self._rebuild = asyncio.get_running_loop().call_later(delay_s, self.rebuild)

    def rebuild(self) -> None:
        """Start a new one in the background (after death or eviction)."""
        if self._closed or self.workload is not None or (self._task is not None and not self._task.done()):
            return
        self._task = asyncio.get_running_loop().create_task(self._build_again())

    async def _build_again(self) -> None:
        self.reason, self.missed_ns = Reason.TEMPLATE_NOT_READY, None
        try:
            await self.start()
        except Unreachable:
            self._rebuild_in(REBUILD_MIN_S)  # no fault of its own: it waits for the spawner
        except (SteelyardError, OSError) as err:
            log.warning("template of %s could not be rebuilt: %s", self._function.name, err)
            self._lost(Reason.TEMPLATE_DIED)

    def evict(self) -> None:
        """Give its memory back; wakes take the plain start until `rebuild`."""
        self.evicted_bytes, self.missed_ns = self.rss, None
        self.reason = Reason.TEMPLATE_EVICTED
        self._end()

    def miss(self) -> None:
        """A wake wanted it."""
        if self.reason is Reason.TEMPLATE_EVICTED:
            self.missed_ns = self._edges.clock.mono_ns()

    def close(self) -> None:
        """For good: the revision is gone."""
        self._closed = True
        if self._rebuild is not None:
            self._rebuild.cancel()
        if self._task is not None:
            self._task.cancel()
        self._end()
        self._forget()  # nobody passes its exit on to us any more

    def abandon(self) -> None:
        """Its spawner is gone: what it forked now would have no parent that records its end, so it is asked no more. It is killed
        when there is a new spawner, for a replica that it has just forked may still be in its control group."""
        if self.ready:
            self.reason = Reason.TEMPLATE_DIED
        elif self.workload is not None and self._client is None:
            self.kill()  # before it is ready

    def kill(self) -> None:
        """End it without waiting for its exit record (there may be nobody to write one), and build another."""
        self._end()
        self._forget()
        self._lost(Reason.TEMPLATE_DIED)

    def _end(self) -> None:
        if self.workload is not None:
            self._edges.runtime.kill(self.workload)

    def _forget(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.workload is not None:
            self._socket_path(self.workload).unlink(missing_ok=True)
            self._edges.cleanup.remove(self.workload)
        self.workload, self.pid = None, None

    def _socket_path(self, workload: WorkloadId) -> Path:
        # Hashed: a 63-character function name would push the path over the kernel's 107 bytes.
        return self._edges.paths.template_sockets / f"{hashlib.sha256(workload.encode()).hexdigest()[:16]}.sock"
