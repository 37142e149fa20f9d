"""What is handed to `sbatch` for an attempt? Its options and its script. Pure: a job and an attachment in, text out."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from steelyard.engine.slurm.observe import choose_queue
from steelyard.lifecycle.launch import Facts, list_ports, ports_wanted, tell_attempt
from steelyard.model.batch import Launcher
from steelyard.model.job import Job
from steelyard.model.slurm import Attachment

#: (ours, Slurm's), as docs/slurm.md shows them
MAPPED = (
    ("--name", "--job-name"),
    ("--cpus N", "--cpus-per-task, rounded up to whole CPUs"),
    ("--memory SIZE", "--mem: that of all ranks of a node"),
    ("--gpus [MODEL:]N", "--gres=gpu[:model]:N: those of all ranks of a node"),
    ("--nodes, --tasks-per-node", "--nodes, --ntasks-per-node; ranks are started by srun"),
    ("--launcher mpi", "srun --mpi=pmix"),
    ("--max-duration", "--time, rounded up to minutes"),
    ("--warn SIGNAL@TIME", "--signal=SIGNAL@seconds"),
    ("--output, --error", "--output, --error"),
    ("--env", "set by the batch script; nothing else of your environment is exported"),
    ("--account, or that of cluster attach; its --partition", "--account, --partition"),
    ("the attempt's id", "--comment=steelyard:HOME:ATTEMPT, by which a lost answer is found again"),
)

_END = "STEELYARD_END_OF_TEXT"
_STEP = Path(__file__).with_name("step.py")


def name_comment(tag: str, attempt: str) -> str:
    """What finds an attempt again. `tag` tells this home from others."""
    return f"steelyard:{tag}:{attempt}"


def name_prefix(attachment: Attachment, job: Job, uid: int) -> str:
    """What the names of an attempt's files begin with; `uid` is whom it runs as."""
    return f"{attachment.folder}/{uid}/{job.attempt_id}"


def make_options(job: Job, attachment: Attachment, tag: str, prefix: str) -> list[str]:
    spec, gang, each = job.spec, job.spec.gang, job.spec.resources
    tasks = 1 if gang is None else gang.tasks_per_node
    options: dict[str, str] = {
        "job-name": spec.name,
        "comment": name_comment(tag, job.attempt_id),
        "chdir": spec.cwd,
        # what Slurm has to say; the tasks' own output is theirs alone (`_outputs`)
        **(_outputs(job, prefix) if spec.script is not None else {"output": make_literal(f"{prefix}.slurm")}),
        "nodes": str(1 if gang is None else gang.nodes),
        "ntasks-per-node": str(tasks),
        "cpus-per-task": str(math.ceil(round(each.cpus, 6))),
        **choose_queue(attachment, spec.account),
    }
    if each.memory_bytes is not None:
        options["mem"] = f"{math.ceil(each.memory_bytes * tasks / (1 << 20))}M"
    if each.gpus is not None:
        model = f":{each.gpus.model.lower()}" if each.gpus.model else ""
        options["gres"] = f"gpu{model}:{each.gpus.count * tasks}"
    if spec.max_duration_s is not None:
        options["time"] = str(math.ceil(spec.max_duration_s / 60))
    if spec.warn is not None:
        options["signal"] = f"{spec.warn.signal}@{math.ceil(spec.warn.before_s)}"
    return ["--parsable", "--no-requeue", *(f"--{name}={value}" for name, value in options.items())]


def render_script(job: Job, attachment: Attachment, prefix: str) -> str:
    """The batch script. Quoted throughout: what a user wrote is text to the shell and nothing more."""
    spec = job.spec
    lines = [
        "#!/bin/sh",
        f"# {job.attempt_id} of Steelyard: its variables, the step that stands before each task, and the tasks.",
    ]
    for name, value in {**spec.env, **_tell(job)}.items():
        lines.append(f"export {name}={shlex.quote(value)}")
    # where Slurm's commands here are led to their cluster says nothing to those of a node
    for name, value in attachment.env.items():
        lines.append(f'[ "${{{name}-}}" != {shlex.quote(value)} ] || unset {name}')
    lines += [f"step=$(cat <<'{_END}'", _STEP.read_text().rstrip("\n"), _END, ")"]
    if spec.script is not None:
        end = _END
        while end in spec.script:
            end += "_"
        lines += [
            'script=$(mktemp) && chmod 700 "$script" || exit',
            f"cat >\"$script\" <<'{end}'",
            spec.script.rstrip("\n"),
            end,
            f'exec python3 -c "$step" {shlex.quote(prefix)} script "$script" {shlex.join(spec.argv[1:])}',
        ]
        return "\n".join([*lines, ""])
    if spec.gang is not None:
        lines += [
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'export STEELYARD_NODELIST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)',
            'export JAX_COORDINATOR_ADDRESS="$MASTER_ADDR:$MASTER_PORT"',
        ]
    lines.append(
        f'exec srun {shlex.join(_start(job, prefix))} python3 -c "$step" {shlex.quote(prefix)} ranks {shlex.join(spec.argv)}'
    )
    return "\n".join([*lines, ""])


def _outputs(job: Job, prefix: str) -> dict[str, str]:
    spec = job.spec
    both = {"output": spec.stdout or f"{prefix}.out", "error": spec.stderr or f"{prefix}.err"}
    if spec.stdout is not None and spec.stderr in (None, spec.stdout):
        del both["error"]
    files = {name: make_literal(path) for name, path in both.items()}
    return {**files, "open-mode": "truncate" if spec.truncate_output else "append"}


def _start(job: Job, prefix: str) -> list[str]:
    gang = job.spec.gang
    nodes, tasks = (1, 1) if gang is None else (gang.nodes, gang.world_size)
    mpi = "pmix" if gang is not None and gang.launcher is Launcher.MPI else "none"
    # srun has not taken this over from sbatch since 22.05
    cpus = math.ceil(round(job.spec.resources.cpus, 6))
    place = [f"--nodes={nodes}", f"--ntasks={tasks}", f"--cpus-per-task={cpus}", f"--mpi={mpi}", "--kill-on-bad-exit=1"]
    return [*place, *(f"--{name}={value}" for name, value in _outputs(job, prefix).items())]


def _tell(job: Job) -> Mapping[str, str]:
    told = tell_attempt(
        Facts(job.id, job.attempt_id, hosts=(), addresses=(), port=0, api_url="", restarts=job.restarts, array=job.array)
    )
    gang = job.spec.gang
    if gang is None:
        return told
    port = next(list_ports(job.attempt_id, ports_wanted(gang)))
    return {**told, "STEELYARD_NODES": str(gang.nodes), "STEELYARD_TASKS": str(gang.world_size), "MASTER_PORT": str(port)}


def make_literal(path: str) -> str:
    """A path in which Slurm finds no pattern."""
    return path.replace("%", "%%")
