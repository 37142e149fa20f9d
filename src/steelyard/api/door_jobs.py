"""Is what a job asks of the queue possible at all? Pure checks beside `door.py`: gangs, limits of time, retries, output files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from steelyard.api.door import NO_CONTAINERS, Finding, check_folder
from steelyard.lifecycle.pilot import longest_work_s
from steelyard.model import words
from steelyard.model.batch import PRIORITY_MAX, Gang, Launcher, PreemptMode
from steelyard.model.job import JobSpec, Resources
from steelyard.model.machine import Machine
from steelyard.model.pool import Pool, PoolSpec
from steelyard.scaling.pools import make_room

#: ten years, as durations of the command line
_SECONDS_MAX = 10 * 365 * 86400.0
_RANKS_MAX = 4096
_RETRIES_MAX = 1000
_AFTER_MAX = 1000
_SCRIPT_MAX = 256 * 1024
ACCOUNT = re.compile(r"[A-Za-z0-9._@-]{1,64}(/[A-Za-z0-9._@-]{1,64}){0,7}", re.ASCII)
_SCRATCH_MIN = 1 << 20


def check_queueing(spec: JobSpec, now: int) -> list[Finding]:
    """`now` in microseconds: what begins in the past begins now, but a year 1970 is a mistake."""
    findings: list[Finding] = []
    if not 0 <= spec.priority <= PRIORITY_MAX:
        findings.append(Finding("bad-priority", f"priority is a whole number from 0 to {PRIORITY_MAX}"))
    if spec.account and not ACCOUNT.fullmatch(spec.account):
        findings.append(Finding("bad-account", "an account is named like lab/alice: up to 8 levels of letters, digits and ._@-"))
    if spec.begin_at is not None and spec.begin_at < 0:
        findings.append(Finding("bad-begin", "begin_at is before 1970; it is in microseconds since then"))
    if spec.begin_at is not None and spec.begin_at > now + round(_SECONDS_MAX * 1e6):
        findings.append(Finding("bad-begin", "begin_at is more than ten years ahead; it is in microseconds since 1970"))
    if len(spec.after) > _AFTER_MAX:
        findings.append(Finding("too-many-dependencies", f"a job waits for at most {_AFTER_MAX} others; let one job join them"))
    findings += _check_gang(spec.gang, spec)
    findings += _check_times(spec)
    findings += _check_retries(spec)
    findings += _check_preemption(spec)
    findings += _check_files(spec)
    findings += _check_disks(spec.resources)
    return findings


def check_pool(spec: JobSpec, pools: Sequence[Pool], machines: Sequence[Machine], root: bool) -> list[Finding]:
    """Asked only about a job that is to run in a pool."""
    findings: list[Finding] = []
    open_to = {pool.name: pool.spec for pool in pools if not pool.deleting}
    if spec.pool not in open_to:
        known = f"there are {', '.join(sorted(open_to))}" if open_to else "there is none"
        findings.append(Finding("no-such-pool", f"there is no pool {spec.pool[:80]}: {known}"))
    else:
        example = next((machine for machine in machines if machine.pool == spec.pool), None)
        each = make_room(open_to[spec.pool].node, example)
        has = f"{'any number of' if each.cpus is None else format(each.cpus, 'g')} cores, {each.gpus or 0} GPUs"
        has += "" if each.memory_bytes is None else f", {words.size(each.memory_bytes)} of memory"
        if not each.take(spec.demand):
            findings.append(Finding("beyond-pool", f"no machine of pool {spec.pool} can hold it: each has {has}"))
        longest_s = longest_work_s(open_to[spec.pool])
        if longest_s is not None and (spec.max_duration_s or 0.0) > longest_s:
            text = f"no machine of pool {spec.pool} stays long enough: each takes work for {longest_s:g} s at most"
            findings.append(Finding("beyond-pool", f"{text}; ask for a shorter --max-duration, or for none"))
    if spec.direct:
        findings.append(Finding("bad-pool", "a job goes either to a pool or, with direct, through the cluster's own queue"))
    if spec.contained and not root:
        findings.append(NO_CONTAINERS)
    if spec.gang is not None and spec.gang.nodes > 1:
        most = open_to[spec.pool].nodes_max if spec.pool in open_to else spec.gang.nodes
        if spec.gang.nodes > most:
            text = f"pool {spec.pool} has at most {words.count(most, 'machine')}, and {spec.gang.nodes} are asked at once"
            findings.append(Finding("beyond-pool", text))
    if spec.gang is not None and spec.gang.launcher is Launcher.MPI:
        findings += _check_mpi(spec, spec.gang, open_to.get(spec.pool), root)
    if spec.builds:
        findings.append(Finding("bad-pool", "images are built on the home's own machine"))
    return findings


def _check_mpi(spec: JobSpec, gang: Gang, pool: PoolSpec | None, root: bool) -> list[Finding]:
    """Ranks in a pool are Slurm's processes, not ours: one step in one allocation."""
    findings: list[Finding] = []
    if root and not spec.as_root:
        text = "Slurm's PMIx serves an allocation's own user, and those of this Steelyard are root's"
        findings.append(Finding("bad-pool", f"{text}: submit it with --direct, or run Steelyard as an ordinary user"))
    if pool is not None and gang.nodes > pool.nodes_per_allocation:
        have = f"one of pool {pool.name} has {words.count(pool.nodes_per_allocation, 'machine')}"
        text = f"MPI's ranks reach across one allocation, and {have} (pool create --nodes-per-allocation)"
        findings.append(Finding("beyond-pool", text))
    if spec.image:
        text = "ranks of MPI in a pool are started on the machine's own files: name no image, or another launcher"
        findings.append(Finding("bad-pool", text))
    if spec.secrets:
        findings.append(Finding("bad-pool", "ranks of MPI in a pool get no secrets: Slurm would carry them over its network"))
    if spec.volumes:
        findings.append(Finding("bad-pool", "ranks of MPI in a pool see no volumes: use a folder that the nodes share"))
    if spec.resources.preemptible and spec.preemption.mode is PreemptMode.SUSPEND:
        findings.append(Finding("bad-pool", "ranks of MPI in a pool can't be suspended: choose requeue or cancel"))
    if gang.nodes > 1 and (spec.resources.gpus is not None or spec.resources.scratch_bytes is not None):
        text = "MPI over several machines of a pool has no GPUs or scratch of its own so far: --direct has GPUs"
        findings.append(Finding("bad-pool", text))
    return findings


