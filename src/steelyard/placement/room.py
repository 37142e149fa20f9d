"""What is still free on one machine, and does this go there too? A machine with all that holds it, kept up to date by `take` and
`release`, so that a decision may ask thousands of times and books each workload once.

The rules are those of `machine.py`. A question may name other rooms (`beside`): the same machine at another time, or with other
holders. The plan then fits all of them at once. What is suspended is frozen: it holds its memory and devices, but no cores.
What a sleeping function lends is held against everybody but work that gives way, which finds another room (`seen_by`): the
function's cores are free in it, and its devices for work that is gone soon enough once it is told. Memory is never lent.
Amounts of cores and of GPUs are whole millionths, so that a room is the same after a `take` and its `release`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from steelyard.model import words
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.job import Plan, Resources
from steelyard.model.machine import Core, Machine
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.placement.devices import DeviceDemand, Used, choose_devices
from steelyard.placement.gpus import GpuUse, count_shares, find_supply
from steelyard.placement.machine_facts import MICRO, MachineFacts, count_cores, make_asked, to_micro
from steelyard.placement.near_cores import BoundMemory, make_supply
from steelyard.placement.pair_value import OUT_OF_USE
from steelyard.placement.refusal import Largest, Refusal, make_refusal, say_what_is_out
from steelyard.placement.shortage import check_devices, explain_local_memory, find_device_blocks

_KEPT = (Reason.RESERVED, "what is free now is kept for jobs that start earlier")


class Room:
    def __init__(self, machine: Machine, running: Iterable[tuple[Resources, Plan]] = ()) -> None:
        self.facts = MachineFacts(machine)
        #: per core: how many hold it
        self._cores = list(self.facts.closed)
        self._free_cores = self._cores.count(0)
        self._share_micro = 0
        self._memory_bytes = 0
        #: GPU -> millionths of it in use
        self._gpus: dict[str, int] = {}
        self._instances: Counter[str] = Counter()
        self._nics: Counter[str] = Counter()
        #: memory that is bound to nodes
        self._bound: dict[frozenset[int], int] = {}
        #: how many GPUs, shares or instances of a kind are free; empty after each change of GPUs
        self._possible: dict[tuple[GpuDemand, bool], int] = {}
        #: what was said about missing devices; empty after each change of devices
        self._said: dict[tuple[GpuDemand | None, int], list[tuple[Reason, str]]] = {}
        #: what sleeping functions lend, and how soon each must have it back
        self._lent: tuple[tuple[Resources, Plan, float], ...] = ()
        #: by what of `_lent` has its devices lent: the room in which all of that is free
        self._views: dict[tuple[bool, ...], Room] = {}
        for demand, plan in running:
            self.take(demand, plan)

    @property
    def machine(self) -> Machine:
        return self.facts.machine

    def copy(self) -> Room:
        other = object.__new__(Room)
        other.facts = self.facts
        other._cores, other._free_cores = self._cores.copy(), self._free_cores
        other._share_micro, other._memory_bytes = self._share_micro, self._memory_bytes
        other._gpus, other._instances, other._nics = self._gpus.copy(), self._instances.copy(), self._nics.copy()
        other._bound, other._possible, other._said = self._bound.copy(), self._possible.copy(), self._said.copy()
        other._lent, other._views = self._lent, {}
        return other

    def take(self, demand: Resources, plan: Plan, suspended: bool = False) -> None:
        """Books what `plan` holds, fitting or not: what runs is a fact."""
        self._book(demand, plan, suspended, 1)

    def lend(self, demand: Resources, plan: Plan, within_s: float) -> None:
        """A function whose place was taken sleeps, and must have it back that long after a wake began."""
        self._lent = (*self._lent, (demand, plan, within_s))
        self._views.clear()

    def seen_by(self, gone_s: float | None) -> Room:
        """For work that gives way and is gone `gone_s` after it was told (None: nobody knows how long it holds its devices). It
        follows what happens to this room; nothing may be taken in it directly."""
        if not self._lent:
            return self
        key = tuple(gone_s is not None and gone_s <= within_s for _, _, within_s in self._lent)
        if key not in self._views:
            view = self.copy()
            view._lent = ()
            for (demand, plan, _), devices in zip(self._lent, key, strict=True):
                kept = plan if devices else msgspec.structs.replace(plan, gpus=(), nics=(), mig_instances=())
                view._book(msgspec.structs.replace(demand, memory_bytes=None), kept, False, -1)
            self._views[key] = view
        return self._views[key]

    @property
    def lent_devices_s(self) -> tuple[float, ...]:
        """How soon work must be gone that takes devices lent by one of the sleeping functions; the longest first."""
        return tuple(sorted({within_s for _, plan, within_s in self._lent if plan.gpus or plan.nics}, reverse=True))

    def release(self, demand: Resources, plan: Plan, suspended: bool = False) -> None:
        """Undoes a `take` with the same arguments."""
        self._book(demand, plan, suspended, -1)

    def fits_quickly(self, each: Resources, ranks: int = 1) -> bool:
        """False: `ranks` times `each` certainly do not go here now. True: nearly always they do; devices and local memory can
        still say no. A microsecond, for decisions over long queues."""
        memory = each.memory_bytes
        if memory is not None and memory * ranks > self.machine.memory_bytes - self._memory_bytes:
            return False
        if each.exclusive or each.timing is not Timing.BEST_EFFORT:
            if count_cores(each.cpus) * ranks > self._free_cores - self._needed_shared():
                return False
        elif max(1, round(each.cpus * ranks * MICRO)) > self._free_cores * MICRO - self._share_micro:
            return False
        gpus = each.gpus
        if gpus is not None:
            wanted = gpus.count * ranks
            if wanted > self._count_gpus(gpus, each_rank=ranks > 1):
                return False
        return not each.nics or each.nics * ranks <= self._count_nics(gpus is not None)

    def place(self, demand: Resources, beside: Sequence[Room] = ()) -> Plan | Refusal:
        """A plan for `demand` in this room and in all of `beside`, or a Refusal (about this room, where it refuses)."""
        asked = make_asked(demand)
        never = self.facts.check(demand, asked)
        if never is not None:
            return never
        blocks = self._find_blocks(demand, asked)
        if blocks:
            return make_refusal(say_what_is_out(self.machine, blocks), False, self.largest(asked))
        if any(not room.fits_quickly(demand) for room in beside):
            return make_refusal([_KEPT], False, self.largest(asked))
        if not demand.whole_cores and demand.gpus is None and not demand.nics:
            return Plan(
                share=demand.cpus,
                memory_bytes=demand.memory_bytes,
                preemptible=demand.preemptible,
                io_max_bytes_s=demand.io_max_bytes_s,
                machine=self.facts.place,
            )
        return self._choose(demand, asked, beside)

    def check(self, demand: Resources, plan: Plan) -> tuple[str, ...]:
        """Why `plan` may not be carried out beside what holds the room; empty when it may."""
        findings: list[str] = []
        places = {self.facts.core_of.get(cpu) for cpu in plan.cpus}
        taken = [cpu for cpu in plan.cpus if (place := self.facts.core_of.get(cpu)) is None or self._cores[place]]
        if taken:
            findings.append(f"CPUs {taken} are not free")
        left = self._free_cores - sum(1 for place in places if place is not None and not self._cores[place])
        share = self._share_micro + (0 if demand.whole_cores else to_micro(demand.cpus))
        if left < 1 or share > left * MICRO:
            findings.append("the shared cores would be overbooked")
        if self._memory_bytes + (demand.memory_bytes or 0) > self.machine.memory_bytes:
            findings.append("memory would be overbooked")
        view = self.facts.view
        if demand.timing is not Timing.BEST_EFFORT and demand.memory_bytes is not None and plan.memory_nodes:
            local = make_supply((), view.numa_nodes, bound=_as_bound(self._bound), without=view.gpu_memory_nodes)
            # Where no node tells its memory nothing was bound to any.
            if any(local.memory.values()) and local.free_memory(plan.memory_nodes) < demand.memory_bytes:
                findings.append(f"the memory of NUMA nodes {list(plan.memory_nodes)} would be overbooked")
        if plan.gpus or plan.nics or plan.mig_instances:
            findings += check_devices(view, Used(gpus=self._gpu_use(), nics=frozenset(+self._nics)), plan)
        return tuple(findings)

    def largest(self, asked: DeviceDemand) -> Largest:
        """The most of each by itself that is free."""
        return Largest(
            cpus=self._free_share_micro() / MICRO,
            exclusive_cores=max(0, self._free_cores - self._needed_shared()),
            memory_bytes=self._free_memory(),
            gpus=0 if asked.gpus is None else self._count_gpus(asked.gpus),
            nics=self._count_nics(asked.gpus is not None) if asked.nics else 0,
        )

    def _book(self, demand: Resources, plan: Plan, suspended: bool, sign: int) -> None:
        if not suspended:
            if not plan.cpus:
                self._share_micro += sign * to_micro(demand.cpus)
            for place in {self.facts.core_of[cpu] for cpu in plan.cpus if cpu in self.facts.core_of}:
                before = self._cores[place]
                self._cores[place] = before + sign
                self._free_cores += (not before + sign) - (not before)
        memory = demand.memory_bytes or 0
        self._memory_bytes += sign * memory
        if memory and plan.memory_nodes:
            nodes = frozenset(plan.memory_nodes)
            self._bound[nodes] = self._bound.get(nodes, 0) + sign * memory
        # a MIG instance is booked by its own id; its GPU stays open for its other instances
        for gpu in () if plan.mig_instances else plan.gpus:
            self._gpus[gpu] = self._gpus.get(gpu, 0) + sign * round(plan.gpu_fraction * MICRO)
        for instance in plan.mig_instances:
            self._instances[instance] += sign
        for nic in plan.nics:
            self._nics[nic] += sign
        if plan.gpus:
            self._possible.clear()
        if plan.gpus or plan.nics:
            self._said.clear()
        for view in self._views.values():
            view._book(demand, plan, suspended, sign)

    def _find_blocks(self, demand: Resources, asked: DeviceDemand) -> list[tuple[Reason, str]]:
        blocks: list[tuple[Reason, str]] = []
        cores, free = asked.cores, self._free_cores
        if demand.whole_cores and cores > (left := max(0, free - self._needed_shared())):
            told = f"{left} free now (one core always stays shared)"
            blocks.append((Reason.NO_CORES_LEFT, f"{words.count(cores, 'whole core')} asked, {told}"))
        if not demand.whole_cores and to_micro(demand.cpus) > (share := self._free_share_micro()):
            told = f"{share / MICRO:g} of {free} shared cores free now"
            blocks.append((Reason.NO_CORES_LEFT, f"{demand.cpus:g} cores asked, {told}"))
        if demand.memory_bytes is not None and demand.memory_bytes > self._free_memory():
            told = f"{words.exact_size(self._free_memory())} free now"
            blocks.append((Reason.NO_MEMORY_LEFT, f"{words.exact_size(demand.memory_bytes)} of memory asked, {told}"))
        lacks_gpus = asked.gpus is not None and asked.gpus.count > self._count_gpus(asked.gpus)
        if lacks_gpus or (asked.nics and asked.nics > self._count_nics(asked.gpus is not None)):
            key = (asked.gpus, asked.nics)
            if key not in self._said:
                self._said[key] = find_device_blocks(self.facts.view, self._use(asked), asked)
            blocks += self._said[key]
        return blocks

    def _choose(self, demand: Resources, asked: DeviceDemand, beside: Sequence[Room]) -> Plan | Refusal:
        view, used = self.facts.view, self._use(asked, beside)
        if beside and (
            find_device_blocks(view, used, asked)
            or (demand.whole_cores and asked.cores > sum(1 for core in view.cores if used.cpus.isdisjoint(core.cpus)))
        ):
            return make_refusal([_KEPT], False, self.largest(asked))
        chosen = choose_devices(view, used, asked)
        if chosen is None:
            beyond = choose_devices(view, Used(), asked) is None
            largest = self.facts.largest(asked) if beyond else self.largest(asked)
            return make_refusal([explain_local_memory(asked)], beyond, largest)
        if chosen.bottleneck is not None and chosen.bottleneck.gbps == OUT_OF_USE:
            count = len(chosen.gpus)
            sentence = f"{count} GPUs asked, and no {count} are free whose links to each other are all in use"
            return make_refusal(say_what_is_out(self.machine, [(Reason.NO_GPUS_LEFT, sentence)]), False, self.largest(asked))
        whole = demand.whole_cores
        return Plan(
            cpus=chosen.cores if whole else (),
            share=float(asked.cores) if whole else demand.cpus,
            memory_bytes=demand.memory_bytes,
            memory_nodes=chosen.memory_nodes if whole else (),
            timing=demand.timing,
            preemptible=demand.preemptible,
            gpus=chosen.gpus,
            nics=chosen.nics,
            gpu_fraction=chosen.gpu_fraction,
            mig_instances=chosen.mig_instances,
            io_max_bytes_s=demand.io_max_bytes_s,
            machine=self.facts.place,
        )

    def _use(self, asked: DeviceDemand, beside: Sequence[Room] = ()) -> Used:
        """What is held in any of the rooms, and what is out of use."""
        rooms = (self, *beside)
        out = self.facts.out_of_use(asked.gpus is not None)
        bound: dict[frozenset[int], int] = {}
        for room in rooms:
            for nodes, memory in room._bound.items():
                bound[nodes] = max(memory, bound.get(nodes, 0))
        uses = [room._gpu_use(out) for room in rooms]
        return Used(
            gpus=uses[0] if not beside else _join(uses),
            nics=out.union(*(+room._nics for room in rooms)),
            cpus=frozenset(cpu for room in rooms for core in room._held_cores() for cpu in core.cpus),
            memory_bytes=max(room._memory_bytes for room in rooms),
            bound=_as_bound(bound),
            shared_cores=max(room._needed_shared() for room in rooms),
        )

    def _gpu_use(self, out: frozenset[str] = frozenset()) -> GpuUse:
        shares = dict.fromkeys(out, 1.0)
        for gpu, micro in self._gpus.items():
            shares[gpu] = shares.get(gpu, 0.0) + micro / MICRO
        return GpuUse(shares, frozenset(+self._instances))

    def _held_cores(self) -> list[Core]:
        return [core for core, holders in zip(self.machine.cores, self._cores, strict=True) if holders]

    def _count_gpus(self, gpus: GpuDemand, each_rank: bool = False) -> int:
        """How many whole GPUs, shares or MIG instances of that kind are free. `each_rank`: shares of one GPU count several
        times, because they go to several ranks."""
        key = (gpus, each_rank and gpus.fraction is not None)
        known = self._possible.get(key)
        if known is None:
            use = self._gpu_use(self.facts.out_of_use(with_gpus=True))
            supply = find_supply(self.facts.view.gpus, use, gpus)
            known = self._possible[key] = count_shares(supply, use, gpus.fraction or 1.0) if key[1] else supply.possible
        return known

    def _count_nics(self, with_gpus: bool) -> int:
        out = self.facts.out_of_use(with_gpus)
        return sum(1 for nic in self.facts.nics_up if not self._nics[nic] and nic not in out)

    def _needed_shared(self) -> int:
        return max(1, -(-self._share_micro // MICRO))

    def _free_share_micro(self) -> int:
        return max(0, self._free_cores * MICRO - self._share_micro)

    def _free_memory(self) -> int:
        return max(0, self.machine.memory_bytes - self._memory_bytes)


def _as_bound(bound: dict[frozenset[int], int]) -> tuple[BoundMemory, ...]:
    return tuple(BoundMemory(nodes, memory) for nodes, memory in bound.items() if memory)


def _join(uses: Sequence[GpuUse]) -> GpuUse:
    """What is free of it is free in each."""
    shares = {gpu: max(use.shares.get(gpu, 0.0) for use in uses) for use in uses for gpu in use.shares}
    return GpuUse(shares, frozenset[str]().union(*(use.instances for use in uses)))
