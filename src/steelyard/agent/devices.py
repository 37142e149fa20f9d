"""Is what work had free again? Watches devices from the end of the work that had them until they may go back to the pool.

Costs nothing while no work asks for devices. Baselines are on disk, so that a restarted agent judges as the one before would
have. Until a device is returned it stands in `waiting`, which goes into every report and keeps placement off it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.host.device_users import DeviceUsers, observe_device_nodes, observe_memory, observe_users
from steelyard.host.proc import observe_process
from steelyard.lifecycle.device_return import Baseline, Holder, Verdict, decide_return
from steelyard.model.ids import AttemptId
from steelyard.model.job import Plan

log = logging.getLogger(__name__)

FILE = "devices.json"
LOOK_AGAIN_S = 1.0


class DeviceEdge:
    """The real world; tests put another in its place."""

    def nodes(self) -> dict[str, tuple[str, ...]]:
        return observe_device_nodes()

    def users(self, nodes: Mapping[str, Collection[str]]) -> DeviceUsers:
        return observe_users(nodes)

    def memory(self) -> dict[str, int]:
        return observe_memory()

    def kill(self, holder: Holder) -> None:
        """By (pid, start time): another process that got the number meanwhile is left alone."""
        try:
            fd = os.pidfd_open(holder.pid)
        except OSError:
            return
        try:
            process = observe_process(holder.pid)
            if process is not None and process.start_time == holder.start_time:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except OSError:
            return
        finally:
            os.close(fd)


class DeviceKeeper:
    """Baselines and returns of all devices of one machine. `live` names the workloads that run now,
    `ended` those that have ended and are still known."""

    def __init__(
        self,
        folder: Path,
        live: Callable[[], Collection[str]],
        ended: Callable[[], Collection[str]],
        changed: Callable[[], None],
        record: Callable[[str], None],
        edge: DeviceEdge | None = None,
    ) -> None:
        self._file = folder / FILE
        self._live, self._ended, self._changed, self._record = live, ended, changed, record
        self._edge = edge or DeviceEdge()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: whose ends a device waits for; two that shared it may end one after the other
        self._left: dict[str, set[AttemptId]] = {}
        self._said: dict[str, str] = {}
        try:
            self._baselines = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Baseline])
        except (FileNotFoundError, msgspec.MsgspecError):
            # A lost baseline only makes the judgement stricter: an idle device's memory is then taken to be empty.
            self._baselines: dict[str, Baseline] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Devices whose work has ended and that are not free yet."""
        return tuple(sorted(self._tasks))

    async def note_start(self, plan: Plan) -> None:
        """Before work is started on these devices: remember what they look like."""
        wanted = set(devices_of(plan))
        if not wanted:
            return
        fresh = await asyncio.to_thread(self._observe_baselines, wanted, set(self._live()))
        self._baselines = {**self._baselines, **fresh}
        try:
            write_file(self._file, msgspec.json.encode(self._baselines))
        except OSError as err:
            # They hold in memory; without them a restarted agent judges more strictly.
            log.warning("%s could not be written: %s", self._file, err)

    def _observe_baselines(self, wanted: Collection[str], live: Collection[str]) -> dict[str, Baseline]:
        users, memory = self._edge.users(self._nodes(wanted)), self._edge.memory()
        found: dict[str, Baseline] = {}
        for device in wanted:
            holders = users.holders.get(device, ())
            # Of a device that running work shares, the earlier baseline stands.
            if not any(each.workload in live for each in holders):
                found[device] = Baseline(tuple(each.process for each in holders), memory.get(device))
        return found

    def note_end(self, attempt: AttemptId, plan: Plan) -> None:
        """Its processes have been killed. The devices wait from this moment on, before anybody is told that the work ended."""
        for device in devices_of(plan):
            self._left.setdefault(device, set()).add(attempt)
            if device not in self._tasks:
                gpu = device in plan.gpus
                self._tasks[device] = asyncio.get_running_loop().create_task(self._return(device, has_memory=gpu))

    async def _return(self, device: str, *, has_memory: bool) -> None:
        while True:
            try:
                # A thread looks at the machine; what it sees is judged here, where nothing changes meanwhile.
                seen = await asyncio.to_thread(self._look, device, has_memory)
                if self._judge(device, *seen, has_memory=has_memory):
                    break
            except Exception:  # a device must never be lost because one look at it failed
                log.exception("%s: whether it is free could not be looked at", device)
            await asyncio.sleep(LOOK_AGAIN_S)
        for known in (self._tasks, self._left, self._said):
            known.pop(device, None)
        self._changed()

    def _look(self, device: str, has_memory: bool) -> tuple[tuple[str, ...], DeviceUsers, int | None]:
        """(its files, who has them open, its used memory)"""
        nodes = self._nodes([device])
        users = self._edge.users(nodes)
        return nodes[device], users, self._edge.memory().get(device) if has_memory else None

    def _judge(
        self, device: str, nodes: tuple[str, ...], users: DeviceUsers, memory_bytes: int | None, *, has_memory: bool
    ) -> bool:
        """True when the device may go back to the pool."""
        left = self._left.get(device, set())
        decision = decide_return(
            device,
            users.holders.get(device, ()),
            set(self._live()) - left,
            {*left, *self._ended()},
            memory_bytes,
            self._baselines.get(device, Baseline()),
            has_memory=has_memory,
        )
        sentence = decision.sentence
        if decision.verdict in (Verdict.RETURN, Verdict.NOT_VERIFIED) and not nodes:
            sentence = f"{device}: NOT VERIFIED that no process holds it; which device files it has is not known."
        elif decision.verdict in (Verdict.RETURN, Verdict.NOT_VERIFIED) and not users.complete:
            sentence = f"{device}: NOT VERIFIED that no process holds it; only root may see what others have open."
        if self._said.get(device) != sentence:
            self._said[device] = sentence
            self._record(sentence)
        for orphan in decision.orphans:
            self._edge.kill(orphan)
        return decision.verdict in (Verdict.RETURN, Verdict.NOT_VERIFIED)

    def _nodes(self, wanted: Collection[str]) -> dict[str, tuple[str, ...]]:
        nodes = self._edge.nodes()
        return {device: nodes.get(device.partition("/")[0], ()) for device in wanted}

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()


def devices_of(plan: Plan) -> tuple[str, ...]:
    return (*plan.gpus, *plan.nics)
