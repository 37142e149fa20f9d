"""What copies files out of and into running work? `python -m steelyard.runtime.copy_inside PID UID GID CWD send|land PATH NAME`

Started in the work's control group, as root where we are root: it enters the mount namespace of process PID, so that every path
and link means what it means there and leads nowhere else, and gives up root before it looks at any file. Everything that it needs
is loaded before: what is imported afterwards would be the work's. Bytes come on 0 and go to 1; a landing ends with one line of
words, empty when all went well.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import BinaryIO

from steelyard.runtime.copying import CopyFailed, land, send
from steelyard.runtime.mount_calls import setns

_PR_SET_NO_NEW_PRIVS = 38


def enter(pid: int, uid: int, gid: int) -> None:
    """Nothing to do where we are not root: whoever started us has joined the work's namespaces already, as its user."""
    libc = ctypes.CDLL(None, use_errno=True)
    # an encoding is looked up when a name first needs it
    os.fsencode(os.fsdecode(b"\xff")).decode("utf-8", "surrogateescape").encode("ascii", "backslashreplace")
    sys.meta_path.clear()
    sys.path.clear()
    if os.geteuid() != 0:
        return
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    setns(fd, f"the files of process {pid}")
    os.close(fd)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def main(arguments: list[str], source: BinaryIO, out: BinaryIO) -> None:
    pid, uid, gid, cwd, what, path, name = arguments
    words = ""
    try:
        enter(int(pid), int(uid), int(gid))
        os.chdir(cwd)
        if what == "send":
            send(path, out)
        else:
            land(source, path, name)
    except CopyFailed as err:
        words = str(err)
    except OSError as err:
        words = f"{err.filename}: {err.strerror}"
    if what != "send":
        out.write(words.encode(errors="replace").replace(b"\n", b" ") + b"\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdin.buffer, sys.stdout.buffer)
