"""Where on one machine do the ranks of a gang run, all or none?

What all ranks need is chosen together (`room.py`), so that eight GPUs are the best eight and not eight times the best one. Then
it is split among the ranks, which changes nothing of the whole:
1. GPUs: sets of as many as a rank asks for, one after the other, the best by pair value that leaves the best for the next (of
   equal ones that on the fewest NUMA nodes); ranks follow the addresses of their first GPUs. MIG instances go in their order.
2. Network cards: the nearest pairs of a rank and a card first. Without GPUs in the order of their addresses.
3. Whole cores: the nearest pairs of a rank and a core first. Without devices a rank stays on one NUMA node where it can.
4. Memory: of the nodes of a rank's own cores, where those can hold what all ranks on them ask for; else of the gang's nodes.
Shares of GPUs are the exception: ranks are placed one after the other, so that they fill GPUs that others share already.
With `torchrun` or `mpirun` one process gets the whole and starts the ranks itself: there is nothing to split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.model.batch import Gang, Launcher
from steelyard.model.job import JobSpec, Plan, Resources, multiply
from steelyard.model.reason import Reason
from steelyard.model.topology import Pair, Topology
from steelyard.placement.best_sets import bits, find_best_sets
from steelyard.placement.budget import Budget
from steelyard.placement.devices import keep_remainder
from steelyard.placement.gpus import instance_id
from steelyard.placement.machine_facts import make_asked
from steelyard.placement.near_cores import make_supply
from steelyard.placement.pair_value import address_key, find_pairs, gpu_rows, path_rank, uses_ranks
from steelyard.placement.refusal import Refusal, make_refusal
from steelyard.placement.room import Room
from steelyard.placement.symmetry import find_rules


def place_spec(room: Room, spec: JobSpec, beside: Sequence[Room] = ()) -> Plan | Refusal:
    """A plan for a job, gang or not, in `room` and all of `beside` at once."""
    if spec.gang is None:
        return room.place(spec.resources, beside)
    return place_gang(room, spec.resources, spec.gang, beside)


def place_gang(room: Room, each: Resources, gang: Gang, beside: Sequence[Room] = ()) -> Plan | Refusal:
    """A plan for all ranks of one node together, or a Refusal. `each`: what one rank asks for."""
    demand = multiply(each, gang.tasks_per_node)
    if gang.nodes > 1 and not room.machine.pool:
        sentence = f"this Steelyard has 1 machine, {gang.nodes} nodes asked"
        return make_refusal([(Reason.GANG_BEYOND_FABRIC, sentence)], True, room.facts.largest(make_asked(demand)))
    if each.gpus is not None and each.gpus.fraction is not None:
        return _place_one_by_one(room, each, gang, beside)
    whole = room.place(demand, beside)
    if isinstance(whole, Refusal) or gang.launcher is not Launcher.NONE:
        return whole
    return msgspec.structs.replace(whole, tasks=_Split(room.facts.view, each, gang.tasks_per_node, whole).tasks())


def _place_one_by_one(room: Room, each: Resources, gang: Gang, beside: Sequence[Room]) -> Plan | Refusal:
    """Ranks with shares of GPUs."""
    rooms = [other.copy() for other in (room, *beside)]
    tasks: list[Plan] = []
    for rank in range(gang.tasks_per_node):
        answer = rooms[0].place(each, rooms[1:])
        if isinstance(answer, Refusal):
            return _refuse_rank(room, each, gang.tasks_per_node, rank, answer)
        tasks.append(answer)
        for other in rooms:
            other.take(each, answer)
    demand = multiply(each, gang.tasks_per_node)
    whole = Plan(
        cpus=tuple(sorted(cpu for task in tasks for cpu in task.cpus)),
        share=float(make_asked(demand).cores) if demand.whole_cores else demand.cpus,
        memory_bytes=demand.memory_bytes,
        memory_nodes=_join_nodes(tasks),
        timing=each.timing,
        gpus=tuple(gpu for task in tasks for gpu in task.gpus),
        nics=tuple(nic for task in tasks for nic in task.nics),
        gpu_fraction=tasks[0].gpu_fraction,
        io_max_bytes_s=demand.io_max_bytes_s,
        tasks=tuple(tasks) if gang.launcher is Launcher.NONE else (),
        machine=room.facts.place,
    )
    # the whole may be a millionth of a core more than its parts
    findings = [finding for other in (room, *beside) for finding in other.check(demand, whole)]
    if findings:
        asked = make_asked(demand)
        return make_refusal([(Reason.NO_CORES_LEFT, findings[0])], False, room.largest(asked))
    return whole


def _refuse_rank(room: Room, each: Resources, ranks: int, rank: int, answer: Refusal) -> Refusal:
    """`rank` ranks fit, one more does not. Never, where the empty machine has no place for all of them either."""
    detail = f"{rank} of {ranks} ranks fit now; the next: {answer.detail}" if rank else answer.detail
    never = answer.never or _beyond(room, each, ranks)
    return Refusal(answer.reasons, never, detail, answer.largest)


def _beyond(room: Room, each: Resources, ranks: int) -> bool:
    machine = msgspec.structs.replace(room.machine, blocked=(), blocked_pairs=())
    empty = Room(machine)
    for _ in range(ranks):
        answer = empty.place(each)
        if isinstance(answer, Refusal):
            return True
        empty.take(each, answer)
    return False


def _join_nodes(tasks: Sequence[Plan]) -> tuple[int, ...]:
    """() where one of them may use the memory of any node."""
    if not all(task.memory_nodes for task in tasks):
        return ()
    return tuple(sorted({node for task in tasks for node in task.memory_nodes}))


class _Split:
    """Gives each rank its part of what the gang has."""

    def __init__(self, view: Topology, each: Resources, ranks: int, whole: Plan) -> None:
        self._view, self._each, self._ranks, self._whole = view, each, ranks, whole
        self._node_of = {device.id: device.numa_node for device in (*view.gpus, *view.nics)}
        self._pairs: Mapping[tuple[str, str], Pair] = find_pairs(view) if whole.gpus else {}
        self._distances = make_supply((), view.numa_nodes, view.numa_distances)

    def tasks(self) -> tuple[Plan, ...]:
        gpus, instances = self._split_gpus()
        nics = self._split_nics(gpus)
        cores = self._split_cores(gpus, nics)
        nodes = self._split_memory(cores)
        whole = bool(self._whole.cpus)
        return tuple(
            Plan(
                cpus=cores[rank],
                share=self._whole.share / self._ranks if whole else self._each.cpus,
                memory_bytes=self._each.memory_bytes,
                memory_nodes=nodes[rank],
                timing=self._whole.timing,
                preemptible=self._whole.preemptible,
                gpus=gpus[rank],
                nics=nics[rank],
                gpu_fraction=self._whole.gpu_fraction,
                mig_instances=instances[rank],
                io_max_bytes_s=self._each.io_max_bytes_s,
            )
            for rank in range(self._ranks)
        )

    def _split_gpus(self) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """GPUs and MIG instances of each rank."""
        demand, none = self._each.gpus, [()] * self._ranks
        if demand is None:
            return list(none), list(none)
        if demand.mig_profile is not None:
            owner = {instance_id(gpu, part): gpu.id for gpu in self._view.gpus for part in gpu.mig_instances}
            parts = [self._whole.mig_instances[at * demand.count : (at + 1) * demand.count] for at in range(self._ranks)]
            return [tuple(sorted({owner[name] for name in part}, key=address_key)) for part in parts], list(parts)
        if demand.count == 1:
            return [(gpu,) for gpu in self._whole.gpus], list(none)
        return self._group_gpus(demand.count), list(none)

    def _group_gpus(self, count: int) -> list[tuple[str, ...]]:
        left, groups, ranks_only, budget = list(self._whole.gpus), list[tuple[str, ...]](), uses_ranks(self._view), Budget()
        while len(left) > count:
            rows = gpu_rows(self._pairs, left, ranks_only)
            everything = (1 << len(left)) - 1
            rules = find_rules(rows, (), [(self._node_of[gpu],) for gpu in left])
            value, sets = find_best_sets(rows, everything, count, rules, budget)
            spans = [len(self._nodes(left[place] for place in bits(chosen))) for chosen in sets]
            sets = [chosen for chosen, span in zip(sets, spans, strict=True) if span == min(spans)]
            chosen, _ = keep_remainder(rows, everything, sets, count, budget, value)
            groups.append(tuple(left[place] for place in bits(chosen)))
            left = [gpu for gpu in left if gpu not in groups[-1]]
        return sorted([*groups, tuple(left)], key=lambda group: address_key(group[0]))

    def _split_nics(self, gpus: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        cards, count = self._whole.nics, self._each.nics
        if not any(gpus):
            return [cards[rank * count : (rank + 1) * count] for rank in range(self._ranks)]
        far = [
            (-max(path_rank(self._pairs.get((gpu, card))) for gpu in gpus[rank]), rank, place)
            for rank in range(self._ranks)
            for place, card in enumerate(cards)
        ]
        return [tuple(cards[place] for place in taken) for taken in _deal(far, self._ranks, count)]

    def _split_cores(self, gpus: Sequence[tuple[str, ...]], nics: Sequence[tuple[str, ...]]) -> list[tuple[int, ...]]:
        own = set(self._whole.cpus)
        cores = [core for core in self._view.cores if own.issuperset(core.cpus)] if own else []
        if not cores:
            return [()] * self._ranks
        count = len(cores) // self._ranks
        homes = [self._nodes(devices) for devices in (gpus if any(gpus) else nics)]
        if any(homes):
            far = [
                (min((self._distances.distance(home, core.numa_node) for home in homes[rank]), default=0), rank, place)
                for rank in range(self._ranks)
                for place, core in enumerate(cores)
            ]
            dealt = _deal(far, self._ranks, count)
        else:
            dealt = _deal_by_node([core.numa_node for core in cores], self._ranks, count)
        return [tuple(sorted(cpu for place in taken for cpu in cores[place].cpus)) for taken in dealt]

    def _split_memory(self, cores: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        nodes, together = self._whole.memory_nodes, [self._whole.memory_nodes] * self._ranks
        if not nodes:
            return together
        node_of = {cpu: core.numa_node for core in self._view.cores for cpu in core.cpus}
        own = [tuple(sorted({node_of[cpu] for cpu in cpus} & set(nodes))) for cpus in cores]
        size = {node.id: node.memory_bytes for node in self._view.numa_nodes}
        asked: Counter[int] = Counter()
        for mine in own:
            # nobody knows on which of several nodes its pages will lie
            asked.update(dict.fromkeys(mine, self._each.memory_bytes or 0))
        return own if all(own) and all(asked[node] <= size.get(node, 0) for node in nodes) else together

    def _nodes(self, devices: Iterable[str]) -> frozenset[int]:
        return frozenset(node for device in devices if (node := self._node_of.get(device)) is not None)


def _deal(far: list[tuple[int, int, int]], ranks: int, count: int) -> list[list[int]]:
    """`count` places for each rank, the nearest pairs of a rank and a place first. `far`: (distance, rank, place)."""
    taken: list[list[int]] = [[] for _ in range(ranks)]
    gone: set[int] = set()
    for _, rank, place in sorted(far):
        if place not in gone and len(taken[rank]) < count:
            taken[rank].append(place)
            gone.add(place)
    return [sorted(places) for places in taken]


def _deal_by_node(nodes: Sequence[int], ranks: int, count: int) -> list[list[int]]:
    """`count` places for each rank, on one node where one has as many left (the lowest), else of the nodes with most left."""
    left: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        left.setdefault(node, []).append(place)
    dealt: list[list[int]] = []
    for _ in range(ranks):
        enough = [node for node in sorted(left) if len(left[node]) >= count]
        taken: list[int] = []
        for node in enough[:1] or sorted(left, key=lambda node: (-len(left[node]), node)):
            more = count - len(taken)
            taken += left[node][:more]
            del left[node][:more]
        dealt.append(taken)
    return dealt
