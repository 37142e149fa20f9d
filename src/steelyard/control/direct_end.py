"""How did an attempt in the queue of others end, what did it use, and did it get what it asked for? Pure: from its steps' records
and the queue's word."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence

from steelyard.lifecycle.proof import check_proof, merge_proofs
from steelyard.lifecycle.rank_records import find_first_bad, make_usage
from steelyard.model.batch import Launcher, RankEnd
from steelyard.model.job import Job
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.slurm import QueueEntry, RankRecord
from steelyard.wire.agent import AttemptState

#: Slurm's states that say why a job ended
_ENDS = {
    "TIMEOUT": Reason.MAX_DURATION,
    "DEADLINE": Reason.MAX_DURATION,
    "OUT_OF_MEMORY": Reason.OOM_KILLED,
    "NODE_FAIL": Reason.NODE_LOST,
    "BOOT_FAIL": Reason.NODE_LOST,
    "PREEMPTED": Reason.PREEMPTED,
    "CANCELLED": Reason.CANCELLED_IN_SLURM,
}
#: `steelyard-step`'s code where the attempt has been run already
TAKEN = 75


def make_end(
    job: Job, entry: QueueEntry | None, records: Sequence[RankRecord], known: tuple[int | None, int | None], now: int
) -> AttemptState:
    """How the attempt ended, by its steps' records and by Slurm's word (`entry`, and `known`: code and signal) where there are
    none."""
    reason = None if entry is None else _ENDS.get(entry.state)
    bad = find_first_bad(records)
    if records:
        first = bad or records[0]
        code, number = first.exit_code, first.signal
    else:
        code, number = known
        if reason in (Reason.CANCELLED_IN_SLURM, Reason.MAX_DURATION) and not number:
            # ended by force, before its steps could say so; what Slurm tells is its own srun's code
            code, number = None, int(signal.SIGKILL)
    detail = ""
    if reason is Reason.CANCELLED_IN_SLURM and not records and entry is not None and not entry.nodes:
        if job.stop_signal is not None:
            return AttemptState(job.attempt_id, "not-started")
        code, number = None, None
    if reason is Reason.CANCELLED_IN_SLURM:
        detail = "it was cancelled in Slurm, not by Steelyard"
    elif bad is not None and bad.not_started:
        reason, detail = Reason.START_FAILED, f"{job.spec.argv[0]} could not be executed on {bad.host}: {bad.not_started}"
    elif reason is None and not records and number == 53:
        reason = Reason.START_FAILED
        own = " and ".join(dict.fromkeys(path for path in (job.spec.stdout, job.spec.stderr) if path is not None))
        hint = f"{own} on the node: is its folder there, and may the job's user write there?"
        shared = "its output files: is the folder of `cluster attach` shared with the nodes?"
        detail = f"Slurm could not open {hint if own else shared}"
    elif reason is None and not records and code == TAKEN:
        reason, code = Reason.EXIT_UNKNOWN, None
        detail = "Slurm lost it and started it anew, which its step refused: how far it had come is not known"
    gang = job.spec.gang is not None
    peaks = [each.peak_memory_bytes for each in records if each.peak_memory_bytes is not None]
    return AttemptState(
        job.attempt_id,
        "ended",
        reason if reason is not None and (reason is not Reason.CANCELLED_IN_SLURM or job.stop_signal is None) else None,
        detail,
        started_at=min((each.started_at for each in records), default=None if entry is None else entry.started_at),
        ended_at=max((each.ended_at for each in records), default=now),
        exit_code=code,
        signal=number,
        peak_memory_bytes=max(peaks, default=None),
        proof=make_proof(job, records),
        usage=make_usage(records),
        ranks=tuple(RankEnd(each.rank, each.exit_code, each.signal) for each in records) if gang else (),
    )


def make_proof(job: Job, records: Sequence[RankRecord]) -> Proof | None:
    """None where no step told what its task got."""
    seen = {each.rank: _prove(job, each) for each in records if each.cpus}
    return merge_proofs(seen) if seen else None


def _prove(job: Job, record: RankRecord) -> Proof:
    spec, gang = job.spec, job.spec.gang
    # a launcher that starts a node's ranks has what all of them need; limits on memory and GPUs are of the node in any case
    ranks = 1 if gang is None else gang.tasks_per_node
    wide = ranks if gang is not None and gang.launcher is Launcher.TORCHRUN else 1
    asked_gpus = spec.resources.gpus
    asked: dict[str, object] = {
        "cpu_count": max(1, math.ceil(round(spec.resources.cpus, 6))) * wide,
        "memory_bytes": None if spec.resources.memory_bytes is None else spec.resources.memory_bytes * ranks,
        "gpu_count": None if asked_gpus is None else asked_gpus.count * ranks,
    }
    got: dict[str, object] = {
        "cpu_count": len(record.cpus),
        "memory_bytes": record.memory_bytes,
        "gpu_count": len(record.gpus),
        "host": record.host,
        "cpus": list(record.cpus),
        "memory_nodes": list(record.memory_nodes),
        "gpus": list(record.gpus),
        "uid": record.uid,
    }
    forbidden: tuple[str, ...] = ()
    if record.cpus_allotted and len(record.cpus) > record.cpus_allotted:
        forbidden = (
            f"cpus: Slurm gave {record.cpus_allotted} and the task may use {len(record.cpus)}: this cluster does not hold tasks "
            "to their CPUs (TaskPlugin, ConstrainCores)",
        )
    return check_proof(asked, got, matched_before=False, checked_at=record.started_at, forbidden=forbidden)
