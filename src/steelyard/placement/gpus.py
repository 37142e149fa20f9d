"""Which GPUs, shares of GPUs and MIG instances of a machine does a demand mean, and which are free?

Whole GPUs: no MIG on them, nobody holds a share. Shares: the GPUs in use with the least free share that still fits, then lowest
address; whole GPUs are broken into only when no share fits. MIG: free instances with that profile, all from one GPU where one
has enough (the one with the fewest), else from as few GPUs as possible. Shares are compared in millionths, so that ten times
0.1 is a whole GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model.gpu_demand import GpuDemand, format_gpu_demand
from steelyard.model.reason import Reason
from steelyard.model.topology import Gpu, MigInstance
from steelyard.placement.pair_value import address_key

_MICRO = 1_000_000


class GpuUse(msgspec.Struct, frozen=True):
    """What is taken."""

    #: GPU id -> share of it in use, up to 1.0
    shares: dict[str, float] = {}
    #: ids of MIG instances, as `instance_id` gives them
    instances: frozenset[str] = frozenset()

    def free_micro(self, gpu: str) -> int:
        return max(0, _MICRO - round(self.shares.get(gpu, 0.0) * _MICRO))

    def has_room(self, gpu: str, share: float) -> bool:
        return self.free_micro(gpu) >= round(share * _MICRO)


class GpuChoice(msgspec.Struct, frozen=True):
    """What the kind of demand fixes before pairs count: `fixed` GPUs, and how many whole ones are still to be chosen."""

    fixed: tuple[Gpu, ...] = ()
    instances: tuple[str, ...] = ()
    whole: int = 0


class GpuSupply(msgspec.Struct, frozen=True):
    """The GPUs of a machine that a demand means, and what is free of them."""

    #: in address order
    meant: tuple[Gpu, ...]
    #: those of `meant` that are wholly free
    free: tuple[Gpu, ...]
    #: every wholly free GPU of the machine, meant or not: what would remain for others
    pool: tuple[Gpu, ...]
    #: how many whole GPUs, shares or instances the demand could have at most
    possible: int


def instance_id(gpu: Gpu, instance: MigInstance) -> str:
    """Its uuid; where the source hides that, the GPU's id with the instance's numbers."""
    return instance.uuid or f"{gpu.id}/mig{instance.gpu_instance}.{instance.compute_instance}"


def find_supply(gpus: Sequence[Gpu], use: GpuUse, demand: GpuDemand) -> GpuSupply:
    ordered = sorted(gpus, key=lambda gpu: address_key(gpu.id))
    meant = tuple(gpu for gpu in ordered if demand.matches_name(gpu.name) and demand.matches_memory(gpu.memory_bytes))
    pool = tuple(gpu for gpu in ordered if _is_whole(gpu, use))
    free = tuple(gpu for gpu in pool if gpu in meant)
    if demand.mig_profile is not None:
        possible = sum(len(_free_instances(gpu, use, demand.mig_profile)) for gpu in meant)
    elif demand.fraction is not None:
        possible = sum(1 for gpu in meant if _takes_share(gpu, use, demand.fraction))
    else:
        possible = len(free)
    return GpuSupply(meant, free, pool, possible)


def choose_kind(supply: GpuSupply, use: GpuUse, demand: GpuDemand) -> GpuChoice:
    """`supply.possible` is enough."""
    if demand.mig_profile is not None:
        return _choose_instances(supply, use, demand.mig_profile, demand.count)
    if demand.fraction is None:
        return GpuChoice(whole=demand.count)
    broken = [gpu for gpu in supply.meant if gpu not in supply.free and _takes_share(gpu, use, demand.fraction)]
    broken.sort(key=lambda gpu: (use.free_micro(gpu.id), address_key(gpu.id)))
    fixed = tuple(broken[: demand.count])
    return GpuChoice(fixed=fixed, whole=demand.count - len(fixed))


def count_shares(supply: GpuSupply, use: GpuUse, fraction: float) -> int:
    """How many shares of that size are free in all, several of one GPU counted each."""
    size = max(1, round(fraction * _MICRO))
    return sum(use.free_micro(gpu.id) // size for gpu in supply.meant if not gpu.mig and not gpu.mig_instances)


def explain_shortage(gpus: Sequence[Gpu], supply: GpuSupply, demand: GpuDemand, now: bool) -> tuple[Reason, str] | None:
    """Why the demand can't be met from this supply, or None. `now`: something is in use, an empty machine is judged apart."""
    if supply.possible >= demand.count:
        return None
    asked = format_gpu_demand(demand)
    if not gpus:
        return Reason.GPUS_BEYOND_MACHINE, f"{asked} asked, this machine has no GPU"
    if not supply.meant:
        names = sorted({gpu.name for gpu in gpus if gpu.name})
        has = "its GPUs are " + ", ".join(names) if names else "nothing tells which models its GPUs are"
        return Reason.NO_SUCH_GPU, f"no GPU of this machine is a {_kind(demand)}: {has}"
    when = "free now" if now else "on this machine"
    if demand.mig_profile is not None:
        return Reason.NO_MIG_INSTANCE, f"{demand.count} x {demand.mig_profile} asked, {supply.possible} such MIG instances {when}"
    if demand.fraction is not None:
        return Reason.NO_FRACTION_LEFT if now else Reason.GPUS_BEYOND_MACHINE, (
            f"{demand.count} x {demand.fraction:g} of a GPU asked, each of another GPU; {supply.possible} have that much {when}"
        )
    partitioned = sum(1 for gpu in supply.meant if gpu.mig)
    also = f" ({partitioned} more with MIG on are given away by profile only)" if partitioned else ""
    reason = Reason.NO_GPUS_LEFT if now else Reason.GPUS_BEYOND_MACHINE
    return reason, f"{demand.count} whole GPUs asked ({asked}), {supply.possible} {when}{also}"


