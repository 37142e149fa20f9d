"""How do attempts go through Slurm's own queue? One `sbatch` each, found again by its comment; one `squeue` tells of all of them.

Everything is done as the job's owner where Steelyard is root, so that nobody reaches by us what they may not.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import msgspec

from steelyard.engine.slurm.client import CARRIED, SlurmClient
from steelyard.engine.slurm.pilot import (
    LOG,
    PASS,
    WRITE_PASS,
    make_pilot_options,
    name_pilot_folder,
    read_words,
    render_pilot_script,
)
from steelyard.engine.slurm.read import QUEUE_FORMAT, read_exit_code, read_queue, read_record
from steelyard.engine.slurm.script import make_options, name_prefix, render_script
from steelyard.errors import EdgeFailed, SteelyardError, Unreachable
from steelyard.model.job import Job
from steelyard.model.pool import Pilot, Pool
from steelyard.model.slurm import Attachment, QueueEntry, RankRecord


class DirectSlurm:
    """`engine.Engine` by Slurm's commands. `tag` tells this home's attempts from others'; root's work runs as `work_uid`."""

    def __init__(self, client: SlurmClient, attachment: Attachment, tag: str, work_uid: int) -> None:
        self._client, self._attachment, self._tag, self._work_uid = client, attachment, tag, work_uid

    async def submit(self, job: Job) -> int:
        prefix = self._prefix(job)
        options = make_options(job, self._attachment, self._tag, prefix)
        script = render_script(job, self._attachment, prefix)
        return await self._sbatch(prefix.rpartition("/")[0], options, script, self._uid(job))

    async def submit_pilot(self, pool: Pool, pilot: Pilot, content: bytes) -> int:
        folder = self._pilot_folder(pilot)
        await self._client.ask("sh", "-c", WRITE_PASS, folder, input=content.decode())
        options = make_pilot_options(pool, pilot, self._attachment, self._tag, folder)
        script = render_pilot_script(pilot, self._attachment, self._attachment.python or sys.executable, folder)
        return await self._sbatch(folder, options, script, None)

    async def _sbatch(self, folder: str, options: Sequence[str], script: str, uid: int | None) -> int:
        """The queue's number. `folder` is made."""
        # with nothing of our own environment: `sbatch` would pass it on to the job
        carried = " ".join(f'${{{name}:+{name}="${name}"}}' for name in CARRIED)
        command = f'mkdir -p -m 700 "$0" && exec env -i PATH="$PATH" {carried} sbatch "$@"'
        words = ("sh", "-c", command, folder, *options)
        out = await self._client.ask(*words, input=script, uid=uid, name="sbatch")
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
        await self._scancel(job.attempt_id, number, self._uid(job), f"--signal={signum}", *whole)

    async def cancel(self, job: Job, number: int) -> None:
        await self._scancel(job.attempt_id, number, self._uid(job))

    async def cancel_pilot(self, pilot: Pilot, *, force: bool) -> None:
        if pilot.number:
            gently = () if force or pilot.started_at is None else ("--batch", f"--signal={int(signal.SIGTERM)}")
            await self._scancel(pilot.id, pilot.number, None, *gently)

    async def read_pilot_words(self, pilot: Pilot) -> str:
        command = f'[ ! -f "$0/{LOG}" ] || tail -c 2000 -- "$0/{LOG}"'
        return read_words((await self._client.read("sh", "-c", command, self._pilot_folder(pilot))).decode(errors="replace"))

    async def forget_pilot(self, pilot: Pilot) -> None:
        await self._client.ask("rm", "-f", f"{self._pilot_folder(pilot)}/{PASS}")

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

    def _pilot_folder(self, pilot: Pilot) -> str:
        return name_pilot_folder(self._attachment, os.geteuid(), pilot.id)

    def _uid(self, job: Job) -> int:
        """Whom it runs as, by the rule of all work: root's own is nobody's unless root asks for root."""
        return job.owner.uid or (0 if job.spec.as_root else self._work_uid)

    async def _scancel(self, what: str, number: int | str, uid: int | None, *words: str) -> None:
        code, _, err = await self._client.run("scancel", *words, str(number), uid=uid)
        if code != 0 and "Invalid job id" not in err and "already complet" not in err:
            raise Unreachable(f"Slurm did not take the signal for {what}: {err.strip()}")
