"""For tests of the agent's parts without any container."""

from __future__ import annotations

from pathlib import Path

from steelyard.agent.job_container import JobContainers
from steelyard.runtime.container import Containers

NO_CONTAINERS = JobContainers(Containers(Path("/nonexistent"), Path("/nonexistent"), "h"))