def _choose_instances(supply: GpuSupply, use: GpuUse, profile: str, count: int) -> GpuChoice:
    free = {gpu.id: _free_instances(gpu, use, profile) for gpu in supply.meant}
    enough = [gpu for gpu in supply.meant if len(free[gpu.id]) >= count]
    if enough:
        order = [min(enough, key=lambda gpu: (len(free[gpu.id]), address_key(gpu.id)))]
    else:
        order = sorted(supply.meant, key=lambda gpu: (-len(free[gpu.id]), address_key(gpu.id)))
    fixed: list[Gpu] = []
    taken: list[str] = []
    for gpu in order:
        more = free[gpu.id][: count - len(taken)]
        if more:
            fixed.append(gpu)
            taken += more
    return GpuChoice(fixed=tuple(sorted(fixed, key=lambda gpu: address_key(gpu.id))), instances=tuple(taken))


def _free_instances(gpu: Gpu, use: GpuUse, profile: str) -> list[str]:
    """In the order of their numbers. None of a GPU that is held as a whole."""
    if use.shares.get(gpu.id, 0.0) > 0:
        return []
    fitting = [each for each in gpu.mig_instances if each.profile == profile]
    fitting.sort(key=lambda each: (each.gpu_instance or 0, each.compute_instance or 0, each.uuid or ""))
    return [name for name in (instance_id(gpu, each) for each in fitting) if name not in use.instances]


def _is_whole(gpu: Gpu, use: GpuUse) -> bool:
    return not gpu.mig and not gpu.mig_instances and use.free_micro(gpu.id) == _MICRO


def _takes_share(gpu: Gpu, use: GpuUse, fraction: float) -> bool:
    return not gpu.mig and not gpu.mig_instances and use.has_room(gpu.id, fraction)


def _kind(demand: GpuDemand) -> str:
    """The demand without its amount."""
    return format_gpu_demand(msgspec.structs.replace(demand, count=1, fraction=None, mig_profile=None))
