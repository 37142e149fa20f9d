"""What does a program of the machine say? Runs one for a short time, with a small environment; never raises for how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import msgspec

#: a GPU that has hung makes its tools hang
TIMEOUT_S = 20.0
OUTPUT_MAX = 4 * 1024 * 1024


class Told(msgspec.Struct, frozen=True):
    text: str = ""
    #: there is no such program
    missing: bool = False
    #: one sentence; "" when it went well
    error: str = ""


def ask(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> Told:
    path = os.environ.get("PATH") or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    program = shutil.which(command[0], path=path + ":/usr/sbin:/sbin")
    if program is None:
        return Told(missing=True)
    # Containers of clouds find the driver's libraries by LD_LIBRARY_PATH alone.
    environ = {"PATH": path, "LC_ALL": "C", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, timeout=timeout_s, env=environ, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return Told(error=f"{command[0]} did not answer within {timeout_s:.0f} s.")
    except OSError as err:
        return Told(error=f"{command[0]} could not be run ({err.strerror}).")
    text = done.stdout[:OUTPUT_MAX].decode(errors="replace")
    if done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip() or text.strip()).partition("\n")[0][:200]
        return Told(text, error=f"{command[0]} failed with code {done.returncode}: {said or 'it said nothing'}.")
    return Told(text)
