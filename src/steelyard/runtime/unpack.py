"""How is a bundle unpacked without trusting it? Standard library only.

(tarfile's own `data` filter came with Python 3.11.4; Debian 12 has 3.11.2.)
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path


def unpack(data: bytes, folder: Path) -> None:
    """A tar.gz into an empty folder: plain files, folders, and links to inside. Raises TarError for anything else: the whole
    bundle is refused then, and what was unpacked of it is the caller's to remove."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        archive.extractall(folder, members=_checked(archive, folder))


def _checked(archive: tarfile.TarFile, folder: Path) -> Iterator[tarfile.TarInfo]:
    root = os.path.realpath(folder)
    for member in archive:
        place = os.path.realpath(os.path.join(root, member.name))
        leads_out = not (place + os.sep).startswith(root + os.sep)
        if member.issym():
            target = os.path.realpath(os.path.join(os.path.dirname(place), member.linkname))
            leads_out = leads_out or not (target + os.sep).startswith(root + os.sep)
        if leads_out or not (member.isreg() or member.isdir() or member.issym()):
            raise tarfile.TarError(f"{member.name!r} is no plain file, folder or link inside the bundle")
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        yield member
