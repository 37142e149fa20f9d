"""A bed for runners: plays the spawner (parent of everything, reaps) and the agent (socket, page, forks) for one function."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from steelyard.runtime.lib_dir import make_lib_dir
from steelyard.runtime.runner.page import FAILED, SERVING, Page
from steelyard.runtime.template import (
    SINGLE_THREAD_ENV,
    Forked,
    ForkRefused,
    Load,
    TemplateClient,
    TemplateStatus,
    base_command,
    replica_command,
)

READY = b"GET /.steelyard/ready HTTP/1.1\r\nhost: x\r\n\r\n"


class Replica:
    """One replica: its page, its log, and its exit code once it has ended."""

    def __init__(self, bed: Bed, name: str) -> None:
        self.name = name
        self.page_path = bed.folder / f"{name}.page"
        self.log_path = bed.folder / f"{name}.log"
        self.page = Page.create(self.page_path)
        self.pid = 0

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def await_page(self, true: Callable[[Page], bool], timeout_s: float = 10.0) -> None:
        """A page is memory, so there is no event to wait on: look at it often."""
        deadline = time.monotonic() + timeout_s
        while not true(self.page):
            assert time.monotonic() < deadline, f"page: {self.page.read()} {self.page.error}\nlog: {self.log}"
            time.sleep(0.001)

    def await_serving(self) -> None:
        self.await_page(lambda page: page.state in (SERVING, FAILED))
        assert self.page.state == SERVING, self.page.error

    def exit_code(self, timeout_s: float = 10.0) -> int:
        """Reap it: this process is its parent (a pidfd says when)."""
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], timeout_s)[0], f"{self.name} still runs: {self.page.read()}\n{self.log}"
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def retire(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


class Bed:
    """`code` is written to app.py of a folder of its own. Everything is gone after `close`."""

    def __init__(self, folder: Path, code: str = "", concurrency: int = 8) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.code = folder / "code"
        self.code.mkdir()
        self.concurrency = concurrency
        if code:
            self.write("app.py", code)
        self.socket_path = folder / "fn"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.socket_path))
        self.listener.listen(4096)
        self.listener.setblocking(False)
        self.template_log = folder / "template.log"
        self.base: subprocess.Popen[bytes] | None = None
        #: the newest template grown, and the pids of all of them
        self.template_pid = 0
        self.grown: list[int] = []
        self.load: Load
        self.base_client = TemplateClient(folder / "control")
        self.client = self.base_client
        self.replicas: list[Replica] = []

    def write(self, name: str, code: str) -> None:
        path = self.code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))

    def make_load(self, env: dict[str, str] | None = None, **more: object) -> Load:
        settings: dict[str, object] = {
            "code_dir": str(self.code), "file": "app.py", "attr": "app", "concurrency": self.concurrency, **more
        }  # fmt: skip
        return Load("fn", {"PATH": os.environ["PATH"], **(env or {})}, **settings)  # type: ignore[arg-type]

    def start_base(self, python: str = sys.executable, env: dict[str, str] | None = None, **config: object) -> None:
        control = self._listen("control")
        argv, own = base_command(python, lib_dir=make_lib_dir(self.folder / "lib"), control_fd=control.fileno())
        own["STEELYARD_RUNNER"] = json.dumps(json.loads(own["STEELYARD_RUNNER"]) | config)
        with control, self.template_log.open("ab") as log:
            self.base = subprocess.Popen(
                argv,
                env={"PATH": os.environ["PATH"], **own, **(env or {})},
                pass_fds=[control.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )

    async def grow(self, parent: TemplateClient, role: str, **more: object) -> TemplateClient:
        """A template and its client; `template_pid` is its pid."""
        name = f"control-{len(self.grown)}"
        with self._listen(name) as control, self.template_log.open("ab") as log:
            forked = await parent.grow(
                role=role,
                control_fd=control.fileno(),
                stdout_fd=log.fileno(),
                stderr_fd=log.fileno(),
                **more,  # type: ignore[arg-type]
            )
        assert isinstance(forked, Forked), forked
        self.template_pid = forked.pid
        self.grown.append(forked.pid)
        client = TemplateClient(self.folder / name)
        await client.connect()
        return client

    def _listen(self, name: str) -> socket.socket:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.bind(str(self.folder / name))
        control.listen(128)
        return control

    async def ready(self, timeout_s: float = 20.0) -> TemplateStatus:
        return await self.client.status(timeout_s)

    def exit_of_template(self) -> int:
        """Of the newest one, which ends by itself."""
        _, status = os.waitpid(self.template_pid, 0)
        self.grown.remove(self.template_pid)
        return os.waitstatus_to_exitcode(status)

    async def fork(self, **more: object) -> Replica | ForkRefused:
        replica = self._replica()
        page = os.open(replica.page_path, os.O_RDWR)
        log = os.open(replica.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        listener = more.pop("listener", self.listener)
        assert isinstance(listener, socket.socket)
        try:
            forked = await self.client.fork(
                replica=replica.name,
                listen_fd=listener.fileno(),
                page_fd=page,
                stdout_fd=log,
                stderr_fd=log,
                **more,  # type: ignore[arg-type]
            )
        finally:
            os.close(page)
            os.close(log)
        if isinstance(forked, Forked):
            replica.pid = forked.pid
            return replica
        return forked

    async def wake(self, **more: object) -> Replica:
        """A replica that serves."""
        replica = await self.fork(**more)
        assert isinstance(replica, Replica), replica
        await asyncio.to_thread(replica.await_serving)
        return replica

    def start_plain(self, env: dict[str, str] | None = None, **settings: object) -> Replica:
        """The plain road."""
        replica = self._replica()
        page = os.open(replica.page_path, os.O_RDWR)
        fds = [self.listener.fileno(), page]
        config = {key: settings.pop(key) for key in list(settings) if key in ("compiled",)}
        python, private = str(settings.pop("python", sys.executable)), bool(settings.pop("private", False))
        load = self.make_load(env, **settings)
        argv, own = replica_command(
            python, load, lib_dir=make_lib_dir(self.folder / "lib"), listen_fd=fds[0], page_fd=fds[1], private=private
        )
        own["STEELYARD_RUNNER"] = json.dumps(json.loads(own["STEELYARD_RUNNER"]) | config)
        self.run_as(replica, argv, own | load.env, fds)
        os.close(page)
        return replica

    def run_as(
        self, replica: Replica, argv: Sequence[str], env: dict[str, str], fds: Sequence[int], cwd: Path = Path("/")
    ) -> None:
        with replica.log_path.open("ab") as log:
            child = subprocess.Popen(
                argv, env=env, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, start_new_session=True
            )
        replica.pid = child.pid
        child.returncode = 0  # reaped by Replica.exit_code, not by Popen

    def _replica(self) -> Replica:
        replica = Replica(self, f"r{len(self.replicas)}")
        self.replicas.append(replica)
        return replica

    def connect(self, listener: socket.socket | None = None) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect((listener or self.listener).getsockname())
        return client

    def get(self, path: str = "/", headers: str = "", client: socket.socket | None = None) -> tuple[int, dict[str, str], bytes]:
        """One request. Status, headers, body."""
        connection = client or self.connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())
        try:
            return read_answer(connection)
        finally:
            if client is None:
                connection.close()

    def close(self) -> None:
        for replica in self.replicas:
            if replica.pid:
                os.kill(replica.pid, signal.SIGKILL)
                os.waitpid(replica.pid, 0)
            replica.page.close()
        self.listener.close()
        for pid in self.grown:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.base is not None:
            if self.base.poll() is None:
                self.base.kill()
            self.base.wait(10)
        # the spare sees its template go and ends; it is a child of this process
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.001)
            except ChildProcessError:
                break


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer with a content-length or in chunks. ConnectionError when the connection ends before it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "content-length" in headers:
        while len(body) < int(headers["content-length"]):
            body += _more(connection)
    elif headers.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(connection)
    return int(lines[0].split()[1]), headers, body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the connection ended before the answer")
    return data


def on_base(bed: Bed, story: Callable[[], Coroutine[object, object, None]], **settings: object) -> None:
    """Start the bed's base template, run the story with a connected client, end everything."""

    async def run() -> None:
        bed.start_base(**settings)  # type: ignore[arg-type]
        await bed.base_client.connect()
        try:
            await story()
        finally:
            bed.base_client.close()

    try:
        asyncio.run(run())
    finally:
        bed.close()


def on_template(
    bed: Bed, story: Callable[[], Coroutine[object, object, None]], env: dict[str, str] | None = None, **settings: object
) -> None:
    """As `on_base`, with the template of the bed's revision grown from it."""
    config = {key: settings.pop(key) for key in list(settings) if key in ("ahead", "compiled", "fork", "python", "spare_keep_s")}
    bed.load = bed.make_load(SINGLE_THREAD_ENV | (env or {}), **settings)

    async def run() -> None:
        bed.client = await bed.grow(bed.base_client, "revision", load=bed.load)
        try:
            await story()
        finally:
            bed.client.close()

    on_base(bed, run, env=env, **config)


def other_pythons() -> list[Any]:
    """For parametrize: interpreters of other versions that are here already, on the PATH or kept by pyenv."""
    versions = ("3.10", "3.12", "3.13", "3.14")
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    paths = [shutil.which(f"python{version}") for version in versions]
    paths += [str(path) for version in versions for path in sorted(kept.glob(f"{version}.*/bin/python{version}"))]
    found = [path for path in paths if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]
    return found or [pytest.param("", marks=pytest.mark.skip(reason="NOT VERIFIED: no Python of another version is here"))]
