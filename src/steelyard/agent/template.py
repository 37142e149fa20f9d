"""Is there a template to fork for this revision, and if not, why? Starts it, adopts it, notices its death, rebuilds, evicts; and
says what else a replica may be forked from: the environment that the template itself comes from.

Never forks by itself: `fork` and `fork_from` are called by the wake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import msgspec

from steelyard.agent.edges import Edges
from steelyard.agent.replica import Slot
from steelyard.agent.secrets import WorkSecrets
from steelyard.agent.template_process import REVISION, Ids, TemplateProcess, adopted_process
from steelyard.agent.template_tree import Environment, TemplateTree, Wanted
from steelyard.errors import EdgeFailed, SteelyardError, Unreachable
from steelyard.model.function import FunctionSpec
from steelyard.model.ids import FunctionName, WorkloadId
from steelyard.model.image import Image
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.process import Adopted
from steelyard.runtime.runner.template import SPARE_KEEP_S
from steelyard.runtime.template import SINGLE_THREAD_ENV, Forked, ForkRefused, Load, TemplateStatus
from steelyard.wire.agent import AssignedFunction
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

REBUILD_MIN_S, REBUILD_MAX_S = 0.2, 30.0
#: what a template asks its loaded code waits until the roll-out has the cores no more
LEARN_DELAY_S, LEARN_S = 1.0, 30.0
#: a parent that dies under us is made again so often
PARENTS_MAX = 3
#: private memory of a spare; see docs/decisions/0004
SPARE_BYTES = 3_500_000
#: a wake that finds no environment imports the packages itself rather than wait longer for one
ENVIRONMENT_WAIT_S = 60.0


def make_load(name: FunctionName, spec: FunctionSpec, code: Path, env: dict[str, str]) -> Load:
    return Load(name, env, str(code), spec.file or "", spec.attr or "", spec.concurrency)


class TemplateKeeper:
    """The template of one revision of an ASGI function."""

    def __init__(
        self,
        edges: Edges,
        tree: TemplateTree,
        function: AssignedFunction,
        code: Path,
        logs: str,
        env: dict[str, str],
        ids: Ids,
        secrets: WorkSecrets,
        image: Image | None = None,
        owner: Ids = None,
    ) -> None:
        """`env`: without secrets, which only the revision's own processes are given, never those it shares with others. `image`,
        `owner`: see `template_tree.Wanted`."""
        self._edges, self._tree, self._function, self._logs, self._ids = edges, tree, function, logs, ids
        self._secrets = secrets
        spec, plan = function.spec, function.plan
        load = make_load(function.name, spec, code, SINGLE_THREAD_ENV | env)
        mounted = tuple(each for each in function.volumes if each.path or image is not None)
        self.wanted = Wanted(
            function.name, spec.python, ids, load, mounted,
            image=image, owner=owner, own_network=spec.own_network, secret_files=any(use.as_files for use in spec.secrets),
            devices=Plan() if image is None or plan is None else Plan(gpus=plan.gpus, nics=plan.nics),
        )  # fmt: skip
        #: what it is to find imported; None: not looked at yet
        self.environment: Environment | None = None
        #: key of what it, or its replicas, would be forked from; None as above
        self.parent_key: str | None = None
        self.process: TemplateProcess | None = None
        self._rebuild: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self._deaths = 0
        self._closed = False
        self._last_used_ns = edges.clock.mono_ns()
        #: since its eviction a wake had to do without it, at this time (monotonic ns)
        self.missed_ns: int | None = None
        #: what it held when it was evicted
        self.evicted_bytes = 0
        #: why it can't be forked right now; TEMPLATE_READY when it can
        self.reason = Reason.TEMPLATE_NOT_READY
        #: what it said of itself when it was ready last, also when it is gone since
        self.status: TemplateStatus | None = None

    @property
    def ready(self) -> bool:
        return self.reason is Reason.TEMPLATE_READY and self.process is not None

    @property
    def workload(self) -> WorkloadId | None:
        return self.process.workload if self.process is not None else None

    @property
    def socket(self) -> Path | None:
        """Where it listens for its agent, while it lives."""
        return self.process.socket_path if self.process is not None else None

    @property
    def last_used_ns(self) -> int:
        return self.process.last_used_ns if self.process is not None else self._last_used_ns

    @property
    def own_bytes(self) -> int:
        """What its end would give back, its spare included."""
        if self.process is None:
            return 0
        rested = self._edges.clock.mono_ns() - self.process.last_used_ns > SPARE_KEEP_S * 1e9
        return self.process.own_bytes + (0 if rested else SPARE_BYTES)

    async def start(self) -> TemplateStatus:
        """Start the process and wait until the user's modules are imported. The status says failed with a traceback, or ready.
        One that may not be forked (threads, a GPU in use) is ended again, and wakes begin at the environment. Raises EdgeFailed
        when it can't be started."""
        for attempt in range(PARENTS_MAX):
            try:
                return await self._grow()
            except EdgeFailed as err:
                if err.code != "template-gone" or attempt == PARENTS_MAX - 1:
                    raise
        raise AssertionError("the last attempt raises")

    async def _grow(self) -> TemplateStatus:
        function = self._function
        await self._look_at_volumes()
        environment = await self._find_environment()
        parent = await self._tree.parent(self.wanted, environment)
        self.parent_key = parent.key
        load = await self.load()
        workload = WorkloadId(f"tmpl.{function.name}.{function.revision}.{self._edges.clock.now_us():x}")
        process = TemplateProcess(self._edges, workload, REVISION, self._secrets.version, parent.workload)
        self.process = process
        try:
            status = await process.grow(parent, self._ids, self._logs, function.spec.startup_deadline_s, load=load)
        except BaseException:
            self.process = None
            raise
        self.status = status
        if status.step == "chdir":
            self.process = None
            raise EdgeFailed(f"{workload} not started: {status.traceback}", code="start-failed", detail=status.step)
        if status.state != "ready":
            self.process, self.reason = None, Reason.IMPORT_FAILED
            return status
        self._take(process)
        return status

    async def load(self) -> Load:
        """What it, or a replica that is forked without it, is of, its secrets among the variables. Waits for those, and raises
        EdgeFailed where one is gone."""
        given = await self._secrets.variables()
        load = self.wanted.load
        more = (await self._edges.grants.edits(self.wanted.devices)).env if self.wanted.image is not None else {}
        return msgspec.structs.replace(load, env=more | load.env | given) if given or more else load

    def renew(self) -> None:
        """Another one, when a start should be given other secrets by now than it was."""
        stale = self.process is not None and self.process.key != self._secrets.version
        if self.ready and stale and not self._secrets.explain_wait():
            self._end()
            self.reason = Reason.TEMPLATE_NOT_READY
            self.rebuild()

    def _take(self, process: TemplateProcess) -> None:
        status = process.status
        self.process = process
        asyncio.get_running_loop().call_soon(self.renew)  # they may have changed since it began
        if not status.threads and not status.unsafe:
            self.reason = Reason.TEMPLATE_READY
            if self._learning is None and self.environment is not None:  # once, by whoever made the first
                self._learning = asyncio.get_running_loop().create_task(self._learn(process, LEARN_DELAY_S))
            return
        self.reason = Reason.TEMPLATE_HAS_THREADS if status.threads else Reason.TEMPLATE_UNSAFE
        self._learning = asyncio.get_running_loop().create_task(self._learn_and_end(process))

    async def _look_at_volumes(self) -> bool:
        """True when one of them is another folder than it was at the last look: what was forked before shows the old one."""
        folders = await self._edges.volumes.identify(self.wanted.volumes)
        if not folders or folders == self.wanted.folders:
            return False
        self.wanted = msgspec.structs.replace(self.wanted, folders=folders)
        return True

    async def _find_environment(self) -> Environment:
        if self.environment is None:
            self.environment = await self._tree.find_environment(self.wanted)
        return self.environment

    async def adopt(self, found: Adopted) -> None:
        """Take over a template that an earlier agent started; a broken one is replaced."""
        process = adopted_process(self._edges, found)
        if process is not None and await process.adopt(found):
            self.status = process.status
            await self._look_at_volumes()
            self._take(process)
            return
        log.info("template %s could not be adopted", found.workload)
        self._edges.cleanup.remove(found.workload)
        self._lost(Reason.TEMPLATE_DIED)

    async def _learn(self, process: TemplateProcess, delay_s: float) -> None:
        """Which packages the code really imports, also where its first file does not say so: for the next revision, and for wakes
        without a template."""
        await asyncio.sleep(delay_s)
        if process.client is None:
            return
        with contextlib.suppress(SteelyardError, OSError):  # it is gone: the next one tells
            names = tuple(await process.client.learn(LEARN_S))
            if self.environment is not None:
                self.environment = Environment(names, self.environment.stamp)
                self.parent_key = self._tree.parent_key(self.wanted, self.environment)
            self._tree.note_learned(self._function.name, names)

    async def _learn_and_end(self, process: TemplateProcess) -> None:
        await self._learn(process, 0.0)
        if self.process is process:
            self.process = None
            process.end()

    async def fork(self, slot: Slot, listen_fd: int, private: bool) -> Forked | ForkRefused:
        """One replica from a prepared slot."""
        if self.ready and await self._look_at_volumes():
            self._end()
            self.reason = Reason.TEMPLATE_NOT_READY
            self._rebuild_in(REBUILD_MIN_S)
        if not self.ready:
            return ForkRefused(reason=str(self.reason), detail="")
        return await self._fork(self.process, slot, listen_fd, private, None)

    async def find_parent(self) -> TemplateProcess | None:
        """Its environment, made when there is none: with the packages imported, which may take seconds."""
        await self._look_at_volumes()
        try:
            async with asyncio.timeout(ENVIRONMENT_WAIT_S):
                parent = await self._tree.parent(self.wanted, await self._find_environment())
        except (SteelyardError, OSError, TimeoutError) as err:
            log.warning("no environment for %s: %s", self._function.name, err)
            return None
        self.parent_key = parent.key
        return parent

    async def fork_from(
        self, parent: TemplateProcess, load: Load, slot: Slot, listen_fd: int, private: bool
    ) -> Forked | ForkRefused:
        """One replica that imports the user's module itself, from what `find_parent` and `load` found."""
        return await self._fork(parent, slot, listen_fd, private, load)

    async def _fork(
        self, process: TemplateProcess | None, slot: Slot, listen_fd: int, private: bool, load: Load | None
    ) -> Forked | ForkRefused:
        if process is None or process.client is None or not process.forks:
            return ForkRefused(reason=str(Reason.TEMPLATE_DIED), detail="")
        process.used()
        self._last_used_ns = process.last_used_ns
        try:
            return await process.client.fork(
                replica=slot.workload,
                listen_fd=listen_fd,
                page_fd=slot.page_fd,
                stdout_fd=slot.log_fds[0],
                stderr_fd=slot.log_fds[1],
                cgroup_fds=slot.cgroup_fds,
                cpus=slot.cpus,
                private=private,
                sent_ns=process.last_used_ns,
                load=load,
            )
        except (SteelyardError, OSError) as err:
            log.warning("template %s did not fork: %s", process.workload, err)
            return ForkRefused(reason=str(Reason.TEMPLATE_DIED), detail=str(err))

    def on_exit(self, exited: Exited) -> bool:
        """True when it was ours."""
        process = self.process
        if process is None or exited.workload != process.workload:
            return False
        self.process = None
        process.end()
        if self.reason is Reason.TEMPLATE_READY or self.reason is Reason.TEMPLATE_NOT_READY:
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
        if self._closed or self.process is not None or (self._task is not None and not self._task.done()):
            return
        self._task = asyncio.get_running_loop().create_task(self._build_again())

    async def _build_again(self) -> None:
        self.reason, self.missed_ns = Reason.TEMPLATE_NOT_READY, None
        try:
            await self._secrets.variables()  # not in the lane, where others would wait behind it
            async with self._tree.lane:
                await self.start()
        except Unreachable:
            self._rebuild_in(REBUILD_MIN_S)  # no fault of its own: it waits for the spawner
        except (SteelyardError, OSError) as err:
            log.warning("template of %s could not be rebuilt: %s", self._function.name, err)
            self._lost(Reason.TEMPLATE_DIED)

    def evict(self) -> None:
        """Give its memory back; wakes begin at its environment until `rebuild`."""
        self.evicted_bytes, self.missed_ns = self.own_bytes, None
        self._last_used_ns = self.last_used_ns
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
        for task in (self._task, self._learning):
            if task is not None:
                task.cancel()
        self._end()

    def kill(self) -> None:
        """End it without waiting for its exit record (there may be nobody to write one), and build another."""
        self._end()
        self._lost(Reason.TEMPLATE_DIED)

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.end()
