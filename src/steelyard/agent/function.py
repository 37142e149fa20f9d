"""One function on this machine: which revision gets its traffic, and how the next one takes over without losing a request.

Roll-out: code here -> socket -> template -> trial replica answers on a private socket -> minimum replicas serve -> Envoy is
told (clusters, then routes) -> remembered on disk -> the old revision drains and is closed. A step that fails leaves the old one
routed and the new one FAILED with the reason; it is tried once, not in a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

from steelyard.agent.code import ensure_code
from steelyard.agent.devices import DeviceKeeper, devices_of
from steelyard.agent.edges import Edges
from steelyard.agent.identity import choose_ids, explain_start
from steelyard.agent.ledger import Ledger
from steelyard.agent.lending import Lending
from steelyard.agent.presence import GONE, Presence
from steelyard.agent.readiness import POLL_S, ask_ready, make_listener
from steelyard.agent.replica import FAILED, SERVING
from steelyard.agent.revision import RevisionHost
from steelyard.agent.template_tree import TemplateTree
from steelyard.errors import SteelyardError, Unreachable
from steelyard.gateway import Cluster, Route
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import FunctionState
from steelyard.model.ids import FunctionName, name_logs
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.wire.agent import AssignedFunction, FunctionSeen

log = logging.getLogger(__name__)

#: an old revision stays at least this long after Envoy took the new routes
DRAIN_MIN_S = 1.0


class RolloutFailed(SteelyardError):
    """The new revision can't take traffic. `reason` and the public text reach the user."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail, code=str(reason))
        self.reason = reason


