"""`srun`: a step, which is a number of processes side by side in the job's own allocation. Talks to nobody.

As in Slurm a step has as many tasks as the job unless told otherwise, tasks are bound to cores only where the job holds its cores
alone (or --cpu-bind says so), and steps that are started side by side wait for each other's cores (`steps.py`).
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

from . import mpi, steps
from .client import Failed
from .cores import Binding
from .getopt import Given, read_options
from .names import fill_pattern
from .srun_table import OPTIONS
from .tasks import Step, Task

HELP = """srun [OPTIONS] COMMAND...: start COMMAND as the job's tasks, on this machine.

  -n N       tasks (default: the job's)          -c N       cores for each task
  -l         the task's number before each line  -o, -e F   files for output (%t: one for each task)
  -K         end all when one fails              --overlap  don't wait for cores of other steps
  --cpu-bind=none|cores|threads|rank|map_cpu:..  --gpus-per-task=N
  --mpi=pmix start it by mpirun                  --export=ALL|NONE|NAME|NAME=VALUE
"""
_TASKS_MAX = 4096
#: options that may also be given by variables; the command line wins
_BY_ENVIRONMENT = {
    "SLURM_CPU_BIND": "cpu-bind",
    "SLURM_KILL_BAD_EXIT": "kill-on-bad-exit",
    "SLURM_LABELIO": "label",
    "SLURM_MPI_TYPE": "mpi",
    "SLURM_OVERCOMMIT": "overcommit",
    "SLURM_OVERLAP": "overlap",
}


def main(words: list[str]) -> int:
    given, at = read_options(OPTIONS, words)
    asked = {option: os.environ[name] for name, option in _BY_ENVIRONMENT.items() if name in os.environ}
    asked |= {each.option.name: each.value for each in given}
    if "help" in asked:
        print(HELP, end="")
        return 0
    _refuse(given, "quiet" in asked)
    if (asked.get("mpi") or "").lower() == "list":
        print("MPI plugin types are...\n\tnone\n\tpmix (by mpirun)")
        return 0
    command = words[at:]
    if not command:
        raise Failed("no command was given; `srun --help` shows how")
    if "pty" in asked:
        return _run_directly(command)
    tasks, per_task = _find_size(asked)
    total = _number(os.environ.get("SLURM_CPUS_ON_NODE"), tasks * per_task, "SLURM_CPUS_ON_NODE")
    loose = "overcommit" in asked
    if tasks * per_task > total and not loose:
        raise Failed(
            f"Unable to create step for job {os.environ.get('SLURM_JOB_ID', '?')}: {tasks} tasks of {per_task} cores are more "
            f"than the job's {total} (--overcommit starts them all the same)"
        )
    total = max(total, 1)
    count = min(tasks * per_task, total)
    slots = list(range(count)) if loose or "overlap" in asked else steps.take_slots(count, total)
    return _run(asked, command, tasks, per_task, slots, total)


def _run(asked: dict[str, str | None], command: list[str], tasks: int, per_task: int, slots: list[int], total: int) -> int:
    number, alone = steps.take_number(), bool(os.environ.get("STEELYARD_CPUS"))
    env = _make_env(asked, tasks, per_task, number)
    wants_mpi = (asked.get("mpi") or "").lower()
    if tasks > 1 and (wants_mpi not in mpi.NO_MPI or ("mpi" not in asked and mpi.links_mpi(command[0], env.get("PATH")))):
        return _run_mpi(asked, command, tasks, env, alone)
    binding = Binding(asked.get("cpu-bind") or "", tasks, per_task, slots, total, alone and "overcommit" not in asked)
    if binding.note:
        print(f"srun: {binding.note}", file=sys.stderr)
    devices = _divide_gpus(asked.get("gpus-per-task"), tasks, env)
    outputs = _Outputs(asked, number, tasks)
    first_in, others_in = _find_inputs(asked.get("input"))
    made = [
        Task(
            rank=rank,
            command=command,
            env=env | _task_env(rank) | (devices[rank] if devices else {}),
            cpus=binding.cpus(rank),
            stdin=first_in if rank == 0 else others_in,
            stdout=outputs.find("output", rank),
            stderr=outputs.find("error", rank),
            folder=asked.get("chdir"),
        )
        for rank in range(tasks)
    ]
    kill = "kill-on-bad-exit" in asked and asked["kill-on-bad-exit"] != "0"
    host = env.get("SLURMD_NODENAME", "localhost")
    return Step(made, label="label" in asked, kill_on_bad_exit=kill, quiet="quiet" in asked, host=host).run()


def _refuse(given: list[Given], quiet: bool) -> None:
    for each in given:
        if each.option.does == "refused":
            raise Failed(f"--{each.option.name} can't be done here: {each.option.becomes}")
        if each.option.does == "ignored" and each.option.becomes and not quiet:
            print(f"srun: {each.text} is not acted on: {each.option.becomes}", file=sys.stderr)


def _find_size(asked: dict[str, str | None]) -> tuple[int, int]:
    nodes = asked.get("nodes")
    if nodes is not None and _number(nodes.partition("-")[0], 1, "--nodes") > 1:
        raise Failed(f"--nodes={nodes}: the job has one machine")
    told = os.environ.get("SRUN_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_PER_TASK")
    per_task = _number(asked.get("cpus-per-task") or told, 1, "--cpus-per-task")
    text = asked.get("ntasks") or asked.get("ntasks-per-node")
    if text is None:
        # -N alone means a task for each node
        text = nodes.partition("-")[0] if nodes is not None else os.environ.get("SLURM_NTASKS")
    tasks = _number(text, 1, "--ntasks")
    if tasks > _TASKS_MAX:
        raise Failed(f"--ntasks={tasks}: at most {_TASKS_MAX} tasks")
    return tasks, per_task


def _number(text: str | None, default: int, what: str) -> int:
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 8 and int(text) > 0):
        raise Failed(f"{what} is a whole number of at least 1, not {text[:40]!r}")
    return int(text)


def _make_env(asked: dict[str, str | None], tasks: int, per_task: int, number: int) -> dict[str, str]:
    env = _export(asked.get("export"))
    node = env.get("SLURM_JOB_NODELIST", "localhost")
    env |= {
        "SLURM_NTASKS": str(tasks),
        "SLURM_NPROCS": str(tasks),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_TASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_PER_TASK": str(per_task),
        "SLURM_STEP_ID": str(number),
        "SLURM_STEPID": str(number),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_STEP_NODELIST": node,
        "SLURM_SRUN_COMM_HOST": "127.0.0.1",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "SLURM_GTIDS": ",".join(map(str, range(tasks))),
    }
    if asked.get("job-name"):
        env["SLURM_JOB_NAME"] = asked["job-name"] or ""
    return env


def _export(text: str | None) -> dict[str, str]:
    """ALL by default. With NONE, or only names, what Slurm and Steelyard say of the job stays."""
    env = dict(os.environ)
    if text is None:
        return env
    items = [item.strip() for item in text.split(",")]
    kept = {name: value for name, value in env.items() if name.startswith(("SLURM", "STEELYARD_", "CUDA_VISIBLE", "PATH"))}
    found = env if any(item.upper() == "ALL" for item in items) else kept
    for item in items:
        name, equals, value = item.partition("=")
        if equals:
            found[name] = value
        elif name in env:
            found[name] = env[name]
    return found


def _task_env(rank: int) -> dict[str, str]:
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def _divide_gpus(text: str | None, tasks: int, env: dict[str, str]) -> list[dict[str, str]]:
    """For each task the variables that name its own GPUs; empty where all see all."""
    if text is None:
        return []
    each = _number(text.rpartition(":")[2], 1, "--gpus-per-task")
    found: list[dict[str, str]] = [{} for _ in range(tasks)]
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        mine = [gpu for gpu in env.get(name, "").split(",") if gpu and gpu != "void"]
        if not mine:
            continue
        if len(mine) < each * tasks:
            raise Failed(f"--gpus-per-task={text}: {tasks} tasks need {each * tasks} GPUs, and the job has {len(mine)}")
        for rank in range(tasks):
            found[rank][name] = ",".join(mine[rank * each : (rank + 1) * each])
    if not any(found):
        raise Failed(f"--gpus-per-task={text}: the job has no GPUs; ask for them when it is submitted")
    return found


class _Outputs:
    """Where the streams of each task go."""

    def __init__(self, asked: dict[str, str | None], number: int, tasks: int) -> None:
        self._patterns = {"output": asked.get("output"), "error": asked.get("error")}
        self._append = (asked.get("open-mode") or "t").startswith("a")
        self._number, self._tasks = number, tasks
        self._files: dict[str, int] = {}

    def find(self, stream: str, rank: int) -> int | None:
        default = 1 if stream == "output" else 2
        pattern = self._patterns[stream]
        if pattern is None and stream == "error" and self._patterns["output"] is not None:
            return self.find("output", rank)
        if pattern is None or pattern == "all":
            return default
        if pattern == "none" or (pattern.isdigit() and int(pattern) < self._tasks):
            # a number alone: only that task is heard
            return default if pattern == str(rank) else None
        return self._open(fill_step_pattern(pattern, self._number, rank))

    def _open(self, path: str) -> int:
        if path not in self._files:
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if self._append else os.O_TRUNC)
            try:
                self._files[path] = os.open(path, mode, 0o666)
            except OSError as err:
                raise Failed(f"Could not open output file {path}: {err.strerror}") from None
        return self._files[path]


def fill_step_pattern(pattern: str, number: int, rank: int) -> str:
    def whole(name: str) -> int | None:
        text = os.environ.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else None

    return fill_pattern(
        pattern,
        job=whole("SLURM_JOB_ID") or 0,
        array_job=whole("SLURM_ARRAY_JOB_ID"),
        array_index=whole("SLURM_ARRAY_TASK_ID"),
        name=os.environ.get("SLURM_JOB_NAME", ""),
        user=os.environ.get("SLURM_JOB_USER", ""),
        node=os.environ.get("SLURMD_NODENAME", "localhost"),
        step=str(number),
        task=rank,
    )


def _find_inputs(asked: str | None) -> tuple[int | None, int | None]:
    """Of task 0 and of the others. What `srun` itself could read goes to task 0."""
    if asked is None or asked in ("all", "0"):
        return 0, None
    if asked == "none" or asked.isdigit():
        return None, None
    try:
        return os.open(asked, os.O_RDONLY), None
    except OSError as err:
        raise Failed(f"Could not open input file {asked}: {err.strerror}") from None


def _run_directly(command: list[str]) -> NoReturn:
    """--pty: the terminal is this process's already."""
    if shutil.which(command[0]) is None:
        raise Failed(f"{command[0]}: No such file or directory")
    os.execvpe(command[0], command, dict(os.environ) | _task_env(0))


def _run_mpi(asked: dict[str, str | None], command: list[str], tasks: int, env: dict[str, str], alone: bool) -> NoReturn:
    for option in ("label", "output", "error", "kill-on-bad-exit", "cpu-bind", "input"):
        if option in asked:
            print(f"srun: --{option} is not acted on: mpirun starts this MPI program", file=sys.stderr)
    found = mpi.mpirun_command(tasks, command, env, alone)
    if found is None:
        raise Failed(
            f"{command[0]} is an MPI program, and there is no mpirun on the PATH that could start its {tasks} ranks: load the "
            "MPI that it was built with, or call its own launcher (--mpi=none starts it without)"
        )
    program, env = found
    # its cores stay taken until it ends
    for name in os.listdir("/proc/self/fd"):
        if os.path.basename(_target(name)).startswith("slot-"):
            os.set_inheritable(int(name), True)
    if asked.get("chdir"):
        os.chdir(asked["chdir"] or ".")
    os.execve(program[0], program, env)


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""
