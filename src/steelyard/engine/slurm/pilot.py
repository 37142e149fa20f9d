"""What is handed to `sbatch` for a pilot? Its options and its script, pure; and where its files lie.

A pilot's folder is on storage that the server's machine, the login host and the nodes share, and is open to nobody else: the pass
that its program shows the server (gone as soon as it was read), what it says, and the outputs of its jobs, which outlive it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from steelyard.engine.slurm.arrays import make_literal
from steelyard.engine.slurm.observe import choose_queue
from steelyard.engine.slurm.script import name_comment
from steelyard.model.pool import Pilot, Pool
from steelyard.model.slurm import Attachment

PASS, LOG, WORKLOADS = "pass.json", "log", "workloads"

#: writes a line of standard input to the pass in each folder, whole or not at all
WRITE_PASSES = (
    f'umask 077; for each; do mkdir -p "$each/{WORKLOADS}" && IFS= read -r line && printf "%s\\n" "$line" >"$each/.{PASS}" && '
    f'sync "$each/.{PASS}" && mv "$each/.{PASS}" "$each/{PASS}" || exit; done'
)
#: starts the programs of an allocation's machines, one on each. When one of them ends badly all end; one whose node fails is gone
#: alone. They have all that Slurm gave, and share it with other steps: those of MPI jobs. SIGTERM goes around srun, which would
#: end them by force. ($! is srun as soon as it is begun, and so for a signal that comes at once)
_START = """\
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
trap '[ -z "$!" ] || kill -USR1 $!' USR1
srun --overlap --no-kill --kill-on-bad-exit=1 --wait=0 --cpu-bind=none --mpi=none --input=none \\
    --nodes={count} --ntasks={count} --ntasks-per-node=1 {command} &
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code"""


def name_pilot_folder(attachment: Attachment, uid: int, pilot: str) -> str:
    """`uid`: whom the server, and so the pilot, runs as."""
    return f"{attachment.folder}/{uid}/pools/{pilot}"


def make_pilot_options(pool: Pool, pilots: Sequence[Pilot], attachment: Attachment, tag: str, folder: str) -> list[str]:
    """`pilots`: of one allocation; `folder`: the first one's."""
    spec, node, pilot = pool.spec, pool.spec.node, pilots[0]
    options = {
        "job-name": f"steelyard-{pilot.id}",
        "comment": name_comment(tag, pilot.id),
        "chdir": "/",
        "output": make_literal(f"{folder}/{LOG}"),
        "open-mode": "append",
        "nodes": str(len(pilots)),
        "ntasks-per-node": "1",
        # to the program alone: it tells its agent, and work goes on
        "signal": f"B:USR1@{max(1, math.ceil(spec.drain_s))}",
        **choose_queue(attachment, spec.account, spec.partition),
    }
    if spec.qos:
        options["qos"] = spec.qos
    if node.cpus is not None:
        options["cpus-per-task"] = str(node.cpus)
    if node.memory_bytes is not None:
        options["mem"] = f"{math.ceil(node.memory_bytes / (1 << 20))}M"
    elif node.cpus is None:
        options["mem"] = "0"
    if node.gpus:
        options["gres"] = f"gpu:{node.gpu_model.lower()}:{node.gpus}" if node.gpu_model else f"gpu:{node.gpus}"
    if spec.max_duration_s is not None:
        options["time"] = str(math.ceil(spec.max_duration_s / 60))
    whole = ["--exclusive"] if node.cpus is None else []
    more = ["--no-kill"] if len(pilots) > 1 else []
    return ["--parsable", "--no-requeue", *whole, *more, *(f"--{name}={value}" for name, value in options.items())]


def render_pilot_script(pilots: Sequence[Pilot], attachment: Attachment, python: str, folders: Sequence[str]) -> str:
    """`python`: of the installation on the nodes. `folders`: of the pilots, in their order."""
    names = " ".join(pilot.id for pilot in pilots)
    what = "a machine" if len(pilots) == 1 else "machines"
    lines = ["#!/bin/sh", f"# {names}: {what} of Steelyard's pool {pilots[0].pool}. It runs the machine's agent."]
    for name, value in attachment.env.items():
        lines.append(f'[ "${{{name}-}}" != {shlex.quote(value)} ] || unset {name}')
    missing = (
        f"There is no {python} on this node: pilots run the Steelyard that is installed there. Install it in that place, or tell "
        "the place with `steelyard cluster attach --python`."
    )
    command = f"{shlex.quote(python)} -P -m steelyard pilot --kill-wait={attachment.kill_wait_s} {shlex.join(folders)}"
    lines += [
        f"[ -x {shlex.quote(python)} ] || {{ echo {shlex.quote(missing)}; exit 127; }}",
        f"exec {command}" if len(pilots) == 1 else _START.format(count=len(pilots), command=command),
    ]
    return "\n".join([*lines, ""])


def read_words(text: str) -> str:
    """The end of a pilot's log, for a person, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("slurmstepd")]
    return "; ".join(lines[-3:])[-400:]
