"""How do attempts go through Slurm's own queue? One `sbatch` each, found again by its comment; one `squeue` tells of all of them.

Everything is done as the job's owner where Steelyard is root, so that nobody reaches by us what they may not.
"""

from __future__ import annotations

import msgspec

from steelyard.engine.slurm.client import CARRIED, SlurmClient
from steelyard.engine.slurm.read import QUEUE_FORMAT, read_exit_code, read_queue, read_record
from steelyard.engine.slurm.script import make_options, name_prefix, render_script
from steelyard.errors import EdgeFailed, SteelyardError, Unreachable
from steelyard.model.job import Job
from steelyard.model.slurm import Attachment, QueueEntry, RankRecord


class DirectSlurm:
    """`engine.Engine` by Slurm's commands. `tag` tells this home's attempts from others'; root's work runs as `work_uid`."""

    def __init__(self, client: SlurmClient, attachment: Attachment, tag: str, work_uid: int) -> None:
        self._client, self._attachment, self._tag, self._work_uid = client, attachment, tag, work_uid

    async def submit(self, job: Job) -> int:
        prefix = self._prefix(job)
        # with nothing of our own environment: `sbatch` would pass it on to the job
        carried = " ".join(f'${{{name}:+{name}="${name}"}}' for name in CARRIED)
        command = f'mkdir -p -m 700 "$0" && exec env -i PATH="$PATH" {carried} sbatch "$@"'
        words = ("sh", "-c", command, prefix.rpartition("/")[0], *make_options(job, self._attachment, self._tag, prefix))
        out = await self._client.ask(
            *words, input=render_script(job, self._attachment, prefix), uid=self._uid(job), name="sbatch"
        )
        number = out.strip().partition(";")[0]
        if not number.isdigit():
            raise EdgeFailed(f"sbatch answered {out.strip()[:200]!r}", code="slurm-answer")
        return int(number)

    async def look(self) -> dict[str, QueueEntry]:
        words = ("env", "SLURM_TIME_FORMAT=%s", "squeue", "--noheader", "--states=all", f"--format={QUEUE_FORMAT}")
        return read_queue(await self._client.ask(*words, name="squeue"), self._tag)

    async def read_records(self, job: Job) -> tuple[RankRecord, ...]:
        prefix = self._prefix(job)
        command = 'for file in "$0".*.exit; do [ ! -f "$file" ] || cat -- "$file"; done'
        _, out, _ = await self._client.run("sh", "-c", command, prefix, uid=self._uid(job))
        found: dict[int, RankRecord] = {}
        for line in out.splitlines():
            try:
                record = msgspec.json.decode(line, type=RankRecord)
            except msgspec.MsgspecError:
                continue  # the folder is the user's: anything may lie there
            found[record.rank] = record
        return tuple(found[rank] for rank in sorted(found))

    async def read_exit_code(self, job: Job, number: int) -> tuple[int | None, int | None]:
        try:
            return read_exit_code(read_record(await self._client.ask("scontrol", "-o", "show", "job", str(number))))
        except SteelyardError:
            return None, None  # it has forgotten the job meanwhile, or does not answer

    async def signal(self, job: Job, number: int, signum: int) -> None:
        # a script runs in the batch step, which is left out otherwise; of all others that is Slurm's own srun
        whole = ("--full",) if job.spec.script is not None else ()
        await self._scancel(job, number, f"--signal={signum}", *whole)

    async def cancel(self, job: Job, number: int) -> None:
        await self._scancel(job, number)

    async def read_log(self, job: Job, stream: str, offset: int, limit: int) -> bytes:
        spec, prefix = job.spec, self._prefix(job)
        if stream == "stderr" and spec.stdout is not None and spec.stderr in (None, spec.stdout):
            return b""  # both are in one file
        named = spec.stdout if stream == "stdout" else spec.stderr
        path = named or f"{prefix}.{'out' if stream == 'stdout' else 'err'}"
        command = '[ ! -f "$0" ] || tail -c "+$1" -- "$0" | head -c "$2"'
        return await self._client.read("sh", "-c", command, path, str(offset + 1), str(limit), uid=self._uid(job))

    def _prefix(self, job: Job) -> str:
        return name_prefix(self._attachment, job, self._uid(job))

    def _uid(self, job: Job) -> int:
        """Whom it runs as, by the rule of all work: root's own is nobody's unless root asks for root."""
        return job.owner.uid or (0 if job.spec.as_root else self._work_uid)

    async def _scancel(self, job: Job, number: int, *words: str) -> None:
        code, _, err = await self._client.run("scancel", *words, str(number), uid=self._uid(job))
        if code != 0 and "Invalid job id" not in err and "already complet" not in err:
            raise Unreachable(f"Slurm did not take the signal for {job.attempt_id}: {err.strip()}")
