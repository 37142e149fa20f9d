"""Is what work had free again? Watches devices from the end of the work that had them until they may go back to the pool.

Costs nothing while no work asks for devices. Baselines are on disk, so that a restarted agent judges as the one before would
have. Until a device is returned it stands in `waiting`, which goes into every report and keeps placement off it.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from steelyard.model.job import Plan

log = logging.getLogger(__name__)

FILE = "devices.json"
LOOK_AGAIN_S = 1.0
#: while a wake waits for a device
LOOK_SOON_S = 0.05


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


class Wait(msgspec.Struct, frozen=True):
    """Why a device is not back in the pool."""

    #: the ended workloads that had it, of which nothing may be left on it
    workloads: tuple[str, ...]
    #: a GPU, whose memory must be free too
    has_memory: bool = True


class Kept(msgspec.Struct, frozen=True):
    """The file."""

    baselines: dict[str, Baseline] = {}
    waiting: dict[str, Wait] = {}


class Look(msgspec.Struct, frozen=True):
    """All that one look saw, of all devices that wait."""

    nodes: dict[str, tuple[str, ...]]
    users: DeviceUsers
    memory: dict[str, int]


class DeviceKeeper:
    """Baselines and returns of all devices of one machine. `live` names the workloads that run now,
    `ended` those that have ended and are still known.

    Only the looking happens in another thread; whatever it leads to is decided and done on the event loop."""

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
        self._task: asyncio.Task[None] | None = None
        self._said: dict[str, str] = {}
        #: how many wakes wait for a device, and what tells the looking that one does and them that one is free
        self._hurried = 0
        self._hurry, self._returned = asyncio.Event(), asyncio.Event()
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            # A lost baseline only makes the judgement stricter: an idle device's memory is then taken to be empty.
            kept = Kept()
        self._baselines, self._waiting = dict(kept.baselines), dict(kept.waiting)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Devices whose work has ended and that are not free yet."""
        return tuple(sorted(self._waiting))

    async def note_start(self, plan: Plan) -> None:
        """Before work is started on these devices: remember what they look like."""
        wanted = set(devices_of(plan))
        if not wanted:
            return
        live = set(self._live())
        look = await asyncio.to_thread(self._observe, wanted)
        for device in wanted:
            holders = look.users.holders.get(device, ())
            # Of a device that running work shares, the earlier baseline stands.
            if not any(each.workload in live for each in holders):
                self._baselines[device] = Baseline(tuple(each.process for each in holders), look.memory.get(device))
        self._keep()

    def note_end(self, workloads: Collection[str], plan: Plan) -> None:
        """Their processes have been killed. The devices wait from this moment on, before anybody is told that the work ended."""
        devices = devices_of(plan)
        for device in devices:
            before = self._waiting.get(device, Wait(()))
            self._waiting[device] = Wait(tuple(sorted({*before.workloads, *workloads})), device in plan.gpus)
        if devices:
            self._keep()
            self.resume()

    def resume(self) -> None:
        """Go on with what waits, also where an earlier agent left it."""
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._return_all())

    async def _return_all(self) -> None:
        while self._waiting:
            try:
                await self._look()
            except Exception:
                # The last line of defence: a device must not be lost because one look broke.
                log.exception("whether devices are free could not be looked at")
            if self._waiting and self._hurried:
                await asyncio.sleep(LOOK_SOON_S)
            elif self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await self._hurry.wait()

    async def wait_free(self, devices: Collection[str], own: Collection[str]) -> None:
        """Until none of them waits for the end of other work than `own`. As long as it takes: whoever calls has a deadline."""
        self._hurried += 1
        self._hurry.set()
        try:
            while any(not set(self._waiting[each].workloads) <= set(own) for each in devices if each in self._waiting):
                self.resume()
                self._returned.clear()
                await self._returned.wait()
        finally:
            self._hurried -= 1
            if not self._hurried:
                self._hurry.clear()

    async def _look(self) -> None:
        waits = dict(self._waiting)
        look = await asyncio.to_thread(self._observe, tuple(waits))
        live, ended = set(self._live()), set(self._ended())
        for device, wait in waits.items():
            # Where more work ended on it meanwhile, only the next look can tell.
            if self._waiting[device] == wait and self._judge(device, wait, look, live, ended):
                self._waiting.pop(device, None)
                self._said.pop(device, None)
                self._keep()
                self._returned.set()
                self._changed()

    def _judge(self, device: str, wait: Wait, look: Look, live: set[str], ended: set[str]) -> bool:
        """True when the device may go back to the pool."""
        decision = decide_return(
            device,
            look.users.holders.get(device, ()),
            live - set(wait.workloads),
            {*wait.workloads, *ended},
            look.memory.get(device) if wait.has_memory else None,
            self._baselines.get(device, Baseline()),
            has_memory=wait.has_memory,
        )
        sentence = decision.sentence
        free = decision.verdict in (Verdict.RETURN, Verdict.NOT_VERIFIED)
        if free and not look.nodes[device]:
            sentence = f"{device}: NOT VERIFIED that no process holds it; which device files it has is not known."
        elif free and not look.users.complete:
            sentence = f"{device}: NOT VERIFIED that no process holds it; only root may see what others have open."
        if self._said.get(device) != sentence:
            self._said[device] = sentence
            self._record(sentence)
        for orphan in decision.orphans:
            self._edge.kill(orphan)
        return free

    def _observe(self, wanted: Collection[str]) -> Look:
        """In another thread: touches nothing but the world. Once for all devices, because asking a driver takes long."""
        nodes = self._edge.nodes()
        mine = {device: nodes.get(device.partition("/")[0], ()) for device in wanted}
        return Look(mine, self._edge.users(mine), self._edge.memory())

    def _keep(self) -> None:
        try:
            write_file(self._file, msgspec.json.encode(Kept(self._baselines, self._waiting)))
        except OSError as err:
            # They hold in memory; without them a restarted agent judges more strictly.
            log.warning("%s could not be written: %s", self._file, err)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()


def devices_of(plan: Plan) -> tuple[str, ...]:
    return (*plan.gpus, *plan.nics)
