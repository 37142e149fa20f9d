"""Everything of the outside world that the agent's parts share, built once by `cli/agent.py` and handed in. No behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steelyard.agent.cleanup import Cleanup
from steelyard.agent.container_images import ContainerImages
from steelyard.agent.device_grants import DeviceGrants
from steelyard.agent.home_images import HomeImages
from steelyard.clock import Clock
from steelyard.config import Paths, Settings
from steelyard.gateway import Gateway
from steelyard.host import Cgroups
from steelyard.host.journal import SettingsJournal
from steelyard.host.scratch import ScratchDisk
from steelyard.host.sockdiag import SocketQueue
from steelyard.host.volumes import VolumeFolders
from steelyard.model.machine import Machine
from steelyard.model.topology import Topology
from steelyard.runtime.container import Containers
from steelyard.runtime.process import ProcessRuntime
from steelyard.runtime.record_lane import RecordLane
from steelyard.runtime.spawner_client import SpawnerClient


@dataclass(frozen=True)
class Edges:
    paths: Paths
    settings: Settings
    machine: Machine
    clock: Clock
    cgroups: Cgroups
    spawner: SpawnerClient
    runtime: ProcessRuntime
    cleanup: Cleanup
    containers: Containers
    #: of containers
    images: ContainerImages
    #: of machines of pools, which have theirs from there
    home_images: HomeImages
    #: what they need for their devices
    grants: DeviceGrants
    #: durable files of the agent, many at the price of one
    lane: RecordLane
    gateway: Gateway
    queue: SocketQueue
    #: of the whole machine, shared with other homes
    journal: SettingsJournal
    #: folder that the runner's HTTP server is loaded from inside user environments
    lib_dir: Path
    #: folder with `srun`, `sbatch` and their like, for the PATH of jobs
    slurm_bin: Path
    #: bytes of their own that all templates together may hold before the least recently used is evicted
    template_budget_bytes: int
    scratch: ScratchDisk
    volumes: VolumeFolders
    #: reads the machine's topology anew; None: drift can't be watched
    observe_topology: Callable[[], Topology] | None = None
