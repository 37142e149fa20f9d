"""Which template may a revision be forked from? Keeps the bases (an interpreter with the HTTP server) and the environments (a
base with installed packages imported) of this machine: makes each once, on demand, and again after its end.

A base is shared by what has the same user, interpreter, volumes at the same paths (what is forked sees what its parent sees),
variables that an interpreter reads when it starts and, in a container, the same image; an environment by what has, beside that,
all other variables and the packages in common. Packages are what the function's code was seen to import when it last ran, and
what the new code's import statements name. One that can't be imported before a fork is left out by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping

import msgspec

from steelyard.agent.edges import Edges
from steelyard.agent.ledger import Ledger
from steelyard.agent.template_box import is_box, open_box
from steelyard.agent.template_process import BASE, ENVIRONMENT, KIND, Ids, TemplateProcess, adopted_process
from steelyard.errors import EdgeFailed, SteelyardError
from steelyard.model.ids import FunctionName, WorkloadId
from steelyard.model.image import Image
from steelyard.model.job import Plan
from steelyard.model.mount import MountedVolume
from steelyard.runtime.process import Adopted
from steelyard.runtime.template import Load
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

BASE_DEADLINE_S = 30.0
#: heavy packages from a cold disk
ENVIRONMENT_DEADLINE_S = 120.0
SCAN_S = 5.0
#: an environment that died or hung while it imported is not tried again before
FAILED_NS = 600 * 1_000_000_000
#: variables that an interpreter, its C library or its loader read once, when they start
STARTUP_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_")
STARTUP_NAMES = frozenset({"PATH", "HOME", "LANG", "LANGUAGE"})


class Wanted(msgspec.Struct, frozen=True):
    """What a revision needs of those above it."""

    function: FunctionName
    python: str
    ids: Ids
    load: Load
    #: those that are mounted, and what their folders were when they were looked at last (`VolumeFolders.identify`)
    volumes: tuple[MountedVolume, ...] = ()
    folders: tuple[tuple[int, int], ...] = ()
    #: in a container of this image, whose root is `owner` outside
    image: Image | None = None
    owner: Ids = None
    own_network: bool = False
    #: some of its secrets are files
    secret_files: bool = False
    #: the devices that are brought into the container, and nothing else of its plan
    devices: Plan = Plan()

    @property
    def uid(self) -> int:
        return self.ids[0] if self.ids else os.geteuid()


class Environment(msgspec.Struct, frozen=True):
    """Packages that a revision is to find imported. `stamp`: of the installation that they were found in."""

    packages: tuple[str, ...] = ()
    stamp: str = ""


def startup_variables(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(STARTUP_PREFIXES) or name in STARTUP_NAMES}


def environment_variables(env: Mapping[str, str]) -> dict[str, str]:
    """All but those by which Steelyard tells a function who it is; installed packages do not read them."""
    return {name: value for name, value in env.items() if not name.startswith("STEELYARD_")}


def base_key(wanted: Wanted, lib_dir: str, python_mtime_ns: int) -> str:
    parts = (BASE, wanted.ids, wanted.python, python_mtime_ns, lib_dir, sorted(startup_variables(wanted.load.env).items()))
    inside = (
        ()
        if wanted.image is None
        else (
            *(wanted.image.digest, wanted.owner, wanted.own_network, wanted.secret_files),
            *(wanted.devices.gpus, wanted.devices.nics),
        )
    )
    return _digest(*parts, *wanted.volumes, *wanted.folders, *inside)


def environment_key(base: str, env: Mapping[str, str], environment: Environment) -> str:
    return _digest(ENVIRONMENT, base, sorted(environment_variables(env).items()), sorted(environment.packages), environment.stamp)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class TemplateTree:
    """`nodes` by key. Never ends one by itself but on `end`."""

    def __init__(self, edges: Edges, ledger: Ledger) -> None:
        self._edges, self._ledger = edges, ledger
        self.nodes: dict[str, TemplateProcess] = {}
        #: containers that some of them are in, or were: they end by themselves
        self.boxes: set[WorkloadId] = set()
        self._making: dict[str, asyncio.Task[TemplateProcess]] = {}
        #: key of a base -> package -> why it can't be imported before a fork
        self.left_out: dict[str, dict[str, str]] = {}
        #: environments that came to nothing -> until when (monotonic ns)
        self._failed: dict[str, int] = {}
        #: rebuilding after a loss waits here, so that a thousand templates are not made at once
        self.lane = asyncio.Semaphore(2)

    # -- what is wanted

    async def find_environment(self, wanted: Wanted) -> Environment:
        """By what the function's code was seen to import, and what its file's import statements say now."""
        base = await self._base(wanted)
        if base.client is None:
            raise _gone(base)
        scanned = await base.client.scan(wanted.load, SCAN_S)
        seen = self._ledger.learned.get(wanted.function, ())
        return Environment(tuple(dict.fromkeys([*seen, *scanned.names])), scanned.stamp)

    async def parent(self, wanted: Wanted, environment: Environment) -> TemplateProcess:
        """A template to fork the revision, or a replica of it, from. Raises EdgeFailed when there can be none."""
        base = await self._base(wanted)
        while True:
            fit = self.fit(base.key, environment)
            key = environment_key(base.key, wanted.load.env, fit)
            if not fit.packages or self._failed.get(key, 0) > self._edges.clock.mono_ns():
                return base
            try:
                return await self._obtain(key, lambda key=key, fit=fit: self._make_environment(key, base, wanted, fit))
            except _LeftOut as err:
                log.info("%s is not imported before forks: %s", err.package, err.why)
                self.left_out.setdefault(base.key, {})[err.package] = err.why
            except (SteelyardError, OSError) as err:
                if not base.forks:
                    raise  # it died with its parent, or the spawner went: that says nothing of the packages
                log.warning("no environment of %s: %s", ", ".join(fit.packages), err)
                self._failed[key] = self._edges.clock.mono_ns() + FAILED_NS

    def fit(self, base: str, environment: Environment) -> Environment:
        """Without what can't be imported before a fork."""
        unfit = self.left_out.get(base, {})
        return msgspec.structs.replace(environment, packages=tuple(name for name in environment.packages if name not in unfit))

    def base_key(self, wanted: Wanted) -> str:
        try:
            # an image's digest tells of its interpreter too
            changed_ns = 0 if wanted.image is not None else os.stat(wanted.python).st_mtime_ns
        except OSError:
            changed_ns = 0  # found by PATH, or not at all: the start tells
        return base_key(wanted, str(self._edges.lib_dir), changed_ns)

    def parent_key(self, wanted: Wanted, environment: Environment) -> str:
        """Key of what `parent` would answer with."""
        base = self.base_key(wanted)
        fit = self.fit(base, environment)
        return environment_key(base, wanted.load.env, fit) if fit.packages else base

    # -- making

    async def _base(self, wanted: Wanted) -> TemplateProcess:
        key = self.base_key(wanted)
        return await self._obtain(key, lambda: self._make_base(key, wanted))

    async def _obtain(self, key: str, make: Callable[[], Coroutine[None, None, TemplateProcess]]) -> TemplateProcess:
        """The living one, or a new one, made once however many ask; whoever asked may go away meanwhile."""
        node = self.nodes.get(key)
        if node is not None and node.forks:
            return node
        if node is not None:
            self.end(node)
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.get_running_loop().create_task(make())
            task.add_done_callback(lambda done: self._made(key, done))
        return await asyncio.shield(task)

    def _made(self, key: str, task: asyncio.Task[TemplateProcess]) -> None:
        self._making.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            self.nodes[key] = task.result()

    async def _make_base(self, key: str, wanted: Wanted) -> TemplateProcess:
        node = TemplateProcess(self._edges, self._name(BASE, key), BASE, key, None)
        env, start = startup_variables(wanted.load.env), (wanted.python, wanted.ids, _logs(wanted.uid), BASE_DEADLINE_S)
        if wanted.image is None:
            mounts = await self._edges.volumes.mounts(wanted.volumes, wanted.uid, (wanted.python, wanted.load.code_dir))
            status = await node.start(env, *start, mounts=mounts)
        else:
            box = await open_box(self._edges, wanted, key, KIND, _logs(wanted.uid))
            self.boxes.add(box[0])
            try:
                status = await node.start(env, *start, box=box)
            finally:
                os.close(box[1])
        if status.state != "ready":
            raise EdgeFailed(status.traceback, code="start-failed")
        return node

    async def _make_environment(
        self, key: str, base: TemplateProcess, wanted: Wanted, environment: Environment
    ) -> TemplateProcess:
        node = TemplateProcess(self._edges, self._name(ENVIRONMENT, key), ENVIRONMENT, key, base.workload)
        status = await node.grow(
            base,
            wanted.ids,
            _logs(wanted.uid),
            ENVIRONMENT_DEADLINE_S,
            env=environment_variables(wanted.load.env),
            packages=environment.packages,
        )
        if status.culprit:
            raise _LeftOut(status.culprit, status.why)
        if status.state != "ready":
            raise EdgeFailed(status.traceback, code="start-failed")
        if status.threads or status.unsafe:
            # Not by one package's import alone, so nobody can be left out: without them, then.
            self.end(node)
            raise EdgeFailed(f"{[*status.threads, *status.unsafe]}", code="start-failed")
        return node

    def _name(self, role: str, key: str) -> WorkloadId:
        return WorkloadId(f"tmpl-{role}.{key}.{self._edges.clock.now_us():x}")

    # -- ends and adoption

    def end(self, node: TemplateProcess) -> None:
        if self.nodes.get(node.key) is node:
            del self.nodes[node.key]
        node.end()

    def on_exit(self, exited: Exited) -> bool:
        """True when it was ours."""
        if exited.workload in self.boxes:
            self.boxes.discard(exited.workload)
            self._edges.cleanup.remove(exited.workload)
            return True
        node = next((each for each in self.nodes.values() if each.workload == exited.workload), None)
        if node is None:
            return False
        log.info("template %s ended (code %s, signal %s)", node.workload, exited.exit_code, exited.signal)
        self.end(node)
        return True

    async def adopt(self, found: Adopted) -> bool:
        """True when it is one of ours, and now is in its place."""
        if is_box(found):
            self.boxes.add(found.workload)
            return True
        node = adopted_process(self._edges, found)
        if node is None or node.role not in (BASE, ENVIRONMENT) or node.key in self.nodes or not await node.adopt(found):
            return False
        self.nodes[node.key] = node
        return True

    def sweep_boxes(self) -> None:
        """Those whose end nobody told, because their spawner was gone."""
        for box in [box for box in self.boxes if not self._edges.cgroups.pids(box)]:
            self.boxes.discard(box)
            self._edges.cleanup.remove(box)

    def end_all(self) -> None:
        """They belong to a spawner that is gone: what they fork would have no parent that records its exit."""
        for node in list(self.nodes.values()):
            self.end(node)

    @property
    def workloads(self) -> set[str]:
        return {*self.boxes, *(node.workload for node in self.nodes.values())}

    def find(self, workload: WorkloadId | None) -> TemplateProcess | None:
        return next((node for node in self.nodes.values() if node.workload == workload), None)

    def children(self, revisions: Iterable[TemplateProcess]) -> dict[str, int]:
        """Living children of each node, by its workload."""
        counts: dict[str, int] = {}
        for each in (*self.nodes.values(), *revisions):
            if each.parent is not None:
                counts[each.parent] = counts.get(each.parent, 0) + 1
        return counts

    # -- learning

    def note_learned(self, function: FunctionName, packages: tuple[str, ...]) -> None:
        self._ledger.set_learned(function, packages)


class _LeftOut(EdgeFailed):
    def __init__(self, package: str, why: str) -> None:
        super().__init__(f"{package}: {why}", code="start-failed")
        self.package, self.why = package, why


def _gone(node: TemplateProcess) -> EdgeFailed:
    return EdgeFailed(f"the template {node.workload} has gone", code="template-gone")


def _logs(uid: int) -> str:
    return f"templates.{uid}"
