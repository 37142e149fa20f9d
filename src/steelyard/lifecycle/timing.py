"""What must be held on a machine so that a workload is punctual, and what can't be? Pure: a plan and facts in, wishes and words
out.

`realtime` steers interrupts, network queues, kernel work queues and movable kernel threads off its CPUs, holds the governor at
`performance` and switches deep idle states off. `dedicated` needs no machine setting: its cpuset and memory nodes do it all.
What the machine does not offer is named, one sentence each. Other people's processes are counted and named, never moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.lifecycle.settings import Entry, Form, Setting, parse
from steelyard.model.job import Plan
from steelyard.model.timing import FIFO_PRIORITY, Timing

#: idle states that take longer to leave than this are switched off, microseconds
IDLE_LATENCY_US_MAX = 10
#: places that a sentence lists by name
NAMED_MAX = 4

GUARD = (
    "A realtime process that never sleeps is halted by the kernel for a moment of each second "
    "(sched_rt_runtime_us): the guard stays, since without it one endless loop could hang the machine."
)
MEMORY = (
    "Memory is locked only by a program that calls mlockall itself; swapping and huge-page moves are off for it, and its "
    "heap is kept once it has grown."
)


class Irq(msgspec.Struct, frozen=True):
    number: int
    #: device names as /proc/interrupts has them
    name: str
    #: where it may be served
    cpus: tuple[int, ...]
    #: where it is served; empty where the kernel does not say
    served: tuple[int, ...] = ()


class KernelThread(msgspec.Struct, frozen=True):
    pid: int
    #: clock ticks since boot; pid and this are one thread for good
    start_time: int
    name: str
    cpus: tuple[int, ...]
    #: the kernel lets its affinity be changed
    movable: bool


class IdleState(msgspec.Struct, frozen=True):
    cpu: int
    #: N of stateN
    number: int
    name: str
    #: time to leave it
    latency_us: int
    disabled: bool


class TimingFacts(msgspec.Struct, frozen=True):
    """What one machine shows. Nothing is assumed where it shows nothing."""

    online: tuple[int, ...]
    irqs: tuple[Irq, ...] = ()
    #: mask in hexadecimal; None: no such file
    default_irq_mask: str | None = None
    #: (place, mask) of every rps_cpus and xps_cpus that can be read
    queues: tuple[tuple[str, str], ...] = ()
    #: (place, mask) of the unbound work queues
    workqueues: tuple[tuple[str, str], ...] = ()
    kernel_threads: tuple[KernelThread, ...] = ()
    #: cpu -> (governor now, governors offered)
    governors: dict[int, tuple[str, tuple[str, ...]]] = {}
    idle_states: tuple[IdleState, ...] = ()
    #: CPUs without the scheduling tick (nohz_full)
    tickless: tuple[int, ...] = ()
    #: it runs in a virtual machine
    guest: bool = False
    #: the kernel interrupts its own work for realtime processes (PREEMPT_RT)
    preempts_itself: bool = False


class Planned(msgspec.Struct, frozen=True):
    settings: tuple[Setting, ...] = ()
    #: sentences: what was to be held and can't be
    forbidden: tuple[str, ...] = ()
    #: sentences: what nobody promised and is worth knowing
    notes: tuple[str, ...] = ()


def plan_settings(plan: Plan, facts: TimingFacts) -> Planned:
    """All machine settings that `plan` wants."""
    if plan.timing is not Timing.REALTIME or not plan.cpus:
        return Planned()
    cpus = frozenset(plan.cpus)
    settings = (
        *_plan_irqs(cpus, facts),
        *_plan_masks(cpus, "queues", facts.queues),
        *_plan_masks(cpus, "workqueues", facts.workqueues),
        *_plan_threads(cpus, facts),
        *_plan_clock(cpus, facts),
        *_plan_idle(cpus, facts),
    )
    return Planned(settings, _name_forbidden(cpus, facts), _name_notes(cpus, facts))


def explain_unheld(entries: Sequence[Entry], holder: str) -> tuple[str, ...]:
    """A sentence for each wish that the machine refused; many of one kind are counted."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        wish = entry.wants[holder]
        why = entry.error or "no CPU would be left to do that work" if wish.form is not Form.WORD else entry.error
        groups.setdefault((wish.part, why or "another value was found there afterwards"), []).append(wish.label or wish.place)
    return tuple(f"{_list(labels)} can't be changed here: {why}." for (_, why), labels in sorted(groups.items()))


def asked_timing(plan: Plan, facts: TimingFacts | None) -> dict[str, object]:
    """Keys for `Proof.asked`; `facts` say which parts this machine has at all."""
    asked: dict[str, object] = {"timing": plan.timing.value} if plan.timing is not Timing.BEST_EFFORT else {}
    if plan.timing is Timing.REALTIME:
        asked["scheduler"] = f"fifo {FIFO_PRIORITY}"
        asked["memory_lock_limit"] = "unlimited"
        asked["irqs_on_its_cpus"] = list[int]()
        asked["kernel_threads_on_its_cpus"] = list[str]()
        if facts is not None and any(cpu in facts.governors for cpu in plan.cpus):
            asked["governor"] = "performance"
        if facts is not None and any(state.cpu in plan.cpus for state in facts.idle_states):
            asked["deep_idle_states"] = list[str]()
    return asked


