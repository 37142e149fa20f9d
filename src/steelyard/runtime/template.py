"""How does the agent start a runner and talk to a template? The command line, and the client of a template's control socket.

`runner_command` is pure; `TemplateClient` speaks the packets of runner/template.py. Never starts or reaps a process itself: the
spawner does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from steelyard.errors import EdgeFailed
from steelyard.runtime.runner.packets import PACKET_MAX

#: one thread per library: a template with more could not be forked. Users' own settings win; then the package is left out.
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
    "from steelyard_runner.at_fork import handlers;handlers.collect();"
    "from steelyard_runner.boot import main;main()"
)


class Load(msgspec.Struct, frozen=True):
    """What a process imports and knows to be of a revision."""

    #: the function's name
    function: str
    #: all of it: nothing of the template's own stays
    env: dict[str, str]
    code_dir: str
    #: relative to `code_dir`, and the attribute in it
    file: str
    attr: str
    concurrency: int


class Forked(msgspec.Struct, frozen=True):
    """A replica or template runs; its parent is the template's parent. Times are CLOCK_MONOTONIC."""

    pid: int
    start_time: int
    #: the template had read the packet / had forked
    received_ns: int = 0
    forked_ns: int = 0


class ForkRefused(msgspec.Struct, frozen=True):
    """Nothing was forked. `reason` is stable: template-has-threads, template-unsafe, fork-failed, not-understood."""

    reason: str
    detail: str


class PackageCost(msgspec.Struct, frozen=True):
    """What the import of a package took, with all that it imported first."""

    name: str
    ms: float
    #: memory of the process's own
    bytes: int


class Scanned(msgspec.Struct, frozen=True):
    """What a file's import statements ask for."""

    #: of what is installed, in their order
    names: tuple[str, ...] = ()
    #: changes when something is installed or removed
    stamp: str = ""


class TemplateStatus(msgspec.Struct, frozen=True):
    """What a template says of itself. `traceback` is for the user and set when `state` is failed."""

    state: str
    traceback: str = ""
    #: base, environment or revision
    role: str = ""
    #: {"tid", "name"} of threads that make forking unsafe
    threads: tuple[dict[str, Any], ...] = ()
    #: {"name", "fix"} of what else does
    unsafe: tuple[dict[str, str], ...] = ()
    import_ms: float = 0.0
    enter_ms: float = 0.0
    modules: int = 0
    #: the HTTP server's parts that loaded in that interpreter
    server: tuple[str, ...] = ()
    #: "clone3" or "twice"
    fork: str = ""
    #: processes forked so far, spares left out
    forks: int = 0
    #: of an environment, in the order of import
    packages: tuple[PackageCost, ...] = ()
    #: of a failed environment: the package that can't be imported before a fork, and why
    culprit: str = ""
    why: str = ""
    #: of a failed revision: "chdir" when its folder could not be entered
    step: str = ""
    #: asked with `show`: modules by first name, the standard library's left out
    top_level: dict[str, int] = {}


def base_command(python: str, *, lib_dir: Path, control_fd: int, alive_fd: int | None = None) -> tuple[list[str], dict[str, str]]:
    """(argv, env) of a base template. `control_fd` is the number in the child, `alive_fd` that of one which it is to keep; the
    caller lays over the environment what an interpreter reads when it starts."""
    kept = {} if alive_fd is None else {"alive_fd": alive_fd}
    return _command(python, lib_dir, {"mode": "base", "control_fd": control_fd, **kept})


def replica_command(
    python: str, load: Load, *, lib_dir: Path, listen_fd: int, page_fd: int, private: bool = False
) -> tuple[list[str], dict[str, str]]:
    """(argv, env) of a replica on the plain road. The environment holds only what the runner needs; the caller lays `load.env`
    over it. Descriptors are numbers in the child."""
    config = {name: value for name, value in msgspec.structs.asdict(load).items() if name != "env"}
    return _command(
        python, lib_dir, {"mode": "replica", **config, "listen_fd": listen_fd, "page_fd": page_fd, "private": private}
    )


def server_command(python: str, load: Load, *, lib_dir: Path) -> tuple[list[str], dict[str, str]]:
    """(argv, env) of a function that opens a port of its own: a program for the relay."""
    config = {name: value for name, value in msgspec.structs.asdict(load).items() if name != "env"}
    return _command(python, lib_dir, {"mode": "server", **config})


