"""The server's end of the agent's connection, with a socket made of queues."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from control_world import make_pilot
from machines import make_machine
from steelyard.api.agents import AgentHub
from steelyard.api.auth import Peer
from steelyard.clock import VirtualClock
from steelyard.errors import Unreachable
from steelyard.model.ids import OWN_MACHINE, MachineId
from steelyard.store.memory import MemoryStore
from steelyard.wire import WIRE_VERSION
from steelyard.wire.agent import Answer, Ask, Assignment, Hello, Report, ReportAck, SecretVersion, decode_from_server, encode

MACHINE = make_machine()


class FakeSocket:
    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed: int | None = None

    async def receive_bytes(self) -> bytes:
        frame = await self.incoming.get()
        if frame is None:
            raise ConnectionError("gone")
        return frame

    async def send_bytes(self, data: bytes) -> None:
        self.outgoing.put_nowait(data)

    async def close(self, code: int) -> None:
        self.closed = code

    def says(self, frame: object) -> None:
        self.incoming.put_nowait(encode(frame))

    async def hears(self) -> object:
        async with asyncio.timeout(2):
            return decode_from_server(await self.outgoing.get())


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore()
        self.hub = AgentHub(self.store, self.clock)
        self.pokes: list[str] = []
        self.poked = asyncio.Event()
        self.hub.attach(self._poke)

    def _poke(self, *names: str) -> None:
        self.pokes += names
        self.poked.set()

    async def wait_for_poke(self) -> None:
        async with asyncio.timeout(2):
            await self.poked.wait()
        self.poked.clear()

    async def connect(self, version: int = WIRE_VERSION, peer: Peer | None = None) -> tuple[FakeSocket, asyncio.Task[None]]:
        socket = FakeSocket()
        task = asyncio.create_task(self.hub.serve(socket, peer))
        socket.says(Hello(version, MACHINE))
        if version == WIRE_VERSION:
            await self.wait_for_poke()
        return socket, task


async def ended(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(2):
        await task


def test_an_agent_gets_the_newest_assignment_at_once_and_every_newer_one() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hub.offer(OWN_MACHINE, Assignment(1, 1))
        bench.hub.offer(OWN_MACHINE, Assignment(1, 2))
        socket, task = await bench.connect()
        assert await socket.hears() == Assignment(1, 2)
        bench.hub.offer(OWN_MACHINE, Assignment(1, 3))
        assert await socket.hears() == Assignment(1, 3)
        socket.incoming.put_nowait(None)
        await ended(task)
        assert not bench.hub.connected()

    asyncio.run(main())


def test_the_agent_that_connects_last_wins() -> None:
    async def main() -> None:
        bench = Bench()
        old, old_task = await bench.connect()
        new, new_task = await bench.connect()
        await ended(old_task)
        assert old.closed == 4001 and bench.hub.connected()
        bench.hub.offer(OWN_MACHINE, Assignment(1, 1))
        assert await new.hears() == Assignment(1, 1)
        new.incoming.put_nowait(None)
        await ended(new_task)

    asyncio.run(main())


def test_a_report_pokes_and_is_acknowledged_to_the_connection_it_came_from() -> None:
    async def main() -> None:
        bench = Bench()
        socket, task = await bench.connect()
        socket.says(Report(7, MACHINE.id, "b", 0))
        await bench.wait_for_poke()
        report = bench.hub.newest_reports().get(OWN_MACHINE)
        assert report is not None and "reports" in bench.pokes
        bench.hub.acknowledge(OWN_MACHINE, report)
        assert await socket.hears() == ReportAck(7)
        assert bench.hub.newest_reports() == {}
        # numbers of a connection mean nothing to the next one
        socket.says(Report(8, MACHINE.id, "b", 0))
        await bench.wait_for_poke()
        late = bench.hub.newest_reports().get(OWN_MACHINE)
        assert late is not None
        again, again_task = await bench.connect()
        await ended(task)
        bench.hub.acknowledge(OWN_MACHINE, late)
        question = asyncio.create_task(bench.hub.ask("proof", "w"))
        first = await again.hears()
        assert isinstance(first, Ask), first
        again.says(Answer(first.id))
        await question
        again.incoming.put_nowait(None)
        await ended(again_task)

    asyncio.run(main())


def test_questions_are_answered_by_their_number() -> None:
    async def main() -> None:
        bench = Bench()
        socket, task = await bench.connect()
        first = asyncio.create_task(bench.hub.ask("log", "w", "stdout", 5))
        second = asyncio.create_task(bench.hub.ask("proof", "w"))
        asks = [await socket.hears(), await socket.hears()]
        assert all(isinstance(ask, Ask) for ask in asks)
        for ask in reversed(asks):
            assert isinstance(ask, Ask)
            socket.says(Answer(ask.id, ask.what.encode()))
        assert ((await first).data, (await second).data) == (b"log", b"proof")
        third = asyncio.create_task(bench.hub.ask("proof", "w"))
        await socket.hears()
        socket.incoming.put_nowait(None)
        await ended(task)
        with pytest.raises(Unreachable):
            await third

    asyncio.run(main())


def test_without_an_agent_questions_fail_at_once() -> None:
    async def main() -> None:
        with pytest.raises(Unreachable):
            await Bench().hub.ask("proof", "w")

    asyncio.run(main())


def test_a_short_silence_is_not_shown_as_loss() -> None:
    async def main() -> None:
        bench = Bench()
        bench.clock.advance(14)
        assert not bench.hub.lost()
        bench.clock.advance(2)
        assert bench.hub.lost()
        socket, task = await bench.connect()
        assert not bench.hub.lost()
        socket.incoming.put_nowait(None)
        await ended(task)
        assert not bench.hub.lost()
        bench.clock.advance(16)
        assert bench.hub.lost()

    asyncio.run(main())


@pytest.mark.parametrize("first", [b"", b"rubbish", encode(Report(1, MACHINE.id, "b", 0))])
def test_whoever_does_not_say_hello_is_closed(first: bytes) -> None:
    async def main() -> None:
        bench = Bench()
        socket = FakeSocket()
        socket.incoming.put_nowait(first)
        await ended(asyncio.create_task(bench.hub.serve(socket)))
        assert socket.closed == 1007 and not bench.hub.connected()

    asyncio.run(main())


def test_a_frame_that_cannot_be_read_ends_the_connection() -> None:
    async def main() -> None:
        bench = Bench()
        socket, task = await bench.connect()
        socket.incoming.put_nowait(b"\xc1")
        await ended(task)
        assert socket.closed == 1007 and not bench.hub.connected()

    asyncio.run(main())


def test_a_wire_version_too_far_away_is_refused() -> None:
    async def main() -> None:
        bench = Bench()
        socket, task = await bench.connect(version=WIRE_VERSION + 2)
        await ended(task)
        assert socket.closed == 4002

    asyncio.run(main())


def test_a_server_that_stops_sends_its_agents_away() -> None:
    async def main() -> None:
        bench = Bench()
        socket, task = await bench.connect()
        bench.hub.stop()
        await ended(task)
        assert socket.closed == 1012
        late = FakeSocket()
        late.says(Hello(WIRE_VERSION, msgspec.structs.replace(MACHINE)))
        await ended(asyncio.create_task(bench.hub.serve(late)))
        assert late.closed == 1012

    asyncio.run(main())


def test_an_agent_of_a_pool_is_the_machine_that_it_was_let_in_as() -> None:
    async def main() -> None:
        bench = Bench()
        own, own_task = await bench.connect()
        await bench.store.write(lambda tx: tx.put_pilot(make_pilot("train-1")))
        socket, task = await bench.connect(peer=Peer(MachineId("train-1"), "train"))
        assert own.closed is None, "the home's own agent stays beside it"
        bench.hub.offer(MachineId("train-1"), Assignment(1, 1))
        bench.hub.offer(OWN_MACHINE, Assignment(1, 2))
        assert (await socket.hears(), await own.hears()) == (Assignment(1, 1), Assignment(1, 2))
        socket.says(Report(7, MACHINE.id, "b", 0))
        await bench.wait_for_poke()
        assert {place: (report.seq, report.machine) for place, report in bench.hub.newest_reports().items()} == {
            "train-1": (7, "train-1")
        }
        stored = await bench.store.read(lambda tx: tx.machines())
        assert [(each.id, each.pool) for each in stored] == [(MACHINE.id, ""), ("train-1", "train")]
        question = asyncio.create_task(bench.hub.ask("log", "w", machine=MachineId("train-1")))
        asked = await socket.hears()
        assert isinstance(asked, Ask)
        socket.says(Answer(asked.id, b"hello"))
        assert (await question).data == b"hello"
        bench.hub.drop(MachineId("train-1"))
        await ended(task)
        assert socket.closed == 4003 and bench.hub.connected()
        with pytest.raises(Unreachable, match="not connected"):
            await bench.hub.ask("log", "w", machine=MachineId("train-1"))
        own.incoming.put_nowait(None)
        await ended(own_task)

    asyncio.run(main())


def test_secrets_are_given_to_the_machine_whose_work_names_them() -> None:
    hub = AgentHub(MemoryStore(), VirtualClock())
    hub.offer(MachineId("train-1"), Assignment(1, 1, secrets=(SecretVersion("ann", "key", "v1"),)))
    assert hub.names_secret(MachineId("train-1"), "ann", "key")
    assert not hub.names_secret(MachineId("train-2"), "ann", "key")
    assert not hub.names_secret(OWN_MACHINE, "ann", "key")
