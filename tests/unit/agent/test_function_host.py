"""The routes of one function while revisions come, fail and go, with Envoy and the spawner stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent_parts import no_secrets
from steelyard.agent import function as function_module
from steelyard.agent.function import FunctionHost
from steelyard.agent.ledger import Ledger
from steelyard.agent.trial import RolloutFailed
from steelyard.clock import VirtualClock
from steelyard.errors import EdgeFailed
from steelyard.gateway import Cluster
from steelyard.host.volumes import VolumeFolders
from steelyard.model.function import FunctionSpec, FunctionState, Reach, Share
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName
from steelyard.model.job import Owner, Plan
from steelyard.model.reason import Reason
from steelyard.runtime.record_lane import RecordLane
from steelyard.scaling.rollout import Counts
from steelyard.wire.agent import AssignedFunction

NAME = FunctionName("f")


def assigned(revision: int, percent: int = 100, *tags: str) -> AssignedFunction:
    spec = FunctionSpec(argv=("x",), cwd="/")
    return AssignedFunction(NAME, DEFAULT_PROJECT, Owner("root", 0), revision, spec, percent=percent, tags=tags)


class StandIn:
    """A revision that does what it is told."""

    def __init__(self, function: AssignedFunction) -> None:
        self.function, self.plan, self.since = function, Plan(), function.revision
        self.draining = self.closed = False
        self.template = self.failure = self.cluster = None
        self.replicas: dict[str, object] = {}
        self.live: list[Any] = []
        self.queued = self.pending = 0
        self.counts, self.workloads, self.lends = Counts(), set[str](), False

    def arm(self) -> None: ...

    def start_min(self) -> None: ...

    def tick(self, held: object = ()) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class World:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = VirtualClock()
        paths = SimpleNamespace(function_sockets=folder)
        edges = SimpleNamespace(
            volumes=VolumeFolders(Path("/nonexistent"), ()),
            clock=self.clock,
            paths=paths,
            settings=SimpleNamespace(work_uid=1, work_gid=1, admin_uid=0, node_gateway=False),
            spawner=SimpleNamespace(drop_socket=lambda name: None),
        )
        self.ledger = Ledger(folder, RecordLane())
        #: what Envoy was told, move by move, and what it answers next
        self.moves: list[dict[int, int]] = []
        self.refusals: list[EdgeFailed] = []
        self.known: list[str] = []
        #: revisions that are being made ready wait for their turn here
        self.turns: dict[int, asyncio.Future[None]] = {}
        self.made: list[StandIn] = []
        nothing = cast(Any, lambda *arguments: None)
        devices = cast(Any, SimpleNamespace(note_end=nothing))
        self.host = FunctionHost(
            cast(Any, edges), NAME, nothing, nothing, nothing, nothing, self.apply, self.ledger, devices,
            cast(Any, SimpleNamespace(check=nothing)), cast(Any, None), cast(Any, None), no_secrets(),
        )  # fmt: skip
        monkeypatch.setattr(FunctionHost, "make_host", self.make_host)
        monkeypatch.setattr(function_module, "make_ready", self.make_ready)

    async def apply(self) -> None:
        if self.refusals:
            raise self.refusals.pop()
        clusters, routes = self.host.gateway()
        self.known = [cluster.name for cluster in clusters]
        self.moves.append(
            {int(name.rpartition(".")[2]): percent for route in routes if not route.tag for name, percent in route.targets}
        )

    async def make_host(self, function: AssignedFunction, held: int | None, image: object) -> StandIn:
        self.made.append(StandIn(function))
        return self.made[-1]

    async def make_ready(self, edges: object, host: StandIn) -> None:
        turn = self.turns.setdefault(host.function.revision, asyncio.get_running_loop().create_future())
        await turn

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    async def ready(self, revision: int, error: Exception | None = None) -> None:
        await self.settle()
        turn = self.turns.pop(revision)
        if error is None:
            turn.set_result(None)
        else:
            turn.set_exception(error)
        await self.settle()

    async def want(self, *functions: AssignedFunction) -> None:
        self.host.set_desired(functions)
        await self.settle()

    @property
    def shares(self) -> dict[int, int]:
        return {share.revision: share.percent for share in self.host.routes.shares}

    @property
    def remembered(self) -> list[tuple[int, int]]:
        return [(each.revision, each.percent) for each in Ledger(self.ledger._folder, RecordLane()).routed.get(NAME, ())]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]:
    def run(script: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        async def life() -> None:
            world = World(tmp_path, monkeypatch)
            try:
                await script(world)
            finally:
                world.host.close()
                await world.settle()

        asyncio.run(life())

    return run


Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]


def test_shares_follow_readiness_and_are_on_disk(play: Play) -> None:
    async def script(world: World) -> None:
        await world.want(assigned(1))
        await world.ready(1)
        await world.want(assigned(1, 90), assigned(2, 10, "next"))
        assert world.shares == {1: 100}
        await world.ready(2)
        assert world.shares == {1: 90, 2: 10} and world.remembered == [(1, 90), (2, 10)]
        assert world.host.routes.tags == (("next", 2),)
        await world.want(assigned(2))
        assert world.moves == [{1: 100}, {1: 90, 2: 10}, {2: 100}]
        assert [host.function.revision for host, _ in world.host.draining] == [1]
        assert [each.revision for each in world.ledger.draining] == [1]
        seen = world.host.seen()
        assert seen is not None and (seen.routed_revision, seen.state) == (2, FunctionState.SLEEPING)

    play(script)


def test_a_revision_that_fails_leaves_the_routes_and_is_tried_once(play: Play) -> None:
    async def script(world: World) -> None:
        await world.want(assigned(1))
        await world.ready(1)
        await world.want(assigned(2))
        await world.ready(2, RolloutFailed(Reason.IMPORT_FAILED, "no such weights"))
        assert (world.shares, len(world.made), world.made[1].closed) == ({1: 100}, 2, True)
        seen = world.host.seen()
        assert seen is not None and (seen.state, seen.reason) == (FunctionState.FAILED, Reason.IMPORT_FAILED)
        await world.want(assigned(2))
        assert len(world.made) == 2
        await world.want(assigned(3))
        await world.ready(3)
        assert world.shares == {3: 100}

    play(script)


def test_going_back_to_what_still_drains_needs_nothing_new(play: Play) -> None:
    async def script(world: World) -> None:
        await world.want(assigned(1))
        await world.ready(1)
        await world.want(assigned(2))
        await world.ready(2)
        first = world.made[0]
        assert first.draining
        await world.want(assigned(1))
        assert (world.shares, len(world.made), first.draining) == ({1: 100}, 2, False)
        assert [each.revision for each in world.ledger.draining] == [2], "the other one drains now"

    play(script)


def test_a_roll_out_that_nobody_wants_any_more_is_broken_off(play: Play) -> None:
    async def script(world: World) -> None:
        await world.want(assigned(1))
        await world.want(assigned(2))
        assert world.made[0].closed
        await world.ready(2)
        assert world.shares == {2: 100} and world.moves == [{2: 100}]

    play(script)


def test_what_envoy_rejects_has_failed_and_the_files_say_so(play: Play) -> None:
    async def script(world: World) -> None:
        await world.want(assigned(1))
        await world.ready(1)
        await world.want(assigned(2))
        world.refusals.append(EdgeFailed("no", code="gateway-rejected"))
        await world.ready(2)
        assert world.shares == {1: 100} and world.remembered == [(1, 100)] and world.ledger.draining == ()
        seen = world.host.seen()
        assert seen is not None and seen.reason is Reason.GATEWAY_REJECTED and world.made[1].closed

    play(script)


def test_shares_that_envoy_does_not_take_are_told_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_module, "RETRY_S", 0.0)

    async def script(world: World) -> None:
        await world.want(assigned(1, 50), assigned(2, 50))
        await world.ready(2)
        await world.ready(1)
        assert world.shares == {1: 50, 2: 50}
        world.refusals.append(EdgeFailed("slow", code="gateway-slow"))
        await world.want(assigned(1, 80), assigned(2, 20))
        assert world.shares == {1: 80, 2: 20} and not any(each.closed for each in world.made)

    play(script)


def test_an_agent_that_takes_over_goes_on_with_the_shares(play: Play) -> None:
    async def script(world: World) -> None:
        one, two = assigned(1, 90), assigned(2, 10, "next")
        for each in (one, two):
            await world.host.adopt(each, None)
        assert world.host.routes.shares == (Share(1, 90), Share(2, 10)) and world.host.routes.tags == (("next", 2),)
        await world.want(one, two)
        assert world.moves == [], "nothing changed"
        await world.want(msgspec.structs.replace(two, percent=100))
        assert world.shares == {2: 100}

    play(script)


def test_a_deleted_function_is_gone_when_it_has_drained(play: Play) -> None:
    async def script(world: World) -> None:
        await world.want(assigned(1, 50), assigned(2, 50))
        await world.ready(2)
        await world.ready(1)
        await world.want()
        assert world.moves[-1] == {} and world.remembered == [] and not world.host.gone
        world.host.tick()
        world.clock.advance(2)
        world.host.tick()
        assert world.host.gone and all(each.closed for each in world.made) and world.ledger.draining == ()

    play(script)


def test_a_revision_stays_for_as_long_as_the_homes_gateway_may_lead_to_it(play: Play) -> None:
    async def script(world: World) -> None:
        world.host._edges.settings.node_gateway = True
        await world.want(assigned(1))
        await world.ready(1)
        seen = world.host.seen()
        assert seen is not None and seen.reach == ()  # each of its connections serves one request
        for made in world.made:
            made.cluster = Cluster("f.1", "/run/f.1.sock", 8, 100, 5.0)
        seen = world.host.seen()
        assert seen is not None and seen.reach == (Reach(1, 8, 100, 5.0),)
        led = msgspec.structs.replace(assigned(2), led=(1, 2))
        await world.want(led)
        await world.ready(2)
        assert world.shares == {2: 100} and world.known == ["f.1", "f.2"]
        world.clock.advance(60)
        assert world.host.tick() and not world.made[0].closed
        await world.want(msgspec.structs.replace(led, led=(2,)))
        world.host.tick()
        assert world.made[0].closed
        await world.settle()
        assert world.known == ["f.2"], "the gateway here forgets it, too"

    play(script)
