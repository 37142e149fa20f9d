"""A real server process on a home of its own, and an agent made of one WebSocket, for tests of the API."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from steelyard_cluster import free_ports, wait_until
from traces import observe_traces
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from machines import make_machine
from steelyard.config import Settings, make_paths, save_settings, write_file
from steelyard.model.function import FunctionState
from steelyard.model.ids import MachineId
from steelyard.model.machine import Core, Machine, NumaNode
from steelyard.model.proof import Proof, ProofState
from steelyard.wire import WIRE_VERSION
from steelyard.wire.agent import (
    Answer,
    Ask,
    Assignment,
    AttemptState,
    FunctionSeen,
    Hello,
    Report,
    ReportAck,
    decode_from_server,
    encode,
)

ADMIN, AGENT = "admin-token-of-a-test-0123", "agent-token-of-a-test-0123"
START_S = 15.0

MACHINE = make_machine(
    id=MachineId("machine-of-a-test"),
    boot_id="boot-1",
    cores=tuple(Core((cpu,)) for cpu in range(4)),
    numa_nodes=(NumaNode(0, (0, 1, 2, 3), 8 << 30),),
    memory_bytes=8 << 30,
)


def make_http(url: str, timeout: float = 5) -> httpx2.Client:
    """`verify`: certificates of all authorities would be read for each client, 40 ms long, and nothing here is encrypted."""
    return httpx2.Client(
        base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=timeout, trust_env=False, verify=False
    )


class Server:
    """`steelyard server` alone, without its supervisor. Use as a context manager."""

    def __init__(self, home: Path, port: int | None = None, host: str = "127.0.0.1") -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.paths = make_paths(home, dict(os.environ), os.geteuid())
        api_port, gateway_port = free_ports(2)
        self.port = port or api_port
        save_settings(self.paths, Settings(1, host, self.port, "127.0.0.1", gateway_port, 64000, 64000, "root", 0))
        write_file(self.paths.admin_token, f"{ADMIN}\n".encode())
        write_file(self.paths.agent_token, f"{AGENT}\n".encode())
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.http = make_http(self.url, timeout=30)

    def start(self, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "steelyard", "server", "--home", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while wait:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"the server does not answer\n{self.log.read_text()}"
            try:
                if self.http.get("/healthz").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.02)

    def stop(self, signum: int = signal.SIGTERM) -> float:
        """Seconds that the end took; after SIGTERM the exit code must be 0."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signum)
        code = self.process.wait(10)
        assert code == (0 if signum == signal.SIGTERM else -signum), self.log.read_text()
        return time.monotonic() - began

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def submit(self, *argv: str, **spec: Any) -> dict[str, Any]:
        body = {"spec": {"name": "x", "argv": argv or ("true",), "cwd": "/", **spec}}
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def clear(self) -> None:
        """End what a test left to the next one: schedules, functions and their calls, keys, jobs."""
        for kind in ("schedules", "functions", "keys"):
            # a function takes its schedule along
            for each in self.http.get(f"/v1/{kind}").json():
                self.http.delete(f"/v1/{kind}/{each['name']}")
            assert self.http.get(f"/v1/{kind}").json() == []
        if jobs := self._unended("jobs"):
            for job in jobs:
                assert self.http.post(f"/v1/jobs/{job}/stop", json={}).status_code == 202
            with FakeAgent(self):
                wait_until(lambda: not self._unended("jobs"), 10, "every job to end")
        wait_until(lambda: not self._unended("calls"), 10, "every call to end with its function")
        wait_until(lambda: not list(self.paths.calls.glob("*.input")), 10, "the inputs of calls to be gone")

    def _unended(self, kind: str) -> list[str]:
        return [each["id"] for each in self.http.get(f"/v1/{kind}").json() if each["ended_at"] is None]


@contextlib.contextmanager
def standing_server() -> Iterator[Server]:
    """One for many tests, each of which it is cleared after; what itself leaves behind is an error."""
    before = observe_traces()
    with tempfile.TemporaryDirectory(prefix="sy-", dir="/tmp") as folder, Server(Path(folder)) as made:
        yield made
    left = observe_traces().settled_minus(before)
    assert not left, f"left behind:\n{left}"


