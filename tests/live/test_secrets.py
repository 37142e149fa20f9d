"""Secrets of a real Steelyard, by root and by a user: given as they were asked for, never in clear at rest, hidden where shown."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

PASSWORD, NEWER = "correct-horse-battery", "newer-staple-password"
CERT = "-----BEGIN CERT-----\nMIIBszCCAVmgAwIBAgIUXs\n-----END CERT-----\n"
#: somebody who is not root
UID = 64321

APP = """
import os, steelyard as sy
app = sy.App("vault")
at_import = os.environ["PASSWORD"]

@app.function(secrets=[sy.Secret.from_name("db"), sy.Secret.from_name("tls", as_files=True)], max_replicas=2, idle_timeout="1s")
def look(what: str):
    if what == "import":
        return at_import
    if what == "files":
        folder = os.path.join(os.environ["STEELYARD_SECRETS"], "tls")
        return {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}
    if what == "print":
        print("the password is", os.environ["PASSWORD"], flush=True)
        return None
    if what == "raise":
        raise ValueError(f"can't log in with {at_import}")
    return os.environ["PASSWORD"]
"""
CALLER = """
import sys, traceback, steelyard as sy
look = sy.Function.from_name("vault-look")
try:
    print(look.remote(sys.argv[1]))
except ValueError as err:
    traceback.print_exc()
"""


class UserCluster(Cluster):
    """The same, of somebody who is not root."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.chown(folder, UID, UID)

    def command(self, *args: str) -> list[str]:
        return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *super().command(*args)]

    def environ(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return super().environ({"HOME": str(self.folder), **(more or {})})


@contextlib.contextmanager
def started(kind: type[Cluster]) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="sy-", dir="/tmp"))
    folder.chmod(0o755)
    made = kind(folder)
    try:
        made.up()
        yield made
    except BaseException:
        made.print_logs()
        raise
    finally:
        made.down()
        assert not list(Path("/dev/shm").glob(f"steelyard-{made.tag}*")), "files of secrets outlive Steelyard"
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=[Cluster, UserCluster] if os.geteuid() == 0 else [Cluster], ids=lambda kind: kind.__name__)
def vault(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """With the secrets db (PASSWORD) and tls (CERT)."""
    with started(request.param) as made:
        made.ok("secrets", "create", "db", "PASSWORD", input=PASSWORD.encode() + b"\n")
        made.ok("secrets", "create", "tls", "CERT=@-cert.pem", cwd=write(made, "-cert.pem", CERT).parent)
        yield made


def write(made: Cluster, name: str, text: str) -> Path:
    path = made.folder / name
    path.write_text(text)
    path.chmod(0o644)
    return path


def find_in_clear(made: Cluster, value: str, *, logs: bool = False) -> list[str]:
    """Files of the home and of the run folder that hold it, and command lines; but for the 0400 files and the work's own logs."""
    run = Path((made.home / "programs").exists() and run_folder(made))
    found: list[str] = []
    for root in (made.home, run):
        for path in root.rglob("*"):
            with contextlib.suppress(OSError):
                if not path.is_symlink() and path.is_file() and value.encode() in path.read_bytes():
                    found.append(str(path))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if value.encode() in path.read_bytes():
                found.append(str(path))
    if not logs:
        found = [path for path in found if not path.startswith(str(made.home / "workloads"))]
    return found


def run_folder(made: Cluster) -> Path:
    bases = ["/run/steelyard", f"/tmp/steelyard-{UID}", f"/tmp/steelyard-{os.geteuid()}", os.environ.get("XDG_RUNTIME_DIR", "/x")]
    return next(path for base in bases for path in (Path(base) / made.tag, Path(base) / "steelyard" / made.tag) if path.is_dir())


def call(made: Cluster, what: str) -> str:
    file = write(made, "caller.py", CALLER)
    done = made.ok("run", "--env", f"STEELYARD_HOME={made.home}", "--", "python3", "--version") if False else None
    del done
    import subprocess
    import sys

    ran = subprocess.run(
        [sys.executable, str(file), what], env=made.environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip() + ran.stderr
