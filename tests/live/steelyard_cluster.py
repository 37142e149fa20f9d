"""A real Steelyard on a home of its own, for live tests: start it, ask it, kill parts of it, end it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CLI_S = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Cluster:
    """`folder` must be enterable by every user. Ports are free ones, found once, so that they stay over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.api_port, self.gateway_port = free_ports(2)

    @property
    def tag(self) -> str:
        """Names its run folder and its control groups (`steelyard-<tag>`)."""
        return hashlib.sha256(os.path.realpath(self.home).encode()).hexdigest()[:8]

    # the command line

    def cli(
        self,
        *args: str,
        input: bytes | None = None,
        timeout: float = CLI_S,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `steelyard ARGS` on this home and wait for it."""
        return subprocess.run(
            self.command(*args), input=input, stdin=subprocess.DEVNULL if input is None else None, capture_output=True,
            timeout=timeout, env=self.environ(env), cwd=cwd or self.folder, check=False,
        )  # fmt: skip

    def start(self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `steelyard ARGS` on this home and do not wait."""
        return subprocess.Popen(
            self.command(*args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environ(env), cwd=cwd or self.folder,
        )  # fmt: skip

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-P", "-m", "steelyard", *args]

    def environ(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "STEELYARD_HOME": str(self.home), **(more or {})}

    def ok(self, *args: str, **kwargs: Any) -> str:
        """Like `cli`, but it must succeed; returns its stdout."""
        done = self.cli(*args, **kwargs)
        assert done.returncode == 0, (
            f"steelyard {' '.join(args)} -> {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        )
        return done.stdout.decode()

    def up(self, *more: str, env: dict[str, str] | None = None) -> None:
        self.ok("up", "--detach", "--port", str(self.api_port), "--gateway-port", str(self.gateway_port), *more, env=env)

    def down(self) -> None:
        if (self.home / "settings.json").exists():
            self.ok("down")

    def status(self) -> dict[str, Any]:
        """`status --json`, whatever its exit code; before the first `up` there is none."""
        return json.loads(self.cli("status", "--json").stdout or b'{"state": "absent"}')

    # the REST API and the gateway

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def admin_token(self) -> str:
        return (self.home / "admin.token").read_text().strip()

    @property
    def agent_token(self) -> str:
        return (self.home / "agent.token").read_text().strip()

    def api(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, key: str | None = None, timeout: float = 60.0
    ) -> Answer:
        """One call with the admin's token; mutations get a fresh Idempotency-Key unless one is given."""
        headers = {"Authorization": f"Bearer {self.admin_token if token is None else token}"}
        if method not in ("GET", "HEAD"):
            headers["Idempotency-Key"] = key or uuid.uuid4().hex
        data = None
        if isinstance(body, bytes):
            data = body
            headers["Content-Type"] = "application/octet-stream"
        elif body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        return request(method, self.api_url + path, headers, data, timeout)

    def call(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        """One request through the gateway; `path` begins with `/<function>/`."""
        return request(method, self.gateway_url + path, headers or {}, body, timeout)

    def function(self, name: str) -> dict[str, Any]:
        return self.api("GET", f"/v1/functions/{name}").json()

    def job(self, job: str) -> dict[str, Any]:
        return self.api("GET", f"/v1/jobs/{job}").json()

    def submit(self, *argv: str, **fields: object) -> str:
        """A job's id; `fields` of its specification beside its command."""
        spec = {"name": "t", "argv": argv, "cwd": "/tmp", "resources": {"cpus": 0.1}, **fields}
        answer = self.api("POST", "/v1/jobs", {"spec": spec})
        assert answer.status == 201, answer.body
        return answer.json()["id"]

    def running(self, *argv: str, **fields: object) -> str:
        job = self.submit(*argv, **fields)
        self.wait_job(job, "RUNNING")
        return job

    def wait_job(self, job: str, state: str, timeout: float = 30.0) -> dict[str, Any]:
        return wait_until(
            lambda: seen if (seen := self.job(job))["state"] == state else None, timeout, f"job {job} to be {state}"
        )

    def wait_function(self, name: str, state: str, timeout: float = 30.0) -> dict[str, Any]:
        return wait_until(
            lambda: seen if (seen := self.function(name))["state"] == state else None, timeout, f"{name} to be {state}"
        )

    # the programs

    def record(self, program: str) -> dict[str, Any]:
        return json.loads((self.home / "programs" / f"{program}.json").read_bytes())

    def pid(self, program: str) -> int:
        """Of "up", "spawner", "server", "agent" or "envoy", as recorded."""
        return int(self.record(program)["pid"])

    def kill(self, program: str, signum: int = signal.SIGKILL) -> int:
        """Send the signal and, for SIGKILL, wait until it is gone; returns the pid it had."""
        pid = self.pid(program)
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signum)
            if signum == signal.SIGKILL:
                import select

                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                assert poll.poll(10_000), f"{program} (pid {pid}) survived SIGKILL"
        finally:
            os.close(pidfd)
        return pid

    def wait_replaced(self, program: str, pid: int, timeout: float = 30.0) -> int:
        """Until another process is recorded and runs; its pid."""

        def replaced() -> int | None:
            now = self.pid(program)
            return now if now != pid and os.path.exists(f"/proc/{now}") else None

        return wait_until(replaced, timeout, f"{program} to be started again")

    def wait_ready(self, timeout: float = 60.0) -> dict[str, Any]:
        """Until `status` says running."""
        return wait_until(
            lambda: seen if (seen := self.status())["state"] == "running" else None, timeout, "Steelyard to be ready"
        )

    def print_logs(self, lines: int = 40) -> None:
        """The ends of all program logs, for a failed test's report."""
        for file in sorted((self.home / "logs").glob("*.log")):
            print(f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:]))


#: of nobody: what an ordinary user's Steelyard runs as
USER_UID = 64321


class UserCluster(Cluster):
    """The same, of somebody who is not root in any way."""

    as_user = ("setpriv", f"--reuid={USER_UID}", f"--regid={USER_UID}", "--clear-groups") if os.geteuid() == 0 else ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if os.geteuid() == 0:
            os.chown(folder, USER_UID, USER_UID)

    def command(self, *args: str) -> list[str]:
        return [*self.as_user, *super().command(*args)]

    def environ(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return super().environ({"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder / "run"), **(more or {})})


@contextlib.contextmanager
def started(kind: type[Cluster] = Cluster, env: dict[str, str] | None = None) -> Iterator[Cluster]:
    """One that is up and ready; down again afterwards, whatever was done to it. `env`: more of what its programs start with."""
    folder = Path(tempfile.mkdtemp(prefix="sy-", dir="/tmp"))
    folder.chmod(0o755)
    made = kind(folder)
    try:
        made.up(env=env)
        yield made
    except BaseException:
        made.print_logs()
        raise
    finally:
        made.down()
        shutil.rmtree(folder, ignore_errors=True)


def request(method: str, url: str, headers: dict[str, str], data: bytes | None, timeout: float) -> Answer:
    """An answer whatever its status; a connection that fails raises OSError."""
    # no proxy from the environment: this goes to our own machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=data, headers=headers, method=method), timeout=timeout) as got:
            return Answer(got.status, {key.lower(): value for key, value in got.headers.items()}, got.read())
    except urllib.error.HTTPError as err:
        with err:
            return Answer(err.code, {key.lower(): value for key, value in err.headers.items()}, err.read())


def wait_until(seen: Callable[[], T | None], timeout: float, what: str) -> T:
    """Ask again until it says something; for states that can only be asked for. The longer it takes, the less often."""
    began = time.monotonic()
    while True:
        value = seen()
        if value:
            return value
        waited = time.monotonic() - began
        assert waited < timeout, f"waited {timeout:.0f} s for {what}"
        time.sleep(min(max(0.02, waited / 10), 0.1))


def free_ports(count: int) -> list[int]:
    """Below the ephemeral range (from 32768), where no outgoing connection takes them in between."""
    found: list[int] = []
    start = 20_000 + int.from_bytes(os.urandom(2)) % 10_000
    for port in range(start, start + 2000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
