"""A Steelyard of its own for one measurement: started on a temporary home, always taken down again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CLI_TIMEOUT_S = 180
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Installation:
    """`folder` may be entered by every user; apps to deploy are written below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api_port, self.gateway_port = free_port(), free_port()
        self.env = {**os.environ, "STEELYARD_HOME": str(folder / "home")}

    def cli(self, *args: str) -> str:
        done = subprocess.run(
            self.command(*args), env=self.env, capture_output=True, text=True, timeout=CLI_TIMEOUT_S, cwd=self.folder
        )
        if done.returncode != 0:
            raise RuntimeError(f"steelyard {' '.join(args)}: {done.stderr}{done.stdout}")
        return done.stdout

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-P", "-m", "steelyard", *args]

    def up(self) -> None:
        self.cli("up", "--detach", "--port", str(self.api_port), "--gateway-port", str(self.gateway_port))

    def deploy(self, app: Path, name: str, *options: str) -> None:
        self.cli("deploy", f"{app}:app", "--name", name, *options)

    def write_app(self, name: str, text: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "app.py").write_text(text)
        return folder / "app.py"

    @property
    def token(self) -> str:
        return (self.folder / "home" / "admin.token").read_text().strip()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def function(self, name: str) -> Mapping[str, Any]:
        return self.api("GET", f"/v1/functions/{name}")

    def wait_asleep(self, name: str, wakes: int | None = None, timeout_s: float = 30.0) -> None:
        """Until it sleeps, and has woken `wakes` times by its ledger (right after a wake the state may still be the one before).
        Looks every 50 ms, which leaves the machine alone in between."""
        end = time.monotonic() + timeout_s
        while True:
            found = len(self.wakes(name)) if wakes is not None else None
            state = self.function(name)["state"]
            if found == wakes and state == "SLEEPING":
                return
            if time.monotonic() > end:
                raise RuntimeError(f"{name} is {state} with {found} of {wakes} wakes after {timeout_s:g} s")
            time.sleep(0.05)

    def wakes(self, name: str) -> list[Any]:
        """Its ledger, the oldest first."""
        return self.api("GET", f"/v1/coldstarts?function={name}&limit=1000")

    def programs(self) -> dict[str, Any]:
        return {program["name"]: program for program in json.loads(self.cli("status", "--json"))["programs"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def installation(prepare: Callable[[Path], Mapping[str, str]] | None = None) -> Iterator[Installation]:
    """`prepare` is given its folder before anything is started, and answers with variables."""
    folder = Path(tempfile.mkdtemp(prefix="sybench-"))
    folder.chmod(0o755)
    made = Installation(folder)
    if prepare is not None:
        made.env.update(prepare(folder))
    try:
        made.up()
        yield made
    finally:
        try:
            made.cli("down")
        except (RuntimeError, subprocess.SubprocessError) as err:
            print(f"not taken down, and left where it is for a look: {folder}: {err}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