class FakeAgent:
    """Runs every assigned job in no time: `behave` turns an attempt into what is reported of it (default: ended with 0).

    Logs are what the test put into `logs[(workload, stream)]`."""

    def __init__(self, server: Server, machine: Machine = MACHINE) -> None:
        self.machine = machine
        self.logs: dict[tuple[str, str], bytes] = {}
        self.behave: Callable[[str], AttemptState] = lambda attempt: AttemptState(
            attempt,  # type: ignore[arg-type]
            "ended",
            exit_code=0,
            started_at=1_700_000_000_000_000,
            ended_at=1_700_000_000_500_000,
        )
        self.function_state = FunctionState.SLEEPING
        self.assignments: list[Assignment] = []
        self.changed = threading.Condition()
        self._attempts: dict[str, AttemptState] = {}
        self._seq = 0
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection = self._open.enter_context(
            connect(
                server.url.replace("http", "ws") + "/v1/agent",
                additional_headers={"Authorization": f"Bearer {AGENT}"},
                compression=None,
                proxy=None,
            )
        )
        self.closed: int | None = None
        self._send = threading.Lock()
        self._say(Hello(WIRE_VERSION, machine))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> FakeAgent:
        self.wait_for(lambda: bool(self.assignments))
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 10), "the agent waited in vain"

    def see(self, attempt: AttemptState) -> None:
        """Something happened to an attempt."""
        with self.changed:
            self._attempts[attempt.attempt] = attempt
        self._report()

    def _run(self) -> None:
        try:
            while True:
                frame = decode_from_server(self._socket.recv())
                match frame:
                    case Assignment():
                        self._reconcile(frame)
                    case Ask():
                        self._say(self._answer(frame))
                    case ReportAck():
                        pass
        except ConnectionClosed as err:
            with self.changed:
                self.closed = err.rcvd.code if err.rcvd else None
                self.changed.notify_all()

    def _reconcile(self, assignment: Assignment) -> None:
        with self.changed:
            self.assignments.append(assignment)
            wanted = {job.attempt: job for job in assignment.jobs}
            kept = {attempt: self._attempts.get(attempt) or self.behave(attempt) for attempt in wanted}
            for attempt, job in wanted.items():
                if job.stop_signal is not None and kept[attempt].phase != "ended":
                    kept[attempt] = msgspec.structs.replace(kept[attempt], phase="ended", signal=job.stop_signal)
            self._attempts = kept
            self.changed.notify_all()
        self._report()

    def _report(self) -> None:
        with self.changed:
            self._seq += 1
            newest = self.assignments[-1]
            functions = tuple(
                FunctionSeen(function.name, function.revision, self.function_state, routed_revision=function.revision)
                for function in newest.functions
            )
            attempts = tuple(self._attempts.values())
            report = Report(self._seq, self.machine.id, self.machine.boot_id, newest.generation, attempts, functions)
        self._say(report)

    def _answer(self, ask: Ask) -> Answer:
        if ask.what == "proof":
            asked: dict[str, object] = {"cpus": [0]}
            return Answer(ask.id, msgspec.json.encode(Proof(ProofState.MATCH, asked, asked)))
        log = self.logs.get((ask.workload, ask.stream))
        if log is None:
            return Answer(ask.id, next_offset=ask.offset, error="nothing was written")
        data = log[ask.offset : ask.offset + ask.limit]
        return Answer(ask.id, data, ask.offset + len(data))

    def _say(self, frame: Hello | Report | Answer) -> None:
        with self._send:
            self._socket.send(encode(frame))


def problem(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of a refusal, whose shape is checked."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = json.loads(answer.text)
    assert set(body) == {"type", "title", "status", "detail", "code"} and body["status"] == answer.status_code
    assert body["detail"]
    return answer.status_code, body["code"]
