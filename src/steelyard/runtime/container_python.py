"""Which Python has an image? What a Python function in a container runs on. Looks at names alone: nothing of the image runs."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from steelyard.errors import Refused
from steelyard.lifecycle.image import FUNCTION_PYTHON_MIN
from steelyard.runtime.mount_calls import find_inside, resolve_inside

_NAMES = ("python3", "python")
_VERSION = re.compile(r"python3\.(\d+)", re.ASCII)


def find_python(root: Path, path: str, reference: str) -> str:
    """Where the interpreter is inside. `path`: the image's PATH. Raises Refused, which says what is needed."""
    least = ".".join(map(str, FUNCTION_PYTHON_MIN))
    needs = f"A Python function runs on the image's own Python, which must be {least} or later"
    instead = "Name an image that has one, such as docker://python:3.12-slim, or a program with --port. Nothing was deployed."
    for place in (f"{folder}/{name}" for name in _NAMES for folder in path.split(":") if folder.startswith("/")):
        try:
            mode, real = find_inside(str(root), place), resolve_inside(str(root), place)
        except OSError:
            continue
        if not stat.S_ISREG(mode) or not mode & 0o111:
            continue
        minor = _find_minor(str(root), real)
        if minor is not None and (3, minor) < FUNCTION_PYTHON_MIN:
            raise Refused(f"The image {reference} has Python 3.{minor} at {place}. {needs}. {instead}", code="old-python")
        return place
    raise Refused(f"The image {reference} has no python3 in its PATH ({path}). {needs}. {instead}", code="no-python")


def _find_minor(root: str, real: str) -> int | None:
    """By the interpreter's name, else by the library beside it; None: not known before it runs."""
    names = [os.path.basename(real)]
    with contextlib.suppress(OSError):
        names += sorted(os.listdir(root + resolve_inside(root, os.path.join(os.path.dirname(real), "../lib"))))
    return next((int(match[1]) for name in names if (match := _VERSION.fullmatch(name))), None)
