"""One replica of a revision: what is known of it, the slot it is started from, and what its page says.

A slot is made ahead of demand: intent fsynced, cgroup filled, page and log files open. It reserves nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from steelyard.agent.coldstart import WakeStamps, make_coldstart
from steelyard.agent.edges import Edges
from steelyard.model.coldstart import ColdStart, Road
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.runner.page import Page
from steelyard.scaling.replicas import ReplicaSeen
from steelyard.scaling.rollout import Counts
from steelyard.wire.agent import AssignedFunction

KIND = "replica"
#: numbers of a plain start's descriptors
LISTEN_FD, PAGE_FD = 3, 4
#: numbers of a replica's own that are older say nothing of now
METRICS_STALE_NS = 3_000_000_000
#: values of Page.state
SERVING, RETIRING, FAILED = 5, 6, 7


@dataclass
class Slot:
    """Everything a fork needs, ready before anybody asks."""

    workload: WorkloadId
    page: Page
    page_fd: int
    log_fds: tuple[int, int]
    cgroup_fds: list[int]
    #: of its own; empty: the common ones
    cpus: tuple[int, ...]
    #: the spawner that it was prepared under; no other may start it
    spawner: str

    def close_fds(self) -> None:
        for fd in (self.page_fd, *self.log_fds, *self.cgroup_fds):
            os.close(fd)


def make_slot(edges: Edges, function: AssignedFunction, logs: Path, ids: tuple[int, int] | None) -> Slot:
    """Intent, cgroup, page, log files and open join descriptors for one replica to come."""
    workload = WorkloadId(f"{function.name}.{function.revision}.{edges.clock.now_us():x}")
    asked = function.spec.resources
    plan = Plan(share=asked.cpus, memory_bytes=asked.memory_bytes)
    if function.plan is not None:
        plan = msgspec.structs.replace(function.plan, share=asked.cpus, memory_bytes=asked.memory_bytes)
    edges.runtime.prepare(workload, kind=KIND, plan=plan)
    page_path = edges.paths.pages / workload
    page = Page.create(str(page_path))
    page_fd = os.open(page_path, os.O_RDWR | os.O_CLOEXEC)
    joins = edges.cgroups.open_join(workload)
    return Slot(workload, page, page_fd, open_logs(logs, ids), joins, plan.cpus, edges.spawner.instance)


def open_logs(folder: Path, ids: tuple[int, int] | None) -> tuple[int, int]:
    """stdout and stderr of a function: append-only files that its replicas share."""
    folder.mkdir(mode=0o755, exist_ok=True)
    fds: list[int] = []
    for stream in ("stdout", "stderr"):
        fd = os.open(folder / stream, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if ids is not None:
            os.fchown(fd, *ids)
        fds.append(fd)
    return fds[0], fds[1]


@dataclass
class Replica:
    """A started replica. `woken` by a request (and so owed a ledger row), or started by scaling."""

    workload: WorkloadId
    page: Page
    road: Road
    reason: Reason
    seen_ns: int
    sent_ns: int
    woken: bool
    pid: int | None = None
    start_time: int | None = None
    retiring: bool = False
    served: bool = False
    #: when its revision had its place back that it had lent; 0: it lends nothing
    taken_ns: int = 0
    #: on a private socket, to see whether the revision answers
    trial: bool = False
    #: its proof has matched once
    matched_before: bool = False
    #: what its page had counted before this agent took it over
    counted: Counts = field(default_factory=Counts)

    @property
    def counts(self) -> Counts:
        """Requests that ended since, and those of them that failed."""
        return Counts(self.page.finished - self.counted.requests, self.page.errors - self.counted.errors)

    @property
    def state(self) -> Literal["starting", "serving", "retiring"]:
        if self.retiring or self.page.state == RETIRING:
            return "retiring"
        return "serving" if self.page.state == SERVING else "starting"

    def look(self, now_ns: int, metrics: int, held: bool = False) -> ReplicaSeen:
        """`metrics`: so many numbers of its own are asked for; `held`: somebody is inside."""
        page = self.page
        fresh = metrics and now_ns - page.metrics_ns < METRICS_STALE_NS
        return ReplicaSeen(
            id=self.workload,
            state=self.state,
            connections=page.connections,
            busy=page.busy,
            last_active_ns=page.last_active_ns or self.seen_ns,
            finished=page.finished,
            service_ns=page.service_ns,
            metrics=page.read_metrics(metrics) if fresh else (),
            held=held,
        )

    def take_coldstart(self, function: AssignedFunction, edges: Edges) -> ColdStart | None:
        """The ledger row, once, as soon as the first byte was sent."""
        page = self.page
        if not self.woken or not page.first_byte_ns:
            return None
        self.woken = False
        stamps = WakeStamps(
            seen=self.seen_ns,
            sent=self.sent_ns,
            alive=page.alive_ns,
            joined=page.joined_ns,
            imported=page.imported_ns,
            entered=page.entered_ns,
            accepted=page.accepted_ns,
            first_byte=page.first_byte_ns,
            arrival_us=page.arrival_us,
            taken=self.taken_ns,
        )
        return make_coldstart(
            replica=self.workload,
            function=function.name,
            project=function.project,
            revision=function.revision,
            road=self.road,
            reason=self.reason,
            stamps=stamps,
            user_phases=page.user_phases,
            wall_minus_mono_ns=edges.clock.now_us() * 1000 - edges.clock.mono_ns(),
        )
