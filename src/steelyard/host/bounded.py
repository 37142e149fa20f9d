"""What is in a file that somebody named? Its bytes, never more than a bound. A refusal names the file and not its folder."""

from __future__ import annotations

import stat
from pathlib import Path

from steelyard.errors import Refused


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """Raises `Refused` for what can't be read, is larger, or is no file (opening a pipe may wait for ever). A large file is not
    even opened."""
    try:
        seen, data = path.stat(), b""
        size = seen.st_size
        if not stat.S_ISREG(seen.st_mode):
            raise Refused(f"{path.name} is not a regular file. Save what it says to a file and give that.", code="no-file")
        if size <= bytes_max:
            with path.open("rb") as file:
                data = file.read(bytes_max + 1)
    except OSError as err:
        raise Refused(f"{path.name} can't be read: {err.strerror or err}.", code="unreadable") from err
    if max(size, len(data)) > bytes_max:
        raise Refused(f"{path.name} is larger than {bytes_max >> 20} MiB. Cut it to the part that matters.", code="too-large")
    return data
