"""Data-parallel training in PyTorch that may be killed at any moment and goes on where its newest checkpoint stands.

steelyard run --tasks-per-node 2 --launcher torchrun --checkpoint-dir /data/ck --retry error:3 -- train.py /data/ck

The final loss is the same to the last bit, however often it was interrupted: what a step does depends on nothing but the step,
and a checkpoint holds all that the next one builds on.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    options = parse()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    replica = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # every rank is told of the same file, and it was whole before it had this name
    newest = os.environ.get("STEELYARD_CHECKPOINT", "")
    begin = load(Path(newest), model, optimizer) if newest else 0
    if rank == 0:
        print(f"restart {os.environ.get('STEELYARD_RESTART_COUNT', '0')}: begins at step {begin}", flush=True)
    for step in range(begin, options.steps):
        inputs, wanted = make_batch(step, rank)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(replica(inputs), wanted)
        loss.backward()
        optimizer.step()
        time.sleep(options.step_s)
        if rank == 0 and (step + 1) % options.save_every == 0:
            save(options.checkpoints, step + 1, model, optimizer)
    if rank == 0:
        # on rows that no step has seen, so that it is known even to a restart that finds nothing left to do
        inputs, wanted = make_batch(options.steps, rank)
        with torch.no_grad():
            loss = torch.nn.functional.mse_loss(model(inputs), wanted).item()
        print(f"final loss {loss.hex()}", flush=True)
    dist.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, help="the folder that is also named to --checkpoint-dir")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--step-s", type=float, default=0.0, help="pretend that a step takes so much longer")
    return parser.parse_args()


def make_batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made up: each rank has other rows in each step, and always the same ones in that step."""
    generator = torch.Generator().manual_seed(step * 1000 + rank)
    inputs = torch.randn(64, 16, generator=generator)
    return inputs, inputs.sin().sum(1, keepdim=True)


def save(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Written under a hidden name, which is never taken for a checkpoint, and renamed when it is whole and on disk."""
    part = folder / ".part"
    with part.open("wb") as file:
        torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / f"step-{step:06d}.pt")


def load(file: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to begin with."""
    state = torch.load(file)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


if __name__ == "__main__":
    main()