def _command(python: str, lib_dir: Path, config: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    folder = str(lib_dir / "steelyard" / "runtime" / "runner")
    env = {"STEELYARD_RUNNER": json.dumps({**config, "lib_dir": str(lib_dir)})}
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

    async def show(self, timeout_s: float) -> TemplateStatus:
        """As `status`, with the modules that are loaded."""
        return msgspec.convert(await self._ask({"op": "show"}, (), timeout_s), TemplateStatus)

    async def scan(self, load: Load, timeout_s: float) -> Scanned:
        """By the base template's interpreter; nothing of the file is run."""
        answer = await self._ask({"op": "scan", "code_dir": load.code_dir, "file": load.file}, (), timeout_s)
        return msgspec.convert(answer, Scanned)

    async def learn(self, timeout_s: float) -> list[str]:
        """Those that a revision's loaded files import, on a connection of its own, which is closed after it."""
        answer = await self._ask_apart({"op": "learn"}, (), timeout_s)
        return [str(name) for name in answer.get("names", ())]

    async def grow(
        self,
        *,
        role: str,
        control_fd: int,
        stdout_fd: int,
        stderr_fd: int,
        cgroup_fds: Sequence[int] = (),
        load: Load | None = None,
        env: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
        timeout_s: float = 10.0,
    ) -> Forked | ForkRefused:
        """One template: an environment of `env` and `packages`, or the revision of `load`. It listens on `control_fd`, and its
        status tells when it is ready. EdgeFailed as for `fork`."""
        asked = {"op": "grow", "role": role, "cgroups": len(cgroup_fds)}
        asked |= {"env": dict(env or {}), "packages": list(packages)} if load is None else msgspec.structs.asdict(load)
        return _forked(await self._ask_apart(asked, (control_fd, stdout_fd, stderr_fd, *cgroup_fds), timeout_s))

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
        load: Load | None = None,
        timeout_s: float = 10.0,
    ) -> Forked | ForkRefused:
        """One replica: of the template's own revision, or of an ancestor with `load` to import first. The descriptors are copied;
        the caller closes its own. After a timeout (EdgeFailed, template-slow) it is unknown whether one runs: whatever is
        forked late shows itself in the page."""
        asked: dict[str, Any] = {
            "op": "fork",
            "replica": replica,
            "cpus": list(cpus),
            "cgroups": len(cgroup_fds),
            "private": private,
            "sent_ns": sent_ns,
        }
        if load is not None:
            asked["revision"] = msgspec.structs.asdict(load)
        return _forked(await self._ask(asked, (listen_fd, page_fd, stdout_fd, stderr_fd, *cgroup_fds), timeout_s))

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

    async def _ask_apart(self, asked: dict[str, Any], fds: Sequence[int], timeout_s: float) -> dict[str, Any]:
        """On a connection of its own, where somebody else than the template answers."""
        asking = TemplateClient(self._path)
        await asking.connect()
        try:
            return await asking._ask(asked, fds, timeout_s)
        finally:
            asking.close()

    async def _ask(self, asked: dict[str, Any], fds: Sequence[int], timeout_s: float) -> dict[str, Any]:
        if self._socket is None:
            raise _gone(self._path)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        packet = json.dumps(asked).encode()
        if len(packet) > PACKET_MAX:
            raise EdgeFailed(f"its environment variables are larger than {PACKET_MAX} bytes", code="packet-too-large")
        try:
            if fds:
                socket.send_fds(self._socket, [packet], list(fds))
            else:
                self._socket.send(packet)
        except BlockingIOError as err:
            raise EdgeFailed(f"the template at {self._path} is busy", code="template-slow") from err
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
            data, fds, _, _ = socket.recv_fds(self._socket, PACKET_MAX, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            return
        told = json.loads(data)
        for fd in fds:  # of a process in a pid namespace of its own: which one it is for us
            told["pid"] = read_pid(fd)
            os.close(fd)
        answer = self._waiting.popleft()
        if not answer.done():
            answer.set_result(told)


def read_pid(pidfd: int) -> int:
    """Of the process that it refers to, as we see it; -1 when that has been reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.partition(":")[2]) for line in file if line.startswith("Pid:"))


def _forked(answer: dict[str, Any]) -> Forked | ForkRefused:
    if "pid" in answer:
        return msgspec.convert(answer, Forked)
    return ForkRefused(reason=str(answer.get("refused")), detail=str(answer.get("detail", "")))


def _gone(path: Path) -> EdgeFailed:
    return EdgeFailed(f"the template at {path} has gone", code="template-gone")
