"""The programs we are measured beside, in a virtual environment of their own: `.bench/`. Made once; what can't be installed is
reported as such, never guessed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".bench"
PYTHON = FOLDER / "bin" / "python"
PACKAGES = ("uvicorn", "httptools", "uvloop", "gunicorn", "uvicorn-worker", "ray[serve]", "distributed", "parsl")


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise RuntimeError("uv is needed to install the peers")
    return found


def install() -> None:
    """Raises RuntimeError with the installer's last line."""
    # bytecode as we have it: else every start of theirs would compile what it imports
    install = [uv(), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(PYTHON), *PACKAGES]
    stamp = FOLDER / ".done"
    if stamp.exists() and stamp.read_text() == " ".join(install[1:]):
        return
    for command in ([uv(), "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)], install):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the installation failed")
    stamp.write_text(" ".join(install[1:]))


def version(package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip()


def socket_activated(app_folder: Path, socket_path: Path) -> float:
    """Seconds from connecting to the first byte: the connection waits in the backlog while `uvicorn --fd 3` is forked, executed
    and imports. What systemd's socket activation would do, without systemd."""
    socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))
    listener.listen(16)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    begin = time.monotonic()
    client.connect(str(socket_path))
    client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    os.set_inheritable(listener.fileno(), True)
    child = subprocess.Popen(
        [PYTHON, "-m", "uvicorn", "--fd", str(listener.fileno()), "--log-level", "warning", "app:app"],
        cwd=app_folder,
        pass_fds=(listener.fileno(),),
    )
    try:
        client.recv(1)
        return time.monotonic() - begin
    finally:
        client.close()
        child.terminate()
        child.wait(30)
        listener.close()


@contextlib.contextmanager
def gunicorn(app_folder: Path, port: int) -> Iterator[None]:
    """`gunicorn --preload` with one uvicorn worker, running already."""
    child = subprocess.Popen(
        [PYTHON, "-m", "gunicorn", "--preload", "-w", "1", "-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{port}",
         "--log-level", "error", "app:app"],
        cwd=app_folder,
    )  # fmt: skip
    try:
        wait_listening(port)
        yield
    finally:
        child.terminate()
        child.wait(30)


def wait_listening(port: int, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port} after {timeout_s:g} s")


RAY = """
import sys, time, urllib.request
import ray
from ray import serve
from ray.serve.config import HTTPOptions

ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
serve.start(http_options=HTTPOptions(port=int(sys.argv[1])), logging_config={"log_level": "ERROR"})

@serve.deployment(autoscaling_config={"min_replicas": 0, "max_replicas": 1, "initial_replicas": 0, "downscale_delay_s": 1,
                                      "downscale_to_zero_delay_s": 1, "upscale_delay_s": 0})
class Hello:
    async def __call__(self, request):
        return "hello"

serve.run(Hello.bind(), route_prefix="/")
for _ in range(int(sys.argv[2])):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        deployments = serve.status().applications["default"].deployments["Hello"].replica_states
        if not deployments.get("RUNNING") and not deployments.get("STOPPING"):
            break
        time.sleep(0.2)
    begin = time.monotonic()
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/", timeout=120).read()
    print("wake", time.monotonic() - begin, flush=True)
serve.shutdown()
ray.shutdown()
"""


def ray_serve(port: int, rounds: int) -> list[float]:
    """Seconds of each request to a Ray Serve deployment that had scaled to zero."""
    # its session folder and its token go with the folder
    with tempfile.TemporaryDirectory(prefix="ray") as home:
        env = {**os.environ, "HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
        done = subprocess.run([PYTHON, "-c", RAY, str(port), str(rounds)], capture_output=True, text=True, timeout=400, env=env)
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("wake ")]
    if not found:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "Ray Serve gave no figure")
    return found
