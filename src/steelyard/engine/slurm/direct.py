"""How do attempts go through Slurm's own queue? One `sbatch` each, or one for an array, found again by its comment; one `squeue`
tells of all of them.

Everything is done as the job's owner where Steelyard is root, so that nobody reaches by us what they may not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from steelyard.engine.slurm.arrays import make_batches
from steelyard.engine.slurm.client import SlurmClient
from steelyard.engine.slurm.pilot import (
    LOG,
    PASS,
    WORKLOADS,
    WRITE_PASSES,
    make_pilot_options,
    name_pilot_folder,
    read_words,
    render_pilot_script,
)
from steelyard.engine.slurm.read import QUEUE_FORMAT, QueueReader, read_complaint, read_exit_code, read_record
from steelyard.engine.slurm.script import make_options, name_folder, name_prefix, render_script
from steelyard.errors import EdgeFailed, SteelyardError, Unreachable
from steelyard.model.ids import MachineId
from steelyard.model.job import Job
from steelyard.model.pool import Pilot, Pool
from steelyard.model.slurm import Attachment, QueueEntry, RankRecord

#: attempts that one command is asked about
_PORTION = 500


class DirectSlurm:
    """`engine.Engine` by Slurm's commands. `tag` tells this home's attempts from others'; root's work runs as `work_uid`."""

    def __init__(self, client: SlurmClient, attachment: Attachment, tag: str, work_uid: int) -> None:
        self._client, self._attachment, self._tag, self._work_uid = client, attachment, tag, work_uid
        self._queue = QueueReader(tag)

    def make_batches(self, jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
        return [batch.jobs for batch in make_batches(jobs, self._attachment.array_size_max)]

    async def submit(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        (batch,) = make_batches(jobs, self._attachment.array_size_max)
        uid = self._uid(batch.first)
        options = make_options(batch, self._attachment, self._tag, uid)
        script = render_script(batch, self._attachment, uid)
        number = await self._sbatch(name_folder(self._attachment, uid), options, script, uid)
        if batch.base is None:
            return (number,)
        return tuple(f"{number}_{job.array.index - batch.base}" for job in jobs if job.array is not None)

    async def submit_pilots(self, pool: Pool, pilots: Sequence[Pilot], contents: Sequence[bytes]) -> str:
        folders = [self._pilot_folder(pilot) for pilot in pilots]
        lines = b"".join(content + b"\n" for content in contents)
        await self._client.ask("sh", "-c", WRITE_PASSES, "sh", *folders, input=lines.decode())
        options = make_pilot_options(pool, pilots, self._attachment, self._tag, folders[0])
        script = render_pilot_script(pilots, self._attachment, self._attachment.python or sys.executable, folders)
        return await self._sbatch(folders[0], options, script, None)

    async def _sbatch(self, folder: str, options: Sequence[str], script: str, uid: int | None) -> str:
        """The queue's number. `folder` is made."""
        command = '{ [ -d "$0" ] || mkdir -p -m 700 "$0"; } && exec sbatch "$@"'
        # with nothing of our own environment: `sbatch` would pass it on to the job
        out = await self._client.ask("sh", "-c", command, folder, *options, input=script, uid=uid, name="sbatch", bare=True)
        number = out.strip().partition(";")[0]
        if not number.isdigit():
            raise EdgeFailed(f"sbatch answered {out.strip()[:200]!r}", code="slurm-answer")
        return number

    async def look(self) -> Mapping[str, QueueEntry]:
        # an array that waits is one line, whose indices squeue would cut off; without --all hidden partitions are left out
        variables = ("SLURM_TIME_FORMAT=%s", "SLURM_BITSTR_LEN=0")
        words = ("env", *variables, "squeue", "--all", "--noheader", "--states=all", f"--format={QUEUE_FORMAT}")
        return self._queue.read(await self._client.ask(*words, name="squeue"))

    async def read_records(self, jobs: Sequence[Job], name: str = "exit") -> dict[str, tuple[RankRecord, ...]]:
        # one process for all of them; patterns, for which the whole folder is read, only for gangs. Nothing else is in an id
        command = 'cd -- "$0" && IFS= && exec grep -asH "" -- $@'
        found: dict[str, dict[int, RankRecord]] = {job.attempt_id: {} for job in jobs}
        for uid, some in self._by_user(jobs):
            files = (f"{job.attempt_id}.{0 if job.spec.gang is None else '*'}.{name}" for job in some)
            _, out, _ = await self._client.run("sh", "-c", command, name_folder(self._attachment, uid), *files, uid=uid)
            read_ranks(out, found)
        return {attempt: tuple(ranks[rank] for rank in sorted(ranks)) for attempt, ranks in found.items()}

    async def read_exit_code(self, job: Job, number: str) -> tuple[int | None, int | None]:
        try:
            return read_exit_code(read_record(await self._client.ask("scontrol", "--all", "-o", "show", "job", number)))
        except SteelyardError:
            return None, None  # it has forgotten the job meanwhile, or does not answer

    async def signal(self, job: Job, number: str, signum: int) -> None:
        # a script runs in the batch step, which is left out otherwise; of all others that is Slurm's own srun. The step of a
        # single task is the batch script's process itself, and passes it on
        batch = ("--full",) if job.spec.script is not None else ("--batch",) if job.spec.gang is None else ()
        await self._scancel(self._uid(job), f"--signal={signum}", *batch, number)

    async def cancel(self, attempts: Sequence[tuple[Job, str]]) -> None:
        numbers = {job.attempt_id: number for job, number in attempts}
        for uid, some in self._by_user([job for job, _ in attempts]):
            await self._scancel(uid, *(numbers[job.attempt_id] for job in some))

    async def cancel_pilot(self, pilot: Pilot, *, force: bool) -> None:
        if pilot.number:
            gently = () if force or pilot.started_at is None else ("--batch", f"--signal={int(signal.SIGTERM)}")
            await self._scancel(None, *gently, pilot.number)

    async def read_pilot_words(self, pilot: Pilot) -> str:
        # what came before it could write a log of its own stands in that of its allocation
        command = f'for each; do [ ! -s "$each/{LOG}" ] || {{ tail -c 2000 -- "$each/{LOG}"; break; }}; done'
        folders = [self._pilot_folder(pilot), name_pilot_folder(self._attachment, os.geteuid(), pilot.queue_id)]
        return read_words((await self._client.read("sh", "-c", command, "sh", *folders)).decode(errors="replace"))

    def find_pilot_outputs(self, pilot: MachineId) -> Path | None:
        if self._attachment.ssh:
            return None
        return Path(name_pilot_folder(self._attachment, os.geteuid(), pilot)) / WORKLOADS

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

    def _by_user(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Sequence[Job]]]:
        """In portions that fit a command line."""
        users: dict[int, list[Job]] = {}
        for job in jobs:
            users.setdefault(self._uid(job), []).append(job)
        for uid, some in users.items():
            for at in range(0, len(some), _PORTION):
                yield uid, some[at : at + _PORTION]

    async def _scancel(self, uid: int | None, *words: str) -> None:
        code, _, err = await self._client.run("scancel", *words, uid=uid)
        bad = [line for line in err.splitlines() if "Invalid job id" not in line and "already complet" not in line]
        if code != 0 and bad:
            raise Unreachable(f"Slurm did not take the signal: {read_complaint(err)}")


def read_ranks(text: str, found: Mapping[str, dict[int, RankRecord]]) -> None:
    """Into `found`, of its attempts, what `grep` tells: `ATTEMPT.RANK.NAME:{...}`. The folder is the user's: anything may lie
    there."""
    for line in text.splitlines():
        file, _, written = line.partition(":")
        attempt = file.rsplit(".", 2)[0]
        if attempt in found:
            with contextlib.suppress(msgspec.MsgspecError):
                record = msgspec.json.decode(written, type=RankRecord)
                found[attempt][record.rank] = record
