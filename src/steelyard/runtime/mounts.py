"""How does a fresh child of the spawner come to see volumes that nobody else sees? A mount namespace of its own.

Carries out `model.mount.Mounts` as it stands; what to mount where was decided before (`lifecycle/mounts.py`). Nothing appears in
the machine's mount table, and all of it goes with the last process inside. Without root the namespace belongs to a user namespace
in which the child is the same user, where the kernel allows one. Raises OSError with the step as its file name.

Not private but slave: what the machine unmounts (a job's scratch, a disk) goes here too, instead of being held by us.
"""

from __future__ import annotations

import os
import stat

from steelyard.runtime import mount_calls
from steelyard.runtime.mount_calls import MS_BIND, MS_NOATIME, MS_NODEV, MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC

TYPE_CHECKING = False  # see launch.py: what is imported costs time at each start
if TYPE_CHECKING:
    from steelyard.model.mount import Mounts, Rebuilt

#: statvfs(3) counts it apart
_ST_RELATIME = 4096
#: where the new root is put together; the machine's own folder of that name comes back with the rest
_STAGE, _OLD = "/tmp", "/.machine"
#: the step that is refused where nothing can be mounted, and what is left then
NAMESPACE = "a mount namespace of its own"
WITHOUT = (
    "this machine lets no work mount anything; name the volume without a path, and read its folder from STEELYARD_VOLUME_<NAME>"
)


def enter_own(mounts: Mounts) -> None:
    """In a process with one thread, before it gives up root."""
    uid, gid = os.geteuid(), os.getegid()
    own_user = uid != 0
    try:
        mount_calls.unshare(mount_calls.NEWNS | (mount_calls.NEWUSER if own_user else 0))
        if own_user:
            with open("/proc/self/setgroups", "w") as file:
                file.write("deny")
            mount_calls.write_maps("/proc/self", [(uid, uid, 1)], [(gid, gid, 1)])
        # some systems give an ordinary user the namespace, and refuse only what is done in it
        mount_calls.keep_to_myself()
    except OSError as err:
        raise OSError(err.errno, err.strerror, NAMESPACE) from err
    # the root comes first: what is below it is then reached through the new one
    for rebuilt in sorted(mounts.rebuilt, key=lambda each: each.folder.count("/") if each.folder != "/" else 0):
        _rebuild_root(rebuilt) if rebuilt.folder == "/" else _rebuild(rebuilt)
    for bind in mounts.binds:
        mount_calls.mount(bind.source, bind.target, "", MS_BIND)
        _restrict(bind.target, MS_RDONLY if bind.read_only else 0)
    for rebuilt in mounts.rebuilt:
        _restrict(rebuilt.folder, MS_RDONLY)


def join(pid: int) -> None:
    """See what that process sees, unless we do already. Its user namespace comes first: only there may we enter the other."""
    for name in ("mnt",) if os.geteuid() == 0 else ("user", "mnt"):
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino == os.stat(f"/proc/self/ns/{name}").st_ino:
            continue
        fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            mount_calls.setns(fd, f"the namespace of process {pid}")
        finally:
            os.close(fd)


def _rebuild_root(rebuilt: Rebuilt) -> None:
    """The folder's copy becomes the root; the machine's own is reached through its entries and nowhere else."""
    _mount_memory(_STAGE)
    os.mkdir(_STAGE + _OLD)
    mount_calls.pivot_root(_STAGE, _STAGE + _OLD)
    os.chdir("/")
    for name in os.listdir(_OLD):
        _show(f"{_OLD}/{name}", f"/{name}")
    mount_calls.let_go(_OLD)
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
        mount_calls.mount(source, target, "", MS_BIND | MS_REC)
    except FileNotFoundError:
        return


def _mount_memory(folder: str) -> None:
    mount_calls.mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=4m")


def _restrict(target: str, more: int) -> None:
    """What the file system's own mount forbids stays forbidden: in a user namespace leaving it out would be refused."""
    told = os.statvfs(target).f_flag
    kept = told & (MS_RDONLY | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME) | (mount_calls.MS_RELATIME if told & _ST_RELATIME else 0)
    mount_calls.mount("", target, "", mount_calls.MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | kept | more)
