"""Who wants to be inside a function: which of its replicas is that, where is it, and who is there?

For commands, terminals, copies and connections, as into jobs. While somebody is inside, and a moment longer, a replica is not
retired for want of requests; a revision that goes takes it along all the same. Where none serves, one is woken as by a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from steelyard.agent.edges import Edges
from steelyard.agent.execs import ExecHost
from steelyard.agent.job_container import inside_of
from steelyard.agent.replica import Replica
from steelyard.agent.revision import RevisionHost
from steelyard.clock import Clock
from steelyard.errors import Conflict, NotFound
from steelyard.model.ids import WorkloadId

#: from the answer that names a replica until whoever asked is inside; and between two of its connections
HOLD_S = 3.0
SERVING = "serving"


class ReplicaThere(NamedTuple):
    """One that could be entered."""

    workload: WorkloadId
    revision: int
    state: str

    @property
    def born(self) -> tuple[int, int]:
        """Greater: newer."""
        return self.revision, int(self.workload.rpartition(".")[2], 16)


def choose_replica(there: Sequence[ReplicaThere], revision: int, wanted: str) -> WorkloadId | None:
    """`wanted`: one's id, or how it ends; "": the newest of that revision. None: it does not serve yet. Raises NotFound."""
    if not wanted:
        serving = [each for each in there if each.revision == revision and each.state == SERVING]
        return max(serving, key=lambda each: each.born).workload if serving else None
    found = [each for each in there if each.workload == wanted or each.workload.endswith(f".{wanted}")]
    if not found:
        listed = ", ".join(each.workload for each in sorted(there, key=lambda each: each.born, reverse=True)) or "none"
        raise NotFound(f"There is no replica {wanted}. Those that are there: {listed}.")
    newest = max(found, key=lambda each: each.born)
    return newest.workload if newest.state == SERVING else None


class Visits:
    """`inside`: workloads that somebody is inside of now."""

    def __init__(self, clock: Clock, inside: Callable[[], Collection[WorkloadId]]) -> None:
        self._clock, self._inside = clock, inside
        #: workload -> until when it is kept for whoever asked for it (monotonic ns)
        self._until: dict[WorkloadId, int] = {}
        #: a replica has come, serves, or has failed
        self.news = asyncio.Event()

    @property
    def held(self) -> set[WorkloadId]:
        now_ns = self._clock.mono_ns()
        if self._until:
            self._until = {workload: until_ns for workload, until_ns in self._until.items() if until_ns > now_ns}
        return {*self._until, *self._inside()}

    async def hold(self, find_hosts: Callable[[], Sequence[RevisionHost]], wanted: str, wait_s: float) -> WorkloadId | None:
        """A replica that serves and is kept for now; None: not within `wait_s`. Raises NotFound or Conflict."""
        try:
            async with asyncio.timeout(wait_s):
                while (found := self._look(find_hosts(), wanted)) is None:
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            return None
        self._until[found] = self._clock.mono_ns() + round(HOLD_S * 1e9)
        return found

    def _look(self, hosts: Sequence[RevisionHost], wanted: str) -> WorkloadId | None:
        reached = [host for host in hosts if host.opened and not host.draining]
        if not reached:
            raise Conflict(
                "No revision of it can be reached yet; `steelyard functions` tells. Nothing was started.", code="not-ready"
            )
        newest = max(reached, key=lambda host: host.function.revision)
        there = [
            ReplicaThere(replica.workload, host.function.revision, replica.state) for host in reached for replica in host.live
        ]
        found = choose_replica(there, newest.function.revision, wanted)
        if found is None and not wanted:
            newest.wake()
        return found


async def find_inside(edges: Edges, host: RevisionHost, replica: Replica) -> ExecHost:
    """Where a command that is to run inside a replica goes. Raises Conflict; EdgeFailed when its secrets can't be had."""
    if replica.pid is None or replica.start_time is None or replica.state != SERVING:
        raise Conflict(f"It is {replica.state}: commands run in replicas that serve. Nothing was started.", code="not-running")
    spec, container = host.function.spec, None
    env = {**host.env, **await host.secrets.variables(), **({"PORT": str(spec.port)} if spec.port else {})}
    pid, made = replica.pid, edges.containers.made(replica.workload)
    if host.image is not None:
        pid = min(inside_of(edges.cgroups.pids(replica.workload)), default=pid)
        container = replica.workload if made is not None else edges.containers.around(pid)
        if container is None:
            raise Conflict("Its container can't be found any more. Nothing was started.", code="not-running")
    return ExecHost(
        replica.workload,
        replica.pid,
        replica.start_time,
        host.plan,
        host.ids,
        spec.cwd or str(host.code),
        container,
        pid,
        env=None if made is not None else env,
    )
