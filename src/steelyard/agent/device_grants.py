"""What does a container of a job or function need for the devices that its plan gives it? Looked up at each start: drivers and
specifications change under a running agent."""

from __future__ import annotations

import asyncio

from steelyard.errors import Refused
from steelyard.host.cdi import CdiReader
from steelyard.lifecycle.device_edits import grant_devices
from steelyard.model.cdi import DeviceEdits
from steelyard.model.job import Plan
from steelyard.model.topology import Topology


class DeviceGrants:
    """Of one machine."""

    def __init__(self, reader: CdiReader, topology: Topology | None) -> None:
        self._reader, self._topology = reader, topology

    async def edits(self, plan: Plan) -> DeviceEdits:
        """Work without devices costs nothing. Raises Refused with what is missing."""
        if not plan.gpus and not plan.nics:
            return DeviceEdits()
        facts = await asyncio.to_thread(self._reader.observe)
        edits = grant_devices(plan, self._topology, facts)
        if isinstance(edits, str):
            raise Refused(f"{edits}. Nothing was started.", code="no-devices-inside")
        return edits
