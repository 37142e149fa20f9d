"""How does the agent start a runner and talk to a template? The lib folder, the command line, and the client of a template's
control socket.

`make_lib_dir` collects what the runner brings along (by name, content-addressed); `runner_command` is pure; `TemplateClient`
speaks the packets of runner/template.py. Never starts or reaps a process itself: the spawner does.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import shutil
import socket
import stat
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import steelyard
from steelyard.errors import EdgeFailed
from steelyard.runtime.runner.isolate import LIB_NAMES
from steelyard.runtime.runner.spare import PACKET_MAX

#: what the runner needs; the others of LIB_NAMES make it faster
_NEEDED = ("uvicorn", "h11")
#: what user code finds there when its own environment has no such package
_OFFERED = ("cloudpickle",)
#: one thread per library: a template with more could not be forked. Users' own settings may override; then the fork is refused.
SINGLE_THREAD_ENV = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "RAYON_NUM_THREADS",
    ),
    "1",
) | {"TOKENIZERS_PARALLELISM": "false"}

_BOOT = (
    "import sys,importlib.util as u;p={folder!r};"
    "s=u.spec_from_file_location('steelyard_runner',p+'/__init__.py',submodule_search_locations=[p]);"
    "m=u.module_from_spec(s);sys.modules['steelyard_runner']=m;s.loader.exec_module(m);"
    "from steelyard_runner.boot import main;main()"
)


class Forked(msgspec.Struct, frozen=True):
    """A replica runs; its parent is the template's parent. Times are CLOCK_MONOTONIC."""

    pid: int
    start_time: int
    #: the template had read the packet / had forked
    received_ns: int = 0
    forked_ns: int = 0


class ForkRefused(msgspec.Struct, frozen=True):
    """No replica runs. `reason` is stable: template-has-threads, fork-failed, not-understood."""

    reason: str
    detail: str


class TemplateStatus(msgspec.Struct, frozen=True):
    """What a template says of itself. `traceback` is for the user and set when `state` is failed."""

    state: str
    traceback: str = ""
    #: {"tid", "name"} of threads that make forking unsafe
    threads: tuple[dict[str, Any], ...] = ()
    import_ms: float = 0.0
    enter_ms: float = 0.0
    rss_bytes: int = 0
    modules: int = 0
    #: the HTTP server's parts that loaded in that interpreter
    server: tuple[str, ...] = ()
    #: "clone3" or "twice"
    fork: str = ""


def make_lib_dir(dest: Path) -> Path:
    """`<dest>/<hash>/` with the HTTP server's packages and `steelyard` itself, for interpreters that have none of them.
    Symbolic links where every user of the machine can follow them, copies elsewhere. Made once per content; returns the
    folder. EdgeFailed when a package is missing."""
    targets = {"steelyard": Path(steelyard.__file__).parent}
    for name in (*LIB_NAMES, *_OFFERED):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            targets[name] = origin.parent if spec.submodule_search_locations else origin
        elif name in _NEEDED:
            raise EdgeFailed(
                f"the Python package '{name}' is missing beside Steelyard; install Steelyard anew", code="runner-incomplete"
            )
    stamp = [(name, str(target), target.stat().st_mtime_ns, _everybody_reads(target)) for name, target in sorted(targets.items())]
    folder = dest / hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    try:
        dest.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".making-", dir=dest))
        try:
            _fill(fresh, targets)
            fresh.chmod(0o755)
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.is_dir():  # else somebody else was faster
                raise
    except OSError as err:
        raise EdgeFailed(f"could not make the runner's folder {folder}: {err}", code="runner-folder") from err
    return folder


def _fill(folder: Path, targets: dict[str, Path]) -> None:
    for name, target in targets.items():
        place = folder / (target.name if target.is_file() else name)
        if _everybody_reads(target):
            place.symlink_to(target)
        elif target.is_file():
            shutil.copy(target, place)
            place.chmod(0o644)
        else:
            shutil.copytree(target, place, ignore=shutil.ignore_patterns("*.pyx", "*.pxd", "*.c", "*.h"))
            for copied in (place, *place.rglob("*")):
                copied.chmod(0o755 if copied.is_dir() else 0o644)


