"""How do the ranks of an MPI job start on machines that Slurm gave, and what becomes of them? As one step of the pilot's
allocation, by Slurm's own srun and its PMIx (`lifecycle/launch.py` renders the command line).

srun is the attempt's process here. It has no ear for signals: SIGTERM makes it end all ranks by force, and where it is killed
itself, its step goes on. So signals go to the step, by scancel, and what ends srun ends the step as well. Before each rank stands
`engine/slurm/step.py`, which gives it its cores and writes down what it got and how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence

import msgspec

from steelyard.agent.attempt import MemberEnd, tell_end, tell_others
from steelyard.agent.job_files import JobFiles
from steelyard.config import Settings
from steelyard.engine.slurm import step
from steelyard.engine.slurm.client import CARRIED, SlurmClient
from steelyard.errors import EdgeFailed, SteelyardError
from steelyard.lifecycle.launch import Steps
from steelyard.lifecycle.proof import check_proof, merge_proofs
from steelyard.lifecycle.rank_records import find_first_bad, make_usage
from steelyard.model.batch import Launcher
from steelyard.model.ids import AttemptId
from steelyard.model.job import JobSpec, Plan
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.slurm import Attachment, RankRecord
from steelyard.wire.agent import AssignedJob

log = logging.getLogger(__name__)

#: what the names of ranks' records begin with, in the attempt's folder
RANK = "rank"
_RECORD = re.compile(rf"{RANK}\.\d+\.(started|exit)\Z")
_NOT_TOLD = ("SLURM_", "SRUN_", "STEELYARD_API_URL", "STEELYARD_TOKEN", "STEELYARD_CA")
#: srun's words
_LOST = re.compile(r"^srun: error: Node failure on (\S+)", re.MULTILINE)
#: from the end of its step until srun itself is killed
SRUN_ENDS_S = 5.0
#: the end of what srun said, for people
WORDS_BYTES = 2000


class MpiSteps:
    """Of one pilot's machine. `environ`: what Slurm told the pilot."""

    def __init__(self, settings: Settings, files: JobFiles, environ: Mapping[str, str]) -> None:
        self._pilot, self._files, self._environ = bool(settings.pilot), files, environ
        self._client = SlurmClient(Attachment(env=self._carried()), environ)
        self._tasks: set[asyncio.Task[object]] = set()

    def covers(self, spec: JobSpec) -> bool:
        return self._pilot and spec.gang is not None and spec.gang.launcher is Launcher.MPI

    # -- starting

    def make(self, job: AssignedJob, ids: tuple[int, int] | None) -> Steps:
        """Raises EdgeFailed where Slurm could not start it."""
        srun = shutil.which("srun", path=self._environ.get("PATH"))
        number, node = self._environ.get("SLURM_JOB_ID"), self._environ.get("SLURMD_NODENAME")
        if srun is None or not number or not node:
            text = "There is no srun on this node, by which MPI's ranks start: slurm-client is to be installed there."
            raise EdgeFailed(text, code="start-failed")
        folder = self._files.make_ranks(job.attempt, ids)
        before = (sys.executable, "-I", "-S", str(step.__file__), f"{folder.resolve()}/{RANK}", "ranks")
        if job.place is None:
            return Steps(srun, number, (node,), (job.plan.cpus,), before)
        return Steps(srun, number, job.place.hosts, job.place.cpus, before)

    def clean(self, env: Mapping[str, str]) -> dict[str, str]:
        """For srun, which takes `SLURM_*` for options; ranks are told their own by Slurm. Our API has another address on each
        machine, and what opens it is not for a network that may be read."""
        return {name: value for name, value in env.items() if not name.startswith(_NOT_TOLD)} | self._carried()

    def _carried(self) -> dict[str, str]:
        return {name: self._environ[name] for name in CARRIED if name in self._environ}

    # -- ending

    def signal(self, attempt: AttemptId, signum: int) -> None:
        self._begin(self._signal(attempt, signum))

    def kill(self, attempt: AttemptId, kill_srun: Callable[[], None]) -> None:
        """All ranks, wherever they are. `kill_srun` is called once they have ended, or nothing was heard of it."""
        self._begin(self._kill(attempt, kill_srun))

    def _begin(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _signal(self, attempt: AttemptId, signum: int) -> bool:
        """False where there is no such step."""
        number = self._environ.get("SLURM_JOB_ID", "")
        try:
            listed = await self._client.ask("squeue", "--all", "--steps", "--noheader", f"--job={number}", "--format=%i %j")
            found = [line.split()[0] for line in listed.splitlines() if line.split()[1:] == [attempt]]
            if found:
                await self._client.ask("scancel", f"--signal={signum}", *found)
        except SteelyardError as err:
            log.warning("%s could not be signalled: %s", attempt, err.public)
            return False
        return bool(found)

    async def _kill(self, attempt: AttemptId, kill_srun: Callable[[], None]) -> None:
        if await self._signal(attempt, signal.SIGKILL):
            await asyncio.sleep(SRUN_ENDS_S)
            kill_srun()
        else:
            # a step that was about to be made
            kill_srun()
            await asyncio.sleep(1)
            await self._signal(attempt, signal.SIGKILL)

    # -- what ranks wrote

    def read(self, attempt: AttemptId, name: str) -> tuple[RankRecord, ...]:
        """ "exit" or "started", by rank. The folder is the job's user's: anything may lie there."""
        found: dict[int, RankRecord] = {}
        with contextlib.suppress(OSError):
            for path in self._files.ranks(attempt).iterdir():
                if (match := _RECORD.match(path.name)) and match[1] == name:
                    with contextlib.suppress(OSError, msgspec.MsgspecError):
                        record = msgspec.json.decode(path.read_bytes(), type=RankRecord)
                        found[record.rank] = record
        return tuple(found[rank] for rank in sorted(found))

    def explain(self, attempt: AttemptId, spec: JobSpec, end: MemberEnd, records: tuple[RankRecord, ...]) -> MemberEnd:
        """`end` of its srun, by what the ranks wrote: the one that ended badly first says how it ended."""
        ranks = 1 if spec.gang is None else spec.gang.world_size
        if end.bad and (lost := _LOST.search(self._read_end(attempt))):
            detail = f"node {lost[1]} failed while ranks ran on it; Slurm ended the others"
            return msgspec.structs.replace(end, reason=Reason.NODE_LOST, detail=detail)
        bad, usage = find_first_bad(records), make_usage(records)
        if usage is not None:
            end = msgspec.structs.replace(end, peak_memory_bytes=usage.memory_peak_bytes)
        if bad is not None and bad.not_started:
            detail = f"{spec.argv[0]} could not be executed on {bad.host}: {bad.not_started}"
            return msgspec.structs.replace(end, reason=Reason.START_FAILED, detail=detail, exit_code=bad.exit_code)
        if bad is not None:
            reason = Reason.EXITED_NONZERO if bad.signal is None else Reason.KILLED_BY_SIGNAL
            end = msgspec.structs.replace(end, reason=reason, exit_code=bad.exit_code, signum=bad.signal)
            left = ranks - 1 - sum(each.exit_code == 0 for each in records)
            return msgspec.structs.replace(end, detail=f"rank {bad.rank} {tell_end(end)}{tell_others(left)}.")
        if end.bad and not records and end.signum is None and not self.read(attempt, "started"):
            detail = f"Slurm did not start the ranks: {self._read_words(attempt)}"
            return msgspec.structs.replace(end, reason=Reason.START_FAILED, detail=detail)
        if end.bad and end.exit_code is not None and end.exit_code > 128:
            # ended by force, before any could write it down; what srun tells
            return msgspec.structs.replace(end, reason=Reason.KILLED_BY_SIGNAL, exit_code=None, signum=end.exit_code - 128)
        return end

    def _read_words(self, attempt: AttemptId) -> str:
        lines = self._read_end(attempt).splitlines()
        said = [line.removeprefix("srun: error: ") for line in lines if line.startswith("srun: error: ")]
        words = "; ".join(said[:2]) or "srun said nothing of it."
        if "mpi" in words.lower() and "plugin" in words.lower():
            words += ". Slurm's PMIx plugin (mpi/pmix) and libpmix are to be installed on the nodes: `srun --mpi=list` tells."
        return words

    def _read_end(self, attempt: AttemptId) -> str:
        """Of what srun and the ranks said; "" where that went into a file of the user's."""
        try:
            return (self._files.folder(attempt) / "stderr").read_bytes()[-WORDS_BYTES:].decode(errors="replace")
        except OSError:
            return ""

    def prove(self, plan: Plan, spec: JobSpec, records: Sequence[RankRecord]) -> Proof | None:
        """What ranks found when they began; None where none told."""
        ranks = 1 if spec.gang is None else spec.gang.tasks_per_node
        wanted = len(plan.cpus) // ranks or None
        proofs = {
            each.rank: check_proof(
                {"cpu_count": wanted, "uid": os.geteuid()},
                {"cpu_count": len(each.cpus), "cpus": list(each.cpus), "memory_nodes": list(each.memory_nodes),
                 "uid": each.uid, "host": each.host},
                matched_before=False,
                checked_at=each.started_at,
            )
            for each in records
            if each.cpus
        }  # fmt: skip
        return merge_proofs(proofs) if proofs else None
