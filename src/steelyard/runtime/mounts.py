"""How does a fresh child of the spawner come to see volumes that nobody else sees? A mount namespace of its own.

Carries out `model.mount.Mounts` as it stands; what to mount where was decided before (`lifecycle/mounts.py`). Nothing appears in
the machine's mount table, and all of it goes with the last process inside. Without root the namespace belongs to a user namespace
in which the child is the same user, where the kernel allows one. Raises OSError with the step as its file name.

Not private but slave: what the machine unmounts (a job's scratch, a disk) goes here too, instead of being held by us.
"""

from __future__ import annotations

import ctypes
import os
import stat

from steelyard.model.mount import Mounts, Rebuilt

#: include/uapi/linux/mount.h, sched.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME, _MS_NODIRATIME, _MS_RELATIME = 1, 2, 4, 8, 1024, 2048, 1 << 21
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE, _MNT_DETACH = 32, 4096, 16384, 1 << 19, 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
#: where the new root is put together; the machine's own folder of that name comes back with the rest
_STAGE, _OLD = "/tmp", "/.machine"
#: the step that is refused where nothing can be mounted, and what is left then
NAMESPACE = "a mount namespace of its own"
WITHOUT = (
    "this machine lets no work mount anything; name the volume without a path, and read its folder from STEELYARD_VOLUME_<NAME>"
)
_libc = ctypes.CDLL(None, use_errno=True)


def enter_own(mounts: Mounts) -> None:
    """In a process with one thread, before it gives up root."""
    uid, gid = os.geteuid(), os.getegid()
    own_user = uid != 0
    _call(NAMESPACE, _libc.unshare, _CLONE_NEWNS | (_CLONE_NEWUSER if own_user else 0))
    if own_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    # some systems give an ordinary user the namespace, and refuse only what is done in it
    _call(NAMESPACE, _libc.mount, None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None)
    # the root comes first: what is below it is then reached through the new one
    for rebuilt in sorted(mounts.rebuilt, key=lambda each: each.folder.count("/") if each.folder != "/" else 0):
        _rebuild_root(rebuilt) if rebuilt.folder == "/" else _rebuild(rebuilt)
    for bind in mounts.binds:
        _mount(bind.source, bind.target, _MS_BIND)
        _restrict(bind.target, _MS_RDONLY if bind.read_only else 0)
    for rebuilt in mounts.rebuilt:
        _restrict(rebuilt.folder, _MS_RDONLY)


def join(pid: int) -> None:
    """See what that process sees, unless we do already. Its user namespace comes first: only there may we enter the other."""
    for name in ("mnt",) if os.geteuid() == 0 else ("user", "mnt"):
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino == os.stat(f"/proc/self/ns/{name}").st_ino:
            continue
        fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call(f"the namespace of process {pid}", _libc.setns, fd, 0)
        finally:
            os.close(fd)


def _rebuild_root(rebuilt: Rebuilt) -> None:
    """The folder's copy becomes the root; the machine's own is reached through its entries and nowhere else."""
    _mount_memory(_STAGE)
    os.mkdir(_STAGE + _OLD)
    _call("a root of its own", _libc.pivot_root, _STAGE.encode(), (_STAGE + _OLD).encode())
    os.chdir("/")
    for name in os.listdir(_OLD):
        _show(f"{_OLD}/{name}", f"/{name}")
    _call("letting go of the machine's root", _libc.umount2, _OLD.encode(), _MNT_DETACH)
    os.rmdir(_OLD)
    for point in rebuilt.points:
        os.makedirs(point, exist_ok=True)


def _rebuild(rebuilt: Rebuilt) -> None:
    below = os.open(rebuilt.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _mount_memory(rebuilt.folder)
        for name in os.listdir(f"/proc/self/fd/{below}"):
            _show(f"/proc/self/fd/{below}/{name}", f"{rebuilt.folder}/{name}")
    finally:
        os.close(below)
    for point in rebuilt.points:
        os.makedirs(point, exist_ok=True)


def _show(source: str, target: str) -> None:
    """An entry of the machine's folder in its copy. What went meanwhile is left out."""
    try:
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            return
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _mount(source, target, _MS_BIND | _MS_REC)
    except FileNotFoundError:
        return


def _mount_memory(folder: str) -> None:
    _mount("tmpfs", folder, _MS_NOSUID | _MS_NODEV, b"tmpfs", b"mode=0755,size=4m")


def _restrict(target: str, more: int) -> None:
    """What the file system's own mount forbids stays forbidden: in a user namespace leaving it out would be refused."""
    told = os.statvfs(target).f_flag
    kept = told & (_MS_RDONLY | _MS_NOEXEC | _MS_NOATIME | _MS_NODIRATIME) | (_MS_RELATIME if told & 4096 else 0)
    _mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | kept | more)


def _mount(source: str | None, target: str, flags: int, kind: bytes | None = None, options: bytes | None = None) -> None:
    said = None if source is None else os.fsencode(source)
    step = target if source is None else f"{source} at {target}"
    _call(step, _libc.mount, said, os.fsencode(target), kind, ctypes.c_ulong(flags), options)


def _call(step: str, function: object, *arguments: object) -> None:
    ctypes.set_errno(0)
    assert callable(function)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), step)