class FunctionHost:
    """`apply_routes` brings Envoy in line with every function's `routed` and returns once it took effect."""

    def __init__(
        self,
        edges: Edges,
        name: FunctionName,
        on_change: Callable[[], None],
        on_coldstart: Callable[[ColdStart], None],
        on_awake: Callable[[], None],
        apply_routes: Callable[[], Awaitable[None]],
        ledger: Ledger,
        devices: DeviceKeeper,
        presence: Presence,
        lending: Lending,
        tree: TemplateTree,
    ) -> None:
        self._devices, self._presence, self._lending, self._tree = devices, presence, lending, tree
        self._edges, self.name = edges, name
        self._on_change, self._on_coldstart, self._on_awake = on_change, on_coldstart, on_awake
        self._apply_routes, self._ledger = apply_routes, ledger
        self.newest: AssignedFunction | None = None
        self.routed: RevisionHost | None = None
        self.draining: list[tuple[RevisionHost, int]] = []
        self._rolling: RevisionHost | None = None
        #: what Envoy is being told to route to right now
        self._coming: RevisionHost | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: tuple[Reason, str] | None = None

    # -- desired

    def set_desired(self, function: AssignedFunction | None) -> None:
        """Newest revision, or None when the function was deleted. Level-triggered."""
        if function is None:
            if self.newest is not None or self.routed is not None:
                self.newest = None
                self._restart_task(self._delete())
            return
        if self.newest is not None and function.revision <= self.newest.revision:
            return
        self.newest = function
        if self.routed is not None and self.routed.function.revision == function.revision:
            return
        self._failure = None
        self._restart_task(self._roll_out(function))

    def _restart_task(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.ensure_future(self._follow(self._task, work))

    async def _follow(self, earlier: asyncio.Task[None] | None, work: Coroutine[None, None, None]) -> None:
        """One at a time. An earlier roll-out is broken off, unless Envoy is being told just now: then it may finish, since what
        Envoy routes to must not be closed."""
        try:
            if earlier is not None and not earlier.done():
                if self._coming is None:
                    earlier.cancel()
                await asyncio.wait({earlier})
        except asyncio.CancelledError:
            work.close()
            raise
        await work

    @property
    def gone(self) -> bool:
        """Deleted, and nothing of it is left."""
        return self.newest is None and self.routed is None and not self.draining and self.settled

    @property
    def settled(self) -> bool:
        """Nothing rolls out and nothing is being deleted."""
        return self._task is None or self._task.done()

    # -- roll-out

    async def _roll_out(self, function: AssignedFunction) -> None:
        host: RevisionHost | None = None
        try:
            plan = function.plan or Plan()
            self._presence.check(plan)
            await self._take_back(function, plan)
            if devices_of(plan):
                await self._devices.note_start(plan)
            host = await self.make_host(function, None)
            self._rolling = host
            await self._make_ready(host)
            await self._take_over(host)
            host = None
        except RolloutFailed as err:
            self._failure = (err.reason, err.public)
        except SteelyardError as err:
            known = {str(Reason.GATEWAY_REJECTED): Reason.GATEWAY_REJECTED, GONE: Reason.DEVICE_GONE}
            reason = known.get(err.code, Reason.START_FAILED)
            ids = choose_ids(function.owner, function.spec.as_root, self._edges.settings, os.geteuid())
            self._failure = (reason, explain_start(err.public, ids, function.owner))
        except OSError as err:
            self._failure = (Reason.START_FAILED, f"The revision could not be started: {err}.")
        except Exception as err:
            # A defect of ours: the user must not wait for ever, and the log must name it.
            log.exception("roll-out of %s", function.name)
            self._failure = (Reason.START_FAILED, f"Steelyard itself failed ({err!r}); the agent's log has more.")
        finally:
            self._rolling = None
            if host is not None:
                self._close(host)
            self._on_change()

    async def make_host(self, function: AssignedFunction, held: int | None) -> RevisionHost:
        """A revision with its code and listening socket; `held` is the descriptor the spawner kept for it."""
        spec = function.spec
        if spec.bundle is not None:
            code = await ensure_code(self._edges.paths, self._edges.settings, spec.bundle)
        else:
            code = Path(spec.cwd or "/")
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
            self._on_change,
            self._on_coldstart,
            self._on_awake,
            self._lending,
            self._tree,
        )

    async def _take_back(self, function: AssignedFunction, plan: Plan) -> None:
        """A new revision, its template too, begins on a place that the one before may have lent."""
        before = self.routed.function.spec.wake_bound_s if self.routed is not None else None
        bounds_s = [bound_s for bound_s in (function.spec.wake_bound_s, before) if bound_s is not None]
        if bounds_s:
            await self._lending.take_back(plan, self.name, self._edges.clock.mono_ns() + round(max(bounds_s) * 1e9))

    async def _make_ready(self, host: RevisionHost) -> None:
        if host.template is not None:
            status = await host.template.start()
            if status.state != "ready":
                raise RolloutFailed(Reason.IMPORT_FAILED, status.traceback)
        await self._try_out(host)
        host.start_min()
        await self._until_serving(host, host.function.spec.replicas_min)

    async def _try_out(self, host: RevisionHost) -> None:
        path = socket_path(self._edges, host.function).with_suffix(".trial")
        listener = make_listener(path)
        try:
            replica = await host.start_trial(listener)
            deadline_s = host.function.spec.startup_deadline_s
            target = "/.steelyard/ready" if host.template is not None else "/"
            try:
                async with asyncio.timeout(deadline_s):
                    while replica.workload in host.replicas and replica.page.state not in (SERVING, FAILED):
                        await asyncio.sleep(POLL_S)
                    self._check_alive(host, replica.workload in host.replicas, replica.page.error)
                    status = await ask_ready(path, target)
            except TimeoutError as err:
                text = f"It did not answer within its startup deadline of {deadline_s:g} s."
                raise RolloutFailed(Reason.READINESS_FAILED, text + self._log_tail()) from err
            if status is None or (host.template is not None and status != 200):
                raise RolloutFailed(Reason.READINESS_FAILED, "It closed the connection without an answer." + self._log_tail())
        finally:
            host.end_trial()
            listener.close()
            path.unlink(missing_ok=True)

    def _check_alive(self, host: RevisionHost, alive: bool, error: str) -> None:
        if error or not alive:
            detail = error or (host.failure[1] if host.failure else "It ended before it served.")
            raise RolloutFailed(Reason.READINESS_FAILED, detail + self._log_tail())

    async def _until_serving(self, host: RevisionHost, count: int) -> None:
        deadline_s = host.function.spec.startup_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                while sum(replica.state == "serving" for replica in host.live) < count:  # the trial is none of them
                    if host.failure is not None:
                        raise RolloutFailed(*host.failure)
                    await asyncio.sleep(POLL_S)
        except TimeoutError as err:
            text = f"Its {count} replicas did not serve within its startup deadline of {deadline_s:g} s."
            raise RolloutFailed(Reason.STARTUP_DEADLINE, text + self._log_tail()) from err

    async def _take_over(self, host: RevisionHost) -> None:
        host.arm()
        old = self.routed
        # On disk first: it is ready, so an agent that comes after us goes on to it rather than back. The other way round, that
        # agent would end what Envoy may be sending requests to by now.
        self._note_move(old, host)
        self._coming = host
        try:
            await self._apply_routes()
        except Exception:
            self._ledger.set_routed(self.name, old.function if old is not None else None)
            if old is not None:
                self._ledger.set_draining(old.function, False)
            raise
        finally:
            self._coming = None
        # Only now: whoever is told that it is routed must find it there.
        self.routed = host
        self._failure = None
        if old is not None:
            self._drain(old)

    def _note_move(self, source: RevisionHost | None, target: RevisionHost | None) -> None:
        if source is not None:
            self._ledger.set_draining(source.function, True)
        self._ledger.set_routed(self.name, target.function if target is not None else None)

    def _drain(self, old: RevisionHost) -> None:
        old.draining = True
        self.draining.append((old, self._edges.clock.mono_ns()))
        self._on_awake()

    async def _delete(self) -> None:
        old, self.routed = self.routed, None
        if self._rolling is not None:
            self._close(self._rolling)
            self._rolling = None
        try:
            await self._apply_routes()
        except SteelyardError as err:
            log.warning("%s: Envoy did not drop its route yet: %s", self.name, err)
        self._note_move(old, None)
        if old is not None:
            self._drain(old)
        else:
            self._on_awake()  # the next look finds it gone

    def _close(self, host: RevisionHost) -> None:
        had = host.workloads
        host.close()
        # Only now: between its replicas the devices stay the revision's own.
        self._devices.note_end(had, host.plan)
        self._ledger.set_draining(host.function, False)
        with contextlib.suppress(Unreachable):  # a spawner that has gone holds nothing
            self._edges.spawner.drop_socket(socket_name(host.function))
        socket_path(self._edges, host.function).unlink(missing_ok=True)

    # -- observed

    def tick(self) -> bool:
        """False when nothing here needs another look soon."""
        awake = self.routed is not None and self.routed.tick()
        if self._rolling is not None:
            awake = self._rolling.tick() or awake
        now_ns = self._edges.clock.mono_ns()
        for host, since_ns in list(self.draining):
            host.tick()
            if not host.replicas and host.queued == 0 and now_ns - since_ns > DRAIN_MIN_S * 1e9:
                self.draining.remove((host, since_ns))
                self._close(host)
                self._on_change()
        return awake or bool(self.draining)

    @property
    def lends(self) -> bool:
        """The newest revision sleeps, nothing rolls out or drains, and jobs may be on its cores and devices."""
        host = self.routed
        if host is None or self.newest is None or not self.settled or self.draining:
            return False
        return host.lends and host.function.revision == self.newest.revision

    @property
    def hosts(self) -> list[RevisionHost]:
        found = [self.routed, self._rolling, *(host for host, _ in self.draining)]
        return [host for host in found if host is not None]

    def gateway(self) -> tuple[Cluster, Route] | None:
        """What Envoy should know of the revision that gets the traffic."""
        host = self._coming or self.routed
        if host is None:
            return None
        function = host.function
        spec = function.spec
        cluster = Cluster(
            name=f"{function.name}.{function.revision}",
            socket_path=str(socket_path(self._edges, function)),
            connections_max=spec.replicas_max * spec.concurrency,
            pending_max=spec.queue_max,
            idle_timeout_s=min(5.0, spec.idle_timeout_s / 2),
            requests_per_connection=None if spec.served_by_runner else 1,
        )
        return cluster, Route(function=function.name, cluster=cluster.name, public=spec.public)

    def seen(self) -> FunctionSeen | None:
        if self.newest is None:
            return None
        host = self.routed
        live = host.live if host else []
        serving = sum(replica.state == "serving" for replica in live)
        reason, detail = self._failure or (None, "")
        if self._failure is not None:
            state = FunctionState.FAILED
        elif host is None or host.function.revision != self.newest.revision:
            state = FunctionState.DEPLOYING
        elif serving:
            state = FunctionState.RUNNING
        else:
            state = FunctionState.WAKING if live else FunctionState.SLEEPING
        if host is not None and host.failure is not None and self._failure is None:
            reason, detail = host.failure
        return FunctionSeen(
            name=self.name,
            revision=self.newest.revision,
            state=state,
            routed_revision=host.function.revision if host else None,
            reason=reason,
            detail=detail,
            replicas=serving,
            waking=len(live) - serving,
            queued=host.queued + host.pending if host else 0,
            lends=self.lends and self._failure is None,
        )

    def _log_tail(self) -> str:
        path = self._edges.paths.workloads / name_logs(self.name) / "stderr"
        try:
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4000))
                text = file.read().decode(errors="replace").strip()
        except OSError:
            return ""
        return f"\nThe end of its stderr:\n{text}" if text else ""

    async def adopt(self, function: AssignedFunction, held: int | None) -> RevisionHost:
        """Route what an earlier agent routed. A template is started again unless one was found alive (the caller adopts it)."""
        self.newest = function
        self.routed = await self.make_host(function, held)
        return self.routed

    async def adopt_draining(self, function: AssignedFunction, held: int | None) -> RevisionHost:
        """Let a revision that an earlier agent drained finish what it holds."""
        host = await self.make_host(function, held)
        host.opened = True
        self._drain(host)
        return host

    def close(self) -> None:
        """The agent ends; workloads stay."""
        if self._task is not None:
            self._task.cancel()


def socket_name(function: AssignedFunction) -> str:
    return f"{function.name}.{function.revision}"


def socket_path(edges: Edges, function: AssignedFunction) -> Path:
    # Hashed: a 63-character function name would push the path over the kernel's 107 bytes.
    digest = hashlib.sha256(socket_name(function).encode()).hexdigest()[:16]
    return edges.paths.function_sockets / f"{digest}.sock"
