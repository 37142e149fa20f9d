"""Which CPUs is a task bound to? Slots, in which steps count the job's cores, become CPUs that the kernel allows."""

from __future__ import annotations

import os
import re

from .names import expand_numbers


class Binding:
    """`kind` is what --cpu-bind said, or "" for the rule: bind where the job holds its cores alone, otherwise let the kernel
    choose. `note` is set when nothing could be done about it."""

    def __init__(self, kind: str, tasks: int, per_task: int, slots: list[int], slots_total: int, alone: bool) -> None:
        self.note = ""
        self._sets: list[set[int]] = []
        allowed = sorted(os.sched_getaffinity(0))
        words = [word for word in kind.lower().split(",") if word not in ("v", "verbose", "q", "quiet", "")]
        name = words[0] if words else ""
        if name.startswith(("map_cpu:", "mask_cpu:")):
            self._sets = _read_map(kind[kind.lower().index("m") :], tasks)
            if any(not cpus <= set(allowed) for cpus in self._sets):
                self._sets, self.note = [], f"--cpu-bind={kind}: the job may only use CPUs {','.join(map(str, allowed))}"
        elif name == "rank":
            self._sets = [{allowed[rank % len(allowed)]} for rank in range(tasks)]
        elif name in ("cores", "core", "threads", "thread") or (not name and alone):
            units = _find_units(allowed, slots_total, by_thread=name.startswith("thread"))
            if units:
                self._sets = [
                    set().union(*(units[slot] for slot in slots[at * per_task : (at + 1) * per_task])) for at in range(tasks)
                ]
                self._sets = self._sets if all(self._sets) else []
            elif name:
                self.note = f"--cpu-bind={kind}: the job shares {len(allowed)} CPUs, fewer than its tasks need; nothing is bound"
        elif name not in ("", "none", "no"):
            self.note = (
                f"--cpu-bind={kind} is not done here (none, cores, threads, rank, map_cpu and mask_cpu are); nothing is bound"
            )

    def cpus(self, rank: int) -> set[int] | None:
        return self._sets[rank] if self._sets else None


def _read_map(kind: str, tasks: int) -> list[set[int]]:
    name, _, text = kind.partition(":")
    items = text.split(",")
    try:
        if name.lower() == "map_cpu":
            sets = [{int(item)} for item in items]
        else:
            sets = [{bit for bit in range(4096) if int(item, 16) >> bit & 1} for item in items]
    except ValueError:
        return [set(range(1 << 20))] * tasks
    return [sets[rank % len(sets)] for rank in range(tasks)]


def _find_units(allowed: list[int], slots: int, by_thread: bool) -> list[set[int]]:
    """A set of CPUs for each slot: a core with its threads where there are enough of them, else a CPU; empty where there are too
    few of either."""
    cores: list[set[int]] = []
    for cpu in [] if by_thread else allowed:
        if not any(cpu in core for core in cores):
            cores.append(_siblings(cpu) & set(allowed) | {cpu})
    for units in (cores, [{cpu} for cpu in allowed]):
        if len(units) >= slots:
            return units
    return []


def _siblings(cpu: int) -> set[int]:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
            return {int(number) for number in expand_numbers(re.sub(r"\s", "", file.read()))}
    except (OSError, ValueError):
        return {cpu}
