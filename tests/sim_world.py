"""The whole batch half on the virtual clock: real store contract, loops and decisions, a machine and its agent that are only
counted (`sim_agent.py`), and everything between them that can fail.

Pokes are the real ones, so that a loop which nobody pokes is activated by its tick alone, as in `control/driver.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from queues import small_machine
from sim_agent import Disk, Kernel, ModelAgent
from steelyard.api.auth import WorkloadTokens
from steelyard.api.submission import insert_jobs
from steelyard.clock import VirtualClock
from steelyard.control import ASSIGNMENT, JOBS, REPORTS
from steelyard.control.assignment import AssignmentLoop, begin_epoch
from steelyard.control.changes import commit_change
from steelyard.control.driver import RETRY_S
from steelyard.control.images import NodeImages
from steelyard.control.jobs import JobsLoop
from steelyard.control.live import LiveJobs
from steelyard.control.reports import ReportsLoop, greet
from steelyard.control.rollouts import Looks
from steelyard.control.watch import Watch
from steelyard.errors import Conflict, EdgeFailed, SteelyardError
from steelyard.lifecycle.job import Change
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, JobId, MachineId
from steelyard.model.job import Job, JobSpec, Owner
from steelyard.store import Store, StoredAnswer, Tx
from steelyard.store.memory import MemoryStore
from steelyard.wire.agent import Assignment, Report

T = TypeVar("T")

MACHINE = small_machine(cores_per_node=2, gpus=2)
OWNER = Owner("u", 1)
#: activations that may follow each other without anything new from outside
ROUNDS_MAX = 200


class FaultyStore:
    """`before`: so many writes from now on fail and change nothing. `after`: so many take effect, and their answer is lost.
    `reads`: so many reads fail."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.before = self.after = self.reads = 0

    async def write(self, fn: Callable[[Tx], T]) -> T:
        if self.before:
            self.before -= 1
            raise EdgeFailed("The disk refused it.", code="store-failed")
        value = await self._store.write(fn)
        if self.after:
            self.after -= 1
            raise EdgeFailed("Nobody knows whether it is on disk.", code="store-failed")
        return value

    async def read(self, fn: Callable[[Tx], T]) -> T:
        if self.reads:
            self.reads -= 1
            raise EdgeFailed("The disk could not be read.", code="store-failed")
        return await self._store.read(fn)

    async def close(self) -> None:
        await self._store.close()


class Hub:
    """The server's end of the connection, as `api/agents.py`. What is on its way is lost with the connection."""

    def __init__(self) -> None:
        self.assignment: Assignment | None = None
        self.to_agent: deque[Assignment] = deque()
        self.to_server: deque[Report] = deque()
        self.report: Report | None = None
        self.connected = False

    def newest_reports(self) -> dict[MachineId, Report]:
        return {} if self.report is None else {OWN_MACHINE: self.report}

    def acknowledge(self, machine: MachineId, report: Report) -> None:
        if self.report is report:
            self.report = None

    def offer(self, machine: MachineId, assignment: Assignment) -> None:
        self.assignment = assignment
        if self.connected:
            self.to_agent.append(assignment)

    def holds(self, machine: MachineId, assignment: Assignment) -> bool:
        return self.assignment is assignment

    def drop(self, machine: MachineId) -> None:
        raise AssertionError("the home's own machine never goes for good")

    def disconnect(self) -> None:
        self.connected = False
        self.to_agent.clear()
        self.to_server.clear()
        self.report = None