def _everybody_reads(target: Path) -> bool:
    """Every folder above can be entered by everybody, and the target read."""
    try:
        ways = all(folder.stat().st_mode & stat.S_IXOTH for folder in target.resolve().parents)
        return ways and bool(target.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def runner_command(
    python: str,
    *,
    mode: str,
    function: str,
    revision: int,
    file: str,
    attr: str,
    code_dir: str,
    concurrency: int,
    lib_dir: Path,
    control_fd: int | None = None,
    listen_fd: int | None = None,
    page_fd: int | None = None,
    private: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """(argv, env) of a runner. A template is given `control_fd`, a replica `listen_fd` and `page_fd` (numbers in the child).
    The environment holds only what the runner needs; the caller lays the user's own over it."""
    config = {
        "mode": mode,
        "function": function,
        "revision": revision,
        "file": file,
        "attr": attr,
        "code_dir": code_dir,
        "concurrency": concurrency,
        "lib_dir": str(lib_dir),
        "control_fd": control_fd,
        "listen_fd": listen_fd,
        "page_fd": page_fd,
        "private": private,
    }
    folder = str(lib_dir / "steelyard" / "runtime" / "runner")
    env = {"STEELYARD_RUNNER": json.dumps(config)}
    if mode == "template":
        env |= SINGLE_THREAD_ENV
    return [python, "-c", _BOOT.format(folder=folder)], env


class TemplateClient:
    """One connection to a template's control socket. Packets are answered in order, so several may be on their way."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._socket: socket.socket | None = None
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()
        #: set when the template has gone
        self.closed = asyncio.Event()

    async def connect(self) -> None:
        """Succeeds as soon as the socket listens, also while the template still imports. EdgeFailed (template-gone) otherwise."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(self._path))  # a Unix socket connects at once or not at all
        except OSError as err:
            connection.close()
            raise EdgeFailed(f"the template at {self._path} does not answer: {err}", code="template-gone") from err
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), self._hear)

    async def status(self, timeout_s: float) -> TemplateStatus:
        """Waits for the import to end. EdgeFailed: template-slow after the timeout, template-gone when it dies."""
        answer = await self._ask({"op": "status"}, (), timeout_s)
        return msgspec.convert(answer, TemplateStatus)

    async def fork(
        self,
        *,
        replica: str,
        listen_fd: int,
        page_fd: int,
        stdout_fd: int,
        stderr_fd: int,
        cgroup_fds: Sequence[int] = (),
        cpus: Sequence[int] = (),
        private: bool = False,
        sent_ns: int = 0,
        timeout_s: float = 10.0,
    ) -> Forked | ForkRefused:
        """One replica. The descriptors are copied; the caller closes its own. After a timeout (EdgeFailed, template-slow) it
        is unknown whether one runs: whatever is forked late shows itself in the page."""
        asked = {
            "op": "fork",
            "replica": replica,
            "cpus": list(cpus),
            "cgroups": len(cgroup_fds),
            "private": private,
            "sent_ns": sent_ns,
        }
        answer = await self._ask(asked, (listen_fd, page_fd, stdout_fd, stderr_fd, *cgroup_fds), timeout_s)
        if "pid" in answer:
            return msgspec.convert(answer, Forked)
        return ForkRefused(reason=str(answer.get("refused")), detail=str(answer.get("detail", "")))

    def close(self) -> None:
        """Ends the connection; the template and its replicas live on."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self.closed.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(_gone(self._path))

    async def _ask(self, asked: dict[str, Any], fds: Sequence[int], timeout_s: float) -> dict[str, Any]:
        if self._socket is None:
            raise _gone(self._path)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        try:
            if fds:
                socket.send_fds(self._socket, [json.dumps(asked).encode()], list(fds))
            else:
                self._socket.send(json.dumps(asked).encode())
        except OSError as err:
            self.close()
            raise _gone(self._path) from err
        self._waiting.append(answer)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as err:  # its place in the queue stays, so that a late answer is taken for this question
            raise EdgeFailed(f"the template at {self._path} did not answer within {timeout_s:g} s", code="template-slow") from err

    def _hear(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(PACKET_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        answer = self._waiting.popleft()
        if not answer.done():
            answer.set_result(json.loads(data))


def _gone(path: Path) -> EdgeFailed:
    return EdgeFailed(f"the template at {path} has gone", code="template-gone")
