"""How does a process get mounts that nobody else sees? Thin calls to the kernel, for children that are about to exec.

Never touches the mounts of the process that it is imported into: callers have left its namespace (`unshare`) first. Raises
OSError with the step as its file name. The newer calls (open_tree, mount_setattr: Linux 5.12) have no function in glibc; their
numbers are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat

TYPE_CHECKING = False  # see launch.py: what is imported costs time at each start
if TYPE_CHECKING:
    from collections.abc import Iterable

    #: (first id inside, first id outside, how many), as /proc/<pid>/uid_map has it
    IdMap = Iterable[tuple[int, int, int]]

#: include/uapi/linux/mount.h, sched.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME, MS_NODIRATIME = 1, 2, 4, 8, 32, 1024, 2048
MS_BIND, MS_REC, MS_SLAVE, MS_RELATIME = 4096, 16384, 1 << 19, 1 << 21
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000,
)  # fmt: skip
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_IDMAP = 0x1, 0x2, 0x4, 0x0010_0000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR, _PIVOT_ROOT = 428, 429, 442, {"x86_64": 155, "aarch64": 41}
_OPEN_TREE_CLONE, _AT_FDCWD, _AT_EMPTY_PATH, _MOVE_FROM_FD = 1, -100, 0x1000, 4
_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10
#: from which port on anybody may listen, of the network namespace that one is in
FIRST_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    ]


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def keep_to_myself() -> None:
    """After `unshare(NEWNS)`: what is mounted from here on stays here. What the machine unmounts goes here too."""
    mount("", "/", "", MS_REC | MS_SLAVE)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    number = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(number, f"mount {kind or source} on {target}")


def bind(source: str, target: str, *, read_only: bool = True, userns: int | None = None) -> None:
    """`source` without what is mounted below it, on `target`, without setuid and devices. `userns`: a descriptor of a user
    namespace by whose maps ids on disk become ids seen."""
    tree = _check(_syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC), f"open {source}")
    try:
        wanted = ATTR_NOSUID | ATTR_NODEV | (ATTR_RDONLY if read_only else 0) | (ATTR_IDMAP if userns is not None else 0)
        attributes = _Attributes(wanted, 0, 0, userns or 0)
        size = ctypes.sizeof(attributes)
        what = f"map the ids of {source}" if userns is not None else f"restrict {source}"
        _check(_syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size), what)
        _check(_syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_FD), f"mount {source} on {target}")
    finally:
        os.close(tree)


def pivot_root(root: str, old: str) -> None:
    """`root` (a mount) becomes /, what was there is at `old`, a folder in it. With "." for both it lies upon the new one until
    `let_go(".")`, and no folder is needed."""
    _check(_syscall(_PIVOT_ROOT[os.uname().machine], os.fsencode(root), os.fsencode(old)), f"pivot_root to {root}")


def let_go(folder: str) -> None:
    """Of a mount, once nobody is in it any more."""
    _check(_libc.umount2(os.fsencode(folder), MNT_DETACH), f"let go of {folder}")


def setns(fd: int, what: str) -> None:
    _check(_libc.setns(fd, 0), what)


def write_maps(proc: str, users: IdMap, groups: IdMap, dir_fd: int | None = None) -> None:
    """Of the process whose /proc folder this is; needs root's rights above it."""
    for name, lines in (("uid_map", users), ("gid_map", groups)):
        fd = os.open(f"{proc}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.write(fd, "".join(f"{inside} {outside} {count}\n" for inside, outside, count in lines).encode())
        finally:
            os.close(fd)


def make_userns(users: IdMap, groups: IdMap) -> int:
    """A descriptor of a user namespace with these maps. It needs a process to be born in; that one is gone again on return."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    wait, release = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(release)
            unshare(NEWUSER)
            os.write(tell, b"+")
            os.read(wait, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        os.close(wait)
        if not os.read(ready, 1):
            raise OSError(0, "a user namespace could not be made")
        write_maps(f"/proc/{pid}", users, groups)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(release)
        os.waitpid(pid, 0)


def find_inside(root: str, path: str) -> int:
    """The mode of what `path` is for somebody whose / is `root`, however its links are made. Raises OSError."""
    fd = _open_inside(root, path)
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def read_inside(root: str, path: str, limit: int) -> str:
    """What that file says, as far as `limit`; "" where there is no such file."""
    try:
        fd = _open_inside(root, path)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # opening a pipe would wait
            return ""
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(limit).decode(errors="replace")
    finally:
        os.close(fd)


def resolve_inside(root: str, path: str) -> str:
    """The same path without links, still as from `root`. Raises OSError."""
    fd = _open_inside(root, path)
    try:
        return "/" + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), os.path.realpath(root)).removeprefix(".")
    finally:
        os.close(fd)


def _open_inside(root: str, path: str) -> int:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        return _check(_syscall(_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)), path)
    finally:
        os.close(folder)


def _syscall(number: int, *arguments: object) -> int:
    return _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
