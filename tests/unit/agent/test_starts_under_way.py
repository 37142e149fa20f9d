"""A start is under way when the spawner goes and another comes, when its replica is retired, when the tick looks: callers of
sleeping functions are answered, nothing is left that nobody watches, and no more is started than there may be."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent_parts import no_secrets
from steelyard.agent import revision as revision_module
from steelyard.agent import template_process
from steelyard.agent.functions import FunctionKeeper
from steelyard.agent.loop import Agent
from steelyard.agent.revision import RevisionHost
from steelyard.agent.template import TemplateKeeper
from steelyard.agent.template_process import BASE, REVISION, TemplateProcess
from steelyard.agent.template_tree import Environment
from steelyard.agent.terminals import TerminalKeeper
from steelyard.clock import VirtualClock
from steelyard.config import Settings
from steelyard.errors import EdgeFailed, SteelyardError, Unreachable
from steelyard.host import CgroupReading
from steelyard.host.volumes import VolumeFolders
from steelyard.model.function import FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, WorkloadId
from steelyard.model.job import Owner
from steelyard.model.reason import Reason
from steelyard.runtime.procstat import observe_process
from steelyard.runtime.template import Forked, ForkRefused, TemplateStatus
from steelyard.wire.agent import AssignedFunction
from steelyard.wire.spawn import Exited, Running

SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=64000, work_gid=64001, admin_user="root", admin_uid=0)
W = WorkloadId("f.1.a")


class Spawner:
    """The agent's end of the connection, without one."""

    def __init__(self) -> None:
        self.instance, self.start_time, self.connected = "1:1", 1, True
        self.closed = asyncio.Event()
        #: instances that will answer, in this order
        self.next = ["2:2"]
        self.held: list[str] = []
        self.answers = asyncio.Event()

    def serves(self, instance: str) -> bool:
        return self.connected and self.instance == instance

    def go(self) -> None:
        self.connected = False
        self.closed.set()

    async def connect(self) -> tuple[dict[str, int], Running]:
        self.closed.clear()
        self.instance, self.connected = self.next.pop(0), True
        self.start_time = int(self.instance[0])
        await self.answers.wait()
        return {}, Running(())

    def hold_socket(self, name: str, fd: int) -> None:
        if not self.connected:
            raise Unreachable("gone")
        self.held.append(name)


