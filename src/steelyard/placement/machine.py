"""Where on one machine does this workload run, or why not?

Rules, in this order:
1. Whole cores (`whole_cores`: exclusive, dedicated or realtime) are physical cores with all their SMT siblings; nobody else is
   on them. The others are shared.
2. One core always stays shared, for the platform and for everybody else.
3. Shares are booked against the shared cores: their sum never exceeds the number of shared cores.
4. Memory is booked where it was asked for; the sum never exceeds the machine's.
5. Whole cores are near the GPUs or cards that come with them; without any they come from one NUMA node where one has enough
   (`near_cores.py`). Their memory comes from their nodes, if it fits; for dedicated and realtime it must fit.
6. GPUs, shares of them, MIG instances and network cards come from the machine's topology (`devices.py`) and are nobody else's.
A Refusal names every blocking reason and the largest that would be possible; `never` tells "beyond this machine" from "not
now". Amounts are compared in millionths of a core, so that 50 x 0.01 and 100 x 0.02 are exact. Whoever asks more than once
keeps a `Room`; gangs are placed by `gang.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.model.job import Plan, Resources
from steelyard.model.machine import Machine
from steelyard.placement.refusal import Largest, Refusal
from steelyard.placement.room import Room

__all__ = ["Largest", "Refusal", "check_plan", "place"]


def place(machine: Machine, running: Sequence[tuple[Resources, Plan]], demand: Resources) -> Plan | Refusal:
    """A plan for `demand` beside what runs and what is out of use, or a Refusal. Without a topology the machine has no GPUs and
    no cards to give."""
    return Room(machine, running).place(demand)


def check_plan(
    machine: Machine,
    running: Sequence[tuple[Resources, Plan]],
    demand: Resources,
    plan: Plan,
) -> tuple[str, ...]:
    """Why `plan` may not be carried out beside what runs; empty when it may. For the one applier that re-checks every plan."""
    return Room(machine, running).check(demand, plan)
