"""DeepSpeed in a gang: ranks meet by PyTorch's variables, and DeepSpeed's own reader finds the machines in STEELYARD_HOSTFILE.

steelyard run --tasks-per-node 2 -- python with_deepspeed.py

On GPUs `deepspeed.init_distributed()` takes the place of init_process_group; without any it would compile a library first.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from deepspeed.launcher.runner import fetch_hostfile


def main() -> None:
    hosts = fetch_hostfile(os.environ["STEELYARD_HOSTFILE"])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    print(f"rank {rank} of {world_size}, slots in the hostfile {sum(hosts.values())}, sum of all {total.item()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