def got_timing(
    plan: Plan, facts: TimingFacts, scheduler: str | None, own_cpus: bool, memory_lock_limit: str | None = None
) -> dict[str, object]:
    """The same keys as read back: `scheduler` and the limit of the processes, and whether their cpuset is theirs."""
    if plan.timing is Timing.BEST_EFFORT:
        return {}
    cpus = set(plan.cpus)
    fifo = scheduler == f"fifo {FIFO_PRIORITY}"
    timing = Timing.BEST_EFFORT if not own_cpus else Timing.REALTIME if fifo else Timing.DEDICATED
    got: dict[str, object] = {"timing": timing.value, "scheduler": scheduler}
    if plan.timing is not Timing.REALTIME:
        return got
    got["memory_lock_limit"] = memory_lock_limit
    got["irqs_on_its_cpus"] = [irq.number for irq in facts.irqs if cpus & set(irq.cpus) and cpus & set(irq.served or irq.cpus)]
    got["kernel_threads_on_its_cpus"] = [
        thread.name for thread in facts.kernel_threads if thread.movable and cpus & set(thread.cpus)
    ]
    governors = sorted({governor for cpu, (governor, _) in facts.governors.items() if cpu in cpus})
    if governors:
        got["governor"] = ",".join(governors)
    if any(state.cpu in cpus for state in facts.idle_states):
        got["deep_idle_states"] = [
            f"cpu{state.cpu} {state.name}" for state in _deep(frozenset(cpus), facts) if not state.disabled
        ]
    return got


def _plan_irqs(cpus: frozenset[int], facts: TimingFacts) -> list[Setting]:
    off = tuple(sorted(cpus))
    found = [
        Setting(f"proc/irq/{irq.number}/smp_affinity_list", "irqs", Form.LIST, off, label=f"IRQ {irq.number} ({irq.name})")
        for irq in facts.irqs
        if cpus & set(irq.cpus)
    ]
    if facts.default_irq_mask is not None:
        label = "the place of new IRQs"
        found.append(Setting("proc/irq/default_smp_affinity", "irqs", Form.MASK, off, label=label))
    return found


def _plan_masks(cpus: frozenset[int], part: str, masks: Sequence[tuple[str, str]]) -> list[Setting]:
    """An empty mask means that the feature is off: nothing to steer."""
    off = tuple(sorted(cpus))
    return [Setting(place, part, Form.MASK, off, label=f"/{place}") for place, mask in masks if parse(Form.MASK, mask) & cpus]


def _plan_threads(cpus: frozenset[int], facts: TimingFacts) -> list[Setting]:
    off = tuple(sorted(cpus))
    return [
        Setting(
            f"thread/{thread.pid}/{thread.start_time}", "kernel-threads", Form.LIST, off, label=f"kernel thread {thread.name}"
        )
        for thread in facts.kernel_threads
        if thread.movable and cpus & set(thread.cpus)
    ]


def _plan_clock(cpus: frozenset[int], facts: TimingFacts) -> list[Setting]:
    return [
        Setting(
            f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor",
            "governor",
            Form.WORD,
            word="performance",
            label=f"the governor of CPU {cpu}",
        )
        for cpu in sorted(cpus)
        if cpu in facts.governors and "performance" in facts.governors[cpu][1]
    ]


def _plan_idle(cpus: frozenset[int], facts: TimingFacts) -> list[Setting]:
    return [
        Setting(
            f"sys/devices/system/cpu/cpu{state.cpu}/cpuidle/state{state.number}/disable",
            "idle-states",
            Form.WORD,
            word="1",
            label=f"idle state {state.name} of CPU {state.cpu}",
        )
        for state in _deep(cpus, facts)
    ]


def _deep(cpus: frozenset[int], facts: TimingFacts) -> list[IdleState]:
    return [state for state in facts.idle_states if state.cpu in cpus and state.latency_us > IDLE_LATENCY_US_MAX]


def _name_forbidden(cpus: frozenset[int], facts: TimingFacts) -> tuple[str, ...]:
    found: list[str] = []
    if not facts.irqs:
        found.append("Interrupts can't be seen or steered here: /proc/irq is empty.")
    if not any(cpu in facts.governors for cpu in cpus):
        found.append(
            "The processor's clock can't be held: this machine shows no cpufreq governor (in a guest, the host decides)."
        )
    elif any("performance" not in facts.governors[cpu][1] for cpu in cpus if cpu in facts.governors):
        found.append("The processor's clock can't be held: its governors do not include `performance`.")
    if not any(state.cpu in cpus for state in facts.idle_states):
        found.append("Idle states can't be held: this machine shows no cpuidle states.")
    return tuple(found)


def _name_notes(cpus: frozenset[int], facts: TimingFacts) -> tuple[str, ...]:
    notes = [GUARD, MEMORY]
    # those that no movable mask reaches: per-CPU threads; unbound workers follow the work queues' masks
    bound = [
        thread.name for thread in facts.kernel_threads if not thread.movable and thread.cpus and cpus.issuperset(thread.cpus)
    ]
    if bound:
        notes.append(f"{len(bound)} kernel threads are bound to its CPUs by the kernel and stay: {_list(bound)}.")
    ticking = sorted(cpus - set(facts.tickless))
    if ticking:
        notes.append("The scheduling tick goes on on its CPUs; `nohz_full=` at boot would end it.")
    if not facts.preempts_itself:
        notes.append(
            "This kernel is not PREEMPT_RT: what it does on these CPUs for other processes can hold a wake-up back for a while."
        )
    if facts.guest:
        notes.append(
            "This machine is a guest: its host may take the processor away at any time, and nobody in here can forbid it."
        )
    return tuple(notes)


def _list(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:NAMED_MAX])
    return shown if len(labels) <= NAMED_MAX else f"{shown} and {len(labels) - NAMED_MAX} more"
