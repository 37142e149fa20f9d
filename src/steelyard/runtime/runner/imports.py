"""Which installed packages does the user's code import, and what do they cost? An environment template imports them ahead, so
that whatever is forked from it has only the user's own files left to import.

`scan` reads source text and runs nothing of it. `find_installed` keeps names that a plain start would find among what is
installed (site-packages): what the code brings itself, or has by a path of its own, may change without notice and is the
revision's business. `import_packages` stops at the first package that can't be had before a fork, because a half-done import or
a thread can't be taken back: the process is given up and made again without it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder
from typing import Any

from .threads import unaccounted_threads

#: source files that are read, and their size: a module of a megabyte is data
FILES_MAX, SOURCE_MAX_BYTES = 256, 1 << 20
#: `import steelyard` loads nothing by itself; what an app and its serving need of it is this
_OURS = {"steelyard": ("steelyard.sdk", "steelyard.sdk.app", "steelyard.sdk.serving")}
_SITE = re.compile(r"[/\\](site|dist)-packages[/\\]")


def scan(path: str, everywhere: bool = False) -> list[str]:
    """Dotted names in the order of their import statements: those that run when the module is imported, or all. Empty for
    what is no Python, and for code that changes sys.path, since where it finds a package only running it can tell."""
    try:
        with open(path, "rb") as file:
            source = file.read(SOURCE_MAX_BYTES + 1)
        if len(source) > SOURCE_MAX_BYTES or (b"sys.path" in source and not everywhere):
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[str] = []
    for node in ast.walk(tree) if everywhere else _at_import(tree.body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
            if everywhere:  # `from scipy import stats`: whether that is a module is seen by what was loaded
                found += [f"{node.module}.{alias.name}" for alias in node.names]
    return list(dict.fromkeys(found))


def _at_import(body: Sequence[ast.stmt]) -> Iterable[ast.stmt]:
    """Statements that run with the module: also inside `try` and `if`, but not in functions nor for type checkers alone."""
    for node in body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                yield from _at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _at_import([*node.body, *node.orelse, *node.finalbody])
        elif isinstance(node, (ast.With, ast.ClassDef)):
            yield from _at_import(node.body)
        else:
            yield node


def find_installed(names: Iterable[str], code_dirs: Sequence[str]) -> list[str]:
    """Those that are found in site-packages, and that the code does not hide by a file of its own."""
    known: dict[str, bool] = {}
    found: list[str] = []
    for name in names:
        top = name.partition(".")[0]
        if top not in known:
            known[top] = _is_installed(top, code_dirs)
        if known[top]:
            found += _OURS.get(name, (name,))
    return list(dict.fromkeys(found))


def _is_installed(top: str, code_dirs: Sequence[str]) -> bool:
    if top in sys.stdlib_module_names or top == "steelyard_runner":
        return False
    try:
        if PathFinder.find_spec(top, list(code_dirs)) is not None:
            return False
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError, OSError):
        return False
    return spec is not None and spec.origin is not None and (top in _OURS or _SITE.search(spec.origin) is not None)


def installation_stamp() -> str:
    """Changes when packages are installed, updated or removed: each is a folder entry of its own there."""
    folders = [folder for folder in sys.path if _SITE.search(folder + os.sep)]
    return str([(folder, os.stat(folder).st_mtime_ns) for folder in folders if os.path.isdir(folder)])


#: in an environment, and for what is forked from it: the names that it was asked for, and how many modules it has loaded
_asked: list[str] = []
_loaded: list[int] = []


class Unfit(Exception):
    """A package that can't be imported before a fork, and why."""

    def __init__(self, package: str, why: str) -> None:
        super().__init__(package, why)
        self.package = package
        self.why = why


def import_packages(names: Sequence[str]) -> list[dict[str, Any]]:
    """Import them in order: [{"name", "ms", "bytes"}], memory as what this process alone holds since. Raises Unfit."""
    costs: list[dict[str, Any]] = []
    for name in names:
        began, before = time.monotonic_ns(), own_bytes()
        try:
            importlib.import_module(name)
        except BaseException as err:
            raise Unfit(name, f"its import failed: {type(err).__name__}: {err}"[:500]) from err
        if threads := unaccounted_threads():
            raise Unfit(name, f"its import starts a {threads[0]['name']}")
        costs.append({"name": name, "ms": (time.monotonic_ns() - began) / 1e6, "bytes": max(0, own_bytes() - before)})
    _asked[:] = names
    return costs


def note_loaded() -> None:
    """Of an environment that is complete: what is loaded later, the user's code is the reason for."""
    _loaded[:] = [len(sys.modules)]


def learn(code_dirs: Sequence[str]) -> list[str]:
    """What the user's loaded files import of what is installed and loaded, with the parts that these packages load later."""
    roots = tuple(os.path.join(os.path.realpath(folder), "") for folder in code_dirs)
    files = [path for module in list(sys.modules.values()) if (path := _file_of(module)).startswith(roots)][:FILES_MAX]
    wanted = dict.fromkeys(name for path in files for name in scan(path, everywhere=True))
    found = find_installed([name for name in wanted if name in sys.modules], code_dirs)
    if not _loaded:
        return found
    # what these packages load of themselves on first use: now, or so that the environment has it already
    tops = {name.partition(".")[0] for name in found}
    late = [*_asked, *list(sys.modules)[_loaded[0] :]]
    parts = [name for name in late if name.partition(".")[0] in tops and _file_of(sys.modules.get(name))]
    return list(dict.fromkeys([*found, *parts[:FILES_MAX]]))


def top_level() -> dict[str, int]:
    """Loaded modules beside the standard library, counted by their first name."""
    counts: dict[str, int] = {}
    for name in sys.modules:
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("steelyard_runner", "__mp_main__"):
            counts[top] = counts.get(top, 0) + 1
    return counts


def own_bytes() -> int:
    """Resident memory that is no file's."""
    with open("/proc/self/statm") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def _file_of(module: object) -> str:
    path = getattr(module, "__file__", None)
    return os.path.realpath(path) if isinstance(path, str) and path.endswith(".py") else ""