class World:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        #: read by whoever checks, without faults
        self.truth = MemoryStore()
        self.store = FaultyStore(self.truth)
        self.kernel = Kernel(self.clock, Disk())
        self.agent: ModelAgent | None = None
        self.link_up = True
        self.number = 0
        self.start_server()
        self.start_agent()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def read(self, fn: Callable[[Tx], T]) -> T:
        return self.run(self.truth.read(fn))

    # -- the server

    def start_server(self) -> None:
        """Another life of it: nothing is remembered but what is stored."""
        self.hub = self.make_hub()
        self.live = LiveJobs()
        watch = Watch()
        self.jobs = JobsLoop(self.store, self.clock, watch, self.live)
        assignment = AssignmentLoop(self.store, self.hub, self.live, WorkloadTokens("", self.live.attempt))
        reports = ReportsLoop(self.store, self.hub, self.clock, watch, self.live, Looks(), NodeImages())
        self.loops = {JOBS: self.jobs, ASSIGNMENT: assignment, REPORTS: reports}
        self.wanted = {JOBS, ASSIGNMENT}
        #: when each looks although nobody poked it
        self.due: dict[str, int] = {}
        faults, self.store.before, self.store.after = (self.store.before, self.store.after), 0, 0
        self.run(begin_epoch(self.store))
        self.store.before, self.store.after = faults

    def make_hub(self) -> Hub:
        return Hub()

    def activate(self, name: str) -> None:
        loop = self.loops[name]
        self.wanted.discard(name)
        wait_s = None
        try:
            self.wanted |= set(self.run(loop.activate()))
        except Conflict:
            self.wanted.add(name)
        except SteelyardError:
            wait_s = min(RETRY_S, loop.tick_s)
        self.due[name] = self.clock.now_us() + round((loop.tick_s if wait_s is None else wait_s) * 1e6)

    # -- the machine

    def start_agent(self) -> None:
        if self.agent is None:
            self.agent = ModelAgent(self.kernel, MACHINE.id)

    def kill_agent(self) -> None:
        self.agent = None
        self.hub.disconnect()

    def reboot(self) -> None:
        self.kill_agent()
        self.kernel.reboot()

    def connect(self) -> None:
        """Hello, the newest assignment to it, everything it sees from it."""
        if self.hub.connected or not self.link_up or self.agent is None:
            return
        machine = msgspec.structs.replace(MACHINE, boot_id=self.kernel.boot_id)
        try:
            if self.run(greet(self.store, machine, self.clock.now_us())):
                self.hub.assignment = None
        except SteelyardError:
            self.hub.assignment = None
            return
        self.hub.connected = True
        if self.hub.assignment is not None:
            self.hub.to_agent.append(self.hub.assignment)
        self.agent.changed = True
        self.wanted |= {JOBS, ASSIGNMENT}

    # -- one thing at a time

    def send_report(self) -> None:
        if self.agent is not None and self.hub.connected and self.agent.changed:
            self.hub.to_server.append(self.agent.report())

    def deliver_report(self) -> None:
        if self.hub.to_server:
            self.hub.report = self.hub.to_server.popleft()
            self.wanted.add(REPORTS)

    def deliver_assignment(self) -> None:
        if self.hub.to_agent and self.agent is not None:
            newest = self.hub.to_agent.popleft()
            self.agent.accept(newest)

    def settle(self) -> None:
        """Everything that needs no time happens."""
        rounds = 0
        while True:
            rounds += 1
            assert rounds < ROUNDS_MAX, f"the loops run hot: {self.wanted}"
            self.kernel.run_out()
            if self.agent is not None:
                self.agent.work()
                if self.agent.next_ns is not None and self.agent.next_ns <= self.clock.mono_ns():
                    self.agent.step()
            self.connect()
            self.send_report()
            self.deliver_report()
            if self.wanted:
                self.activate(min(self.wanted))
            self.deliver_assignment()
            hub, agent = self.hub, self.agent
            moving = agent is not None and (agent.busy or (hub.connected and (agent.changed or hub.to_agent)))
            if not (self.wanted or hub.to_server or moving):
                return

    def advance(self, seconds: float) -> None:
        """Event by event; everything that needs no time happens in between."""
        until = self.clock.now_us() + round(seconds * 1e6)
        self.settle()
        while True:
            now = self.clock.now_us()
            ahead = [*self.next_events(), *self.due.values()]
            at = min((each for each in ahead if each is not None), default=until)
            if at > until:
                self.clock.advance((until - now) / 1e6)
                return
            self.clock.advance(max(0, at - now) / 1e6)
            for name, due in self.due.items():
                if due <= self.clock.now_us():
                    self.wanted.add(name)
            self.due = {name: due for name, due in self.due.items() if name not in self.wanted}
            self.settle()

    def next_events(self) -> list[int | None]:
        """When something happens by itself on machines."""
        looks = [] if self.agent is None or self.agent.next_ns is None else [-(-self.agent.next_ns // 1000)]
        return [self.kernel.next_end(), *looks]

    # -- people

    def submit(self, spec: JobSpec, array: str | None = None, project: str = "default") -> list[JobId]:
        """As a client does: with one key until it is answered."""
        self.number += 1
        key, now = f"k{self.number}", self.clock.now_us()

        def commit(tx: Tx) -> list[JobId]:
            stored = tx.answer(DEFAULT_PROJECT, key)
            if stored is not None:
                return msgspec.json.decode(stored.body, type=list[JobId])
            jobs = [job.id for job in insert_jobs(tx, spec, OWNER, now, root=True, array=array, project=project)]
            tx.put_answer(StoredAnswer(key, DEFAULT_PROJECT, "", 201, msgspec.json.encode(jobs), now))
            return jobs

        while True:
            try:
                jobs = self.run(self.store.write(commit))
            except EdgeFailed:
                continue
            self.wanted.add(JOBS)
            return jobs

    def change(self, job: JobId, change: Callable[[Job], Change | None]) -> bool:
        """What `api/jobs.py` does for hold, release, priority and stop. False when the store failed."""

        def commit(tx: Tx) -> None:
            row = tx.job(job)
            assert row is not None
            changed = change(row)
            if changed is not None:
                commit_change(tx, row, changed, self.clock.now_us())

        try:
            self.run(self.store.write(commit))
        except EdgeFailed:
            return False
        self.wanted |= {JOBS, ASSIGNMENT}
        return True
