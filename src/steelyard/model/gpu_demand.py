"""Which GPUs does a workload ask for? What `H100:8`, `A100:80GB:2`, `24GB..40GB:2`, `H100:0.5` and `A100:1g.10gb` mean."""

from __future__ import annotations

import msgspec


class GpuDemand(msgspec.Struct, frozen=True):
    #: part of the model's name, as people say it (`H100`, `RTX 4090`); None: any model
    model: str | None = None
    #: whole GPUs, or parts (each of another slice of hardware) with `fraction` or `mig_profile`; > 0
    count: int = 1
    memory_min_bytes: int | None = None
    memory_max_bytes: int | None = None
    #: 0 < fraction < 1: a share of one GPU that others may share too; None: whole GPUs
    fraction: float | None = None
    #: `1g.10gb`: an instance with that profile
    mig_profile: str | None = None
