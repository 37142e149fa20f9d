"""One revision of a function on this machine: its listening socket, its template, its replicas, and how it wakes.

Asleep (nobody accepts), the event loop watches the socket for readability; the connection itself waits in the kernel. Awake, a
20 ms tick reads the socket's queue and the replicas' pages and asks the pure `decide_replicas`. Never moves request bytes, except
to refuse those that wait when a start has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path

from steelyard.agent.answer import refuse_waiting, render_refusal
from steelyard.agent.device_proof import shares_by_mps
from steelyard.agent.edges import Edges
from steelyard.agent.function_container import start_contained
from steelyard.agent.identity import choose_ids, make_env
from steelyard.agent.lending import Lending
from steelyard.agent.presence import GONE, Presence
from steelyard.agent.replica import FAILED, SERVING, Replica, Slot, make_slot
from steelyard.agent.replica_end import ENDS_KEPT, explain_replica_end, say_in_log
from steelyard.agent.scaler import Scaler
from steelyard.agent.secrets import SecretKeeper, WorkSecrets
from steelyard.agent.starter import start_plain
from steelyard.agent.template import TemplateKeeper
from steelyard.agent.template_tree import TemplateTree
from steelyard.errors import Conflict, SteelyardError, Unreachable
from steelyard.gateway import Cluster
from steelyard.lifecycle.environment import make_environment
from steelyard.lifecycle.launch import tell_api
from steelyard.lifecycle.mounts import make_variables
from steelyard.model.coldstart import ColdStart, Road
from steelyard.model.function import ReplicaEnd
from steelyard.model.ids import WorkloadId, name_logs
from steelyard.model.image import Image
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.container import variables
from steelyard.runtime.deaf import end_deaf
from steelyard.runtime.process import Adopted
from steelyard.runtime.records import Handle
from steelyard.runtime.runner.page import Page
from steelyard.runtime.template import Forked
from steelyard.scaling.rollout import Counts
from steelyard.wire.agent import AssignedFunction
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

FAILURE_BACKOFF_MIN_S, FAILURE_BACKOFF_MAX_S = 0.5, 30.0
#: the next slot is made this long after a wake, when the replica has had both cores for its first answer
SLOT_DELAY_S = 0.03
#: how soon to look again when the spawner is away
SPAWNER_WAIT_S = 0.1


class RevisionHost:
    """Owns everything of one revision. `on_change` is called when what a report would say has changed."""

    def __init__(
        self,
        edges: Edges,
        function: AssignedFunction,
        code: Path,
        listener: socket.socket,
        presence: Presence,
        on_change: Callable[[], None],
        on_coldstart: Callable[[ColdStart], None],
        on_awake: Callable[[], None],
        lending: Lending,
        tree: TemplateTree,
        secrets: SecretKeeper,
        image: Image | None = None,
    ) -> None:
        self.edges, self.function, self.code, self.listener = edges, function, code, listener
        self._presence, self._lending = presence, lending
        #: its replicas that ended since it last woke
        self._had: set[str] = set()
        self._gave = False
        self._on_change, self._on_coldstart, self._on_awake = on_change, on_coldstart, on_awake
        self.plan = function.plan or Plan()
        self.image = image
        owner = self.ids = choose_ids(function.owner, function.spec.as_root, edges.settings, os.geteuid())
        if image is not None and owner is not None:
            self.ids = edges.containers.ids(image, owner)
            edges.containers.pin(self.name, image)
        self.logs = name_logs(function.name)
        # one home for all: what is read when an interpreter starts must not differ from function to function
        home = str(code if function.spec.bundle is None else edges.paths.unpacked)
        env = make_env(function.spec.env, home, self.ids, function.owner)
        if image is not None:
            env = variables(image, function.spec.env)
        place = make_environment(self.plan, edges.machine.topology, env, threads=False, mps=shares_by_mps(self.plan))
        place |= make_variables(function.volumes)
        self.env = place | tell_api(edges.settings.api_url, function.token, edges.settings.tls_cert or "")
        self.secrets = WorkSecrets(secrets, function.owner, function.spec.secrets, f"fn.{self.name}", self.ids)
        self.template: TemplateKeeper | None = None
        if function.spec.served_by_runner:
            self.template = TemplateKeeper(edges, tree, function, code, self.logs, self.env, self.ids, self.secrets, image, owner)
        self.replicas: dict[WorkloadId, Replica] = {}
        #: what Envoy is told of it, once it was
        self.cluster: Cluster | None = None
        self.queued = 0
        #: requests that wait in Envoy, beyond what the replicas and the socket may hold
        self.pending = 0
        self.scaler = Scaler(function.spec, function.revision, edges.clock)
        self.failure: tuple[Reason, str] | None = None
        #: counts begin here; what was counted by replicas that have ended
        self.since = edges.clock.now_us()
        self._past = Counts()
        self._slot: Slot | None = None
        self._armed = False
        #: starts whose replica is not among `replicas` yet
        self._begun = 0
        self._failures = 0
        self._refuse_until_ns = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False
        #: of replicas that nobody told to end, the newest last
        self.ends: deque[ReplicaEnd] = deque(maxlen=ENDS_KEPT)
        #: only now may sockets be watched and replicas be started: its trial is over
        self.opened = False
        #: a revision that gets no more traffic: retire as soon as nothing waits
        self.draining = False

    @property
    def name(self) -> str:
        return f"{self.function.name}.{self.function.revision}"

    @property
    def live(self) -> list[Replica]:
        """Replicas that accept from the function's socket, or will."""
        return [replica for replica in self.replicas.values() if replica.state != "retiring" and not replica.trial]

    @property
    def counts(self) -> Counts:
        """Of its replicas, the trial left out."""
        return sum((replica.counts for replica in self.replicas.values() if not replica.trial), self._past)

    @property
    def full(self) -> bool:
        """As many connections as Envoy may have here: further requests wait in Envoy."""
        held = self.queued + sum(replica.page.connections for replica in self.live)
        return held >= self.function.spec.replicas_max * self.function.spec.concurrency

    @property
    def lends(self) -> bool:
        """It sleeps, and others may be on its cores and devices."""
        ready = self.opened and not self.draining and not self._closed
        return ready and self.function.spec.wake_bound_s is not None and not self.replicas

    # -- asleep: the socket is watched

    def arm(self) -> None:
        """Watch the socket if nobody serves it."""
        if self.opened and not self._closed and not self._armed and not self.live:
            self._armed = True
            self.scaler.sleep()
            asyncio.get_running_loop().add_reader(self.listener.fileno(), self._readable)
            self._prepare_slot()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            asyncio.get_running_loop().remove_reader(self.listener.fileno())

    def _readable(self) -> None:
        seen_ns = self.edges.clock.mono_ns()
        self._disarm()
        if seen_ns < self._refuse_until_ns:
            self._spawn_task(self._refuse())
        else:
            self.scaler.wake()
            self._begin(seen_ns, woken=True)

    def wake(self) -> None:
        """Somebody wants to be inside: as a request would, unless a replica is on its way. Raises Conflict."""
        now_ns = self.edges.clock.mono_ns()
        if self.live or self._begun:
            return
        if now_ns < self._refuse_until_ns:
            reason, detail = self.failure or (Reason.START_FAILED, "")
            raise Conflict(f"It could not be started ({reason}). {detail}".strip(), code="start-failed")
        self._disarm()
        self.scaler.visit()
        self._begin(now_ns, woken=False)

    # -- starting

    def _begin(self, seen_ns: int, woken: bool) -> None:
        self._begun += 1
        self._spawn_task(self._try_start(seen_ns, woken))

    async def _try_start(self, seen_ns: int, woken: bool) -> None:
        self._begun -= 1
        with contextlib.suppress(SteelyardError, OSError):  # `_no_slot` has seen to those who wait
            await self._start(seen_ns, woken)

    def _no_slot(self, err: Exception) -> None:
        """Nothing could even be prepared. While the spawner is away callers wait for it; a full disk is told to them."""
        log.warning("%s: no slot: %s", self.name, err)
        if isinstance(err, Unreachable):
            self._await_spawner()
            return
        gone = isinstance(err, SteelyardError) and err.code == GONE
        self._count_failure(Reason.DEVICE_GONE if gone else Reason.START_FAILED, getattr(err, "public", str(err)))

    def _await_spawner(self) -> None:
        asyncio.get_running_loop().call_later(SPAWNER_WAIT_S, self.arm)

    async def _start(self, seen_ns: int, woken: bool, listener: socket.socket | None = None) -> Replica:
        try:
            if not self.edges.spawner.connected:
                raise Unreachable("The spawner is away; nobody would record the replica's end.", code="spawner-unreachable")
            self._presence.check(self.plan)
            slot = self._take_slot()
        except (SteelyardError, OSError) as err:
            self._no_slot(err)
            raise
        replica = Replica(slot.workload, slot.page, Road.TEMPLATE, Reason.TEMPLATE_READY, seen_ns, seen_ns, woken)
        replica.trial = listener is not None
        self.replicas[slot.workload] = replica
        if not replica.trial:
            self._disarm()  # those who wait are this one's; watching on would start more than there may be
        self._on_awake()
        loop = asyncio.get_running_loop()
        loop.call_later(self.function.spec.startup_deadline_s, self._check_deadline, replica)
        fd = (listener or self.listener).fileno()
        try:
            if self.function.spec.wake_bound_s is not None and not await self._take_back(replica):
                return replica
            if not await self._start_from_template(replica, slot, fd):
                given = await self.secrets.variables()
                if replica.workload not in self.replicas:
                    return replica  # given up meanwhile, and those who waited were told
                replica.sent_ns = self.edges.clock.mono_ns()
                handle = await self._start_plain(slot, fd, replica.trial, given)
                replica.road, replica.pid, replica.start_time = Road.PLAIN, handle.pid, handle.start_time
        except (SteelyardError, OSError) as err:
            if replica.trial or self.edges.spawner.serves(slot.spawner):
                self._failed(replica, Reason.START_FAILED, getattr(err, "public", str(err)))
            else:
                log.warning("%s: the spawner went while %s was started: %s", self.name, replica.workload, err)
                self._remove(replica)
                self._await_spawner()  # so do those who wait
                self._on_change()
            return replica
        finally:
            slot.close_fds()
        if replica.retiring:  # told so before it had a process that could hear it
            self._retire(replica)
        loop.call_later(SLOT_DELAY_S, self._prepare_slot)
        self._on_change()
        return replica

    async def _start_plain(self, slot: Slot, listen_fd: int, private: bool, given: Mapping[str, str]) -> Handle:
        if self.image is not None:
            return await start_contained(self, self.image, slot, listen_fd, private, given)
        return await start_plain(self, slot, listen_fd, private, given)

    async def _take_back(self, replica: Replica) -> bool:
        """Whoever it was lent to leaves its place first. False: the start has failed meanwhile."""
        bound_ns = round((self.function.spec.wake_bound_s or 0.0) * 1e9)
        await self._lending.take_back(self.plan, self.function.name, replica.seen_ns + bound_ns, self._had)
        replica.taken_ns = self.edges.clock.mono_ns()
        return replica.workload in self.replicas

    async def _start_from_template(self, replica: Replica, slot: Slot, listen_fd: int) -> bool:
        """True when forked, from the revision's template or from its environment; otherwise the plain start must do. Why it was
        not the template says `replica.reason`."""
        template = self.template
        if template is None:
            replica.reason = Reason.COMMAND_HAS_NO_TEMPLATE
            return False
        replica.sent_ns = self.edges.clock.mono_ns()
        forked = await template.fork(slot, listen_fd, replica.trial)
        if not isinstance(forked, Forked):
            replica.reason, replica.road = Reason(forked.reason), Road.ENVIRONMENT
            template.miss()
            parent = await template.find_parent()
            load = await template.load()
            if replica.workload not in self.replicas:
                return True  # given up meanwhile, and those who waited were told
            if parent is not None:
                forked = await template.fork_from(parent, load, slot, listen_fd, replica.trial)
        if not isinstance(forked, Forked):
            log.info("%s: plain start: %s %s", self.name, forked.reason, forked.detail)
            return False
        replica.pid, replica.start_time = forked.pid, forked.start_time
        self.edges.runtime.claim(slot.workload, forked.pid, forked.start_time)
        if not self.edges.spawner.serves(slot.spawner):
            raise Unreachable("It was forked under a spawner that has gone.", code="spawner-unreachable")
        return True

    def _take_slot(self) -> Slot:
        if self._slot is not None and not self.edges.spawner.serves(self._slot.spawner):
            # A caller may wake us between the new spawner's hello and `on_new_spawner`.
            self.drop_slot()
        slot, self._slot = self._slot, None
        return slot or make_slot(self.edges, self.function, self.edges.paths.workloads / self.logs, self.ids)

    def _prepare_slot(self) -> None:
        if self._slot is None and not self._closed:
            try:
                self._slot = make_slot(self.edges, self.function, self.edges.paths.workloads / self.logs, self.ids)
            except (SteelyardError, OSError) as err:
                log.warning("%s: no slot could be prepared: %s", self.name, err)

    # -- failing

    def _check_deadline(self, replica: Replica) -> None:
        if replica.workload in self.replicas and replica.page.state not in (SERVING, FAILED) and not replica.retiring:
            self._failed(replica, Reason.STARTUP_DEADLINE, self.explain_late(replica))

    def explain_late(self, replica: Replica) -> str:
        """Of one that lives and does not serve at its deadline."""
        detail = f"It did not serve within its startup deadline of {self.function.spec.startup_deadline_s:g} s."
        if replica.page.said:
            detail += f" At the end {replica.page.said}."
        if self.function.spec.wake_bound_s is not None and not replica.taken_ns:
            detail += " The devices that it had lent are not free yet; `steelyard check` says who is on them."
        return f"{detail} {self.secrets.explain_wait()}".rstrip()

    def _failed(self, replica: Replica, reason: Reason, detail: str) -> None:
        """A start came to nothing: end what there is of it, refuse those who wait, and do not try again at once."""
        log.warning("%s: %s failed: %s", self.name, replica.workload, detail)
        replica.retiring = True
        self._remove(replica)
        if replica.trial:
            self.failure = (reason, detail)
            return
        self._count_failure(reason, detail)

    def _count_failure(self, reason: Reason, detail: str) -> None:
        self.failure = (reason, detail)
        backoff_s = min(FAILURE_BACKOFF_MAX_S, FAILURE_BACKOFF_MIN_S * 2**self._failures)
        self._failures += 1
        self._past += Counts(failed_starts=1)
        self._refuse_until_ns = self.edges.clock.mono_ns() + round(backoff_s * 1e9)
        if not self.live:
            self._spawn_task(self._refuse())
        self._on_change()

    async def _refuse(self) -> None:
        reason, detail = self.failure or (Reason.START_FAILED, "")
        retry_s = max(0, self._refuse_until_ns - self.edges.clock.mono_ns()) // 1_000_000_000 + 1
        first_line = detail.strip().splitlines()[-1] if detail.strip() else "It could not be started."
        await refuse_waiting(self.listener, render_refusal(reason, first_line, retry_s))
        self.arm()

    # -- awake: the tick

    def tick(self, held: Collection[str] = ()) -> bool:
        """One look at queue and replicas; False when nothing here needs a next one. `held`: those that somebody is inside of."""
        may_sleep = self.draining or self.function.spec.replicas_min == 0
        if self._closed or (self._armed and not self.replicas and may_sleep):
            return False
        if self._begun:
            return True  # counted now, they would be started once more
        now_ns = self.edges.clock.mono_ns()
        for replica in list(self.replicas.values()):
            self._look(replica)
        if not self.opened:
            return True
        self.queued = self.edges.queue.length(self.listener.fileno()) or 0
        if not self.live and (may_sleep or now_ns < self._refuse_until_ns):
            self.arm()
            return bool(self.replicas) or now_ns < self._refuse_until_ns
        metrics = len(self.function.spec.scale_on)
        replicas = [item.look(now_ns, metrics, item.workload in held) for item in self.replicas.values() if not item.trial]
        decision = self.scaler.decide(now_ns, self.queued, self.pending, replicas)
        if decision.start:
            self._disarm()  # a minimum is started again after a backoff in which only refusals were given
        for _ in range(decision.start):
            self._begin(now_ns, woken=False)
        for name in decision.retire:
            self._retire(self.replicas[WorkloadId(name)])
        if self.draining and self.queued == 0:
            for replica in self.live:
                if replica.page.connections == 0:
                    self._retire(replica)
        if decision.retire:
            self.arm()
        return True

    def _look(self, replica: Replica) -> None:
        row = replica.take_coldstart(self.function, self.edges)
        if row is not None:
            self._on_coldstart(row)
        if replica.page.state == SERVING and not replica.served:
            replica.served = True
            self._failures, self.failure = 0, None
            self._on_change()

    def _retire(self, replica: Replica) -> None:
        replica.retiring = True
        self.edges.runtime.signal_leader(replica.workload, signal.SIGTERM)
        if self.image is not None and replica.pid is not None:
            end_deaf([replica.pid], signal.SIGTERM)
        self._on_change()

    async def start_trial(self, listener: socket.socket) -> Replica:
        """One replica on a private socket, outside of all counting."""
        return await self._start(self.edges.clock.mono_ns(), woken=False, listener=listener)

    def end_trial(self) -> None:
        for replica in list(self.replicas.values()):
            if replica.trial:
                self._retire(replica)

    def start_min(self) -> None:
        """Open for traffic: start the replicas that `replicas_min` asks for (the tick keeps them), else watch the socket. A
        revision that drains starts none but for those who wait."""
        self.opened = True
        missing = 0 if self.draining else self.function.spec.replicas_min - len(self.live)
        for _ in range(missing):
            self._begin(self.edges.clock.mono_ns(), woken=False)
        if missing <= 0:
            self.arm()
            self._give()

    # -- exits and adoption

    def on_exit(self, exited: Exited) -> bool:
        """True when it was ours."""
        if self.template is not None and self.template.on_exit(exited):
            return True
        replica = self.replicas.get(WorkloadId(exited.workload))
        if replica is None:
            return False
        self._look(replica)
        served, retiring, trial = replica.served, replica.retiring, replica.trial
        if not retiring and not trial and served and replica.page.accepted == 0:
            # No request did this: it would die again at once, and again.
            self._failed(replica, Reason.CRASH_LOOP, "It ended by itself before any request reached it.")
            return True
        if not served and not retiring and (trial or not exited.unseen):
            how = f"signal {exited.signal}" if exited.signal else f"exit code {exited.exit_code}"
            self._failed(
                replica, Reason.START_FAILED, self.secrets.clean(replica.page.error) or f"It ended before it served ({how})."
            )
            return True
        if not retiring:
            # Those that wait are served by the next one: the kernel still holds them.
            self.ends.append(end := explain_replica_end(self.edges, replica.workload, exited, self.function.spec))
            say_in_log(self.edges.paths.workloads / self.logs, end)
            log.warning("%s: replica %s ended by itself: %s %s", self.name, replica.workload, end.reason, end.detail)
        self._remove(replica)
        if self.opened and not self.live:
            self.start_min()
        self._on_change()
        return True

    def _remove(self, replica: Replica) -> None:
        self.replicas.pop(replica.workload, None)
        if not replica.trial:
            # what it was at work on has failed
            self._past += replica.counts + Counts(replica.page.busy, replica.page.busy)
        replica.page.close()
        self.edges.cleanup.remove(replica.workload)
        if self._gave:
            self._gave, self._had = False, set()
        self._had.add(replica.workload)
        self._give()

    def _give(self) -> None:
        """Its last replica has ended: from now on its place is lent."""
        if self.lends and self._had and not self._gave:
            self._gave = True
            self._lending.give(self.plan, self._had)

    def adopt_replica(self, found: Adopted, reached: bool) -> None:
        """A replica that an earlier agent started. Nobody reaches one whose socket was lost with agent and spawner: it finishes
        what it holds, and others serve."""
        path = self.edges.paths.pages / found.workload
        page = Page.open(str(path))
        now_ns = self.edges.clock.mono_ns()
        replica = Replica(found.workload, page, Road.PLAIN, Reason.TEMPLATE_READY, now_ns, now_ns, woken=False)
        replica.served = page.state == SERVING
        replica.counted = Counts(page.finished, page.errors)
        if found.handle is not None:
            replica.pid, replica.start_time = found.handle.pid, found.handle.start_time
        self.replicas[found.workload] = replica
        # how long it had been starting already is not known: it gets the whole time
        asyncio.get_running_loop().call_later(self.function.spec.startup_deadline_s, self._check_deadline, replica)
        if not reached:
            self._retire(replica)

    def close(self) -> None:
        """The revision is gone: everything of it ends, nothing of it stays."""
        self._disarm()
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self.template is not None:
            self.template.close()
        for replica in list(self.replicas.values()):
            self._remove(replica)
        self.drop_slot()
        if self.image is not None:
            self.edges.containers.pin(self.name, None)
        self.listener.close()

    def on_secrets(self) -> None:
        """A start would be given others than before: the template is made anew, and files are replaced."""
        if self.template is not None:
            self.template.renew()
        if self.secrets and self.workloads and not self.secrets.explain_wait():
            self._spawn_task(self._replace_files())

    async def _replace_files(self) -> None:
        with contextlib.suppress(SteelyardError):  # the next start tells
            await self.secrets.variables()

    def drop_slot(self) -> None:
        """The prepared slot is no good any more (its spawner is gone, or the revision is)."""
        if self._slot is not None:
            slot, self._slot = self._slot, None
            slot.close_fds()
            slot.page.close()
            self.edges.cleanup.forget(slot.workload)

    def _spawn_task(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def workloads(self) -> set[str]:
        """Replicas and template that may have a process now."""
        template = self.template.workload if self.template is not None else None
        return {*self.replicas, *((template,) if template is not None else ())}

    @property
    def running(self) -> list[tuple[WorkloadId, int, int]]:
        """(workload, pid, start time) of what an exit could be missed of."""
        return [
            (replica.workload, replica.pid, replica.start_time)
            for replica in self.replicas.values()
            if replica.pid is not None and replica.start_time is not None
        ]
