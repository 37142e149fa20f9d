"""What has one option of `sbatch` become? A few words from the job's own fields, for `steelyard submit --test-only`."""

from __future__ import annotations

import signal
from collections.abc import Callable

from steelyard.api.slurm_time import format_slurm_time
from steelyard.clock import rfc3339
from steelyard.lifecycle.array import parse_array
from steelyard.model.gpu_demand import format_gpu_demand
from steelyard.model.job import JobSpec
from steelyard.model.words import count, size


def explain_option(name: str, spec: JobSpec, array: str | None) -> str:
    """`name` is an option that acts."""
    if name == "array":
        return "" if array is None else _explain_array(array)
    return _WORDS[name](spec)


def _explain_array(array: str) -> str:
    demand = parse_array(array)
    return count(len(demand.indices), "job") + ("" if demand.at_once is None else f", {demand.at_once} at a time")


def _cores(spec: JobSpec) -> str:
    tasks = int(spec.slurm.get("SLURM_NTASKS", "1"))
    whole = " of its own" if spec.resources.exclusive else ""
    return f"{count(round(spec.resources.cpus), 'core')}{whole} in all, for {count(tasks, 'task')}"


def _gpus(spec: JobSpec) -> str:
    return "no GPUs" if spec.resources.gpus is None else f"GPUs: {format_gpu_demand(spec.resources.gpus)}"


def _memory(spec: JobSpec) -> str:
    return "no memory limit" if spec.resources.memory_bytes is None else f"at most {size(spec.resources.memory_bytes)} in all"


def _limit(spec: JobSpec) -> str:
    return "no time limit" if spec.max_duration_s is None else f"ends after {format_slurm_time(int(spec.max_duration_s))}"


def _signal(spec: JobSpec) -> str:
    if spec.warn is None:
        return "nothing"
    number = spec.warn.signal
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    to = "what srun started" if spec.warn.steps_only else "the job"
    return f"{name} to {to}, {spec.warn.before_s:.0f} s before the limit"


def _requeue(spec: JobSpec) -> str:
    return "never queued again" if not spec.retry else "queued again: " + ", ".join(rule.on.value for rule in spec.retry)


_WORDS: dict[str, Callable[[JobSpec], str]] = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "cpus-per-task", "cpus-per-gpu", "mincpus"), _cores),
    **dict.fromkeys(("overcommit", "exclusive"), _cores),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gres"), _gpus),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), _memory),
    **dict.fromkeys(("requeue", "no-requeue"), _requeue),
    **dict.fromkeys(("nice", "priority"), lambda spec: f"priority {spec.priority}" + (", held" if spec.held else "")),
    "time": _limit,
    "begin": lambda spec: "at once" if spec.begin_at is None else f"not before {rfc3339(spec.begin_at)}",
    "dependency": lambda spec: ", ".join(f"{each.kind.value}: {each.job}" for each in spec.after),
    "hold": lambda spec: "held until it is released",
    "signal": _signal,
    "job-name": lambda spec: f"name {spec.name}",
    "output": lambda spec: spec.stdout or "",
    "error": lambda spec: spec.stderr or "",
    "open-mode": lambda spec: "output files are emptied first" if spec.truncate_output else "output files are continued",
    "chdir": lambda spec: f"runs in {spec.cwd}",
    "export": lambda spec: f"gets {count(len(spec.env), 'variable')} of the caller's",
    "account": lambda spec: f"fair share of {spec.account}",
    "input": lambda spec: "nothing to read",
    "wrap": lambda spec: "a script of that one line",
}
