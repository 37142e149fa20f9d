"""What is handed to `sbatch` for an attempt, or for those of an array? Options and script. Pure: jobs and an attachment in, text
out."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from steelyard.engine.slurm.arrays import Batch, make_literal
from steelyard.engine.slurm.observe import choose_queue
from steelyard.lifecycle.launch import Facts, list_ports, make_torchrun, ports_wanted, tell_attempt
from steelyard.lifecycle.slurm_environment import tell_array
from steelyard.model.batch import Launcher
from steelyard.model.job import Job
from steelyard.model.slurm import Attachment

#: (ours, Slurm's), as docs/slurm.md shows them
MAPPED = (
    ("--name", "--job-name"),
    ("--cpus N", "--cpus-per-task, rounded up to whole CPUs"),
    ("--memory SIZE", "--mem: that of all ranks of a node"),
    ("--gpus [MODEL:]N", "--gres=gpu[:model]:N: those of all ranks of a node"),
    (
        "--nodes, --tasks-per-node",
        "--nodes, --ntasks-per-node; ranks are started by srun, a single task by the batch script itself",
    ),
    ("--launcher mpi", "srun --mpi=pmix"),
    ("--launcher torchrun", "--ntasks-per-node=1 with the CPUs of all ranks of a node; srun starts one torchrun there"),
    ("--array", "--array, a thousand indices in each; with %N, or when tried again, one after the other"),
    ("--max-duration", "--time, rounded up to minutes"),
    ("--warn SIGNAL@TIME", "--signal=SIGNAL@seconds, of a single task --signal=B:SIGNAL@seconds"),
    ("--output, --error", "--output, --error"),
    ("--env", "set by the batch script; nothing else of your environment is exported"),
    ("--account, or that of cluster attach; its --partition", "--account, --partition"),
    ("the attempt's id", "--comment=steelyard:HOME:ATTEMPT, by which a lost answer is found again"),
)

_END = "STEELYARD_END_OF_TEXT"
_STEP, _QUICK_STEP = (Path(__file__).with_name(name) for name in ("step.py", "step.pl"))
#: where a node's own python3 and perl are: those in front of them in PATH may be anything, and slow
_PYTHON, _PERL = "/usr/bin/python3", "/usr/bin/perl"
#: perl would mind these; where they are set, they are meant for the task
_FOR_PERL = ("PERL5OPT", "PERL_BADLANG", "PERL_SIGNALS")

_WHO = ("STEELYARD_JOB_ID", "STEELYARD_ATTEMPT_ID")


def name_comment(tag: str, attempts: str) -> str:
    """What finds an attempt again, or those of a `Batch`. `tag` tells this home from others."""
    return f"steelyard:{tag}:{attempts}"


def name_prefix(attachment: Attachment, job: Job, uid: int) -> str:
    """What the names of an attempt's files begin with; `uid` is whom it runs as."""
    return f"{name_folder(attachment, uid)}/{job.attempt_id}"


def name_folder(attachment: Attachment, uid: int) -> str:
    return f"{attachment.folder}/{uid}"


def make_options(batch: Batch, attachment: Attachment, tag: str, uid: int) -> list[str]:
    job = batch.first
    spec, gang = job.spec, job.spec.gang
    # what Slurm has to say; the ranks' own output is theirs alone
    said = {"output": f"{make_literal(name_folder(attachment, uid))}/{batch.pattern()}.slurm"}
    options: dict[str, str] = {
        "job-name": spec.name,
        "comment": name_comment(tag, batch.attempts),
        "chdir": spec.cwd,
        **(_outputs(batch, attachment, uid) if gang is None else said),
        # a script says itself how large it is (`spec.sbatch`)
        **({} if spec.sbatch else _size(job)),
        **choose_queue(attachment, spec.account),
    }
    if any(word.startswith("--partition=") for word in spec.sbatch):
        options.pop("partition", None)
    if batch.base is not None:
        options["array"] = batch.tasks
    if spec.max_duration_s is not None:
        options["time"] = str(math.ceil(spec.max_duration_s / 60))
    if spec.warn is not None:
        whom = "B:" if gang is None and not spec.warn.steps_only else ""
        options["signal"] = f"{whom}{spec.warn.signal}@{math.ceil(spec.warn.before_s)}"
    return ["--parsable", "--no-requeue", *spec.sbatch, *(f"--{name}={value}" for name, value in options.items())]


