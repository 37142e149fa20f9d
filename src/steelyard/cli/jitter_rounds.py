"""How is one round of `steelyard jitter` carried out? A control group per class, a timer loop in it, a noisy neighbour beside it.

Needs no running Steelyard: it makes groups of its own (`steelyard-jitter-<pid>-<start time>`) and goes through the machine's
journal of settings like any job. Everything is taken away at the end; what a killed run left is taken away by the next one
(`sweep`). The neighbour is always in the common cpuset, as best-effort work is, and ends by itself in bounded time.

Ctrl-C is heard where a round waits, and nowhere else: what a signal's handler raises is lost when it comes while a child is
forked (Python prints what its hooks around a fork raise, logging's for one, and goes on), and late just before a wait.
"""

from __future__ import annotations

import array
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from steelyard.cli.attend import Interrupts
from steelyard.host.cgroup import find_mounts, open_cgroups
from steelyard.host.journal import SettingsJournal
from steelyard.host.machine import observe_machine
from steelyard.host.proc import alive, start_time
from steelyard.host.timing import observe_timing
from steelyard.lifecycle.jitter import count_late, parse_cyclictest
from steelyard.lifecycle.timing import explain_unheld, plan_settings
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan, Resources
from steelyard.model.timing import FIFO_PRIORITY, Timing
from steelyard.placement.machine import Refusal, place

T = TypeVar("T")

PREFIX = "jitter-"
INTERVAL_US = 1000
#: what the timer loop asks for in the common cores; it needs a hundredth
PROBE_SHARE = 0.1
#: until the neighbour's processes burn
NOISE_HEAD_S = 1.0
#: the neighbour ends by itself this long after the measurement at the latest
NOISE_TAIL_S = 5
HISTOGRAM_US = 200_000
PROBE, NOISE = WorkloadId("probe"), WorkloadId("noise")
_PR_SET_PDEATHSIG = 1


