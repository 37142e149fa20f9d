"""Which cluster is this home attached to? `slurm.json` in it, written by `cluster attach`."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import msgspec

from steelyard.config import Paths, write_file
from steelyard.engine.slurm.client import SlurmClient
from steelyard.engine.slurm.direct import DirectSlurm
from steelyard.errors import StoreDamaged
from steelyard.model.pool import find_pool
from steelyard.model.slurm import PENDING, RUNNING, Attachment


def load_attachment(paths: Paths) -> Attachment | None:
    """None where no cluster is attached. StoreDamaged for a file that can't be read as one."""
    try:
        return msgspec.json.decode(paths.attachment.read_bytes(), type=Attachment)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as err:
        raise StoreDamaged(
            f"{paths.attachment} is damaged ({err}). Jobs on the cluster go on. `steelyard cluster attach` writes it anew.",
            code="attachment-damaged",
        ) from err


class Attached:
    """The attached cluster as loops and routes ask for it: `slurm.json` is read anew when it has changed."""

    def __init__(self, paths: Paths, environ: Mapping[str, str], work_uid: int) -> None:
        self._paths, self._environ, self._work_uid = paths, environ, work_uid
        self._stamp: tuple[int, int] | None = None
        self._engine: DirectSlurm | None = None

    def __call__(self) -> DirectSlurm | None:
        """None where no cluster is attached."""
        try:
            status = self._paths.attachment.stat()
        except FileNotFoundError:
            self._stamp, self._engine = None, None
            return None
        if (status.st_mtime_ns, status.st_ino) != self._stamp:
            attachment = load_attachment(self._paths)
            if attachment is None:
                return None
            self._engine = DirectSlurm(SlurmClient(attachment, self._environ), attachment, self._paths.tag, self._work_uid)
            self._stamp = (status.st_mtime_ns, status.st_ino)
        return self._engine


async def end_pilots(attachment: Attachment, environ: Mapping[str, str], tag: str) -> int:
    """Out of the queue with all pilots of that home, or told to end; how many. Raises what the queue's commands raise."""
    client = SlurmClient(attachment, environ)
    queue = await DirectSlurm(client, attachment, tag, 0).look()
    mine = [entry for id_, entry in queue.items() if find_pool(id_)]
    waiting = [entry.job for entry in mine if entry.state in PENDING]
    running = [entry.job for entry in mine if entry.state in RUNNING]
    if waiting:
        await client.ask("scancel", *waiting)
    if running:
        # to their program, which ends all that it began
        await client.ask("scancel", "--batch", f"--signal={int(signal.SIGTERM)}", *running)
    return len(waiting) + len(running)


def save_attachment(paths: Paths, attachment: Attachment) -> None:
    write_file(paths.attachment, msgspec.json.format(msgspec.json.encode(attachment), indent=2), 0o644)