def _size(job: Job) -> dict[str, str]:
    gang, each = job.spec.gang, job.spec.resources
    ranks, (tasks, cpus) = 1 if gang is None else gang.tasks_per_node, _tasks(job)
    found = {"nodes": str(1 if gang is None else gang.nodes), "ntasks-per-node": str(tasks), "cpus-per-task": str(cpus)}
    if each.memory_bytes is not None:
        found["mem"] = f"{math.ceil(each.memory_bytes * ranks / (1 << 20))}M"
    if each.gpus is not None:
        model = f":{each.gpus.model.lower()}" if each.gpus.model else ""
        found["gres"] = f"gpu{model}:{each.gpus.count * ranks}"
    return found


def render_script(batch: Batch, attachment: Attachment, uid: int) -> str:
    """The batch script. Quoted throughout: what a user wrote is text to the shell and nothing more. What is the shell's own is
    named `sy_...` and not exported; the user's variables, PATH among them, come when nothing but the task has to be found."""
    job = batch.first
    spec = job.spec
    lines = [
        "#!/bin/sh",
        f"# {batch.attempts} of Steelyard: the step that stands before each task, its variables, and the tasks.",
        f"sy_step={shlex.quote(_STEP.read_text())}",
        # found now: the user's PATH comes below, and need not lead to them
        f"sy_python={_PYTHON}; [ -x $sy_python ] || sy_python=$(command -v python3) || sy_python=python3",
    ]
    start = '$sy_python -I -S -c "$sy_step" "$sy_prefix"'
    if spec.script is not None:
        lines += _keep_script(spec.script)
        start = f'{start} script "$sy_script" {shlex.join(spec.argv[1:])}'
    elif spec.gang is None:
        lines.append(f"sy_quick={shlex.quote(_QUICK_STEP.read_text())}")
        start = f'{start} task "$@"'
    else:
        lines += [
            "sy_srun=$(command -v srun) || sy_srun=srun",
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'export STEELYARD_NODELIST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)',
        ]
        torch = spec.gang.launcher is Launcher.TORCHRUN
        command = f"nodes {_join_torchrun(job)}" if torch else f"ranks {shlex.join(spec.argv)}"
        start = f"$sy_srun {shlex.join(_start(batch, attachment, uid))} {start} {command}"
    # this run of the script, which all its ranks are told
    lines.append("read -r STEELYARD_LAUNCH </proc/sys/kernel/random/uuid; export STEELYARD_LAUNCH")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in {**spec.env, **_tell(batch)}.items()]
    lines += _name_attempt(batch)
    if spec.gang is not None:
        lines.append('export JAX_COORDINATOR_ADDRESS="$MASTER_ADDR:$MASTER_PORT"')
    # where Slurm's commands here are led to their cluster says nothing to those of a node
    for name, value in attachment.env.items():
        lines.append(f'[ "${{{name}-}}" != {shlex.quote(value)} ] || unset {name}')
    lines.append(f'sy_prefix={shlex.quote(name_folder(attachment, uid))}/"$STEELYARD_ATTEMPT_ID"')
    if spec.script is None and spec.gang is None:
        unset = "".join(f"${{{name}+x}}" for name in _FOR_PERL)
        lines.append(f"set -- {shlex.join(spec.argv)}")
        lines.append(f'[ ! -x {_PERL} ] || [ -n "{unset}" ] || PERL_BADLANG=0 exec {_PERL} -C0 -e "$sy_quick" "$sy_prefix" "$@"')
    return "\n".join([*lines, f"exec {start}", ""])


def _keep_script(script: str) -> list[str]:
    end = _END
    while end in script:
        end += "_"
    return [
        'sy_script=$(mktemp) && chmod 700 "$sy_script" || exit',
        f"cat >\"$sy_script\" <<'{end}'",
        script.rstrip("\n"),
        end,
    ]


