"""Who waits for what: the keeper's own thread touches nothing of the event loop's, and what waits outlives its agent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from steelyard.agent.devices import DeviceEdge, DeviceKeeper
from steelyard.host.device_users import DeviceUsers
from steelyard.lifecycle.device_return import Holder
from steelyard.model.job import Plan

GPU, OTHER = "0000:0f:00.0", "0000:10:00.0"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.agent.devices.LOOK_AGAIN_S", 0.0)


class World(DeviceEdge):
    def __init__(self) -> None:
        self.held: tuple[Holder, ...] = ()
        self.broken = 0
        self.asked = 0
        self.looked_in: set[int] = set()
        self.killed_in: set[int] = set()

    def nodes(self) -> dict[str, tuple[str, ...]]:
        self.looked_in.add(threading.get_ident())
        if self.broken:
            self.broken -= 1
            raise RuntimeError("dictionary changed size during iteration")
        return {GPU: ("/dev/nvidia0",), OTHER: ("/dev/nvidia1",)}

    def users(self, nodes: Mapping[str, Collection[str]]) -> DeviceUsers:
        return DeviceUsers(dict.fromkeys(nodes, self.held), complete=True)

    def memory(self) -> dict[str, int]:
        self.asked += 1
        return {GPU: 0, OTHER: 0}

    def kill(self, holder: Holder) -> None:
        self.killed_in.add(threading.get_ident())
        self.held = ()


class Rig:
    def __init__(self, folder: Path) -> None:
        self.world, self.said = World(), list[str]()
        self.live: set[str] = set()
        #: threads in which the keeper called back
        self.called_in: set[int] = set()
        self.keeper = DeviceKeeper(folder, self.tell_live, self.tell_ended, self.note, self.record, self.world)

    def note(self) -> None:
        self.called_in.add(threading.get_ident())

    def tell_live(self) -> set[str]:
        self.note()
        return self.live

    def tell_ended(self) -> set[str]:
        self.note()
        return set()

    def record(self, sentence: str) -> None:
        self.note()
        self.said.append(sentence)

    async def until(self, free: bool = True) -> None:
        async with asyncio.timeout(10):
            while bool(self.keeper.waiting) is free:
                await asyncio.sleep(0)


def test_only_the_look_itself_leaves_the_event_loop(tmp_path: Path) -> None:
    async def life() -> None:
        rig = Rig(tmp_path)
        await rig.keeper.note_start(Plan(gpus=(GPU,)))
        rig.world.held = (Holder(9, 90, "python3", "job-1.1"),)
        rig.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        await rig.until()
        me = threading.get_ident()
        assert rig.called_in == rig.world.killed_in == {me}
        assert me not in rig.world.looked_in

    asyncio.run(life())


def test_a_look_that_breaks_is_made_again(tmp_path: Path) -> None:
    async def life() -> None:
        rig = Rig(tmp_path)
        rig.world.broken = 2
        rig.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        await rig.until()
        assert rig.world.broken == 0 and "is free" in rig.said[-1]

    asyncio.run(life())


def test_all_devices_that_wait_are_asked_for_at_once(tmp_path: Path) -> None:
    async def life() -> None:
        rig = Rig(tmp_path)
        rig.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        rig.keeper.note_end(["job-2.1"], Plan(gpus=(OTHER,)))
        await rig.until()
        assert rig.world.asked == 1 and len(rig.said) == 2

    asyncio.run(life())


def test_what_waits_outlives_its_agent_with_the_work_that_must_leave(tmp_path: Path) -> None:
    async def life() -> None:
        first = Rig(tmp_path)
        first.world.held = (Holder(7, 70, "monitor"),)
        first.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        async with asyncio.timeout(10):
            while not first.said:
                await asyncio.sleep(0)
        first.keeper.close()
        again = Rig(tmp_path)
        assert again.keeper.waiting == (GPU,)
        again.world.held = (Holder(9, 90, "python3", "job-1.1"),)
        again.keeper.resume()
        await again.until()
        assert again.world.killed_in, "what the ended job left is traced to it"
        assert Rig(tmp_path).keeper.waiting == ()

    asyncio.run(life())


@pytest.mark.parametrize("left", ["job-1.1", "job-2.1"])
def test_all_work_that_ended_on_a_device_must_have_left_it(tmp_path: Path, left: str) -> None:
    async def life() -> None:
        rig = Rig(tmp_path)
        rig.world.held = (Holder(7, 70, "monitor"),)
        rig.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        async with asyncio.timeout(10):
            while not rig.said:
                await asyncio.sleep(0)
        # neither attempt is known to anybody else by now
        rig.keeper.note_end(["job-2.1"], Plan(gpus=(GPU,)))
        rig.world.held = (Holder(9, 90, "python3", left),)
        await rig.until()
        assert rig.world.killed_in

    asyncio.run(life())


def test_a_look_from_before_an_end_does_not_free_the_device(tmp_path: Path) -> None:
    async def life() -> None:
        rig, loop = Rig(tmp_path), asyncio.get_running_loop()

        async def end_another() -> None:
            rig.keeper.note_end(["job-2.1"], Plan(gpus=(GPU,)))
            rig.world.held = (Holder(9, 90, "python3", "job-2.1"),)

        def users(nodes: Mapping[str, Collection[str]]) -> DeviceUsers:
            rig.world.users = usual
            asyncio.run_coroutine_threadsafe(end_another(), loop).result(10)
            return DeviceUsers(dict.fromkeys(nodes, ()), complete=True)

        usual, rig.world.users = rig.world.users, users
        rig.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        await rig.until()
        assert rig.world.killed_in, "the newer end was looked at too"

    asyncio.run(life())


def test_what_another_workload_shares_is_no_stranger(tmp_path: Path) -> None:
    async def life() -> None:
        rig = Rig(tmp_path)
        rig.live = {"f.1.5af3"}
        rig.world.held = (Holder(9, 90, "python3", "f.1.5af3"),)
        rig.keeper.note_end(["job-1.1"], Plan(gpus=(GPU,)))
        await rig.until()
        assert "is shared" in rig.said[-1] and not rig.world.killed_in

    asyncio.run(life())


def test_a_wake_waits_for_what_others_left_and_not_for_what_its_function_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.agent.devices.LOOK_AGAIN_S", 60.0)
    monkeypatch.setattr("steelyard.agent.devices.LOOK_SOON_S", 0.0)

    async def life() -> None:
        rig = Rig(tmp_path)
        stranger = rig.world.held = (Holder(9, 90, "python3"),)
        rig.keeper.note_end(["f.1.a"], Plan(gpus=(GPU,)))
        await asyncio.wait_for(rig.keeper.wait_free([GPU, OTHER], {"f.1.a"}), 5)
        assert rig.keeper.waiting == (GPU,)
        while not rig.said:
            await asyncio.sleep(0)
        for _ in range(20):  # the first look is over, the next one a minute away
            await asyncio.sleep(0)
        rig.keeper.note_end(["j-1.1"], Plan(gpus=(GPU,)))
        wake = asyncio.create_task(rig.keeper.wait_free([GPU], {"f.1.a"}))
        looks = rig.world.asked
        async with asyncio.timeout(10):
            while rig.world.asked < looks + 3:
                await asyncio.sleep(0)
        assert not wake.done() and rig.world.held == stranger
        rig.world.held = ()
        await asyncio.wait_for(wake, 5)
        assert rig.keeper.waiting == ()

    asyncio.run(life())
