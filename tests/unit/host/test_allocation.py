from __future__ import annotations

import pytest

from machines import make_machine
from steelyard.host.allocation import OWN_BYTES, limit_machine, limit_topology
from steelyard.host.device_nodes import DeviceNode
from steelyard.model.cores import Core
from steelyard.model.ids import MachineId
from steelyard.model.topology import Gpu, Pair, PathClass, Topology

GIB = 1 << 30
MACHINE = make_machine(id=MachineId("m"), boot_id="b", cores=(Core((0, 1)), Core((2, 3))), memory_bytes=64 * GIB)
GPUS = tuple(Gpu(f"0000:0{at}:00.0", pci=f"0000:0{at}:00.0") for at in range(4))
NODES = [DeviceNode(f"0000:0{at}:00.0", f"/dev/nvidia{at}", f"195:{at}") for at in range(4)]
WHOLE = Topology(gpus=GPUS, pairs=(Pair(GPUS[0].id, GPUS[1].id, PathClass.PIX), Pair(GPUS[1].id, GPUS[2].id, PathClass.SYS)))


@pytest.mark.parametrize(
    ("environ", "given"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4 * GIB),
        ({"SLURM_MEM_PER_CPU": "1024"}, 4 * GIB),
        # all of the node
        ({"SLURM_MEM_PER_NODE": "0"}, 64 * GIB),
        ({}, 64 * GIB),
        ({"SLURM_MEM_PER_NODE": "1000000"}, 64 * GIB),
        ({"SLURM_MEM_PER_NODE": "lots"}, 64 * GIB),
    ],
)
def test_jobs_get_what_slurm_gave_less_what_our_programs_take(environ: dict[str, str], given: int) -> None:
    assert limit_machine(MACHINE, environ).memory_bytes == given - OWN_BYTES


def test_our_programs_never_take_more_than_half() -> None:
    assert limit_machine(MACHINE, {"SLURM_MEM_PER_NODE": "100"}).memory_bytes == 50 << 20


@pytest.mark.parametrize(("told", "mine"), [("1,3", [1, 3]), ("0-2", [0, 1, 2]), ("", []), ("0,1,2,3", [0, 1, 2, 3]), ("9", [])])
def test_only_the_gpus_of_the_allocation_are_there(told: str, mine: list[int]) -> None:
    seen = limit_topology(WHOLE, {"SLURM_JOB_GPUS": told}, NODES)
    assert seen.gpus == tuple(GPUS[at] for at in mine)
    assert all({pair.a, pair.b} <= {gpu.id for gpu in seen.gpus} for pair in seen.pairs)


def test_where_slurm_closes_the_others_files_those_that_are_seen_are_ours() -> None:
    assert limit_topology(Topology(gpus=GPUS[:2]), {"SLURM_JOB_GPUS": "2,3"}, NODES).gpus == GPUS[:2]