class Client:
    """The connection to a template that forks when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = asyncio.Event()
        self.answer: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()

    async def fork(self, **order: object) -> Forked:
        self.asked += 1
        return await self.answer

    def close(self) -> None:
        self.closed.set()
        if self.asked and not self.answer.done():
            self.answer.set_exception(EdgeFailed("gone", code="template-gone"))


class World:
    """One sleeping revision with a template, real up to where a process would be started."""

    def __init__(self, folder: Path) -> None:
        self.log: list[object] = []
        self.spawner, self.launches = Spawner(), True
        note = self.log.append
        self.edges = SimpleNamespace(
            volumes=VolumeFolders(Path("/nonexistent"), ()),
            clock=VirtualClock(),
            settings=SETTINGS,
            machine=SimpleNamespace(topology=None, memory_bytes=1 << 30),
            spawner=self.spawner,
            paths=SimpleNamespace(workloads=folder, template_sockets=folder),
            runtime=SimpleNamespace(
                claim=lambda workload, pid, start_time: note(("claimed", pid)),
                signal_leader=lambda workload, signum: note(("told", workload)),
                start=self.start_template,
            ),
            cleanup=SimpleNamespace(
                remove=lambda workload: note(("removed", workload)), forget=lambda workload: note(("forgot", workload))
            ),
            queue=SimpleNamespace(length=lambda fd: 0),
            cgroups=SimpleNamespace(read=lambda workload: CgroupReading()),
            lib_dir=folder,
        )
        spec = FunctionSpec(file="a.py", attr="app", python="/nonexistent/python", cwd="/srv", replicas_max=1)
        function = AssignedFunction(FunctionName("f"), DEFAULT_PROJECT, Owner("root", 0), 1, spec)
        nothing = cast(Any, lambda *arguments: None)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "f.sock"))
        self.listener.listen()
        self.functions = FunctionKeeper(
            cast(Any, self.edges), cast(Any, None), nothing, nothing,
            on_wake=nothing, devices=nothing, presence=nothing, lending=nothing, secrets=no_secrets(),
        )  # fmt: skip
        self.host = RevisionHost(
            cast(Any, self.edges), function, folder, self.listener,
            cast(Any, SimpleNamespace(check=nothing)), nothing, nothing, nothing, cast(Any, SimpleNamespace(give=nothing)),
            self.functions.tree, no_secrets(),
        )  # fmt: skip
        self.functions._hosts = cast(Any, {"f": SimpleNamespace(hosts=[self.host])})
        self.host.opened = True
        assert self.host.template is not None
        self.template: TemplateKeeper = self.host.template
        base = self.functions.tree.base_key(self.template.wanted)
        self.client, self.base_client = Client(), Client()
        self.functions.tree.nodes[base] = self.make_process("tmpl-base.a", BASE, base, self.base_client)
        self.template.process = self.make_process("tmpl.f.1.a", REVISION, "", self.client)
        self.template.environment, self.template.reason = Environment(), Reason.TEMPLATE_READY

    def make_process(self, name: str, role: str, key: str, client: Client) -> TemplateProcess:
        process = TemplateProcess(cast(Any, self.edges), WorkloadId(name), role, key, None)
        process.client = cast(Any, client)
        return process

    async def start_template(self, workload: WorkloadId, **more: object) -> Any:
        if not self.spawner.connected:
            raise Unreachable("away")
        raise EdgeFailed("no interpreter here", code="start-failed")

    async def until_armed(self) -> None:
        while not self.host._armed:
            await asyncio.sleep(0)

    def check_waits(self) -> None:
        """Nobody was refused, and whoever waits is looked at again."""
        assert not self.host.replicas and self.host.failure is None and self.host._failures == 0


def make_slot(edges: Any, *rest: object) -> Any:
    written = ("state", "first_byte_ns", "accepted", "connections", "busy", "last_active_ns", "finished", "service_ns", "errors")
    numbers = dict.fromkeys(written, 0)
    page = SimpleNamespace(close=lambda: None, error="", **numbers)
    return SimpleNamespace(
        workload=W, page=page, page_fd=0, log_fds=(0, 0), cgroup_fds=[], cpus=(), close_fds=lambda: None,
        spawner=edges.spawner.instance,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision_module, "SPAWNER_WAIT_S", 0.0)
    monkeypatch.setattr(revision_module, "make_slot", make_slot)


def play(folder: Path, script: Any) -> None:
    async def main() -> None:
        world = World(folder)
        try:
            async with asyncio.timeout(5):
                await script(world)
        finally:
            world.host.close()

    asyncio.run(main())


def make_agent(world: World) -> Agent:
    agent = object.__new__(Agent)
    agent._edges = cast(Any, SimpleNamespace(spawner=world.spawner, clock=world.edges.clock))
    agent._orphans = {}
    agent.functions = world.functions
    agent.terminals = TerminalKeeper(cast(Any, world.spawner), world.edges.clock)
    agent.jobs = cast(Any, SimpleNamespace(running=[], reconcile=lambda jobs: world.log.append("jobs"), on_lost=lambda job: None))
    agent.execs = cast(Any, SimpleNamespace(running=[], on_exit=lambda exited: False))
    agent._ledger = cast(Any, SimpleNamespace(assignment=SimpleNamespace(jobs=())))
    return agent


@contextmanager
def kept_by(agent: Agent) -> Iterator[None]:
    task = asyncio.create_task(agent._keep_spawner())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_wake_while_the_new_spawner_says_hello_asks_no_template_of_the_old_one(tmp_path: Path, monkeypatch) -> None:
    """What that template forked would end unseen, for instance when it is killed, and its callers waited for the deadline."""

    async def script(world: World) -> None:
        plain: list[str] = []

        async def start_plain(host: Any, slot: Any, listen_fd: int, private: bool, given: Any) -> Any:
            plain.append(slot.spawner)
            return SimpleNamespace(pid=1, start_time=1)

        monkeypatch.setattr(revision_module, "start_plain", start_plain)
        with kept_by(make_agent(world)):
            world.host._prepare_slot()
            await turns()
            world.spawner.go()
            await turns()
            assert world.spawner.serves("2:2"), "it is connected and has not answered"
            replica = await world.host._start(0, woken=True)
            assert (world.client.asked, world.base_client.asked, plain) == (0, 0, ["2:2"])
            assert replica.reason is Reason.TEMPLATE_DIED
            assert world.template.workload is not None, "what it forked last may not have left its control group yet"
            world.spawner.answers.set()
            await turns()
            assert ("removed", "tmpl.f.1.a") in world.log and world.template.workload is None
            assert world.spawner.held == ["f.1"] and world.log[-1] == "jobs"

    play(tmp_path, script)


def test_a_fork_under_way_when_the_spawner_goes_is_dropped_and_its_callers_wait(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        wake = asyncio.create_task(world.host._start(0, woken=True))
        await turns()
        world.spawner.go()
        world.client.answer.set_result(Forked(77, 7))
        await wake
        assert ("claimed", 77) in world.log and ("removed", W) in world.log
        world.check_waits()
        await world.until_armed()

    play(tmp_path, script)


@pytest.mark.parametrize("error", [Unreachable("gone"), EdgeFailed("restarted since", code="start-failed")])
def test_a_plain_start_that_went_with_its_spawner_is_no_failure(tmp_path: Path, monkeypatch, error: SteelyardError) -> None:
    async def script(world: World) -> None:
        async def start_plain(*arguments: object) -> Any:
            world.spawner.instance = "2:2"
            raise error

        monkeypatch.setattr(revision_module, "start_plain", start_plain)
        world.template.kill()
        world.functions.tree.end_all()
        await world.host._start(0, woken=True)
        world.check_waits()
        await world.until_armed()

    play(tmp_path, script)


def test_a_start_that_fails_under_a_living_spawner_is_told_to_those_who_wait(tmp_path: Path, monkeypatch) -> None:
    async def script(world: World) -> None:
        async def start_plain(*arguments: object) -> Any:
            raise EdgeFailed("exec: no such file", code="start-failed")

        monkeypatch.setattr(revision_module, "start_plain", start_plain)
        monkeypatch.setattr(revision_module, "refuse_waiting", refuse := Refusals())
        world.template.kill()
        world.functions.tree.end_all()
        await world.host._start(0, woken=True)
        await turns()
        assert world.host.failure == (Reason.START_FAILED, "exec: no such file") and refuse.count == 1

    play(tmp_path, script)


class Refusals:
    count = 0

    async def __call__(self, *arguments: object) -> int:
        self.count += 1
        return 0


def end(code: int | None) -> Exited:
    return Exited(W, 77, 7, 0, code, None, 0.0, 0.0, 0)


@pytest.mark.parametrize(("code", "failed"), [(None, False), (1, True)])
def test_a_replica_that_ended_unseen_before_it_served_is_started_again(tmp_path: Path, code: int | None, failed: bool) -> None:
    async def script(world: World) -> None:
        world.client.answer.set_result(Forked(77, 7))
        await world.host._start(0, woken=True)
        world.host._spawn_task = cast(Any, lambda work: work.close())
        assert world.host.on_exit(end(code))
        assert (world.host.failure is not None, world.host._armed) == (failed, not failed)

    play(tmp_path, script)


class ReadyClient:
    """Says that it is ready when the spawner has gone."""

    def __init__(self, world: World) -> None:
        self.world, self.closed = world, asyncio.Event()

    async def connect(self) -> None:
        pass

    async def status(self, timeout_s: float) -> TemplateStatus:
        self.world.spawner.instance = "2:2"
        return TemplateStatus(state="ready")

    def close(self) -> None:
        self.closed.set()


def test_a_template_that_came_up_under_a_spawner_that_has_gone_is_ended(tmp_path: Path, monkeypatch) -> None:
    async def script(world: World) -> None:
        monkeypatch.setattr(template_process, "TemplateClient", lambda path: ReadyClient(world))
        process = TemplateProcess(cast(Any, world.edges), WorkloadId("tmpl-base.b"), BASE, "b", None)
        with pytest.raises(Unreachable):
            await process._await_ready(1.0)
        assert world.log[-1] == ("removed", "tmpl-base.b") and not process.forks

    play(tmp_path, script)


def test_waiting_for_a_spawner_does_not_count_as_a_death_of_the_template(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.spawner.go()
        world.template.process = world.template.environment = None
        await world.template._build_again()
        assert world.template._deaths == 0 and world.template._rebuild is not None
        assert ("removed", "tmpl-base.a") in world.log, "a base of the old spawner is of no use"

    play(tmp_path, script)


def test_packages_are_not_to_blame_for_an_environment_that_went_with_its_spawner(tmp_path: Path) -> None:
    """They would be imported by each wake for ten minutes."""

    async def script(world: World) -> None:
        def prepare(workload: WorkloadId, **more: object) -> None:
            world.spawner.go()
            raise Unreachable("gone")

        world.edges.runtime.prepare = prepare
        with pytest.raises(Unreachable):
            await world.functions.tree.parent(world.template.wanted, Environment(("numpy",)))
        assert not world.functions.tree._failed

    play(tmp_path, script)


def test_a_template_of_the_old_spawner_is_asked_nothing(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.spawner.instance = "2:2"
        slot = make_slot(world.edges)
        assert await world.template.fork(slot, 0, False) == ForkRefused("template-died", "")
        parent = await world.template.find_parent()
        assert parent is None or not isinstance(
            await world.template.fork_from(parent, world.template.wanted.load, slot, 0, False), Forked
        )
        assert world.client.asked == world.base_client.asked == 0

    play(tmp_path, script)


def test_a_spawner_that_goes_while_it_is_given_the_sockets_is_followed_by_the_next(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.spawner.next.append("3:3")
        hold, world.spawner.hold_socket = world.spawner.hold_socket, cast(Any, lambda name, fd: gone())

        def gone() -> None:
            world.spawner.hold_socket = hold
            world.spawner.go()
            raise Unreachable("gone")

        world.spawner.answers.set()
        with kept_by(make_agent(world)):
            world.spawner.go()
            await turns()
            assert world.spawner.serves("3:3") and world.spawner.held == ["f.1"] and world.log[-1] == "jobs"

    play(tmp_path, script)


def test_what_is_older_than_the_spawner_is_watched_until_it_ends(tmp_path: Path) -> None:
    """A start that took longer than the change of spawners: no child of the new one, and too late for the look at the loss."""

    async def script(world: World) -> None:
        agent, me = make_agent(world), observe_process(os.getpid())
        assert me is not None
        agent.jobs = cast(Any, SimpleNamespace(running=[("old", os.getpid(), me.start_time)]))
        world.spawner.start_time = me.start_time
        agent._watch_orphans()
        assert not agent._orphans, "a child of this spawner may be as old, not older"
        world.spawner.start_time += 1
        agent._watch_orphans()
        agent._watch_orphans()
        assert list(agent._orphans) == ["old"]
        asyncio.get_running_loop().remove_reader(agent._orphans["old"])  # type: ignore[index]
        os.close(agent._orphans["old"])  # type: ignore[index]

    play(tmp_path, script)


def test_a_pid_that_is_somebody_elses_by_now_means_that_it_ended(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        agent, lost = make_agent(world), []
        agent.jobs = cast(Any, SimpleNamespace(running=[("old", os.getpid(), 0)], on_lost=lost.append))
        agent._watch_orphans()
        assert lost == ["old"] and not agent._orphans

    play(tmp_path, script)


def test_a_replica_that_is_retired_before_it_has_a_process_is_told_when_it_has_one(tmp_path: Path) -> None:
    """The first signal reached nobody: it would serve on, and its revision never be gone."""

    async def script(world: World) -> None:
        wake = asyncio.create_task(world.host._start(0, woken=True))
        await turns()
        [replica] = world.host.replicas.values()
        world.host._retire(replica)
        world.log.clear()
        world.client.answer.set_result(Forked(77, 7))
        await wake
        assert world.log == [("claimed", 77), ("told", W)]

    play(tmp_path, script)


def test_a_tick_right_after_a_crash_starts_no_second_replica(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        spec = msgspec.structs.replace(world.host.function.spec, replicas_min=1)
        world.host.function = msgspec.structs.replace(world.host.function, spec=spec)
        world.host.start_min()
        assert world.host.tick() and world.host._begun == 1, "it is not counted yet"
        await turns()
        assert world.host.tick() and (world.host._begun, world.client.asked, len(world.host.replicas)) == (0, 1, 1)

    play(tmp_path, script)
