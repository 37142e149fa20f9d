"""With whose programs is an image made that has none below it? The machine's own, seen read-only in a container that has no other
files: `<images>/machine` is its /, with the machine's links and users that mean nothing outside.

What is private to the machine's root is closed to root of that container, as it is to any user.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from steelyard.config import write_file
from steelyard.model.mount import Bind
from steelyard.runtime.oci import RANGE_FIRST

#: programs and what they are linked against
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: how the machine's programs, and its apt, are set up
_CONFIGURED = (
    "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/certs", "/etc/apt/apt.conf", "/etc/apt/apt.conf.d",
    "/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/trusted.gpg", "/etc/apt/trusted.gpg.d", "/etc/apt/keyrings",
)  # fmt: skip
_FILES = {"etc/passwd": b"root:x:0:0:root:/:/bin/sh\n", "etc/group": b"root:x:0:\n"}


def make_root(images: Path) -> Path:
    """The folder that is / of such a container."""
    root = images / "machine"
    for name in ("etc", "tmp", "var/lib/apt/lists/partial", "var/lib/dpkg", "var/cache/apt/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    for name, content in _FILES.items():
        if not (root / name).exists():
            write_file(root / name, content, 0o644)
    for place in _SYSTEM:
        with contextlib.suppress(FileExistsError, OSError):
            os.symlink(os.readlink(place), f"{root}{place}")
    for path, _, names in os.walk(root):
        for each in (path, *(f"{path}/{name}" for name in names)):
            os.chown(each, RANGE_FIRST, RANGE_FIRST, follow_symlinks=False)
    return root


def list_binds() -> tuple[Bind, ...]:
    return tuple(
        Bind(place, place, True) for place in (*_SYSTEM, *_CONFIGURED) if not os.path.islink(place) and os.path.exists(place)
    )