def _check_gang(gang: Gang | None, spec: JobSpec) -> list[Finding]:
    if gang is None:
        return []
    if gang.nodes < 1 or gang.tasks_per_node < 1 or gang.world_size > _RANKS_MAX:
        text = f"a gang has at least one node with one task, and at most {_RANKS_MAX} tasks in all"
        return [Finding("bad-gang", text)]
    if spec.script is not None:
        return [Finding("bad-gang", "a script runs once and starts its tasks itself (srun); a gang runs a command per rank")]
    return []


def _check_times(spec: JobSpec) -> list[Finding]:
    findings: list[Finding] = []
    times = {
        "max_duration_s": spec.max_duration_s,
        "start_timeout_s": spec.start_timeout_s,
        "heartbeat_timeout_s": spec.heartbeat_timeout_s,
    }
    for name, value in times.items():
        if value is not None and not 0 < value <= _SECONDS_MAX:
            findings.append(Finding("bad-duration", f"{name} must be more than 0 and at most ten years"))
    if spec.warn is not None:
        if spec.max_duration_s is None:
            findings.append(Finding("bad-warning", "a warning signal comes before the end of max_duration; there is none"))
        elif not 0 < spec.warn.before_s <= spec.max_duration_s:
            findings.append(Finding("bad-warning", "the warning must come before the end, and not before the start"))
        if not 1 <= spec.warn.signal <= 64:
            findings.append(Finding("bad-signal", "a signal is a number from 1 to 64"))
    return findings


def _check_retries(spec: JobSpec) -> list[Finding]:
    findings: list[Finding] = []
    if len({rule.on for rule in spec.retry}) < len(spec.retry):
        findings.append(Finding("bad-retry", "there is more than one retry rule for the same reason"))
    for rule in spec.retry:
        if not 0 <= rule.times <= _RETRIES_MAX or not 0 <= rule.backoff_s <= _SECONDS_MAX:
            findings.append(Finding("bad-retry", f"a job is retried 0 to {_RETRIES_MAX} times, after 0 seconds or more"))
    return findings


def _check_preemption(spec: JobSpec) -> list[Finding]:
    asked = spec.preemption
    findings: list[Finding] = []
    if not 1 <= asked.signal <= 64:
        findings.append(Finding("bad-signal", "a signal is a number from 1 to 64"))
    if not (0 <= asked.grace_s <= 3600 and 0 <= asked.min_runtime_s <= _SECONDS_MAX):
        findings.append(Finding("bad-preemption", "the grace is 0 to 3600 seconds, the minimum runtime 0 or more"))
    if asked.mode is PreemptMode.SUSPEND and (spec.resources.gpus is not None or spec.resources.nics):
        text = "a suspended job keeps what is in its GPUs and cards, so nobody could use them: choose requeue or cancel"
        findings.append(Finding("bad-preemption", text))
    return findings


def _check_files(spec: JobSpec) -> list[Finding]:
    findings: list[Finding] = []
    for name, path in (("stdout", spec.stdout), ("stderr", spec.stderr), ("checkpoint_dir", spec.checkpoint_dir)):
        if path is not None:
            findings += check_folder(name, path)
    if spec.script is not None:
        if not spec.script.startswith("#!"):
            findings.append(Finding("no-shebang", "a script's first line says what runs it, such as #!/bin/bash"))
        if len(spec.script.encode(errors="surrogatepass")) > _SCRIPT_MAX or "\0" in spec.script:
            findings.append(Finding("bad-script", f"a script is text of at most {_SCRIPT_MAX} bytes"))
    return findings


def _check_disks(asked: Resources) -> list[Finding]:
    findings: list[Finding] = []
    if asked.scratch_bytes is not None and not _SCRATCH_MIN <= asked.scratch_bytes < 1 << 60:
        findings.append(Finding("bad-scratch", "scratch must be at least 1 MiB and less than 1 EiB"))
    if asked.io_max_bytes_s is not None and (asked.io_max_bytes_s < 4096 or not math.isfinite(asked.io_max_bytes_s)):
        findings.append(Finding("bad-io-max", "io_max must be at least 4096 bytes per second"))
    return findings
