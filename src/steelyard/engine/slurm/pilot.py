"""What is handed to `sbatch` for a pilot? Its options and its script, pure; and where its files lie.

A pilot's folder is on storage that the server's machine, the login host and the nodes share, and is open to nobody else: the pass
that its program shows the server (gone as soon as it was read), what it says, and the outputs of its jobs, which outlive it.
"""

from __future__ import annotations

import math
import shlex

from steelyard.engine.slurm.arrays import make_literal
from steelyard.engine.slurm.observe import choose_queue
from steelyard.engine.slurm.script import name_comment
from steelyard.model.pool import Pilot, Pool
from steelyard.model.slurm import Attachment

PASS, LOG, WORKLOADS = "pass.json", "log", "workloads"

#: writes standard input to the pass in folder $0, whole or not at all
WRITE_PASS = f'umask 077 && mkdir -p "$0/{WORKLOADS}" && cat >"$0/.{PASS}" && sync "$0/.{PASS}" && mv "$0/.{PASS}" "$0/{PASS}"'


def name_pilot_folder(attachment: Attachment, uid: int, pilot: str) -> str:
    """`uid`: whom the server, and so the pilot, runs as."""
    return f"{attachment.folder}/{uid}/pools/{pilot}"


def make_pilot_options(pool: Pool, pilot: Pilot, attachment: Attachment, tag: str, folder: str) -> list[str]:
    spec, node = pool.spec, pool.spec.node
    options = {
        "job-name": f"steelyard-{pilot.id}",
        "comment": name_comment(tag, pilot.id),
        "chdir": "/",
        "output": make_literal(f"{folder}/{LOG}"),
        "open-mode": "append",
        "nodes": "1",
        "ntasks": "1",
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
    return ["--parsable", "--no-requeue", *whole, *(f"--{name}={value}" for name, value in options.items())]


def render_pilot_script(pilot: Pilot, attachment: Attachment, python: str, folder: str) -> str:
    """`python`: of the installation on the nodes."""
    lines = ["#!/bin/sh", f"# {pilot.id}: a machine of Steelyard's pool {pilot.pool}. It runs the machine's agent."]
    for name, value in attachment.env.items():
        lines.append(f'[ "${{{name}-}}" != {shlex.quote(value)} ] || unset {name}')
    missing = (
        f"There is no {python} on this node: pilots run the Steelyard that is installed there. Install it in that place, or tell "
        "the place with `steelyard cluster attach --python`."
    )
    lines += [
        f"[ -x {shlex.quote(python)} ] || {{ echo {shlex.quote(missing)}; exit 127; }}",
        f"exec {shlex.quote(python)} -P -m steelyard pilot {shlex.quote(folder)}",
    ]
    return "\n".join([*lines, ""])


def read_words(text: str) -> str:
    """The end of a pilot's log, for a person, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("slurmstepd")]
    return "; ".join(lines[-3:])[-400:]
