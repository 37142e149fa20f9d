"""Which files does an attempt have beside its logs? All in its own folder, which its processes may read and not change:

    script          the program of a job that brought its text, read-only
    hostfile        of a gang, as DeepSpeed and Open MPI read it
    beat/           for the job to write: the file named by STEELYARD_HEARTBEAT
    steps/          for the job to write: what `srun` notes of the steps of a script (STEELYARD_STEPS)
    ranks/          for the job to write: what Slurm's steps note of ranks that Slurm started (`mpi_steps.py`)
    outputs.json    where its output goes, when not to the logs
    progress.json   how far it is with what no process tells (see `Progress`)

Everything but `progress.json` is made before any process of the attempt starts.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from steelyard.agent.attempt import Progress
from steelyard.config import write_file
from steelyard.errors import EdgeFailed
from steelyard.lifecycle.launch import render_hostfile
from steelyard.model.batch import Gang
from steelyard.model.ids import AttemptId
from steelyard.runtime.logs import Piece, read_log
from steelyard.wire.spawn import Outputs

log = logging.getLogger(__name__)

SCRIPT, HOSTFILE, BEAT, OUTPUTS, PROGRESS = "script", "hostfile", "beat", "outputs.json", "progress.json"
STEPS, RANKS = "steps", "ranks"
HEARTBEAT = "heartbeat"
#: bytes, of an output's end
END_MAX = 8192
_BEYOND = 1 << 62


class Kept(msgspec.Struct, frozen=True):
    """outputs.json: where to look for output, and whose it has to be."""

    outputs: Outputs
    uid: int


class JobFiles:
    """Of all attempts of one home. `ids` are the job's uid and gid; None where we are no more than it is."""

    def __init__(self, workloads: Path) -> None:
        self._workloads = workloads

    def folder(self, attempt: str) -> Path:
        return self._workloads / attempt.replace("/", "_")

    def make_folder(self, attempt: AttemptId) -> Path:
        folder = self.folder(attempt)
        try:
            folder.mkdir(exist_ok=True, mode=0o755)
        except OSError as err:
            raise EdgeFailed(f"{folder} could not be made: {err.strerror}", code="start-failed") from err
        return folder

    def write_script(self, attempt: AttemptId, text: str, ids: tuple[int, int] | None) -> str:
        """For the job's group to read and run; the owner is us, so that the job can't change it while it runs."""
        return self._write(attempt, SCRIPT, text.encode(), 0o550, ids)

    def write_hostfile(self, attempt: AttemptId, gang: Gang, hosts: tuple[str, ...]) -> str:
        return self._write(attempt, HOSTFILE, render_hostfile(gang, hosts).encode(), 0o444, None)

    def write_outputs(self, attempt: AttemptId, outputs: Outputs, ids: tuple[int, int] | None) -> None:
        uid = ids[0] if ids is not None else os.geteuid()
        self._write(attempt, OUTPUTS, msgspec.json.encode(Kept(outputs, uid)), 0o400, None)

    def make_beat(self, attempt: AttemptId, ids: tuple[int, int] | None) -> str:
        return str(self._make_writable(attempt, BEAT, ids) / HEARTBEAT)

    def make_steps(self, attempt: AttemptId, ids: tuple[int, int] | None) -> str:
        return str(self._make_writable(attempt, STEPS, ids))

    def make_ranks(self, attempt: AttemptId, ids: tuple[int, int] | None) -> Path:
        return self._make_writable(attempt, RANKS, ids)

    def ranks(self, attempt: AttemptId) -> Path:
        return self.folder(attempt) / RANKS

    def _make_writable(self, attempt: AttemptId, name: str, ids: tuple[int, int] | None) -> Path:
        folder = self.make_folder(attempt) / name
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            if ids is not None:
                os.chown(folder, *ids)
        except OSError as err:
            raise EdgeFailed(f"{folder} could not be made: {err.strerror}", code="start-failed") from err
        return folder

    def _write(self, attempt: AttemptId, name: str, data: bytes, mode: int, ids: tuple[int, int] | None) -> str:
        path = self.make_folder(attempt) / name
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                if ids is not None:
                    os.fchown(fd, -1, ids[1])
                os.fchmod(fd, mode)
                file.write(data)
        except OSError as err:
            raise EdgeFailed(f"{path} could not be written: {err.strerror}", code="start-failed") from err
        return str(path)

    # -- while it runs

    def observe_beat(self, attempt: AttemptId) -> int | None:
        """When the heartbeat file was changed last, by the wall clock; None while there is none."""
        try:
            return (self.folder(attempt) / BEAT / HEARTBEAT).lstat().st_mtime_ns
        except OSError:
            return None

    def save_progress(self, attempt: AttemptId, progress: Progress) -> None:
        try:
            write_file(self.folder(attempt) / PROGRESS, msgspec.json.encode(progress))
        except OSError as err:
            # It holds in memory; an agent that is restarted counts the frozen time, or warns once more.
            log.warning("what is known of %s could not be written: %s", attempt, err)

    def load_progress(self, attempt: AttemptId) -> Progress:
        try:
            return msgspec.json.decode((self.folder(attempt) / PROGRESS).read_bytes(), type=Progress)
        except FileNotFoundError:
            return Progress()
        except (OSError, msgspec.MsgspecError) as err:
            log.warning("what was known of %s can't be read: %s", attempt, err)
            return Progress()

    # -- output

    def read_output(self, workload: str, stream: str, offset: int, limit: int, margin: int = 0) -> Piece:
        """Log or output file of an attempt or of one of its ranks (`<attempt>.<rank>`); a gang's own name means its rank 0.
        Bytes from `offset` on, where to go on, and `margin` bytes around them."""
        folder = self.folder(workload)
        kept = self._load_outputs(folder)
        if kept is not None:
            first, path = kept.outputs.stdout, kept.outputs.stderr if stream == "stderr" else kept.outputs.stdout
            if path is not None:
                if stream == "stderr" and path == first:
                    return Piece(b"", offset)  # it is all in the other one
                return read_users_file(path, kept.uid, offset, limit, margin)
        if not (folder / stream).exists() and (rank := folder.with_name(f"{folder.name}.0")).exists():
            folder = rank
        return read_log(folder / stream, offset, limit, margin)

    def read_end(self, workload: str, stream: str) -> str:
        """The last of what it wrote."""
        end = self.read_output(workload, stream, _BEYOND, 1).next_offset
        return self.read_output(workload, stream, max(0, end - END_MAX), END_MAX).data.decode(errors="replace")

    def _load_outputs(self, folder: Path) -> Kept | None:
        """Also of a rank: its attempt's, one file for all ranks."""
        for place in (folder, folder.with_name(folder.name.rpartition(".")[0] or folder.name)):
            try:
                return msgspec.json.decode((place / OUTPUTS).read_bytes(), type=Kept)
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError) as err:
                raise EdgeFailed(
                    f"{place / OUTPUTS} is damaged ({err}); its output is where the job was told to write it."
                ) from err
        return None


