"""PyTorch data-parallel training with gloo, killed in the middle and resumed from its checkpoint, by torchrun and without.

torch is several gigabytes and therefore not among the packages of the tests: name a folder that holds it in
STEELYARD_TEST_TORCH (`pip install --target FOLDER torch`), readable by everybody, for the interpreter /usr/bin/python3.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest
from keeper_rig import KeeperRig, make_job, open_folder, open_keeper
from spawner_rig import until

from steelyard.model.batch import Gang, Launcher
from steelyard.model.ids import AttemptId
from steelyard.model.job import Plan
from steelyard.wire.agent import AssignedJob

PYTHON = "/usr/bin/python3"
SITE = os.environ.get("STEELYARD_TEST_TORCH", "")
ENV = {"PATH": os.defpath, "PYTHONPATH": SITE, "OMP_NUM_THREADS": "1"}
#: rank 0 keeps a checkpoint per step; the first attempt stops at the fourth
TRAIN = textwrap.dedent("""
    import os, pathlib, sys, time
    import torch, torch.distributed as dist
    out = pathlib.Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    checkpoint = os.environ["STEELYARD_CHECKPOINT"]
    first = torch.load(checkpoint)["step"] if checkpoint else 0
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(first, 6):
        loss = model(torch.randn(8, 4)).pow(2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        if rank == 0:
            torch.save({"step": step + 1}, out / ".new.pt")
            os.rename(out / ".new.pt", out / f"step-{step + 1}")
        if step == 3 and os.environ["STEELYARD_RESTART_COUNT"] == "0":
            time.sleep(600)
        dist.barrier()
    os.write(1, f"rank {rank} of {world} went from {first} to {step + 1}\\n".encode())
    dist.destroy_process_group()
""")


def torch_runs() -> bool:
    try:
        return bool(SITE) and subprocess.run([PYTHON, "-c", "import torch"], env=ENV, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not torch_runs(), reason="NOT VERIFIED here: STEELYARD_TEST_TORCH names no folder with torch")
@pytest.mark.parametrize("launcher", [Launcher.TORCHRUN, Launcher.NONE])
def test_training_goes_on_from_its_newest_checkpoint(launcher: Launcher) -> None:
    async def script(rig: KeeperRig) -> None:
        out, program = open_folder(rig, "checkpoints"), rig.rig.folder / "train.py"
        program.write_text(TRAIN)
        first, second = AttemptId("j-000001.1"), AttemptId("j-000001.2")
        plan = Plan(share=0.2, tasks=(Plan(share=0.1),) * 2 if launcher is Launcher.NONE else ())

        def attempt(name: AttemptId, restarts: int) -> AssignedJob:
            gang = Gang(tasks_per_node=2, launcher=launcher)
            more = {"gang": gang, "plan": plan, "env": ENV, "checkpoint_dir": str(out), "restarts": restarts}
            return make_job(PYTHON, str(program), str(out), attempt=name, **more)

        rig.assign(attempt(first, 0))
        await rig.until_phase("running", attempt=first)
        await until((out / "step-4").exists, "four steps")
        ranks = [pid for pid in rig.pids() if "RANK=1\0" in Path(f"/proc/{pid}/environ").read_text()]
        os.kill(ranks[0], signal.SIGKILL)
        async with asyncio.timeout(5):
            await rig.until_phase("ended", attempt=first)
        assert rig.pids() == []
        rig.assign(attempt(second, 1))
        ended = await rig.until_phase("ended", attempt=second)
        assert ended.exit_code == 0
        logs = [second] if launcher is Launcher.TORCHRUN else [f"{second}.0", f"{second}.1"]
        told = sorted(line for log in logs for line in rig.log(log).splitlines())
        assert told == [f"rank {rank} of 2 went from 4 to 6" for rank in range(2)]

    async def main() -> None:
        async with asyncio.timeout(120), open_keeper() as rig:
            await script(rig)

    asyncio.run(main())
