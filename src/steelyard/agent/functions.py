"""All functions of this machine: one `FunctionHost` each, one tick for those that are awake, and Envoy in line with them."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable

import msgspec

from steelyard.agent.devices import DeviceKeeper, devices_of
from steelyard.agent.edges import Edges
from steelyard.agent.elsewhere import make_elsewhere
from steelyard.agent.execs import ExecHost
from steelyard.agent.function import FunctionHost
from steelyard.agent.function_proofs import prove_replicas
from steelyard.agent.ledger import Ledger
from steelyard.agent.lending import Lending, meets
from steelyard.agent.memory import NodeUse, TemplateUse, choose_evictions, choose_return
from steelyard.agent.presence import Presence
from steelyard.agent.replica import KIND as REPLICA
from steelyard.agent.revision import RevisionHost
from steelyard.agent.secrets import SecretKeeper
from steelyard.agent.template import TemplateKeeper
from steelyard.agent.template_box import is_box
from steelyard.agent.template_process import BASE, TemplateProcess
from steelyard.agent.template_process import KIND as TEMPLATE
from steelyard.agent.template_show import show_templates
from steelyard.agent.template_tree import TemplateTree
from steelyard.agent.trial import socket_name, socket_path
from steelyard.agent.visits import Visits, find_inside
from steelyard.agent.weights import Weights, WeightsKeeper
from steelyard.errors import SteelyardError
from steelyard.gateway import GatewayDesired
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import ReplicaEnd
from steelyard.model.ids import FunctionName, WorkloadId, name_logs
from steelyard.model.job import Plan
from steelyard.model.machine import HeldPlan
from steelyard.model.proof import ReplicaProof
from steelyard.model.template import TemplateSeen
from steelyard.runtime.process import Adopted, AdoptedState
from steelyard.scaling.share import CPU_OVERCOMMIT, Budget, divide
from steelyard.wire.agent import (
    AssignedFunction,
    AssignedNeighbour,
    Assignment,
    AwayFunction,
    FunctionSeen,
    ScalingSeen,
    digest_keys,
)
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

TICK_S = 0.02
PENDING_NS = 1_000_000_000
#: the machine keeps this share of its memory available before templates are evicted
RESERVE_SHARE = 0.05
#: so often templates are looked at while everything sleeps
ASLEEP_NS = 10 * 1_000_000_000


class FunctionKeeper:
    """Level-triggered: `reconcile` may be called at any time with the functions that should be here."""

    def __init__(
        self,
        edges: Edges,
        ledger: Ledger,
        on_change: Callable[[], None],
        on_coldstart: Callable[[ColdStart], None],
        *,
        on_wake: Callable[[], None],
        devices: DeviceKeeper,
        presence: Presence,
        lending: Lending,
        secrets: SecretKeeper,
        inside: Callable[[], Collection[WorkloadId]] = tuple,
    ) -> None:
        """`inside`: workloads that somebody is inside of."""
        self._edges, self._ledger, self._secrets = edges, ledger, secrets
        self._devices, self._presence, self._lending = devices, presence, lending
        self._on_change, self._on_coldstart, self._on_wake = on_change, on_coldstart, on_wake
        self.tree = TemplateTree(edges, ledger)
        self._visits = Visits(edges.clock, inside)
        self._weights = WeightsKeeper(edges)
        #: function -> its weights, of the assignment that was looked at last
        self._weights_of: dict[FunctionName, str] = {}
        self._weighed: Assignment | None = None
        self._hosts: dict[FunctionName, FunctionHost] = {}
        self._keys: tuple[str, ...] = ()
        #: functions on other machines, and what Envoy was last told of them
        self._away: tuple[AwayFunction, ...] = ()
        self._neighbours: tuple[AssignedNeighbour, ...] = ()
        self.away_told: tuple[AwayFunction, ...] = ()
        self._gateway_lock = asyncio.Lock()
        #: the keys that Envoy was last told, and who waits for other ones
        self._keys_told: tuple[str, ...] = ()
        self._told = asyncio.Event()
        self._ticking = False
        #: those that the tick looks at: a thousand sleepers cost it nothing
        self._awake: dict[FunctionName, None] = {}
        #: what was told of each, and of which that may not be true any more
        self._seen: dict[FunctionName, FunctionSeen | None] = {}
        self._stale: set[FunctionName] = set()
        self._pending_asked_ns = 0
        self._memory_ns = -ASLEEP_NS
        self._pending_task: asyncio.Task[None] | None = None

    def _make_host(self, name: FunctionName) -> FunctionHost:
        host = FunctionHost(
            self._edges,
            name,
            on_change=lambda: self._note_change(name),
            on_wake=lambda: self._note_wake(name),
            on_coldstart=self._on_coldstart,
            on_awake=lambda: self._wake_ticker(name),
            apply_routes=self.apply_routes,
            ledger=self._ledger,
            devices=self._devices,
            presence=self._presence,
            lending=self._lending,
            tree=self.tree,
            secrets=self._secrets,
        )
        self._hosts[name] = host
        self._stale.add(name)
        return host

    def _note_change(self, name: FunctionName) -> None:
        self._stale.add(name)
        self._visits.news.set()
        self._on_change()

    def _note_wake(self, name: FunctionName) -> None:
        """A replica came or goes: to be told, and not before it has served who woke it."""
        self._stale.add(name)
        self._visits.news.set()
        self._on_wake()

    def _forget(self, name: FunctionName) -> None:
        del self._hosts[name]
        self._seen.pop(name, None)
        self._stale.discard(name)
        # nobody can ask for its log any more, and every `run` has names of its own
        shutil.rmtree(self._edges.paths.workloads / name_logs(name), ignore_errors=True)
        self._awake.pop(name, None)

    def reconcile(self, assignment: Assignment) -> None:
        wanted: dict[FunctionName, list[AssignedFunction]] = {}
        for function in assignment.functions:
            wanted.setdefault(function.name, []).append(function)
        for name, revisions in wanted.items():
            (self._hosts.get(name) or self._make_host(name)).set_desired(revisions)
            self._stale.add(name)
        for name, host in list(self._hosts.items()):
            if name not in wanted:
                host.set_desired(())
                self._stale.add(name)
                if host.gone:
                    self._forget(name)
        if self._take(assignment):
            task = asyncio.ensure_future(self._apply_rest())
            task.add_done_callback(lambda _: None)

    def _take(self, assignment: Assignment) -> bool:
        """What Envoy must know beside the functions here; True when that is something else than before."""
        before = (self._keys, self._away, self._neighbours)
        self._keys, self._away, self._neighbours = assignment.keys, assignment.away, assignment.neighbours
        return before != (self._keys, self._away, self._neighbours)

    async def _apply_rest(self) -> None:
        try:
            await self.apply_routes()
        except SteelyardError as err:
            log.warning("Envoy did not take the new keys, or what is on other machines: %s", err)

    async def apply_routes(self) -> None:
        """Bring Envoy in line with what is routed now. One at a time; raises EdgeFailed when Envoy rejects it."""
        async with self._gateway_lock:
            keys, away = self._keys, self._away
            pairs = [self._hosts[name].gateway() for name in sorted(self._hosts)]
            clusters = tuple(cluster for clusters, _ in pairs for cluster in clusters)
            routes = tuple(route for _, routes in pairs for route in routes)
            elsewhere = make_elsewhere(away, self._neighbours)
            desired = GatewayDesired(
                (*clusters, *elsewhere.clusters), (*routes, *elsewhere.routes), keys, elsewhere.neighbourhoods
            )
            await self._edges.gateway.apply(desired)
            self._keys_told = keys
            self._told.set()
            if away != self.away_told:
                self.away_told = away
                self._on_change()

    async def wait_told(self, digest: str, wait_s: float) -> bool:
        """Until Envoy admits just the keys of this digest; False when the time is over first."""
        try:
            async with asyncio.timeout(wait_s):
                while digest_keys(self._keys_told) != digest:
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            return False
        return True

    # -- the tick, only while something is awake

    def _wake_ticker(self, name: FunctionName) -> None:
        self._awake[name] = None
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        held = self._visits.held
        for name in list(self._awake):
            host, awake = self._hosts.get(name), False
            if host is None:  # a word of one that is forgotten already
                del self._awake[name]
                continue
            try:
                awake = host.tick(held)
            except Exception:
                log.exception("tick of %s", name)
            if host.gone:
                self._forget(name)
            elif not awake:
                self._stale.add(name)
                del self._awake[name]
        if self._awake:
            self._divide()
            self._look_at_pending()
            asyncio.get_running_loop().call_later(TICK_S, self._tick)
        else:
            self._ticking = False

    @property
    def _awake_hosts(self) -> list[FunctionHost]:
        return [host for name in self._awake if (host := self._hosts.get(name)) is not None]

    @property
    def _placed_hosts(self) -> list[FunctionHost]:
        """Those that have cores or devices of their own, or had: few of a thousand."""
        return [host for host in self._hosts.values() if host.placed]

    def _divide(self) -> None:
        """Where those that are awake want more replicas than the machine holds, each gets its fair share at the next look.
        Whole cores are a function's own and are not divided."""
        wants = {
            revision.name: (revision, msgspec.structs.replace(want, name=revision.name))
            for host in self._awake_hosts
            for revision in host.hosts
            if not revision.function.spec.resources.whole_cores and (want := revision.scaler.want) is not None
        }
        shares = divide(self._budget(), (want for _, want in wants.values()))
        for name, (revision, want) in wants.items():
            revision.scaler.share = None if shares[name] >= want.wanted else shares[name]

    def _budget(self) -> Budget:
        machine, jobs = self._edges.machine, self._ledger.assignment.jobs
        for_jobs = sum(job.plan.memory_bytes or 0 for job in jobs)
        memory = round(machine.memory_bytes * (1 - RESERVE_SHARE)) - for_jobs
        return Budget(len(machine.cores) * CPU_OVERCOMMIT, max(0, memory))

    def scaling(self, name: FunctionName) -> tuple[ScalingSeen, ...]:
        """Why its revisions have as many replicas as they have."""
        host = self._hosts.get(name)
        revisions = [] if host is None else [revision for revision in host.hosts if revision.opened and not revision.draining]
        found = []
        for revision in revisions:
            serving = sum(replica.state == "serving" for replica in revision.live)
            seen = revision.scaler.seen(serving, len(revision.live) - serving)
            found.append(msgspec.structs.replace(seen, text=seen.text + self._weights.tell(name)))
        return tuple(found)

    def _look_at_pending(self) -> None:
        """Ask Envoy once a second, and only while a revision holds all it may: before that nothing waits in Envoy."""
        now_ns = self._edges.clock.mono_ns()
        full = any(revision.full or revision.pending for host in self._awake_hosts for revision in host.hosts)
        if full and now_ns - self._pending_asked_ns >= PENDING_NS:
            self._pending_asked_ns = now_ns
            self._pending_task = asyncio.get_running_loop().create_task(self._read_pending())

    async def _read_pending(self) -> None:
        pending = await self._edges.gateway.pending()
        for host in self._hosts.values():
            for revision in host.hosts:
                revision.pending = pending.get(revision.name, 0)
        self._on_change()

    # -- being inside

    async def hold(self, name: FunctionName, wanted: str, wait_s: float) -> WorkloadId | None:
        """A replica that somebody is about to enter, see `Visits.hold`. Raises NotFound or Conflict."""
        return await self._visits.hold(lambda: host.hosts if (host := self._hosts.get(name)) is not None else [], wanted, wait_s)

    async def find_inside(self, workload: str) -> ExecHost | None:
        """Where a command that is to run inside that replica goes; None: no replica has that name. Raises SteelyardError."""
        name, dot, _ = workload.rpartition(".")[0].rpartition(".")
        host = self._hosts.get(FunctionName(name)) if dot else None
        for revision in () if host is None else host.hosts:
            if (replica := revision.replicas.get(WorkloadId(workload))) is not None:
                return await find_inside(self._edges, revision, replica)
        return None

    def prove(self, name: FunctionName, common_cpus: tuple[int, ...]) -> tuple[ReplicaProof, ...]:
        """What its replicas got; none where it sleeps."""
        host = self._hosts.get(name)
        return prove_replicas(self._edges, host.hosts if host is not None else (), common_cpus)

    # -- truth from the machine

    def on_exit(self, exited: Exited) -> bool:
        # a function's name stands in that of each of its workloads; one may be called `tmpl`
        names = {exited.workload.rsplit(".", 2)[0], exited.workload.removeprefix("tmpl.").rsplit(".", 2)[0]}
        hosts = [self._hosts[FunctionName(name)] for name in names if name in self._hosts]
        return any(revision.on_exit(exited) for host in hosts for revision in host.hosts) or self.tree.on_exit(exited)

    async def adopt(self, held: dict[str, int], found: Iterable[Adopted], assignment: Assignment) -> None:
        """After a restart: route what was routed, take over sockets, replicas and templates, end what belongs to nobody."""
        self._take(assignment)
        kept = frozenset(held)
        revisions: dict[str, RevisionHost] = {}
        for function in [each for routed in self._ledger.routed.values() for each in routed]:
            key = socket_name(function)
            host = self._hosts.get(function.name) or self._make_host(function.name)
            try:
                revisions[key] = await host.adopt(function, held.pop(key, None))
            except (SteelyardError, OSError) as err:
                log.error("%s could not be taken over: %s", key, err)
        await self._adopt_draining(held, revisions)
        for name, fd in held.items():
            self._edges.spawner.drop_socket(name)
            os.close(fd)
        for item in found:
            await self._adopt_workload(item, revisions, kept)
        self._remove_sockets([*revisions.values()])
        for revision in revisions.values():
            if revision.draining:
                revision.arm()
                continue
            if revision.template is not None and revision.template.workload is None:
                revision.template.rebuild()
            revision.start_min()
            self._wake_ticker(revision.function.name)
        try:
            await self.apply_routes()
        except SteelyardError as err:
            log.warning("Envoy did not take what is routed yet: %s", err)

    async def _adopt_draining(self, held: dict[str, int], revisions: dict[str, RevisionHost]) -> None:
        for function in self._ledger.draining:
            key = socket_name(function)
            if key in revisions:
                continue  # the agent before us was killed while it noted the move: it is routed
            host = self._hosts.get(function.name) or self._make_host(function.name)
            try:
                revisions[key] = await host.adopt_draining(function, held.pop(key, None))
            except (SteelyardError, OSError) as err:
                log.error("%s: its requests are lost: %s", key, err)
                self._ledger.set_draining(function, False)

    def _remove_sockets(self, revisions: list[RevisionHost]) -> None:
        """Of revisions, trials and templates that ended with nobody there to remove them."""
        paths = self._edges.paths
        kept = {socket_path(self._edges, revision.function) for revision in revisions}
        kept |= {revision.template.socket for revision in revisions if revision.template is not None}
        kept |= {node.socket_path for node in self.tree.nodes.values()}
        for path in [*paths.function_sockets.iterdir(), *paths.template_sockets.iterdir()]:
            if path not in kept:
                path.unlink(missing_ok=True)

    async def _adopt_workload(self, item: Adopted, revisions: dict[str, RevisionHost], kept: Collection[str]) -> None:
        """`kept`: names of the sockets that the spawner still had."""
        stem = item.workload.removeprefix("tmpl.").rsplit(".", 1)[0]
        revision = revisions.get(stem)
        kind = item.intent.kind if item.intent else ""
        page = self._edges.paths.pages / item.workload
        if revision is not None and item.state is AdoptedState.RUNNING:
            if kind == REPLICA and page.exists():
                revision.adopt_replica(item, reached=stem in kept)
                return
            if kind == TEMPLATE and revision.template is not None and item.watched:
                await revision.template.adopt(item)
                return
        ours = item.watched or is_box(item)  # a box has replicas that outlived their spawner
        if kind == TEMPLATE and item.state is AdoptedState.RUNNING and ours and await self.tree.adopt(item):
            return
        self._edges.cleanup.remove(item.workload)

    def on_new_spawner(self) -> None:
        """A new spawner holds nothing yet: give it a copy of every listening socket. Templates of the old one are replaced, since
        what they fork would have no parent that records its exit; until then they are asked no more."""
        self.tree.end_all()
        for host in self._hosts.values():
            for revision in host.hosts:
                revision.drop_slot()
                if revision.template is not None and revision.template.workload is not None:
                    revision.template.kill()
                self._edges.spawner.hold_socket(socket_name(revision.function), revision.listener.fileno())

    @property
    def running(self) -> list[tuple[WorkloadId, int, int]]:
        return [item for host in self._awake_hosts for revision in host.hosts for item in revision.running]

    @property
    def replicas(self) -> set[WorkloadId]:
        return {workload for host in self._awake_hosts for revision in host.hosts for workload in revision.replicas}

    @property
    def workloads(self) -> set[str]:
        """Replicas and templates that may have a process now."""
        mine = {each for host in self._hosts.values() for revision in host.hosts for each in revision.workloads}
        return mine | self.tree.workloads

    @property
    def devices_in_use(self) -> set[str]:
        """Of the revisions that have a process now; a sleeping one computes on nothing."""
        revisions = (revision for host in self._placed_hosts for revision in host.hosts if revision.workloads)
        return {device for revision in revisions for device in devices_of(revision.plan)}

    @property
    def log_folders(self) -> set[WorkloadId]:
        """Folders whose logs may be growing."""
        return {WorkloadId(revision.logs) for host in self._awake_hosts for revision in host.hosts if revision.replicas}

    def on_secrets(self) -> None:
        for revision in [revision for host in self._hosts.values() for revision in host.hosts if revision.secrets]:
            revision.on_secrets()

    @property
    def secret_folders(self) -> set[str]:
        """Of the revisions that have a process now."""
        revisions = (revision for host in self._hosts.values() for revision in host.hosts)
        return {revision.secrets.folder for revision in revisions if revision.secrets and revision.workloads}

    @property
    def finishing(self) -> tuple[FunctionName, ...]:
        """Those that nothing leads to any more, and that still answer what was begun."""
        return tuple(sorted(host.name for host in self._hosts.values() if not host.desired and not host.gone))

    def held(self, assigned: Iterable[AssignedFunction]) -> tuple[HeldPlan, ...]:
        """Cores and devices that revisions run on beside those of the assigned ones: they drain, or serve until those are
        ready."""
        plans = {(function.name, function.plan) for function in assigned if function.plan is not None}
        found: dict[HeldPlan, None] = {}
        for host in self._placed_hosts:
            for revision in host.hosts:
                plan = revision.function.plan
                if plan is not None and (revision.function.name, plan) not in plans:
                    found[HeldPlan(revision.function.name, plan)] = None
        return tuple(found)

    def may_have(self, plan: Plan) -> bool:
        """May a job be started on these devices? Functions that have any of them must be asleep and lend them."""
        for function in self._ledger.assignment.functions:
            if function.plan is not None and meets(function.plan, plan):
                host = self._hosts.get(function.name)
                if host is None or not host.lends:
                    return False
        awake = (revision for host in self._hosts.values() if not host.lends for revision in host.hosts)
        return not any(meets(revision.plan, plan) for revision in awake)

    @property
    def lent(self) -> tuple[Plan, ...]:
        """Places of functions that sleep and lend them."""
        return tuple(revision.plan for host in self._placed_hosts if host.lends for revision in host.hosts)

    def seen(self) -> tuple[FunctionSeen, ...]:
        """Looked at anew only where something may have changed: of a thousand functions, those that are awake or said so."""
        for name in {*self._stale, *self._awake}:
            host = self._hosts.get(name)
            if host is not None:
                self._seen[name] = host.seen()
            if host is None or host.settled:
                self._stale.discard(name)
        return tuple(seen for name in sorted(self._seen) if (seen := self._seen[name]) is not None)

    # -- templates

    def ends(self, name: FunctionName) -> tuple[ReplicaEnd, ...]:
        """How replicas of a function ended that nobody had told to, as far back as is known."""
        host = self._hosts.get(name)
        return tuple(end for revision in (host.hosts if host is not None else ()) for end in revision.ends)

    async def show_templates(self, name: FunctionName) -> tuple[TemplateSeen, ...] | None:
        """Of the newest revision that is reached, from the base on; empty for a command, None for a function that is not here."""
        host = self._hosts.get(name)
        revision = next(iter(host.hosts), None) if host is not None else None
        if revision is None:
            return None
        if revision.template is None:
            return ()
        return await show_templates(revision.template, self.tree, self._children(self._templates()))

    def _children(self, templates: dict[str, TemplateKeeper]) -> dict[str, int]:
        return self.tree.children(each.process for each in templates.values() if each.process is not None)

    def look_at_weights(self, available_bytes: int) -> None:
        """Of the functions that have some: a thousand others cost this nothing."""
        assignment = self._ledger.assignment
        if assignment is not self._weighed:
            self._weighed = assignment
            self._weights_of = {each.name: each.spec.weights for each in assignment.functions if each.spec.weights}
        wanted = [
            Weights(name, path, not any(revision.replicas for revision in host.hosts))
            for name, path in self._weights_of.items()
            if (host := self._hosts.get(name)) is not None
        ]
        self._weights.look(wanted, available_bytes)

    def check_memory(self, available_bytes: int) -> None:
        """Evict templates when they hold more than their budget or the machine runs short; bring back one that was missed since
        when there is room, or when others were not wanted for longer. While everything sleeps and memory is there, nothing
        of that changes: then it is looked at now and then."""
        now_ns, budget = self._edges.clock.mono_ns(), self._edges.template_budget_bytes
        reserve = round(self._edges.machine.memory_bytes * RESERVE_SHARE)
        asleep = not self._awake and not self._stale and available_bytes >= reserve
        if asleep and now_ns < self._memory_ns + ASLEEP_NS:
            return
        self._memory_ns = now_ns
        self.tree.sweep_boxes()
        templates = self._templates()
        uses = [*self._uses_of_nodes(templates), *(_use(name, each) for name, each in templates.items() if each.ready)]
        evicted = choose_evictions(uses, now_ns, budget, available_bytes, reserve)
        if not evicted:
            missed = [
                TemplateUse(name, each.evicted_bytes, each.missed_ns)
                for name, each in templates.items()
                if each.missed_ns is not None and each.process is None
            ]
            back, evicted = choose_return(missed, uses, budget, available_bytes - reserve)
            if back is not None:
                templates[back].rebuild()
        for name in evicted:
            log.info("template %s evicted: %d bytes available", name, available_bytes)
            if name in templates:
                templates[name].evict()
            elif (node := self.tree.nodes.get(name)) is not None:
                self.tree.end(node)

    def _templates(self) -> dict[str, TemplateKeeper]:
        return {revision.name: revision.template for host in self._hosts.values() for revision in host.hosts if revision.template}

    def _uses_of_nodes(self, templates: dict[str, TemplateKeeper]) -> list[TemplateUse]:
        """Environments and bases, named by their keys."""
        if not self.tree.nodes:
            return []
        children = self._children(templates)
        wanted = {each.parent_key for each in templates.values()}  # None: taken over, and not looked at since
        # else its image could never be removed
        wanted |= {self.tree.base_key(each.wanted) for each in templates.values() if each.wanted.image is not None}

        def kind(node: TemplateProcess) -> NodeUse:
            if children.get(node.workload):
                return NodeUse.PARENT
            # bases are small, and whatever is deployed next would wait for one; but for those in containers, which hold an image
            kept = node.key in wanted or None in wanted or (node.role == BASE and not node.contained)
            return NodeUse.WANTED if kept else NodeUse.UNWANTED

        return [TemplateUse(key, node.own_bytes, node.last_used_ns, kind(node)) for key, node in self.tree.nodes.items()]

    def close(self) -> None:
        self._weights.close()
        for host in self._hosts.values():
            host.close()


def _use(name: str, template: TemplateKeeper) -> TemplateUse:
    return TemplateUse(name, template.own_bytes, template.last_used_ns)
