"""What does the child that becomes a container runtime mount first? An image's files, writable without a change on disk.

Runs between fork and exec (`spawn_child.py`), as root, in a mount namespace of its own: nothing appears in the machine's table,
and all of it goes with the last process inside. Files that are written go to memory, which counts as the workload's. Raises
OSError with the step.
"""

from __future__ import annotations

import os
import resource
import stat

from steelyard.runtime import mount_calls
from steelyard.runtime.mount_calls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY

TYPE_CHECKING = False  # see launch.py: what is imported costs time at each start
if TYPE_CHECKING:
    from steelyard.wire.spawn import Rootfs

ROOT, SYS, DEV = "rootfs", "sys", "dev"
_CGROUP = "/sys/fs/cgroup"
#: prctl(2), capabilities(7)
PR_CAPBSET_DROP, CAP_CHOWN = 24, 0


def enter(rootfs: Rootfs, userns: int | None) -> None:
    """`userns` maps the ids of `lower`, see `mount_calls.bind`."""
    if rootfs.network:
        fd = os.open(f"/proc/{rootfs.network}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        mount_calls.setns(fd, f"the network of process {rootfs.network}")
        os.close(fd)
    mount_calls.unshare(mount_calls.NEWNS)
    mount_calls.keep_to_myself()
    if os.path.isdir(_CGROUP):
        # The groups were made and joined before; crun refuses hybrid machines when it sees them.
        mount_calls.mount("none", _CGROUP, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV)
    if rootfs.lock_memory:
        # kept by the container, which may not raise it itself
        raise_limit(resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)
    if not rootfs.lower:
        return
    folder = rootfs.folder
    mount_calls.mount("none", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    written = rootfs.disk or folder
    for name in ("lower", ROOT, SYS) if rootfs.disk else ("lower", "upper", "work", ROOT, SYS):
        os.mkdir(f"{folder}/{name}")
    mount_calls.bind(rootfs.lower, f"{folder}/lower", userns=userns)
    # the folder that is written is what shows as /
    os.chown(f"{written}/upper", rootfs.uids[0][1], rootfs.gids[0][1])
    options = f"lowerdir={folder}/lower,upperdir={written}/upper,workdir={written}/work"
    mount_calls.mount("overlay", f"{folder}/{ROOT}", "overlay", MS_NOSUID | MS_NODEV, options)
    mount_calls.bind("/sys", f"{folder}/{SYS}")
    if rootfs.devices:
        _make_devices(rootfs)


def raise_limit(limit: int, value: int) -> None:
    """As far as it is ours to lift (that needs CAP_SYS_RESOURCE)."""
    try:
        resource.setrlimit(limit, (value, value))
    except (OSError, ValueError):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))


def _make_devices(rootfs: Rootfs) -> None:
    """Its own, by number: the machine's may be closed to the owner, lie elsewhere, or not have been made yet."""
    folder = f"{rootfs.folder}/{DEV}"
    os.mkdir(folder)
    mount_calls.mount("none", folder, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755")
    for at, node in enumerate(rootfs.devices):
        path = f"{folder}/{at}"
        os.mknod(path, stat.S_IFBLK if node.kind == "b" else stat.S_IFCHR, os.makedev(node.major, node.minor))
        os.chmod(path, 0o666)
        os.chown(path, *rootfs.owner)
