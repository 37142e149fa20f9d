"""Whose place is it now: the function's that has it, or a job's that it is lent to while the function sleeps?

The agent alone answers, so that a wake waits for no server. A function lends from the moment in which nothing of it is on its
place; a job is started there only while that is so, asked in the same turn of the event loop. On a wake the cores leave the
common ones with one write; whoever is on its devices is told to end, killed when the bound is over, and the devices must be free
again before anything of the function starts on them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from steelyard.agent.devices import devices_of
from steelyard.model.job import Plan


class Devices(Protocol):
    """What is asked of the keeper of devices."""

    def note_end(self, workloads: Collection[str], plan: Plan) -> None: ...
    async def wait_free(self, devices: Collection[str], own: Collection[str]) -> None: ...


class Lending:
    """`share_cores` brings the common cores in line with who sleeps now; `end_jobs(place, function, kill_at_ns)` returns once no
    job is on these devices."""

    def __init__(
        self, share_cores: Callable[[], None], end_jobs: Callable[[Plan, str, int], Awaitable[None]], devices: Devices
    ) -> None:
        self._share_cores, self._end_jobs, self._devices = share_cores, end_jobs, devices

    async def take_back(self, place: Plan, function: str, kill_at_ns: int, own: Collection[str] = ()) -> None:
        """The function is not asleep any more, so nobody new comes. `own`: workloads of it that were there last, whose end nobody
        has to wait for. Without devices it is done in the same turn."""
        if place.cpus:
            self._share_cores()
        devices = devices_of(place)
        if devices:
            await self._end_jobs(place, function, kill_at_ns)
            await self._devices.wait_free(devices, own)

    def give(self, place: Plan, own: Collection[str]) -> None:
        """The function sleeps: the last of `own` has ended. Its devices are lent once they are seen to be free."""
        if devices_of(place):
            self._devices.note_end(own, place)
        if place.cpus:
            self._share_cores()


def meets(one: Plan, other: Plan) -> bool:
    """Is there a device, or an instance of one, that both have?"""
    if not set(one.nics).isdisjoint(other.nics) or not set(one.mig_instances).isdisjoint(other.mig_instances):
        return True
    # of a GPU with instances each is somebody's by itself
    return not (one.mig_instances and other.mig_instances) and not set(one.gpus).isdisjoint(other.gpus)