def read_users_file(path: str, uid: int, offset: int, limit: int, margin: int = 0) -> Piece:
    """The job's own file, and no other: by a link one could be led to what only root may read. What can't be shown is said in
    its place."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _say(f"its output goes to {path}, which is not there", offset)
    except OSError as err:
        return _say(f"its output went to {path}, which is not shown here ({err.strerror})", offset)
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid != uid:
            return _say(f"its output went to {path}, which is not shown here: it is no file of uid {uid}", offset)
        begin = min(max(offset, 0), seen.st_size)
        first = max(0, begin - margin)
        window = os.pread(fd, begin - first + limit + margin, first)
        before, data, after = window[: begin - first], window[begin - first :][:limit], window[begin - first + limit :]
        return Piece(data, begin + len(data), before=before, after=after)
    except OSError as err:
        return _say(f"its output went to {path}, which can't be read ({err.strerror})", offset)
    finally:
        os.close(fd)


def _say(text: str, offset: int) -> Piece:
    line = f"[steelyard: {text}]\n".encode()
    return Piece(line[offset:], max(offset, len(line)))


def find_ports(firsts: Iterable[int], count: int, taken: Collection[range]) -> range:
    """The first run of `count` ports in a row that nobody listens on and that no other attempt was given."""
    for first in firsts:
        ports = range(first, first + count)
        if not any(set(ports) & set(other) for other in taken) and all(map(_is_free, ports)):
            return ports
    raise EdgeFailed(f"No {count} free TCP ports in a row were found for the ranks to meet.", code="start-failed")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
