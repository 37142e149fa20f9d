"""How do Slurm's stand-ins get onto a job's PATH? `make_slurm_bin` makes a folder of launchers for the agent to put there."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import tempfile
from pathlib import Path

from steelyard.errors import EdgeFailed
from steelyard.runtime.slurm.main import NAMES

_SOURCES = Path(__file__).parent / "slurm"

_LAUNCHER = """#!/bin/sh
# where this interpreter can't be reached, the system's or the container's will do
python={python}
[ -x "$python" ] || python=$(command -v python3) || {{
    echo "{name}: error: there is no python3 here, which {name} needs: take an image that has one, or leave {name} out" >&2
    exit 127
}}
exec "$python" -I -S {main} {name} "$@"
"""


def make_slurm_bin(folder: Path, python: str) -> Path:
    """`<folder>/<hash>/bin` with `srun`, `sbatch`, `squeue`, `scancel` and `scontrol`, readable by everybody, and what they need
    beside it. `python`: the interpreter that runs them. Made once per content. EdgeFailed when it can't be written."""
    sources = sorted(_SOURCES.glob("*.py"))
    stamp = hashlib.sha256(python.encode() + b"\0" + _LAUNCHER.encode())
    for source in sources:
        stamp.update(source.name.encode() + b"\0" + source.read_bytes())
    made = folder / stamp.hexdigest()[:16]
    if made.is_dir():
        return made / "bin"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
        try:
            _fill(fresh, made, sources, python)
            fresh.chmod(0o755)
            fresh.rename(made)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not made.is_dir():  # else somebody else was faster
                raise
    except OSError as err:
        raise EdgeFailed(f"could not make the folder of Slurm's stand-ins {made}: {err}", code="slurm-bin") from err
    return made / "bin"


def _fill(fresh: Path, made: Path, sources: list[Path], python: str) -> None:
    package, programs = fresh / "slurm", fresh / "bin"
    for each in (package, programs):
        each.mkdir()
        each.chmod(0o755)
    for source in sources:
        (package / source.name).write_bytes(source.read_bytes())
        (package / source.name).chmod(0o644)
    for name in NAMES:
        main = shlex.quote(str(made / "slurm" / "main.py"))
        (programs / name).write_text(_LAUNCHER.format(python=shlex.quote(python), main=main, name=name))
        (programs / name).chmod(0o755)
