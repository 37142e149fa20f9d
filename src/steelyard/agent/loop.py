"""The agent, joined: adopts what runs, accepts assignments, reconciles, reports.

Events (exits, readable sockets, assignments) only make it look sooner; every look reads everything anew. While the server is away
all of this goes on; while the spawner is away nothing new starts and what runs is watched by pidfd.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque

import msgspec

from steelyard.agent.devices import DeviceKeeper
from steelyard.agent.edges import Edges
from steelyard.agent.execs import KIND as EXEC
from steelyard.agent.execs import ExecHost, ExecKeeper
from steelyard.agent.functions import FunctionKeeper
from steelyard.agent.health import HealthEdge, HealthKeeper
from steelyard.agent.holdings import Holdings
from steelyard.agent.images import ImageKeeper
from steelyard.agent.job_container import JobContainers
from steelyard.agent.jobs import KIND as JOB
from steelyard.agent.jobs import JobKeeper
from steelyard.agent.ledger import Ledger
from steelyard.agent.lending import Lending
from steelyard.agent.link import Link
from steelyard.agent.presence import Presence
from steelyard.agent.reconcile import ALIVE
from steelyard.agent.scratch import ScratchKeeper
from steelyard.agent.secrets import SecretKeeper
from steelyard.agent.streams import StreamKeeper
from steelyard.agent.terminals import HELD as TERMINAL
from steelyard.agent.terminals import TerminalKeeper
from steelyard.agent.timing import KIND as PROBE
from steelyard.agent.timing import TimingKeeper
from steelyard.agent.usage import UsageKeeper
from steelyard.agent.volumes import VolumeKeeper
from steelyard.errors import SteelyardError, Unreachable
from steelyard.model.coldstart import ColdStart
from steelyard.model.health import NODE
from steelyard.model.ids import AttemptId, FunctionName, WorkloadId
from steelyard.runtime.logs import rotate
from steelyard.runtime.process import Adopted
from steelyard.runtime.procstat import process_runs
from steelyard.wire import WIRE_VERSION
from steelyard.wire.agent import Answer, Ask, Assignment, ExecStart, Hello, MachineHealth, Report
from steelyard.wire.spawn import Exited, Running
from steelyard.wire.streams import StreamStart

log = logging.getLogger(__name__)

PROOF_POLL_S = 1.0
HOUSEKEEPING_S = 1.0
SPAWNER_RETRY_S = 0.05
#: after one that could not be written (disk full)
ASSIGNMENT_RETRY_S = 1.0
#: bytes of one workload stream kept on disk; older ones are cut out and the gap is marked
LOG_KEEP_BYTES = 64 * 1024 * 1024
#: ledger rows kept while the server is away; the oldest go first
COLDSTARTS_MAX = 10_000
COLDSTARTS_PER_REPORT = 1000
#: below the server's patience with a question
KEYS_WAIT_S = HOLD_WAIT_S = 3.0


class Agent:
    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._ledger = Ledger(edges.paths.agent, edges.lane)
        self._offered: Assignment | None = None
        self._offers = asyncio.Event()
        self._coldstarts: deque[ColdStart] = deque(maxlen=COLDSTARTS_MAX)
        self._in_flight, self._events_in_flight = dict[int, int](), dict[int, int]()
        self._orphans: dict[WorkloadId, int] = {}
        #: exits that were told before what runs was taken over; None: it has been
        self._early: list[Exited] | None = []
        timing = TimingKeeper(edges.paths, edges.runtime, edges.cleanup, edges.clock, edges.journal, root=os.geteuid() == 0)
        self.health = HealthKeeper(
            edges.paths.agent,
            edges.machine.boot_id,
            edges.clock,
            self._in_use,
            self._changed,
            HealthEdge(edges.paths.agent, edges.observe_topology),
        )
        # Shared by jobs and functions: a device may be used by both, and must not go back while either has it.
        self.devices = DeviceKeeper(
            edges.paths.agent,
            lambda: self.jobs.workloads_in("starting", *ALIVE) | self.functions.workloads,
            lambda: self.jobs.workloads_in("ended"),
            self._changed,
            self.health.record,
        )
        self.presence = Presence(edges.machine.topology)
        self._missing: tuple[str, ...] = ()  # what starts have missed, as it was reported last
        scratch = ScratchKeeper(edges.scratch)
        usage = UsageKeeper(edges.cgroups, edges.clock, edges.machine.topology, scratch.peak_bytes)
        self.secrets = SecretKeeper(edges.paths, edges.settings, lambda: self.functions.on_secrets())
        self.terminals = TerminalKeeper(edges.spawner, edges.clock)
        self.holdings = Holdings(scratch, usage, edges.cgroups, edges.volumes, self.secrets, self.terminals)
        self.volumes = VolumeKeeper(edges.volumes, edges.settings, edges.clock)
        self.container_images = edges.images
        self.jobs = JobKeeper(
            edges.paths,
            edges.settings,
            edges.machine,
            edges.runtime,
            edges.cleanup,
            edges.cgroups,
            edges.clock,
            timing,
            self._changed,
            self.devices,
            self.presence,
            self.holdings,
            str(edges.slurm_bin),
            JobContainers(edges.containers, edges.images, edges.grants),
            lambda plan: self.functions.may_have(plan),
        )
        self.images = ImageKeeper(edges.paths, edges.settings, self._changed)
        self.execs = ExecKeeper(
            edges.paths, edges.runtime, edges.cleanup, edges.clock, self._find_host, edges.containers, self.terminals
        )
        self.streams = StreamKeeper(
            edges.settings, edges.paths.agent_token, edges.clock, self.terminals, self._find_host, self.execs.start_copy
        )
        self.functions = FunctionKeeper(
            edges, self._ledger, self._changed, self._add_coldstart, on_wake=self._woke, devices=self.devices,
            presence=self.presence, lending=Lending(self._reserve, self.jobs.make_way, self.devices),
            secrets=self.secrets, inside=lambda: self.execs.inside | self.streams.inside,
        )  # fmt: skip
        self._link = self._make_link(edges)

    def _make_link(self, edges: Edges) -> Link:
        return Link(
            edges.settings,
            edges.paths.agent_token,
            Hello(wire_version=WIRE_VERSION, machine=edges.machine),
            make_report=self._make_report,
            on_assignment=self._on_assignment,
            on_ack=self._on_ack,
            on_ask=self._on_ask,
        )

    async def run(self) -> None:
        """Until cancelled. Workloads stay when it ends."""
        held, running = await self._connect_spawner()
        await self._adopt(held, running)
        loops = [
            self._link.run(),
            self._take_assignments(),
            self._keep_spawner(),
            self._watch_proofs(),
            self._housekeeping(),
            self.health.run(),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            self.functions.close()
            self.devices.close()

    async def _find_host(self, work: AttemptId, rank: int | None) -> ExecHost:
        """Inside an attempt, or a replica. Raises SteelyardError."""
        return await self.functions.find_inside(work) or self.jobs.find_host(work, rank)

    def _in_use(self) -> set[str]:
        """Devices that work has, and `node` while any work runs."""
        return (
            self.jobs.devices_in_use
            | self.functions.devices_in_use
            | ({NODE} if self.jobs.running or self.functions.running else set())
        )

    # -- the spawner

    async def _connect_spawner(self) -> tuple[dict[str, int], Running]:
        while True:
            try:
                return await self._edges.spawner.connect()
            except (SteelyardError, OSError):
                await asyncio.sleep(SPAWNER_RETRY_S)  # the supervisor brings it back

    async def _keep_spawner(self) -> None:
        while True:
            await self._edges.spawner.closed.wait()
            log.warning("the spawner is gone; what runs goes on, its exits will be reported as unknown")
            self._watch_orphans()
            held, _ = await self._connect_spawner()
            for fd in held.values():
                os.close(fd)
            try:
                self.terminals.on_new_spawner()
                self.functions.on_new_spawner()
            except Unreachable as err:
                log.warning("the new spawner went while it was given the sockets: %s", err)
                continue
            self.jobs.reconcile(self._ledger.assignment.jobs)

    def _running(self) -> list[tuple[WorkloadId, int, int]]:
        return [*self.jobs.running, *self.execs.running, *self.functions.running]

    def _watch_orphans(self) -> None:
        """Whatever no spawner will tell the end of: all that runs while it is away, and what is older than it afterwards. Looked
        at again by the housekeeping, since a start may outlast the change from one spawner to the next."""
        spawner = self._edges.spawner
        for workload, pid, start_time in self._running():
            if not spawner.connected or start_time < spawner.start_time:
                self._watch_orphan(workload, pid, start_time)

    def _watch_orphan(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        """A workload whose parent is gone: its end can be seen by pidfd, its exit code can't."""
        if workload in self._orphans:
            return
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            self._orphan_ended(workload, pid)
            return
        if not process_runs(pid, start_time):  # the descriptor may be another one's, who was given its pid
            os.close(fd)
            self._orphan_ended(workload, pid)
            return
        self._orphans[workload] = fd
        asyncio.get_running_loop().add_reader(fd, self._orphan_ended, workload, pid)

    def _orphan_ended(self, workload: WorkloadId, pid: int) -> None:
        fd = self._orphans.pop(workload, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self.jobs.on_lost(workload)
        exited = Exited(
            workload=workload,
            pid=pid,
            start_time=0,
            ended_at=self._edges.clock.now_us(),
            exit_code=None,
            signal=None,
            user_s=0.0,
            system_s=0.0,
            peak_rss_bytes=0,
        )
        self.terminals.on_exit(workload)
        if not self.execs.on_exit(exited):
            self.functions.on_exit(exited)

    def on_exit(self, exited: Exited) -> None:
        """Called by the spawner client; the record is on disk already."""
        if self._early is not None:
            # Nobody knows yet whose it is, and to forget it would be to start its job once more.
            self._early.append(exited)
            return
        self.terminals.on_exit(WorkloadId(exited.workload))
        if self.jobs.builds(WorkloadId(exited.workload)):
            self.images.look()
        if not (self.jobs.on_exit(exited) or self.execs.on_exit(exited) or self.functions.on_exit(exited)):
            self._edges.cleanup.forget(WorkloadId(exited.workload))

    # -- start-up

    async def _adopt(self, held: dict[str, int], running: Running) -> None:
        found = self._edges.runtime.adopt(running)
        assignment = self._ledger.assignment
        self.secrets.adopt(assignment.secrets)
        probes = [item for item in found if _kind(item) == PROBE]
        self.jobs.adopt([item for item in found if _kind(item) == JOB], assignment.jobs, probes)
        self.execs.adopt(item for item in found if _kind(item) == EXEC)
        terminals = {name: held.pop(name) for name in list(held) if name.startswith(TERMINAL)}
        self.terminals.adopt(terminals, {workload for workload, _, _ in [*self.jobs.running, *self.execs.running]})
        self.holdings.scratch.adopt([workload for workload, _, _ in self.jobs.running])
        await self.functions.adopt(held, [item for item in found if _kind(item) not in (JOB, PROBE, EXEC)], assignment)
        early, self._early = self._early or [], None
        for exited in early:
            self.on_exit(exited)
        children = {workload for workload, _, _ in running.children}
        for workload, pid, start_time in self._running():
            if workload not in children:
                self._watch_orphan(workload, pid, start_time)
        self.devices.resume()
        self.volumes.sweep()
        self._edges.containers.sweep()
        if assignment.generation:
            self._reconcile(assignment)

    # -- the server

    def _on_assignment(self, assignment: Assignment) -> None:
        """Only the newest counts: what came while the one before was written to disk is overtaken by what came last."""
        self._offered = assignment
        self._offers.set()

    async def _take_assignments(self) -> None:
        while True:
            await self._offers.wait()
            self._offers.clear()
            assignment = self._offered
            if assignment is None:
                continue
            try:
                if self._ledger.follows(assignment):
                    self.jobs.go_ahead(assignment.jobs, lambda assignment=assignment: self._ledger.note(assignment))
                accepted = await self._ledger.accept(assignment)
            except OSError as err:
                # nothing of it was acted on; the disk may have room the next time
                log.error("an assignment could not be written, so it is not acted on yet: %s", err)
                await asyncio.sleep(ASSIGNMENT_RETRY_S)
                self._offers.set()
                continue
            if accepted:
                self._reconcile(assignment)
            else:
                log.warning("refused an older assignment %d.%d", assignment.epoch, assignment.generation)

    def _reconcile(self, assignment: Assignment) -> None:
        self._reserve()
        self.secrets.reconcile(assignment.secrets)
        self.jobs.reconcile(assignment.jobs)
        self.functions.reconcile(assignment)
        self.images.reconcile(assignment.images)
        if self.jobs.workloads_in("starting"):
            # that it is being started is no news, and the server's look at it would only delay what becomes of it
            self._link.poke_later()
        else:
            self._changed()

    def _changed(self) -> None:
        self._link.poke()

    def _woke(self) -> None:
        self._link.poke_later()

    def _reserve(self) -> None:
        """When an assignment came, before anything is started, and when a function that lends its cores falls asleep or wakes;
        what older revisions leave free is noticed by the housekeeping."""
        newest = [function.plan for function in self._ledger.assignment.functions if function.plan is not None]
        held = [held.plan for held in self.functions.held(self._ledger.assignment.functions)]
        # without cpusets nobody could be moved off them again
        lent = self.functions.lent if "cpuset" in self._edges.cgroups.controllers else ()
        self.jobs.reserve([*newest, *held], lent)

    def _add_coldstart(self, row: ColdStart) -> None:
        self._coldstarts.append(row)
        self._woke()

    def _make_report(self, seq: int) -> Report:
        rows = tuple(self._coldstarts)[:COLDSTARTS_PER_REPORT]
        self._in_flight[seq] = len(rows)
        node, events = self.health.node, self.health.events()
        self._missing = self.presence.missing
        self._events_in_flight[seq] = events[-1].serial if events else 0
        return Report(
            seq=seq,
            machine=self._edges.machine.id,
            boot_id=self._edges.machine.boot_id,
            generation=self._ledger.assignment.generation,
            attempts=self.jobs.attempts(),
            functions=self.functions.seen(),
            coldstarts=rows,
            blocked=tuple(sorted({*node.blocked, *self.devices.waiting, *self._missing})),
            blocked_pairs=node.blocked_pairs,
            held=self.functions.held(self._ledger.assignment.functions),
            finishing=self.functions.finishing,
            health_events=events,
            images=self.images.seen,
            away=self.functions.away_told,
        )

    def _on_ack(self, seq: int) -> None:
        self.health.drop_events(self._events_in_flight.get(seq, 0))
        self._events_in_flight = {other: serial for other, serial in self._events_in_flight.items() if other > seq}
        sent = self._in_flight.get(seq, 0)
        # Reports in flight repeat the same rows from the front; the first acknowledgement drops them, later ones find fewer.
        self._in_flight = {other: max(0, count - sent) for other, count in self._in_flight.items() if other > seq}
        for _ in range(min(sent, len(self._coldstarts))):
            self._coldstarts.popleft()
        if len(self._coldstarts):
            self._changed()

    async def _on_ask(self, ask: Ask) -> Answer:
        if ask.what == "proof":
            proof = self.jobs.proof(AttemptId(ask.workload))
            if proof is None:
                return Answer(id=ask.id, error="No process of this job has run yet, or its records are gone.")
            return Answer(id=ask.id, data=msgspec.json.encode(proof))
        if ask.what == "keys":
            told = await self.functions.wait_told(ask.workload, KEYS_WAIT_S)
            return Answer(id=ask.id, error="" if told else "The gateway has not taken the keys yet.")
        if ask.what == "usage":
            usage = self.holdings.used(AttemptId(ask.workload))
            if usage is None:
                return Answer(id=ask.id, error="No process of this job has run yet, or its records are gone.")
            return Answer(id=ask.id, data=msgspec.json.encode(usage))
        if ask.what == "replica-proofs":
            proofs = self.functions.prove(FunctionName(ask.workload), self.jobs.shared_cpus())
            return Answer(id=ask.id, data=msgspec.json.encode(proofs))
        if ask.what == "hold":
            return await self._answer_hold(ask)
        if ask.what == "ends":
            return Answer(id=ask.id, data=msgspec.json.encode(self.functions.ends(FunctionName(ask.workload))))
        if ask.what == "scaling":
            return Answer(id=ask.id, data=msgspec.json.encode(self.functions.scaling(FunctionName(ask.workload))))
        if ask.what == "image-packages":
            packages = self.images.packages(ask.workload)
            if packages is None:
                return Answer(id=ask.id, error="There is no such image on this machine.")
            return Answer(id=ask.id, data=msgspec.json.encode(packages))
        if ask.what in ("container-images", "image-remove", "image-pull", "image-pull-state"):
            return await self.container_images.answer(ask)
        if ask.what == "template":
            line = await self.functions.show_templates(FunctionName(ask.workload))
            if line is None:
                return Answer(id=ask.id, error="This function is not on its machine yet. Try again in a moment.")
            return Answer(id=ask.id, data=msgspec.json.encode(line))
        if ask.what.startswith("exec"):
            return await self._answer_exec(ask)
        if ask.what == "stream":
            try:
                await self.streams.start(msgspec.json.decode(ask.body, type=StreamStart))
            except (SteelyardError, msgspec.MsgspecError) as err:
                return Answer(id=ask.id, error=err.public if isinstance(err, SteelyardError) else str(err))
            return Answer(id=ask.id)
        if ask.what.startswith("volume"):
            return await self.volumes.answer(ask)
        if ask.what in ("health", "readmit", "keep-hardware"):
            return await self._answer_health(ask)
        if ask.what == "log":
            stream = "stderr" if ask.stream == "stderr" else "stdout"
            try:
                piece = self.jobs.files.read_output(ask.workload, stream, ask.offset, ask.limit, ask.margin)
            except SteelyardError as err:
                return Answer(id=ask.id, error=err.public)
            return Answer(ask.id, piece.data, piece.next_offset, "", piece.gap, piece.before, piece.after, piece.cut)
        return Answer(id=ask.id, error=f"This agent does not know the question {ask.what!r}.")

    async def _answer_hold(self, ask: Ask) -> Answer:
        """By a replica's id; empty while none serves."""
        try:
            found = await self.functions.hold(FunctionName(ask.workload), ask.body.decode(), HOLD_WAIT_S)
        except SteelyardError as err:
            return Answer(id=ask.id, error=err.public)
        return Answer(id=ask.id, data=(found or "").encode())

    async def _answer_exec(self, ask: Ask) -> Answer:
        try:
            if ask.what == "exec":
                wanted = msgspec.json.decode(ask.body, type=ExecStart)
                return Answer(id=ask.id, data=(await self.execs.start(AttemptId(ask.workload), wanted)).encode())
            if ask.what == "exec-stop":
                self.execs.stop(WorkloadId(ask.workload), ask.offset)
                return Answer(id=ask.id)
        except (SteelyardError, msgspec.MsgspecError) as err:
            return Answer(id=ask.id, error=err.public if isinstance(err, SteelyardError) else str(err))
        state = self.execs.state(WorkloadId(ask.workload))
        if state is None:
            return Answer(id=ask.id, error="There is no such command, or it was forgotten after its end.")
        return Answer(id=ask.id, data=msgspec.json.encode(state))

    async def _answer_health(self, ask: Ask) -> Answer:
        try:
            if ask.what == "readmit":
                self.health.readmit(ask.workload)
            elif ask.what == "keep-hardware":
                await self.health.keep_hardware()
        except SteelyardError as err:
            return Answer(id=ask.id, error=err.public)
        shown = MachineHealth(self.health.node.state.value, self.health.node, self.health.seen.worst_first())
        return Answer(id=ask.id, data=msgspec.json.encode(shown))

    # -- slow loops, idle when there is nothing to watch

    async def _watch_proofs(self) -> None:
        while True:
            await asyncio.sleep(PROOF_POLL_S)
            if self.jobs.running:
                self.jobs.observe_proofs()
                await self.holdings.usage.sample()

    def _look_at_missing(self) -> None:
        """What a start missed may be back: nothing but a look can tell, and the server waits for the word."""
        if self.presence.missing != self._missing:
            self._changed()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._edges.cleanup.retry()
            self._watch_orphans()
            self._reserve()
            self.health.on_use()
            self._look_at_missing()
            self.images.check()
            self.secrets.sweep(lambda: self.jobs.workloads_in("starting", *ALIVE) | self.functions.secret_folders)
            await self.holdings.scratch.look()
            self.jobs.end_over_scratch(self.holdings.scratch.over())
            self.terminals.tidy()
            replicas = self.functions.replicas
            self.execs.tidy(
                {*(workload for workload, _, _ in self.jobs.running), *replicas}, {*self.jobs.known, *map(AttemptId, replicas)}
            )
            running = [*self.jobs.running, *self.execs.running]
            for workload in {item[0] for item in running} | self.functions.log_folders:
                for stream in ("stdout", "stderr"):
                    await asyncio.to_thread(rotate, self.jobs.files.folder(workload) / stream, LOG_KEEP_BYTES)
            available_bytes = _available_bytes()
            self.functions.check_memory(available_bytes)
            self.functions.look_at_weights(available_bytes)


def _kind(item: Adopted) -> str:
    return item.intent.kind if item.intent else ""


def _available_bytes() -> int:
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
