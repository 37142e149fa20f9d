"""Where can umoci unpack what a stranger made? `python -m steelyard.runtime.oci.jail JSON`, run by root, ends with 0 when it did.

The jail: own mount, pid, network, IPC and user namespaces; as root directory an empty tmpfs with the system's programs and the
image's blobs, read-only, and the one folder that is written; its root is an id that the machine gives nobody, without any right
outside. Beside umoci the layers are read once more and counted (`layers.py`); over a limit both end. What came of it is on stdout
(`Unpacked`), what went wrong on stderr, a sentence; its first word is the kind: `image:` (its own fault) or `machine:`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec

from steelyard.runtime import mount_calls
from steelyard.runtime.oci import RANGE_FIRST, RANGE_SIZE, Limits
from steelyard.runtime.oci.layers import BadLayer, LayerCheck

#: of the machine's own, for umoci and its libraries
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_NAME = "image"
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_EXIT_IMAGE, _EXIT_MACHINE = 65, 71
#: of a file of users
_TEXT_MAX = 256 << 10


class Unpacked(msgspec.Struct, frozen=True):
    #: files, folders and links, and their bytes, of all layers
    files: int
    bytes: int
    #: the image's own files of users, as far as they are text of some size
    passwd: str = ""
    group: str = ""


class Order(msgspec.Struct, frozen=True):
    """What is to be unpacked, whose digests were checked as far as JSON tells."""

    #: folder of the blobs, named by their hex digests
    blobs: str
    #: an empty folder of root's, in which the jail is built out of sight
    root: str
    #: the folder in which `rootfs` appears
    out: str
    #: the manifest's hex digest, size and media type
    manifest: str
    manifest_bytes: int
    media_type: str
    #: hex digests, the lowest first
    layers: tuple[str, ...]
    limits: Limits = Limits()


def main(argv: list[str]) -> int:
    order = msgspec.json.decode(argv[0], type=Order)
    _end_with_parent()  # the next agent may unpack the same
    try:
        return _build(order)
    except OSError as err:
        return _say(_EXIT_MACHINE, f"the jail could not be made ({_tell(err)})")


def _build(order: Order) -> int:
    """Everything that needs root, then a child that has nothing of it."""
    mount_calls.unshare(mount_calls.NEWNS | mount_calls.NEWPID | mount_calls.NEWNET | mount_calls.NEWIPC | mount_calls.NEWUTS)
    mount_calls.keep_to_myself()
    root = order.root
    mount_calls.mount("tmpfs", root, "tmpfs", mount_calls.MS_NOSUID | mount_calls.MS_NODEV, "mode=755,size=4m")
    for folder in ("layout/blobs/sha256", "out", "proc", "etc", "tmp", "dev"):
        os.makedirs(f"{root}/{folder}")
    _bind_system(root)
    mount_calls.bind(order.blobs, f"{root}/layout/blobs/sha256")
    mount_calls.bind(order.out, f"{root}/out", read_only=False)
    _write_layout(order)
    os.chown(order.out, RANGE_FIRST, RANGE_FIRST)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ready, tell = os.pipe2(os.O_CLOEXEC)
    wait, release = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _inmate(order, tell, wait, (proc, ready, release))
    os.close(tell)
    if os.read(ready, 1):
        ids = ((0, RANGE_FIRST, RANGE_SIZE),)
        mount_calls.write_maps(str(pid), ids, ids, dir_fd=proc)
        os.write(release, b"+")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _say(_EXIT_MACHINE, f"unpacking was ended by signal {-code}")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _bind_system(root: str) -> None:
    for place in _SYSTEM:
        if os.path.islink(place):
            os.symlink(os.readlink(place), root + place)
        elif os.path.isdir(place):
            os.mkdir(root + place)
            mount_calls.bind(place, root + place)
        elif os.path.exists(place):
            open(root + place, "wb").close()
            mount_calls.bind(place, root + place)


def _write_layout(order: Order) -> None:
    entry = {
        "mediaType": order.media_type,
        "digest": f"sha256:{order.manifest}",
        "size": order.manifest_bytes,
        "annotations": {"org.opencontainers.image.ref.name": _NAME},
    }
    for name, content in (
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ("index.json", {"schemaVersion": 2, "manifests": [entry]}),
    ):
        with open(f"{order.root}/layout/{name}", "wb") as file:
            file.write(msgspec.json.encode(content))


def _tell(err: OSError) -> str:
    return f"{err.filename}: {err.strerror}" if err.filename else err.strerror or str(err)


def _inmate(order: Order, tell: int, wait: int, others: tuple[int, ...]) -> NoReturn:
    """Pid 1 of the jail. Never returns."""
    code = _EXIT_MACHINE
    try:
        for fd in others:
            os.close(fd)
        _end_with_parent()
        os.chdir(order.root)
        mount_calls.pivot_root(".", ".")
        mount_calls.let_go(".")
        os.chdir("/")
        mount_calls.mount("proc", "/proc", "proc", mount_calls.MS_NOSUID | mount_calls.MS_NODEV | mount_calls.MS_NOEXEC)
        mount_calls.unshare(mount_calls.NEWUSER)
        os.write(tell, b"+")
        if not os.read(wait, 1):
            raise OSError(0, "its user namespace got no ids")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.limits.bytes_max, order.limits.bytes_max))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _unpack(order)
    except OSError as err:
        code = _say(_EXIT_MACHINE, f"the jail could not be made ({_tell(err)})")
    finally:
        os._exit(code)


def _unpack(order: Order) -> int:
    """umoci and the count beside each other: the layers are good when both say so."""
    counted, tell = os.pipe()
    pids = {_fork(lambda: _count(order, tell)): "count", _fork(_exec_umoci): "umoci"}
    os.close(tell)
    code = 0
    while pids:
        pid, status = os.wait()
        who = pids.pop(pid, None)
        ended = os.waitstatus_to_exitcode(status)
        if who is None or ended == 0:
            continue
        for other in pids:
            os.kill(other, signal.SIGKILL)
        if who == "count":
            return ended if ended > 0 else _say(_EXIT_MACHINE, f"counting was ended by signal {-ended}")
        # what umoci stumbled on, the count may name better
        codes = [os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) for other in pids]
        pids.clear()
        code = _EXIT_IMAGE if not codes or codes[0] <= 0 else codes[0]
    return code or _report(os.read(counted, 1024))


def _report(counted: bytes) -> int:
    """What was unpacked. The image's links lead nowhere but into itself: its folder becomes / first."""
    os.chroot("/out/rootfs")
    os.chdir("/")
    found = {**msgspec.json.decode(counted), "passwd": _read_text("etc/passwd"), "group": _read_text("etc/group")}
    os.write(1, msgspec.json.encode(found))
    return 0