class Rounds:
    """All rounds of one command; `close` in any case. `interrupts` raise when they are handed on."""

    def __init__(self, interrupts: Interrupts, run: Path = Path("/run/steelyard")) -> None:
        self._interrupts = interrupts
        self.machine = observe_machine()
        self._tag = f"{PREFIX}{os.getpid()}-{start_time(os.getpid()) or 0}"
        self._root = os.geteuid() == 0
        self._journal = SettingsJournal(run, self.machine.boot_id)
        self._cgroups = open_cgroups(self._tag)
        self._nodes = tuple(node.id for node in self.machine.numa_nodes) or (0,)
        self._folder = Path(tempfile.mkdtemp(prefix=f"steelyard-{self._tag}-"))
        self._cyclictest = shutil.which("cyclictest") if self._root else None
        self._stress = shutil.which("stress-ng")
        self._libc = ctypes.CDLL(None)

    @property
    def engine(self) -> str:
        return "cyclictest" if self._cyclictest else "own loop"

    def sweep(self) -> None:
        """Take away what runs left that were killed: noise, groups, settings, files."""
        mounts = find_mounts()
        for mount in {*mounts.v1.values(), *([mounts.v2] if mounts.v2 else [])}:
            for folder in Path(mount).glob(f"steelyard-{PREFIX}*"):
                tag = folder.name.removeprefix("steelyard-")
                if not _run_lives(tag):
                    open_cgroups(tag).destroy()
        for folder in Path(tempfile.gettempdir()).glob(f"steelyard-{PREFIX}*"):
            if not _run_lives(folder.name.removeprefix("steelyard-")):
                shutil.rmtree(folder, ignore_errors=True)
        if self._root:
            self._journal.restore(lambda holder: not holder.startswith(PREFIX) or _run_lives(holder.partition("/")[0]))

    def plan(self, timing: Timing) -> Plan | Refusal:
        cpus = PROBE_SHARE if timing is Timing.BEST_EFFORT else 1.0
        return place(self.machine, (), Resources(cpus=cpus, timing=timing))

    def measure(self, plan: Plan, seconds: float, noise: bool) -> tuple[dict[int, int], tuple[str, ...]]:
        """(lateness in us -> count, what this machine did not allow)."""
        shared = tuple(cpu for cpu in self.machine.cpus if cpu not in plan.cpus)
        self._cgroups.prepare(shared, self._nodes)
        neighbour: subprocess.Popen[bytes] | None = None
        try:
            self._cgroups.make(PROBE, plan)
            could_not = self._hold(plan)
            if noise:
                free = sum(1 for core in self.machine.cores if not set(core.cpus) & set(plan.cpus))
                share = free if plan.cpus else free - PROBE_SHARE
                neighbour = self._start(NOISE, Plan(share=share), self._noise_command(seconds), cpus=shared)
                self._wait_for(lambda: threading.Event().wait(NOISE_HEAD_S))
                if neighbour.poll() is not None:
                    could_not += (f"The neighbour ended at once (exit code {neighbour.returncode}): there was no noise.",)
            late, words = self._probe(plan, seconds)
            if not self._root:
                could_not += self._cgroups.missing
            return late, could_not + words
        finally:
            self._end(neighbour)
            if self._root:
                self._journal.release(self._holder)

    def close(self) -> None:
        self._end(None)
        self._cgroups.destroy()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hold(self, plan: Plan) -> tuple[str, ...]:
        if plan.timing is not Timing.REALTIME:
            return ()
        if not self._root:
            return ("Not root: interrupts, kernel threads and clocks stay as they are.",)
        planned = plan_settings(plan, observe_timing())
        unheld = self._journal.hold(self._holder, planned.settings)
        return (*planned.forbidden, *explain_unheld(unheld, self._holder))

    def _wait_for(self, blocking: Callable[[], T]) -> T | None:
        result = self._interrupts.wait_for(blocking)
        self._interrupts.forward()
        return result

    @property
    def _holder(self) -> str:
        return f"{self._tag}/{PROBE}"

    def _probe(self, plan: Plan, seconds: float) -> tuple[dict[int, int], tuple[str, ...]]:
        fifo = FIFO_PRIORITY if plan.timing is Timing.REALTIME else 0
        out = self._folder / "late"
        if self._cyclictest:
            self._give_realtime_budget(plan)
            policy = ["-p", str(fifo)] if fifo else ["--policy=other"]
            loops = str(round(seconds * 1_000_000 / INTERVAL_US))
            command = [self._cyclictest, "-q", "-m", "-t1", "-i", str(INTERVAL_US), "-l", loops, "-h", str(HISTOGRAM_US)]
            command += ["--default-system", *policy]
        else:
            command = [sys.executable, "-P", "-m", "steelyard.runtime.wakeups", "measure"]
            command += [str(seconds), str(INTERVAL_US), str(fifo), str(out)]
        with open(self._folder / "stdout", "w+b") as stdout, open(self._folder / "stderr", "w+b") as stderr:
            child = self._start(PROBE, plan, command, stdout.fileno(), stderr.fileno())
            code = self._wait_for(child.wait)
            stdout.seek(0)
            text = stdout.read().decode(errors="replace")
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip().splitlines()
        if code != 0:
            if self._cyclictest:
                self._cyclictest = None
                late, more = self._probe(plan, seconds)
                return late, (f"cyclictest did not run here ({' '.join(words)[:200]}): own loop instead.", *more)
            return {}, (f"The timer loop failed: {' '.join(words)[:200]}",)
        if self._cyclictest:
            return parse_cyclictest(text), ()
        late_ns = array.array("q")
        late_ns.frombytes(out.read_bytes())
        refused = fifo and not self._root
        return count_late(late_ns), (("Not root: FIFO priority is refused unless RLIMIT_RTPRIO allows it.",) if refused else ())

    def _give_realtime_budget(self, plan: Plan) -> None:
        """cyclictest tries FIFO on itself before it measures any class; where the kernel groups realtime work (RT_GROUP_SCHED) a
        group without a budget refuses. These groups are ours and go at the end."""
        mount = find_mounts().v1.get("cpu")
        if mount is None or plan.timing is Timing.REALTIME:
            return
        for folder, budget in ((f"steelyard-{self._tag}", 2000), (f"steelyard-{self._tag}/{PROBE}", 1000)):
            try:
                Path(mount, folder, "cpu.rt_runtime_us").write_text(str(budget))
            except OSError:
                return  # cyclictest then says so itself

    def _noise_command(self, seconds: float) -> list[str]:
        workers, memory = len(self.machine.cpus), self.machine.memory_bytes
        limit = str(round(seconds + NOISE_HEAD_S) + NOISE_TAIL_S)
        if self._stress:
            size = min(1 << 30, memory // (4 * workers))
            vm = ["--vm", str(workers), "--vm-bytes", str(size), "--vm-populate"]
            return [self._stress, "--quiet", "--temp-path", str(self._folder), "--timeout", limit, "--cpu", str(workers), *vm]
        return [sys.executable, "-P", "-m", "steelyard.runtime.burner", limit, str(workers), str(workers)]

    def _start(
        self,
        workload: WorkloadId,
        plan: Plan,
        command: Sequence[str],
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
        cpus: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """In its group, on its CPUs (by affinity as well: without groups that is all there is); it dies with us."""
        self._cgroups.make(workload, plan)
        joins = self._cgroups.open_join(workload)
        allowed = plan.cpus or cpus

        def enter() -> None:
            self._libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
            os.setsid()
            for join in joins:
                os.write(join, b"0")
            if allowed:
                os.sched_setaffinity(0, allowed)

        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, preexec_fn=enter, cwd=self._folder
            )
        finally:
            for join in joins:
                os.close(join)
        self._cgroups.track(workload, child.pid, start_time(child.pid) or 0)
        return child

    def _end(self, neighbour: subprocess.Popen[bytes] | None) -> None:
        for workload in (NOISE, PROBE):
            self._cgroups.kill(workload)
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
        for workload in (NOISE, PROBE):
            self._cgroups.remove(workload)


def _run_lives(tag: str) -> bool:
    """Is the run that this tag names still there?"""
    parts = tag.removeprefix(PREFIX).split("-")
    return len(parts) >= 2 and parts[0].isdigit() and parts[1].isdigit() and alive(int(parts[0]), int(parts[1]))
