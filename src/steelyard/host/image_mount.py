"""How does a file become a folder of an exact size, and stop being one? A loop device with ext4 on it.

By system calls, not by mount(8): this stands in the way of a job's start, and a device that is set up with AUTOCLEAR goes by
itself when the last user of its file system is gone, also after our death. Needs root. Raises OSError with the step's name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

#: include/uapi/linux/loop.h
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_CONFIG = struct.Struct("=IIQQQQQIIII64s64s32sQQ64x")
#: include/uapi/linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_NOATIME, _MNT_DETACH = 2, 4, 1024, 2
#: between asking for a free device and taking it somebody else may be faster
_TRIES = 16
_FALLOC_DEFAULT = 0
_libc = ctypes.CDLL(None, use_errno=True)


def allocate(path: Path, size_bytes: int) -> bool:
    """A new file whose space is taken from the disk now. False: this file system can't promise space, and the file is sparse.
    (Not posix_fallocate: glibc's writes zeros instead.)"""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        number = _call(_libc.fallocate, fd, _FALLOC_DEFAULT, ctypes.c_long(0), ctypes.c_long(size_bytes))
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            os.ftruncate(fd, size_bytes)
            return False
        if number:
            raise OSError(number, os.strerror(number), str(path))
        return True
    finally:
        os.close(fd)


def mount_image(image: Path, folder: Path) -> None:
    """The ext4 in `image`, on `folder`. Mount propagation is left as the folder's own file system has it: where that is shared
    (systemd), namespaces that copied the mount let go of it together with us."""
    device = _attach(image)
    try:
        # noinit_itable: no kernel thread writes inode tables that the job may never use
        options = b"noinit_itable,nodiscard"
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
        number = _call(_libc.mount, f"/dev/loop{device[0]}".encode(), bytes(folder), b"ext4", ctypes.c_ulong(flags), options)
        if number:
            raise OSError(number, f"mount: {os.strerror(number)}", str(folder))
    finally:
        os.close(device[1])  # the mount holds the device now; without one it is let go


def unmount(folder: Path) -> None:
    """All that is mounted there. Where somebody is still inside, it goes from our sight now and for good when they leave."""
    while (number := _call(_libc.umount2, bytes(folder), 0)) == 0:
        continue
    if number == errno.EBUSY:
        number = _call(_libc.umount2, bytes(folder), _MNT_DETACH)
    if number not in (0, errno.EINVAL, errno.ENOENT):  # EINVAL: nothing is mounted there
        raise OSError(number, f"umount: {os.strerror(number)}", str(folder))


def _attach(image: Path) -> tuple[int, int]:
    """(number, open descriptor) of a loop device over the image."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            if _configure(device, backing, image):
                return number, device
            os.close(device)
    finally:
        os.close(control)
        os.close(backing)
    raise OSError(errno.EBUSY, "no loop device could be had", str(image))


def _configure(device: int, backing: int, image: Path) -> bool:
    """False when somebody else has taken the device. Direct I/O, where the file system below can: each page is cached once,
    not twice, and what the job reads and writes counts as its own."""
    name = bytes(image)[-63:]
    for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):
        config = _CONFIG.pack(backing, 4096, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as err:
            if err.errno == errno.EBUSY:
                return False
            if err.errno != errno.EINVAL or not flags & _DIRECT_IO:
                raise
        else:
            return True
    return False


def _call(function: object, *arguments: object) -> int:
    """0, or the errno."""
    ctypes.set_errno(0)
    assert callable(function)
    return ctypes.get_errno() if function(*arguments) != 0 else 0
