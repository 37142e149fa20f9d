"""The agent's health and device keepers over a made-up machine: what is held is on disk, and only a passed check puts it back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import pytest

from steelyard.agent import health
from steelyard.agent.devices import DeviceEdge, DeviceKeeper
from steelyard.agent.health import FILE, HealthEdge, HealthKeeper
from steelyard.clock import VirtualClock
from steelyard.errors import Conflict
from steelyard.host.device_users import DeviceUsers
from steelyard.host.health.kernel_log import parse_log
from steelyard.lifecycle.device_return import Holder
from steelyard.lifecycle.node import NodeState
from steelyard.model.health import NODE, Finding, Severity
from steelyard.model.health_facts import HealthFacts
from steelyard.model.job import Plan
from steelyard.model.topology import Gpu, Topology

GPU, OTHER = "0000:0f:00.0", "0000:10:00.0"
XID = "4,{},1000000,-;NVRM: Xid (PCI:0000:0f:00): 79, pid=1\n"


class Machine(HealthEdge):
    def __init__(self) -> None:
        self.text = "6,1,1,-;boot\n"
        self.seen: Topology | None = Topology(gpus=(Gpu(GPU, pcie_width=16), Gpu(OTHER, pcie_width=16)))
        self.verdict = Severity.PASS
        self.probed: list[str] = []

    def facts(self) -> HealthFacts:
        return self.log()

    def log(self) -> HealthFacts:
        log = parse_log(self.text, "kernel log")
        numbers = [int(line.split(",")[1]) for line in self.text.splitlines()]
        return HealthFacts(logs=(msgspec.structs.replace(log, newest=max(numbers)),))

    def topology(self) -> Topology | None:
        return self.seen

    def probe(self, subject: str, known: Topology | None) -> Finding:
        self.probed.append(subject)
        return Finding("probe", subject, self.verdict, "So it is.")


def open_keeper(folder: Path, machine: Machine, in_use: Collection[str] = (), boot: str = "boot-1") -> HealthKeeper:
    keeper = HealthKeeper(folder, boot, VirtualClock(), lambda: in_use, lambda: None, machine)
    keeper.begin()
    return keeper


async def readmit(keeper: HealthKeeper, subject: str) -> None:
    keeper.readmit(subject)
    while (hold := keeper.node.hold(subject)) is not None and hold.state is NodeState.CHECKING:
        await asyncio.sleep(0)


def test_an_xid_takes_its_gpu_out_and_outlives_agent_reboot_and_the_scrolled_log(tmp_path: Path) -> None:
    async def life() -> None:
        machine = Machine()
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        assert keeper.node.state is NodeState.READY
        machine.text += XID.format(7)
        await keeper.look(log_only=True)
        assert (keeper.node.state, keeper.node.blocked) == (NodeState.DEGRADED, (GPU,))
        assert "Xid 79" in keeper.events()[-1].text
        machine.text = "6,1,1,-;boot\n"
        again = open_keeper(tmp_path, machine, boot="boot-2")
        await again.look()
        assert again.node.blocked == (GPU,)

    asyncio.run(life())


def test_a_passed_check_puts_it_back_and_the_old_line_does_not_drain_it_again_but_a_new_one_does(tmp_path: Path) -> None:
    async def life() -> None:
        machine = Machine()
        machine.text += XID.format(7)
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        await readmit(keeper, GPU)
        assert (keeper.node.state, machine.probed) == (NodeState.READY, [GPU])
        await keeper.look()
        assert keeper.node.blocked == ()
        machine.text += XID.format(8)
        await keeper.look()
        assert keeper.node.blocked == (GPU,)

    asyncio.run(life())


@pytest.mark.parametrize("verdict", [Severity.UNKNOWN, Severity.CRITICAL])
def test_a_check_that_fails_or_can_not_look_leaves_it_out(tmp_path: Path, verdict: Severity) -> None:
    async def life() -> None:
        machine = Machine()
        machine.verdict = verdict
        machine.text += XID.format(7)
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        await readmit(keeper, GPU)
        hold = keeper.node.hold(GPU)
        assert hold is not None and hold.state is NodeState.DRAINED and hold.checked[0].severity is verdict

    asyncio.run(life())


def test_what_work_still_uses_drains_first(tmp_path: Path) -> None:
    async def life() -> None:
        machine, in_use = Machine(), {GPU, NODE}
        machine.text += XID.format(7)
        keeper = open_keeper(tmp_path, machine, in_use)
        await keeper.look()
        with pytest.raises(Conflict, match="draining"):
            keeper.readmit(GPU)
        in_use.clear()
        keeper.on_use()
        assert keeper.node.holds[0].state is NodeState.DRAINED

    asyncio.run(life())


def test_a_gpu_that_vanished_stays_out_until_it_is_back_and_checked(tmp_path: Path) -> None:
    async def life() -> None:
        machine = Machine()
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        whole, machine.seen = machine.seen, Topology(gpus=(Gpu(OTHER, pcie_width=16),))
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        assert (keeper.node.state, keeper.node.blocked) == (NodeState.DEGRADED, (GPU,))
        await readmit(keeper, GPU)
        assert keeper.node.blocked == (GPU,)
        machine.seen = whole
        await keeper.look()
        assert keeper.node.blocked == (GPU,)
        await readmit(keeper, GPU)
        assert keeper.node.state is NodeState.READY

    asyncio.run(life())


def test_a_change_of_hardware_that_is_meant_is_kept_by_hand(tmp_path: Path) -> None:
    async def life() -> None:
        machine = Machine()
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        machine.seen = Topology(gpus=(Gpu(OTHER, pcie_width=16),))
        await keeper.look()
        assert keeper.node.blocked == (GPU,)
        await keeper.keep_hardware()
        await keeper.look()
        assert keeper.node.state is NodeState.READY

    asyncio.run(life())


def test_a_damaged_record_drains_the_machine(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"{")
    assert open_keeper(tmp_path, Machine()).node.state is NodeState.DRAINED


def test_a_topology_that_can_not_be_read_is_unknown_and_blocks_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        machine = Machine()
        machine.seen = None
        keeper = open_keeper(tmp_path, machine)
        await keeper.look()
        assert keeper.node.state is NodeState.READY
        assert any(each.check == "drift" and each.severity is Severity.UNKNOWN for each in keeper.seen.findings)

    asyncio.run(life())


class Devices(DeviceEdge):
    def __init__(self) -> None:
        self.held: tuple[Holder, ...] = ()
        self.used: dict[str, int] = {GPU: 0}
        self.killed: list[int] = []

    def nodes(self) -> dict[str, tuple[str, ...]]:
        return {GPU: ("/dev/nvidia0",)}

    def users(self, nodes: Mapping[str, Collection[str]]) -> DeviceUsers:
        return DeviceUsers(dict.fromkeys(nodes, self.held), complete=True)

    def memory(self) -> dict[str, int]:
        return self.used

    def kill(self, holder: Holder) -> None:
        self.killed.append(holder.pid)
        self.held = tuple(each for each in self.held if each.pid != holder.pid)


def test_a_device_waits_from_the_end_of_its_work_until_orphans_are_gone_and_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life() -> None:
        monkeypatch.setattr("steelyard.agent.devices.LOOK_AGAIN_S", 0.0)
        edge, said = Devices(), list[str]()
        keeper = DeviceKeeper(tmp_path, set, set, lambda: None, said.append, edge)
        plan, attempt = Plan(gpus=(GPU,)), "job-1.1"
        await keeper.note_start(plan)
        edge.held, edge.used = (Holder(9, 90, "python3", "job-1.1"),), {GPU: 9 << 30}
        keeper.note_end([attempt], plan)
        assert keeper.waiting == (GPU,)
        while not any("MiB of memory" in sentence for sentence in said):
            await asyncio.sleep(0)
        assert edge.killed == [9] and keeper.waiting == (GPU,)
        edge.used = {GPU: 0}
        while keeper.waiting:
            await asyncio.sleep(0)
        assert "is free" in said[-1]

    asyncio.run(life())


def test_work_without_devices_costs_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        class Untouched(DeviceEdge):
            def nodes(self) -> dict[str, tuple[str, ...]]:
                raise AssertionError("looked at devices")

        keeper = DeviceKeeper(tmp_path, set, set, lambda: None, lambda sentence: None, Untouched())
        await keeper.note_start(Plan(cpus=(0,)))
        keeper.note_end(["job-1.1"], Plan(cpus=(0,)))
        assert keeper.waiting == ()

    asyncio.run(life())


def test_a_device_whose_files_are_not_known_is_returned_as_not_verified(tmp_path: Path) -> None:
    async def life() -> None:
        said: list[str] = []
        keeper = DeviceKeeper(tmp_path, set, set, lambda: None, said.append, Devices())
        keeper.note_end(["job-1.1"], Plan(gpus=("GPU0",)))
        while keeper.waiting:
            await asyncio.sleep(0)
        assert "NOT VERIFIED" in said[-1]

    asyncio.run(life())


@pytest.mark.parametrize(
    ("record", "wakes"),
    [
        (b"6,11,1000000,-;eth0: link becomes ready\n", False),
        (XID.format(12).encode(), True),
        (b"12,13,1000000,-;NVRM: Xid (PCI:0000:0f:00): 79, pid=1\n", False),
    ],
)
def test_only_a_line_that_matters_makes_it_look_at_the_whole_log(record: bytes, wakes: bool) -> None:
    wake, (reading, writing) = asyncio.Event(), os.pipe()
    try:
        os.set_blocking(reading, False)
        os.write(writing, record)
        health._drain_log(reading, wake)
        assert wake.is_set() is wakes
    finally:
        os.close(reading)
        os.close(writing)


def test_lines_that_were_overwritten_unread_make_it_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(fd: int, size: int) -> bytes:
        raise BrokenPipeError

    monkeypatch.setattr(health.os, "read", lost)
    wake = asyncio.Event()
    health._drain_log(0, wake)
    assert wake.is_set()


def test_a_disk_and_a_bridge_have_a_check_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Finding("probe", "x", Severity.PASS, "It was read.")
    monkeypatch.setattr(health, "probe_disk", lambda name: passed if name == "sda" else None)
    monkeypatch.setattr(health, "probe_pci", lambda pci: passed if pci == "0000:40:01.1" else None)
    edge = HealthEdge(tmp_path)
    assert [edge.probe(each, None).severity for each in ("sda", "0000:40:01.1", "numa:7")] == [
        Severity.PASS,
        Severity.PASS,
        Severity.UNKNOWN,
    ]
