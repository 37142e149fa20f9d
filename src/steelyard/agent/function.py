"""One function on this machine: which revisions get its traffic, and how others take over without losing a request.

Roll-out: code here -> socket -> template -> trial replica answers on a private socket -> minimum replicas serve -> Envoy is
told (clusters, then routes) -> remembered on disk -> what nothing leads to any more drains and is closed. A step that fails
leaves the routes as they were and the revision FAILED with the reason; it is tried once, not in a loop. What should be done next
is `scaling.rollout.plan_rollout`'s to say: `_turn` asks it after everything that happened, and carries it out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from pathlib import Path

import msgspec

from steelyard.agent.code import ensure_code
from steelyard.agent.devices import DeviceKeeper, devices_of
from steelyard.agent.edges import Edges
from steelyard.agent.function_container import enter_image, find_image
from steelyard.agent.identity import choose_ids, explain_start
from steelyard.agent.images import MISSING, enter_function
from steelyard.agent.ledger import Ledger
from steelyard.agent.lending import Lending
from steelyard.agent.presence import GONE, Presence
from steelyard.agent.readiness import make_listener
from steelyard.agent.revision import RevisionHost
from steelyard.agent.secrets import SecretKeeper
from steelyard.agent.template_tree import TemplateTree
from steelyard.agent.trial import RolloutFailed, make_ready, socket_name, socket_path
from steelyard.errors import SteelyardError, Unreachable
from steelyard.gateway import Cluster, Route
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import FunctionState, Reach, RevisionState, Routes
from steelyard.model.ids import FunctionName
from steelyard.model.image import Image
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.scaling.rollout import Wanted, plan_rollout
from steelyard.wire.agent import AssignedFunction, FunctionSeen, RevisionSeen

log = logging.getLogger(__name__)

#: an old revision stays at least this long after Envoy took the new routes
DRAIN_MIN_S = 1.0
#: when Envoy did not take routes that no new revision is to blame for
RETRY_S = 1.0
#: at most that often the counts of requests are told by themselves: after failed ones, and after any
TELL_ERRORS_S, TELL_S = 0.25, 5.0
#: the last counts of a closed revision are told for so long
PAST_S = 60.0


class FunctionHost:
    """`apply_routes` brings Envoy in line with every function's `gateway` and returns once it took effect."""

    def __init__(
        self,
        edges: Edges,
        name: FunctionName,
        on_change: Callable[[], None],
        on_wake: Callable[[], None],
        on_coldstart: Callable[[ColdStart], None],
        on_awake: Callable[[], None],
        apply_routes: Callable[[], Awaitable[None]],
        ledger: Ledger,
        devices: DeviceKeeper,
        presence: Presence,
        lending: Lending,
        tree: TemplateTree,
        secrets: SecretKeeper,
    ) -> None:
        self._devices, self._presence, self._lending, self._tree = devices, presence, lending, tree
        self._secrets = secrets
        self._edges, self.name = edges, name
        self._on_change, self._on_wake = on_change, on_wake
        self._on_coldstart, self._on_awake = on_coldstart, on_awake
        self._apply_routes, self._ledger = apply_routes, ledger
        #: by revision: what should be reached
        self.desired: dict[int, AssignedFunction] = {}
        #: what may be reached: ready, and not draining
        self.ready: dict[int, RevisionHost] = {}
        #: what Envoy was told, and what it is being told right now
        self.routes = Routes()
        self._coming: Routes | None = None
        self.draining: list[tuple[RevisionHost, int]] = []
        self._rolling: RevisionHost | None = None
        self._rollout: asyncio.Task[None] | None = None
        #: the revision that `_rollout` is about
        self._rollout_of = 0
        self._failed: dict[int, tuple[Reason, str]] = {}
        self._turning = asyncio.Lock()
        self._turns: set[asyncio.Task[None]] = set()
        self._closed = False
        #: it has cores or devices of its own, or had
        self.placed = False
        self._told_ns = 0
        self._told = (0, 0)
        self._past: list[tuple[RevisionSeen, int]] = []

    # -- desired

    def set_desired(self, functions: Sequence[AssignedFunction]) -> None:
        """The revisions that should be reached; none when the function was deleted. Level-triggered."""
        desired = {function.revision: function for function in functions}
        if desired == self.desired:
            return
        self.desired = desired
        self._failed = {revision: failure for revision, failure in self._failed.items() if revision in desired}
        if self._rollout is not None and self._rollout_of not in desired:
            self._rollout.cancel()
        self._start(self._turn())

    @property
    def led(self) -> set[int]:
        """Revisions that the home's gateway may lead to: it is told of a move after this machine's is."""
        return {revision for function in self.desired.values() for revision in function.led}

    @property
    def newest(self) -> AssignedFunction | None:
        return self.desired[max(self.desired)] if self.desired else None

    @property
    def settled(self) -> bool:
        """Nothing rolls out and nothing is to be decided."""
        return not self._turns and (self._rollout is None or self._rollout.done())

    @property
    def gone(self) -> bool:
        """Deleted, and nothing of it is left."""
        return not self.desired and not self.ready and not self.draining and self.settled

    # -- what to do next

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._turns.add(task)
        task.add_done_callback(self._turned)

    def _turned(self, task: asyncio.Task[None]) -> None:
        self._turns.discard(task)
        self._on_change()
        if self.gone:
            self._on_awake()  # the next look finds it so

    async def _turn(self) -> None:
        """One look: what is ready gets its routes, what is left is drained, what is missing is made ready. One at a time."""
        async with self._turning:
            try:
                self._revive()
                wanted = [Wanted(each.revision, each.percent, each.tags) for each in self.desired.values()]
                plan = plan_rollout(wanted, self.ready, self._failed, self.routes)
                if plan.routes != self.routes and not await self._move(plan.routes):
                    self._start(self._turn())  # what was to be retired serves on
                    return
            except Exception as err:
                expected = isinstance(err, (SteelyardError, OSError))
                log.warning("%s: its routes are not as they should be yet: %s", self.name, err, exc_info=not expected)
                self._start(self._turn_later())
                return
            for revision in plan.retire:
                self._drain(self.ready.pop(revision))
            free = self._rollout is None or self._rollout.done()
            if plan.make_ready in self.desired and free and not self._closed:
                self._rollout_of = plan.make_ready
                self._rollout = asyncio.get_running_loop().create_task(self._roll_out(self.desired[plan.make_ready]))

    async def _turn_later(self) -> None:
        await asyncio.sleep(RETRY_S)
        self._start(self._turn())

    def _revive(self) -> None:
        """A revision that was just left is wanted again: it is ready as it is."""
        for host, since_ns in list(self.draining):
            revision = host.function.revision
            if revision in self.desired and revision not in self.ready and host is not self._rolling:
                self.draining.remove((host, since_ns))
                host.draining = False
                self.ready[revision] = host
                if host.template is not None and host.template.workload is None:
                    host.template.rebuild()
                host.start_min()
                self._on_awake()

    async def _move(self, routes: Routes) -> bool:
        """Raises when Envoy did not take them and no new revision is to blame; False where one is, which has failed then."""
        before, hosts = self.routes, dict(self.ready)
        fresh = routes.revisions - before.revisions
        left = [hosts[revision] for revision in before.revisions - routes.revisions if revision in hosts]
        for revision in fresh:
            hosts[revision].arm()
        try:
            # On disk first: they are ready, so an agent that comes after us goes on to them rather than back. The other way
            # round, that agent would end what Envoy may be sending requests to by now.
            for host in left:
                self._ledger.set_draining(host.function, True)
            self._ledger.set_routed(self.name, self._reach(routes, hosts))
            self._coming = routes
            await self._apply_routes()
        except (SteelyardError, OSError) as err:
            self._ledger.set_routed(self.name, self._reach(before, hosts))
            for host in left:
                self._ledger.set_draining(host.function, False)
            if not fresh:
                raise
            for revision in fresh:
                self._fail(hosts[revision].function, err)
                self._close(self.ready.pop(revision))
            return False
        finally:
            self._coming = None
        # Only now: whoever is told that they are routed must find them there.
        self.routes = routes
        for revision in fresh:
            self._ledger.set_draining(hosts[revision].function, False)  # it may have been left before
        return True

    def _reach(self, routes: Routes, hosts: dict[int, RevisionHost]) -> tuple[AssignedFunction, ...]:
        """The routed revisions, as an agent after us should take them over."""
        shares = {share.revision: share.percent for share in routes.shares}
        return tuple(
            msgspec.structs.replace(
                hosts[revision].function,
                percent=shares.get(revision, 0),
                tags=tuple(tag for tag, tagged in routes.tags if tagged == revision),
            )
            for revision in sorted(routes.revisions)
            if revision in hosts
        )

    # -- roll-out

    async def _roll_out(self, function: AssignedFunction) -> None:
        host: RevisionHost | None = None
        try:
            plan = function.plan or Plan()
            self._presence.check(plan)
            if function.volumes:
                await self._edges.volumes.check_reach(function.volumes)
            if function.spec.image and not function.spec.contained:
                ids = choose_ids(function.owner, function.spec.as_root, self._edges.settings, os.geteuid())
                await self._edges.home_images.bring_environment(function.owner, function.spec.image, ids)
            await self._take_back(function, plan)
            if devices_of(plan):
                await self._devices.note_start(plan)
            image = await find_image(self._edges, function, self._secrets)
            host = await self.make_host(function, None, image)
            self._rolling = host
            await make_ready(self._edges, host)
            self.ready[function.revision], host = host, None
        except Exception as err:
            self._fail(function, err)
        finally:
            self._rolling = None
            if host is not None:
                self._close(host)
            self._on_change()
            if not self._closed:
                self._start(self._turn())

    def _fail(self, function: AssignedFunction, err: Exception) -> None:
        match err:
            case RolloutFailed():
                failure = err.reason, err.public
            case SteelyardError():
                known = {
                    str(Reason.GATEWAY_REJECTED): Reason.GATEWAY_REJECTED,
                    GONE: Reason.DEVICE_GONE,
                    MISSING: Reason.IMAGE_MISSING,
                }
                ids = choose_ids(function.owner, function.spec.as_root, self._edges.settings, os.geteuid())
                failure = known.get(err.code, Reason.START_FAILED), explain_start(err.public, ids, function.owner)
            case OSError():
                failure = Reason.START_FAILED, f"The revision could not be started: {err}."
            case _:
                # A defect of ours: the user must not wait for ever, and the log must name it.
                log.error("roll-out of %s", function.name, exc_info=err)
                failure = Reason.START_FAILED, f"Steelyard itself failed ({err!r}); the agent's log has more."
        reason, detail = failure
        self._failed[function.revision] = reason, self._secrets.clean(function.owner, function.spec.secrets, detail)

    async def make_host(self, function: AssignedFunction, held: int | None, image: Image | None) -> RevisionHost:
        """A revision with its code and listening socket; `held` is the descriptor the spawner kept for it."""
        function = enter_function(self._edges.paths.environments, function)
        spec = function.spec
        self.placed |= function.plan is not None
        if spec.bundle is not None:
            code = await ensure_code(self._edges.paths, self._edges.settings, spec.bundle)
        else:
            code = Path(spec.cwd or "/")
        if image is not None:
            function, code = enter_image(self._edges, function, image)
        if held is not None:
            listener = socket.socket(fileno=held)
            listener.setblocking(False)
        else:
            listener = make_listener(socket_path(self._edges, function))
            self._edges.spawner.hold_socket(socket_name(function), listener.fileno())
        return RevisionHost(
            self._edges,
            function,
            code,
            listener,
            self._presence,
            self._on_wake,
            self._on_coldstart,
            self._on_awake,
            self._lending,
            self._tree,
            self._secrets,
            image,
        )

    async def _take_back(self, function: AssignedFunction, plan: Plan) -> None:
        """A new revision, its template too, begins on a place that the ones before may have lent."""
        specs = (function.spec, *(host.function.spec for host in self.ready.values()))
        bounds_s = [spec.wake_bound_s for spec in specs if spec.wake_bound_s is not None]
        if bounds_s:
            await self._lending.take_back(plan, self.name, self._edges.clock.mono_ns() + round(max(bounds_s) * 1e9))

    def _drain(self, old: RevisionHost) -> None:
        old.draining = True
        self.draining.append((old, self._edges.clock.mono_ns()))
        self._on_awake()

    def _close(self, host: RevisionHost) -> None:
        had = host.workloads
        self._past.append((self._seen(host, RevisionState.RETIRED), self._edges.clock.mono_ns()))
        host.close()
        # Only now: between its replicas the devices stay the revision's own.
        self._devices.note_end(had, host.plan)
        self._ledger.set_draining(host.function, False)
        with contextlib.suppress(Unreachable):  # a spawner that has gone holds nothing
            self._edges.spawner.drop_socket(socket_name(host.function))
        socket_path(self._edges, host.function).unlink(missing_ok=True)

    # -- observed

    def tick(self, held: Collection[str] = ()) -> bool:
        """False when nothing here needs another look soon. `held`: replicas that somebody is inside of."""
        awake = False
        for host in (*self.ready.values(), *((self._rolling,) if self._rolling is not None else ())):
            awake = host.tick(held) or awake
        now_ns = self._edges.clock.mono_ns()
        for host, since_ns in list(self.draining):
            host.tick()
            if host.function.revision in self.led:
                continue
            if not host.replicas and host.queued == 0 and now_ns - since_ns > DRAIN_MIN_S * 1e9:
                self.draining.remove((host, since_ns))
                self._close(host)
                self._on_change()
                if self._edges.settings.node_gateway:
                    self._start(self._forget_cluster())
        self._tell_counts(now_ns, last=not awake)
        return awake or bool(self.draining)

    def _tell_counts(self, now_ns: int, *, last: bool) -> None:
        """Requests come and go without a change that would be told at once."""
        counts = [host.counts for host in self.ready.values()]
        found = sum(each.requests for each in counts), sum(each.errors for each in counts)
        wait_s = 0.0 if last else TELL_ERRORS_S if found[1] != self._told[1] else TELL_S
        if found != self._told and now_ns - self._told_ns >= wait_s * 1e9:
            self._told, self._told_ns = found, now_ns
            self._on_change()

    async def _forget_cluster(self) -> None:
        """The gateway may be told again: it was to know a revision for as long as the home's did."""
        try:
            await self._apply_routes()
        except SteelyardError as err:
            log.warning("%s: the gateway was not told of its end: %s", self.name, err)

    @property
    def lends(self) -> bool:
        """Its only revision sleeps, nothing rolls out or drains, and jobs may be on its cores and devices."""
        if len(self.desired) != 1 or self.draining or not self.settled:
            return False
        return self.desired.keys() == self.ready.keys() and all(host.lends for host in self.ready.values())

    @property
    def hosts(self) -> list[RevisionHost]:
        """Those that are reached come first, the newest of them before the others."""
        rolling = [self._rolling] if self._rolling is not None else []
        return [*(self.ready[key] for key in sorted(self.ready, reverse=True)), *rolling, *(host for host, _ in self.draining)]

    def gateway(self) -> tuple[list[Cluster], list[Route]]:
        """What Envoy should know of the revisions that are reached."""
        routes = self._coming or self.routes
        hosts = {revision: self.ready[revision] for revision in sorted(routes.revisions)}
        known = dict(hosts)
        if self._edges.settings.node_gateway:
            # the home's gateway may still lead to what nothing here does
            known |= {host.function.revision: host for host in self.hosts if host is not self._rolling}
        clusters = {revision: self._cluster(known[revision]) for revision in sorted(known)}
        found: list[Route] = []
        if routes.shares:
            targets = tuple((clusters[share.revision].name, share.percent) for share in routes.shares)
            # a key is asked for until no revision that a request may reach wants one
            public = all(hosts[share.revision].function.spec.public for share in routes.shares)
            found.append(Route(self.name, targets, public))
        for tag, revision in routes.tags:
            found.append(Route(self.name, ((clusters[revision].name, 100),), hosts[revision].function.spec.public, tag))
        return [*clusters.values()], found

    def _cluster(self, host: RevisionHost) -> Cluster:
        """Made once: with each roll-out of one function Envoy is told of all."""
        if host.cluster is None:
            host.cluster = make_cluster(self._edges, host.function)
        return host.cluster

    def seen(self) -> FunctionSeen | None:
        newest = self.newest
        if newest is None:
            return None
        reached = [self.ready[share.revision] for share in self.routes.shares]
        live = [replica for host in reached for replica in host.live]
        serving = sum(replica.state == "serving" for replica in live)
        reason, detail = self._failed.get(newest.revision, (None, ""))
        if reason is not None:
            state = FunctionState.FAILED
        elif newest.revision not in self.routes.revisions:
            state = FunctionState.DEPLOYING
        elif serving:
            state = FunctionState.RUNNING
        else:
            state = FunctionState.WAKING if live else FunctionState.SLEEPING
        failures = [host.failure for host in reached if host.failure is not None]
        if reason is None and failures:
            reason, detail = failures[-1]
        return FunctionSeen(
            name=self.name,
            revision=newest.revision,
            state=state,
            routed_revision=max((share.revision for share in self.routes.shares), default=None),
            reason=reason,
            detail=detail,
            replicas=serving,
            waking=len(live) - serving,
            queued=sum(host.queued + host.pending for host in reached),
            lends=self.lends,
            routes=self.routes,
            reach=self._reachable() if self._edges.settings.node_gateway else (),
            revisions=self._seen_revisions(),
        )

    def _reachable(self) -> tuple[Reach, ...]:
        """How the home's gateway may lead to what is routed. Not to a program whose connections serve one request each: every
        request would wait for another handshake."""
        clusters = [(revision, self._cluster(self.ready[revision])) for revision in sorted(self.routes.revisions)]
        if any(cluster.requests_per_connection is not None for _, cluster in clusters):
            return ()
        return tuple(Reach(key, each.connections_max, each.pending_max, each.idle_timeout_s) for key, each in clusters)

    def _seen_revisions(self) -> tuple[RevisionSeen, ...]:
        """Every one that is here, is to be, or was until just now."""
        now_ns = self._edges.clock.mono_ns()
        self._past = [(row, at_ns) for row, at_ns in self._past if now_ns - at_ns < PAST_S * 1e9]
        found = [row for row, _ in self._past]
        found += [self._seen(host, RevisionState.RETIRED) for host, _ in self.draining]
        for revision, host in self.ready.items():
            routed = revision in self.routes.revisions
            found.append(self._seen(host, RevisionState.READY if routed else RevisionState.DEPLOYING))
        for revision in self.desired.keys() - self.ready.keys():
            reason, detail = self._failed.get(revision, (None, ""))
            state = RevisionState.DEPLOYING if reason is None else RevisionState.FAILED
            found.append(RevisionSeen(revision, state, reason=reason, detail=detail))
        return tuple(found)

    def _seen(self, host: RevisionHost, state: RevisionState) -> RevisionSeen:
        counts = host.counts
        return RevisionSeen(host.function.revision, state, host.since, counts.requests, counts.errors, counts.failed_starts)

    # -- adoption

    async def adopt(self, function: AssignedFunction, held: int | None) -> RevisionHost:
        """Route what an earlier agent routed. A template is started again unless one was found alive (the caller adopts it)."""
        host = await self.make_host(function, held, await find_image(self._edges, function, None))
        self.desired[function.revision], self.ready[function.revision] = function, host
        wanted = [Wanted(each.revision, each.percent, each.tags) for each in self.desired.values()]
        self.routes = plan_rollout(wanted, self.ready, (), Routes()).routes
        return host

    async def adopt_draining(self, function: AssignedFunction, held: int | None) -> RevisionHost:
        """Let a revision that an earlier agent drained finish what it holds."""
        host = await self.make_host(function, held, await find_image(self._edges, function, None))
        host.opened = True
        self._drain(host)
        return host

    def close(self) -> None:
        """The agent ends; workloads stay."""
        self._closed = True
        for task in (self._rollout, *self._turns):
            if task is not None:
                task.cancel()


def make_cluster(edges: Edges, function: AssignedFunction) -> Cluster:
    spec = function.spec
    return Cluster(
        name=socket_name(function),
        socket_path=str(socket_path(edges, function)),
        connections_max=spec.replicas_max * spec.concurrency,
        pending_max=spec.queue_max,
        idle_timeout_s=min(5.0, spec.idle_timeout_s / 2),
        requests_per_connection=None if spec.served_by_runner else 1,
    )
