"""How is an agent put together? Builds the real edges of one home and runs the agent until it is told to end.

SIGTERM ends the agent only: workloads, templates and the spawner stay, and the next agent adopts them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from steelyard.agent.cleanup import Cleanup
from steelyard.agent.container_images import ContainerImages
from steelyard.agent.device_grants import DeviceGrants
from steelyard.agent.edges import Edges
from steelyard.agent.home_images import HomeImages
from steelyard.agent.loop import Agent
from steelyard.clock import SystemClock
from steelyard.config import Paths, Settings
from steelyard.errors import SteelyardError
from steelyard.gateway.envoy import Envoy
from steelyard.gateway.listeners import LOOPBACK
from steelyard.host.allocation import limit_machine, limit_topology
from steelyard.host.cdi import CdiReader
from steelyard.host.cgroup import open_cgroups
from steelyard.host.device_nodes import observe_gpu_nodes, observe_nodes
from steelyard.host.journal import SettingsJournal
from steelyard.host.machine import observe_machine
from steelyard.host.scratch import ScratchDisk
from steelyard.host.sockdiag import SocketQueue
from steelyard.host.topology.observe import observe_topology
from steelyard.host.volumes import VolumeFolders
from steelyard.model.machine import Machine
from steelyard.model.topology import Topology
from steelyard.runtime.container import Containers
from steelyard.runtime.lib_dir import make_lib_dir
from steelyard.runtime.process import ProcessRuntime
from steelyard.runtime.record_lane import RecordLane
from steelyard.runtime.slurm_bin import make_slurm_bin
from steelyard.runtime.spawner_client import SpawnerClient
from steelyard.wire.spawn import Exited

#: share of the machine's memory that templates may hold before the least recently used is evicted, unless `up` was told
TEMPLATE_SHARE = 0.25


def run_agent(paths: Paths, settings: Settings) -> None:
    """Blocks until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(paths, settings))


async def _run(paths: Paths, settings: Settings) -> None:
    task = asyncio.current_task()
    assert task is not None
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    try:
        await _make_agent(paths, settings).run()
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("told to end; workloads stay")


def _observe_machine(settings: Settings) -> Machine:
    """With its wiring, where that can be read: an agent without it still runs all work that asks for no device."""
    machine = observe_machine()
    try:
        machine = msgspec.structs.replace(machine, topology=_observe_topology(settings))
    except (SteelyardError, OSError, ValueError) as err:
        logging.getLogger(__name__).warning("how this machine is wired could not be read: %s", err)
    return limit_machine(machine, os.environ) if settings.pilot else machine


def _observe_topology(settings: Settings) -> Topology:
    topology = observe_topology()
    return limit_topology(topology, os.environ, observe_nodes()) if settings.pilot else topology


def _make_agent(paths: Paths, settings: Settings) -> Agent:
    clock = SystemClock()
    machine = _observe_machine(settings)
    if settings.node_gateway:
        gateway, home = f"{settings.gateway_host}:{settings.gateway_port}", f"http://{LOOPBACK}:{settings.calls_port}"
        machine = msgspec.structs.replace(machine, gateway=gateway, home_gateway=home if settings.calls_port else "")
    gpus = machine.topology.gpus if machine.topology else ()
    gpu_nodes = observe_gpu_nodes(Path("/"), gpus)
    # in an allocation of Slurm's its groups hold all work: out of them would be out of the allocation
    cgroups = open_cgroups(paths.tag, gpu_nodes=gpu_nodes, own=not settings.pilot)
    cgroups.prepare(machine.cpus, tuple(node.id for node in machine.numa_nodes) or (0,))
    agents: list[Agent] = []

    def on_exit(exited: Exited) -> None:
        agents[0].on_exit(exited)

    spawner = SpawnerClient(paths.spawner_socket, on_exit)
    lane = RecordLane()
    containers = Containers(paths.containers, paths.images, machine.hostname, fetches=not settings.pilot)
    home_images = HomeImages(paths, settings)
    runtime = ProcessRuntime(paths.agent, paths.workloads, cgroups, spawner, clock, machine.boot_id, lane)
    edges = Edges(
        paths=paths,
        settings=settings,
        machine=machine,
        clock=clock,
        cgroups=cgroups,
        spawner=spawner,
        runtime=runtime,
        cleanup=Cleanup(runtime, paths, containers),
        containers=containers,
        images=ContainerImages(containers, settings, home_images if settings.pilot else None),
        home_images=home_images,
        grants=DeviceGrants(CdiReader(), machine.topology),
        lane=lane,
        gateway=Envoy(paths, settings, clock),
        queue=SocketQueue(),
        journal=SettingsJournal(paths.run.parent, machine.boot_id),
        lib_dir=make_lib_dir(paths.home / "runner"),
        scratch=ScratchDisk(paths.home, paths.tag, configured=Path(settings.scratch_dir) if settings.scratch_dir else None),
        volumes=VolumeFolders(
            paths.volumes,
            (str(paths.home), str(paths.run), sys.prefix, sys.base_prefix),
            # a pilot's outputs lie in the folder of `cluster attach`, from which it has its pass
            paths.workloads if settings.pilot else None,
        ),
        slurm_bin=make_slurm_bin(paths.home / "slurm", sys.executable),
        template_budget_bytes=settings.template_memory_bytes or round(machine.memory_bytes * TEMPLATE_SHARE),
        observe_topology=lambda: _observe_topology(settings),
    )
    agents.append(Agent(edges))
    return agents[0]
