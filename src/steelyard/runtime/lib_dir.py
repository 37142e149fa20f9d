"""What does the runner bring along into interpreters that have nothing of ours? One folder, named by its content, with the HTTP
server's packages and `steelyard` itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import steelyard
from steelyard.errors import EdgeFailed
from steelyard.runtime.runner.isolate import LIB_NAMES

#: what the runner needs; the others of LIB_NAMES make it faster
_NEEDED = ("uvicorn", "h11")
#: what user code finds there when its own environment has no such package
_OFFERED = ("cloudpickle", "a2wsgi")


def make_lib_dir(dest: Path, *, copied: bool = False) -> Path:
    """`<dest>/<hash>/` with the HTTP server's packages and `steelyard` itself, for interpreters that have none of them.
    Symbolic links where every user of the machine can follow them, copies elsewhere, and everywhere when `copied`. Made once per
    content; returns the folder. EdgeFailed when a package is missing."""
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
    linked = {name for name, target in targets.items() if not copied and _everybody_reads(target)}
    stamp = [(name, str(target), target.stat().st_mtime_ns, name in linked) for name, target in sorted(targets.items())]
    folder = dest / hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    try:
        dest.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".making-", dir=dest))
        try:
            _fill(fresh, targets, linked)
            _compile(fresh / "steelyard")
            fresh.chmod(0o755)
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.is_dir():  # else somebody else was faster
                raise
    except OSError as err:
        raise EdgeFailed(f"could not make the runner's folder {folder}: {err}", code="runner-folder") from err
    return folder


def _fill(folder: Path, targets: dict[str, Path], linked: set[str]) -> None:
    for name, target in targets.items():
        place = folder / (target.name if target.is_file() else name)
        if name in linked:
            place.symlink_to(target)
        elif target.is_file():
            shutil.copy(target, place)
            place.chmod(0o644)
        else:
            shutil.copytree(target, place, ignore=shutil.ignore_patterns("*.pyx", "*.pxd", "*.c", "*.h"))
            for copied in (place, *place.rglob("*")):
                copied.chmod(0o755 if copied.is_dir() else 0o644)


def _compile(package: Path) -> None:
    """What templates import of it, where it may be written: those who import it may not, and each would compile it anew, which
    takes time and leaves its code where less of it is shared."""
    sources = [each for folder in (".", "sdk", "runtime/runner") for each in (package / folder).glob("*.py")]
    stale = [str(source) for source in sources if not _is_compiled(source)]
    if stale:
        argv = [sys.executable, "-m", "compileall", "-q", *stale]
        subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _is_compiled(source: Path) -> bool:
    try:
        return Path(importlib.util.cache_from_source(str(source))).stat().st_mtime >= source.stat().st_mtime
    except OSError:
        return False


def _everybody_reads(target: Path) -> bool:
    """Every folder above can be entered by everybody, and the target read."""
    try:
        ways = all(folder.stat().st_mode & stat.S_IXOTH for folder in target.resolve().parents)
        return ways and bool(target.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
