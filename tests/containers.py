"""For tests of the agent's parts without any container."""

from __future__ import annotations

from pathlib import Path

from steelyard.agent.container_images import ContainerImages
from steelyard.agent.device_grants import DeviceGrants
from steelyard.agent.job_container import JobContainers
from steelyard.config import Settings
from steelyard.host.cdi import CdiReader
from steelyard.runtime.container import Containers

_NONE = Containers(Path("/nonexistent"), Path("/nonexistent"), "h")
_SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=1, work_gid=1, admin_user="root", admin_uid=0)
NO_CONTAINERS = JobContainers(_NONE, ContainerImages(_NONE, _SETTINGS), DeviceGrants(CdiReader(Path("/nonexistent")), None))
