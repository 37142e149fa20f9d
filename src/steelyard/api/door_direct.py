"""What of a job can the queue of a cluster not do for us? Pure: refused at the door, with what to do instead."""

from __future__ import annotations

import re

from steelyard.api.door import Finding
from steelyard.api.sbatch_direct import OURS
from steelyard.model.batch import PRIORITY_DEFAULT
from steelyard.model.job import JobSpec
from steelyard.model.timing import Timing

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_direct(spec: JobSpec) -> list[Finding]:
    """Nothing for a job that stays in our own queue."""
    if not spec.direct:
        return []
    asked, gpus = spec.resources, spec.resources.gpus
    own = {
        "image": bool(spec.image or spec.builds or spec.makes),
        "volume": bool(spec.volumes),
        "terminal": spec.terminal is not None,
        "secret": bool(spec.secrets),
        "exclusive": asked.exclusive or asked.timing is not Timing.BEST_EFFORT,
        "preemptible": asked.preemptible,
        "max-wakeup-us": asked.max_wakeup_us is not None,
        "nics": bool(asked.nics),
        "scratch": asked.scratch_bytes is not None,
        "io-max": asked.io_max_bytes_s is not None,
        "priority": spec.priority != PRIORITY_DEFAULT,
        "checkpoint-dir": spec.checkpoint_dir is not None,
        "start-timeout and heartbeat-timeout": spec.start_timeout_s is not None or spec.heartbeat_timeout_s is not None,
        "GPUs by memory, in part or by a MIG profile": gpus is not None
        and (gpus.fraction or gpus.mig_profile or gpus.memory_min_bytes or gpus.memory_max_bytes) is not None,
    }
    findings = [
        Finding("not-direct", f"{name}: Slurm's queue decides there, and has nothing that means the same; leave it away")
        for name, wanted in own.items()
        if wanted
    ]
    if any(not word.startswith("--") or word[2:].partition("=")[0] in OURS for word in spec.sbatch) or (
        spec.sbatch and spec.script is None
    ):
        text = "sbatch: only of scripts, and only --options of Slurm's that have no field of ours"
        findings.append(Finding("not-direct", text))
    bad = next((name for name in spec.env if not _VARIABLE.fullmatch(name)), None)
    if bad is not None:
        text = f"{bad[:80]!r} can't be a variable of a batch script: letters, digits and _ only"
        findings.append(Finding("bad-variable", text))
    return findings
