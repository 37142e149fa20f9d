"""What does this machine show of interrupts, queues, kernel threads, clocks and idle states? Reads only, below a root.

Also: how are processes scheduled, and how many of other people's may run on some CPUs? Never changes anything; `journal.py` does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from steelyard.host.sysfs import names, numbered, parse_cpus, read_cpus, read_int, read_text
from steelyard.lifecycle.timing import IdleState, Irq, KernelThread, TimingFacts

#: flags of a task, field 9 of /proc/<pid>/stat (include/linux/sched.h)
_PF_NO_SETAFFINITY = 0x0400_0000
_PF_KTHREAD = 0x0020_0000
_POLICIES = {0: "other", 1: "fifo", 2: "round-robin", 3: "batch", 5: "idle", 6: "deadline"}
_CPU = "sys/devices/system/cpu"


def observe_timing(root: Path = Path("/")) -> TimingFacts:
    """Everything that `plan_settings` looks at."""
    online = read_cpus(root / _CPU / "online") or ()
    return TimingFacts(
        online=online,
        irqs=_irqs(root),
        default_irq_mask=read_text(root / "proc/irq/default_smp_affinity"),
        queues=_queues(root),
        workqueues=_workqueues(root),
        kernel_threads=_kernel_threads(root),
        governors=_governors(root, online),
        idle_states=_idle_states(root, online),
        tickless=read_cpus(root / _CPU / "nohz_full") or (),
        preempts_itself=read_text(root / "sys/kernel/realtime") == "1",
        guest=" hypervisor" in (read_text(root / "proc/cpuinfo") or "")[:20_000],
    )


def observe_scheduler(pids: Sequence[int]) -> str | None:
    """Policy and priority that all processes have, such as "fifo 50"; several joined by commas, None when none can be read."""
    found: set[str] = set()
    for pid in pids:
        try:
            policy = os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
            priority = os.sched_getparam(pid).sched_priority
        except OSError:
            continue
        name = _POLICIES.get(policy, f"policy {policy}")
        found.add(f"{name} {priority}" if priority else name)
    return ", ".join(sorted(found)) or None


def observe_memory_lock(pids: Sequence[int]) -> str | None:
    """How much memory all of the processes may lock: "unlimited" or bytes (the least); None when none can be read."""
    found: set[str] = set()
    for pid in pids:
        text = read_text(f"/proc/{pid}/limits") or ""
        at = text.find("\nMax locked memory")
        if at >= 0:
            found.add(text[at + 18 :].split(maxsplit=1)[0])
    limited = [int(limit) for limit in found if limit.isdigit()]
    return f"{min(limited)} bytes" if limited else "unlimited" if found else None


def count_others(cpus: Sequence[int], ours: Sequence[int], root: Path = Path("/")) -> int:
    """Processes (no kernel threads) beside `ours` whose affinity allows one of the CPUs."""
    own, wanted, count = set(ours), set(cpus), 0
    for name in names(root / "proc"):
        if not name.isdigit() or int(name) in own:
            continue
        fields = _stat(root, int(name))
        if fields is None or fields[0] in ("Z", "X") or int(fields[6]) & _PF_KTHREAD:
            continue
        allowed = thread_cpus(int(name), root)
        count += allowed is not None and bool(wanted & set(allowed))
    return count


def thread_cpus(pid: int, root: Path = Path("/")) -> tuple[int, ...] | None:
    """The affinity of one thread."""
    text = read_text(root / f"proc/{pid}/status") or ""
    at = text.find("\nCpus_allowed_list:")
    return None if at < 0 else parse_cpus(text[at + 19 :].partition("\n")[0])


def thread_start(pid: int, root: Path = Path("/")) -> int | None:
    fields = _stat(root, pid)
    return None if fields is None else int(fields[19])


def _stat(root: Path, pid: int) -> list[str] | None:
    """Fields of the stat file from the third (state) on."""
    text = read_text(root / f"proc/{pid}/stat")
    if text is None or ")" not in text:
        return None
    fields = text[text.rindex(")") + 1 :].split()
    return fields if len(fields) >= 20 else None


def _irqs(root: Path) -> tuple[Irq, ...]:
    labels: dict[int, str] = {}
    for line in (read_text(root / "proc/interrupts") or "").splitlines()[1:]:
        number, _, rest = line.partition(":")
        if number.strip().isdigit():
            labels[int(number)] = rest.split()[-1] if rest.split() else ""
    found: list[Irq] = []
    for name in names(root / "proc/irq"):
        cpus = read_cpus(root / f"proc/irq/{name}/smp_affinity_list") if name.isdigit() else None
        if cpus is not None:
            served = read_cpus(root / f"proc/irq/{name}/effective_affinity_list") or ()
            found.append(Irq(int(name), labels.get(int(name), "unused"), cpus, served))
    return tuple(sorted(found, key=lambda irq: irq.number))


def _queues(root: Path) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for interface in names(root / "sys/class/net"):
        folder = f"sys/class/net/{interface}/queues"
        for queue in names(root / folder):
            place = f"{folder}/{queue}/{'rps_cpus' if queue.startswith('rx-') else 'xps_cpus'}"
            mask = read_text(root / place)
            if mask:
                found.append((place, mask))
    return tuple(found)


def _workqueues(root: Path) -> tuple[tuple[str, str], ...]:
    base = "sys/devices/virtual/workqueue"
    places = [f"{base}/cpumask", *(f"{base}/{name}/cpumask" for name in names(root / base))]
    return tuple((place, mask) for place in places if (mask := read_text(root / place)))


def _kernel_threads(root: Path) -> tuple[KernelThread, ...]:
    found: list[KernelThread] = []
    for name in names(root / "proc"):
        fields = _stat(root, int(name)) if name.isdigit() else None
        # threads that serve one interrupt follow its affinity by themselves
        if fields is None or fields[1] != "2" or not int(fields[6]) & _PF_KTHREAD:
            continue
        comm = read_text(root / f"proc/{name}/comm") or ""
        cpus = thread_cpus(int(name), root)
        if cpus is None or comm.startswith("irq/"):
            continue
        movable = not int(fields[6]) & _PF_NO_SETAFFINITY
        found.append(KernelThread(int(name), int(fields[19]), comm, cpus, movable))
    return tuple(found)


def _governors(root: Path, online: Sequence[int]) -> dict[int, tuple[str, tuple[str, ...]]]:
    found: dict[int, tuple[str, tuple[str, ...]]] = {}
    for cpu in online:
        folder = root / _CPU / f"cpu{cpu}/cpufreq"
        now = read_text(folder / "scaling_governor")
        if now:
            found[cpu] = (now, tuple((read_text(folder / "scaling_available_governors") or now).split()))
    return found


def _idle_states(root: Path, online: Sequence[int]) -> tuple[IdleState, ...]:
    found: list[IdleState] = []
    for cpu in online:
        folder = root / _CPU / f"cpu{cpu}/cpuidle"
        for number in numbered(folder, "state"):
            latency, disabled = read_int(folder / f"state{number}/latency"), read_int(folder / f"state{number}/disable")
            if latency is not None and disabled is not None:
                label = read_text(folder / f"state{number}/name") or str(number)
                found.append(IdleState(cpu, number, label, latency, disabled != 0))
    return tuple(found)