def _read_text(path: str) -> str:
    """A pipe is not waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            data = file.read(_TEXT_MAX + 1) or b""
        return data.decode() if len(data) <= _TEXT_MAX else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _fork(run: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = _EXIT_MACHINE
    try:
        code = run()
    finally:
        os._exit(code)


def _exec_umoci() -> NoReturn:
    os.environ.clear()
    os.environ.update({"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"})
    os.dup2(2, 1)
    os.execvp("umoci", ["umoci", "raw", "unpack", "--image", f"/layout:{_NAME}", "/out/rootfs"])


def _count(order: Order, tell: int) -> int:
    check = LayerCheck(order.limits)
    try:
        for digest in order.layers:
            with open(f"/layout/blobs/sha256/{digest}", "rb") as file:
                check.check(file, digest)
    except BadLayer as err:
        return _say(_EXIT_IMAGE, str(err))
    except OSError as err:
        return _say(_EXIT_MACHINE, f"a layer can't be read ({err.strerror})")
    os.write(tell, msgspec.json.encode({"files": check.entries, "bytes": check.file_bytes}))
    return 0


def _say(code: int, sentence: str) -> int:
    os.write(2, f"{'image' if code == _EXIT_IMAGE else 'machine'}: {sentence}\n".encode(errors="replace"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
