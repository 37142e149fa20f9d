"""How does a template make a replica whose parent is not the template but the template's own parent (the spawner)?

Three ways, tried in this order:
1. clone3 with CLONE_PARENT: the kernel makes the child a sibling of the template at once. Python is told through the same
   `PyOS_BeforeFork`/`PyOS_AfterFork_*` calls that `os.fork` makes, so locks are re-made, random state is re-seeded and fork
   handlers run. glibc's `fork` is not involved: its own pthread_atfork handlers do not run, which is right only for a process
   with a single thread (threads.py sees to that), and the thread id that glibc caches is kept right as glibc does it, by
   CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID.
2. the older clone with the same flags, where clone3 is refused, as in containers, whose filter sees the flags of this one alone.
3. fork twice, where ctypes or both are missing: the middle process exits at once and the nearest subreaper, the spawner,
   inherits the replica. In a container it would be the container's first process, so there it is refused.
Never exits the calling process and never runs user code but the registered fork handlers.
"""

from __future__ import annotations

import os
import struct

CLONE_PARENT = 0x00008000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
PR_GET_TID_ADDRESS = 40
#: the same number on every architecture that has it (x86-64, arm64, riscv64, ...)
SYS_CLONE3 = 435


class SiblingFork:
    """A prepared way to fork. `fork()` returns the pid in the template and 0 in the replica, like `os.fork`."""

    def __init__(self, twice: bool = False) -> None:
        #: "clone3", "clone" or "twice"
        self.way = "twice"
        #: what is answered in the place of a fork, where it is rehearsed
        self.answer: int | None = None
        if not twice:
            self._prepare()

    def _prepare(self) -> None:
        try:
            import ctypes

            libc = ctypes.PyDLL(None, use_errno=True)
            api = ctypes.pythonapi
            tid_address = ctypes.c_void_p()
            libc.prctl.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
            if libc.prctl(PR_GET_TID_ADDRESS, ctypes.byref(tid_address), 0, 0, 0) != 0 or not tid_address.value:
                return  # a kernel without CONFIG_CHECKPOINT_RESTORE: the cached thread id couldn't be corrected
        except (ImportError, OSError, AttributeError):
            return
        # struct clone_args, version 0: flags, pidfd, child_tid, parent_tid, exit_signal (0 with CLONE_PARENT: taken from the
        # template, which the spawner forked with SIGCHLD), stack, stack_size, tls
        arguments = struct.pack(
            "8Q", CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, 0, tid_address.value, 0, 0, 0, 0, 0
        )
        self._arguments = ctypes.create_string_buffer(arguments, len(arguments))
        libc.syscall.restype = ctypes.c_long
        # as many as clone has; what is there too much nobody reads
        libc.syscall.argtypes = [ctypes.c_long, *(ctypes.c_void_p,) * 5]
        self._tid_address = tid_address.value
        for call in (api.PyOS_BeforeFork, api.PyOS_AfterFork_Parent, api.PyOS_AfterFork_Child):
            call.restype = None
            call.argtypes = []
        self._before, self._in_parent, self._in_child = api.PyOS_BeforeFork, api.PyOS_AfterFork_Parent, api.PyOS_AfterFork_Child
        self._syscall = libc.syscall
        self._address = ctypes.addressof(self._arguments)
        self._get_errno = ctypes.get_errno
        self.way = "clone3"

    def fork(self) -> int:
        """The replica's pid here, 0 in the replica. OSError when the kernel refuses."""
        if self.answer is not None:
            return self.answer
        while self.way != "twice":
            self._before()
            pid = self._call()
            if pid == 0:
                self._in_child()
                return 0
            errno = self._get_errno() if pid < 0 else 0
            self._in_parent()
            if pid > 0:
                return int(pid)
            if errno not in _REFUSED:
                raise OSError(errno, os.strerror(errno), self.way)
            self.way = "clone" if self.way == "clone3" and os.uname().machine in _SYS_CLONE else "twice"
        if os.getppid() == 0:
            raise OSError(_REFUSED[-1], "this Python has no ctypes, or its container forbids clone with CLONE_PARENT")
        return _fork_twice()

    def _call(self) -> int:
        if self.way == "clone3":
            return self._syscall(SYS_CLONE3, self._address, 64, 0, 0, 0)
        machine = os.uname().machine
        flags, tid = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, self._tid_address
        places = (tid, 0) if machine == "x86_64" else (0, tid)  # elsewhere the thread's own storage comes before
        return self._syscall(_SYS_CLONE[machine], flags, 0, 0, *places)


#: of clone, by what `uname -m` says
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
SIGCHLD = 17
#: EPERM: a seccomp filter; EINVAL: CLONE_PARENT as init of a pid namespace; ENOSYS: old kernel or a seccomp filter
_REFUSED = (1, 22, 38)


def _fork_twice() -> int:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            pid = os.fork()
        except OSError as err:
            os.write(writer, struct.pack("q", -(err.errno or 1)))
            os._exit(1)
        if pid:
            os.write(writer, struct.pack("q", pid))
            os._exit(0)
        os.close(reader)
        os.close(writer)
        return 0
    os.close(writer)
    try:
        told = os.read(reader, 8)
    finally:
        os.close(reader)
        os.waitpid(middle, 0)
    (pid,) = struct.unpack("q", told) if len(told) == 8 else (-1,)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid), "fork")
    return int(pid)


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat: clock ticks since boot. 0 when the process is gone already."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 4096).rsplit(b") ", 1)[1].split()[19])
        finally:
            os.close(fd)
    except (OSError, IndexError):
        return 0