def _name_attempt(batch: Batch) -> list[str]:
    """Who it is: of an array Slurm's index says so."""
    job = batch.first
    if batch.base is None or job.array is None:
        return [f"export STEELYARD_JOB_ID={job.id} STEELYARD_ATTEMPT_ID={job.attempt_id}"]
    return [
        f"export SLURM_ARRAY_TASK_ID=$(({batch.base} + SLURM_ARRAY_TASK_ID))",
        f"export STEELYARD_ARRAY_INDEX=$SLURM_ARRAY_TASK_ID STEELYARD_JOB_ID={job.array.id}_$SLURM_ARRAY_TASK_ID",
        f"export STEELYARD_ATTEMPT_ID=$STEELYARD_JOB_ID.{job.attempt}",
    ]


def _tasks(job: Job) -> tuple[int, int]:
    """(tasks that Slurm starts on a node, CPUs of each)."""
    gang, cpus = job.spec.gang, math.ceil(round(job.spec.resources.cpus, 6))
    if gang is None:
        return 1, cpus
    return (1, cpus * gang.tasks_per_node) if gang.launcher is Launcher.TORCHRUN else (gang.tasks_per_node, cpus)


def _outputs(batch: Batch, attachment: Attachment, uid: int) -> dict[str, str]:
    own = f"{make_literal(name_folder(attachment, uid))}/{batch.pattern()}"
    files = {"output": batch.stdout or f"{own}.out", "error": batch.stderr or f"{own}.err"}
    if batch.stdout is not None and batch.stderr in (None, batch.stdout):
        del files["error"]
    return {**files, "open-mode": "truncate" if batch.first.spec.truncate_output else "append"}


def _start(batch: Batch, attachment: Attachment, uid: int) -> list[str]:
    job, gang = batch.first, batch.first.spec.gang
    nodes = 1 if gang is None else gang.nodes
    mpi = "pmix" if gang is not None and gang.launcher is Launcher.MPI else "none"
    # srun has not taken this over from sbatch since 22.05
    tasks, cpus = _tasks(job)
    place = [f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--cpus-per-task={cpus}", f"--mpi={mpi}", "--kill-on-bad-exit=1"]
    return [*place, *(f"--{name}={value}" for name, value in _outputs(batch, attachment, uid).items())]


def _join_torchrun(job: Job) -> str:
    """Its command line; the first node's name is known to the batch script alone."""
    gang, port = job.spec.gang, _port(job)
    assert gang is not None
    place = Facts(job.id, job.attempt_id, hosts=(), addresses=("$MASTER_ADDR",), port=port, api_url="")
    words = make_torchrun(job.spec.argv, gang, place)
    known = {f"--rdzv-endpoint=$MASTER_ADDR:{port}": '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
             f"--rdzv-id={job.attempt_id}": '--rdzv-id="$STEELYARD_ATTEMPT_ID"'}  # fmt: skip
    own = len(words) - len(job.spec.argv)
    return " ".join(known.get(word, shlex.quote(word)) if at <= own + 1 else shlex.quote(word) for at, word in enumerate(words))


def _port(job: Job) -> int:
    return next(list_ports(job.attempt_id, ports_wanted(job.spec.gang)))


def _tell(batch: Batch) -> dict[str, str]:
    """All but who it is: that is `_name_attempt`'s."""
    job, gang = batch.first, batch.first.spec.gang
    facts = Facts(job.id, job.attempt_id, hosts=(), addresses=(), port=0, api_url="", restarts=job.restarts, array=job.array)
    told = dict(tell_attempt(facts))
    if job.array is not None:
        told |= tell_array(job.id, job.array)
    if gang is not None:
        told |= {"STEELYARD_NODES": str(gang.nodes), "STEELYARD_TASKS": str(gang.world_size), "MASTER_PORT": str(_port(job))}
    if job.spec.script is not None and "SLURM_SUBMIT_DIR" in job.spec.slurm:
        # Slurm was called by us, and from nowhere
        told["SLURM_SUBMIT_DIR"] = job.spec.slurm["SLURM_SUBMIT_DIR"]
    who = _WHO if batch.base is None else (*_WHO, "STEELYARD_ARRAY_INDEX", "SLURM_ARRAY_TASK_ID")
    return {name: value for name, value in told.items() if name not in who}
