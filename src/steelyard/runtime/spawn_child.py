"""What happens between fork and exec? Everything that makes a process a workload, in one place and one order.

Runs in the forked child only. It ends in exec, or writes `<step>\\0<error>` to `error_fd` and leaves with 127; it never returns.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import termios

from steelyard.runtime import mounts
from steelyard.runtime.rootfs import CAP_CHOWN, PR_CAPBSET_DROP, enter, raise_limit

TYPE_CHECKING = False  # see launch.py: what is imported costs time at each start
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from typing import NoReturn

    from steelyard.wire.spawn import Outputs, Spawn
else:
    import _signal as signal  # the same, without enumerations

_PR_SET_THP_DISABLE = 41
_MPOL_BIND = 2
#: glibc has no function for it
_SYS_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_ERROR_MAX = 3000
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)
#: looked up here, not after each fork; signal.signal would tell what was there before, by way of exceptions
_set_signal = _libc.signal


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


#: sets of signals as the C library has them, with 1024 bits
NO_SIGNALS, ALL_SIGNALS = bytes(128), b"\xff" * 128


def block_signals(signals: bytes) -> bytes:
    """These and no others from now on; those that were blocked before. `signal.pthread_sigmask` makes an enumeration's member of
    each, half of them by way of exceptions, which takes 0.1 ms."""
    before = ctypes.create_string_buffer(len(signals))
    _libc.sigprocmask(int(signal.SIG_SETMASK), signals, before)
    return before.raw


class Inherited:
    """What a child has of its launcher, gathered once: each thing that is done after a fork copies the pages that it touches."""

    def __init__(self, signals: tuple[int, ...], nofile: tuple[int, int], open_max: int, stdin: int) -> None:
        #: whose handling is not the default
        self.signals = signals
        #: RLIMIT_NOFILE that the spawner was started with, and what it raised its own to
        self.nofile, self.open_max = nofile, open_max
        #: nothing to read
        self.stdin = stdin


def observe_inherited(nofile: tuple[int, int]) -> Inherited:
    """What is ignored stays ignored over exec (Python's SIGPIPE, a parent's SIGINT, the spawner's own); what is handled must not
    be lost before it."""
    fixed = (signal.SIGKILL, signal.SIGSTOP)
    changed = tuple(int(n) for n in signal.valid_signals() if n not in fixed and signal.getsignal(n) != signal.SIG_DFL)
    open_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Inherited(changed, nofile, open_max, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def run_child(
    request: Spawn, passed: Sequence[int], joins: Sequence[int], error_fd: int, inherited: Inherited, userns: int | None = None
) -> NoReturn:
    """`passed` are the descriptors for `request.fds`, `joins` the open cgroup files, `userns` maps the ids of its image. All
    signals are blocked on entry, so that none reaches the spawner's handlers from here."""
    step = "signals"
    try:
        signal.set_wakeup_fd(-1)
        for number in inherited.signals:
            _set_signal(number, None)  # the default
        step = "setsid"
        os.setsid()
        os.umask(0o022)
        step = "cgroup"
        for join in joins:
            os.write(join, b"0")
        step = "affinity"
        if request.cpus:
            os.sched_setaffinity(0, request.cpus)  # after the cgroup: joining a cpuset sets it anew
        step = "timing"
        _set_timing(request)
        if request.rootfs is not None:
            step = "image"
            enter(request.rootfs, userns)
        step = "logs"
        stdout, stderr = _open_log(request.stdout, request), _open_log(request.stderr, request)
        step = "fds"
        error_fd = _arrange(inherited, stdout, stderr, request.fds, passed, error_fd)
        if request.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        step = "rlimit"
        resource.setrlimit(resource.RLIMIT_NOFILE, inherited.nofile)  # only after _arrange, which may need numbers beyond it
        for name, soft, hard in request.rlimits:
            step = f"rlimit {name}"
            resource.setrlimit(getattr(resource, name), (soft, hard))
        step = "volumes"
        if request.mounts is not None:
            mounts.enter_own(request.mounts)
        if request.sees_as is not None and request.rootfs is None:
            mounts.join(request.sees_as)
        if request.rootfs is not None:
            step = "output"
            _open_outputs_as(request.outputs, *request.rootfs.owner)
            # crun gives 0, 1 and 2 to the container's user, whatever they are: /dev/null is not its to have
            step = "capabilities"
            prctl(PR_CAPBSET_DROP, CAP_CHOWN)
        elif request.uid is not None and (os.geteuid() == 0 or request.uid != os.geteuid()):
            step = "setgroups"
            os.setgroups([])
            step = "setgid"
            if request.gid is None:
                raise ValueError("a uid needs a gid beside it")
            os.setresgid(request.gid, request.gid, request.gid)
            step = "setuid"
            os.setresuid(request.uid, request.uid, request.uid)
        step = "chdir"  # as the workload's uid: a folder that it may not enter is refused here, not met later
        os.chdir(request.cwd)
        step = "output"
        if request.rootfs is None and (request.outputs.stdout or request.outputs.stderr):
            _open_outputs(request.outputs)
        step = "exec"
        env = _add_listening(request)
        block_signals(NO_SIGNALS)
        if "/" in request.argv[0]:
            os.execve(request.argv[0], request.argv, env)
        os.execvpe(request.argv[0], request.argv, env)
    except BaseException as err:
        os.write(error_fd, f"{step}\0{_explain(step, request, err)}".encode(errors="replace")[:_ERROR_MAX])
    finally:
        os._exit(127)


def _add_listening(request: Spawn) -> dict[str, str]:
    if not request.listen_fds:
        return request.env
    return request.env | {"LISTEN_FDS": str(request.listen_fds), "LISTEN_PID": str(os.getpid())}


def _set_timing(request: Spawn) -> None:
    """Scheduler, memory policy and limits of a punctual workload, all kept over setuid and exec. What the kernel refuses is
    passed over: the proof reads back what it got, and a workload that starts late says less than one that starts PARTIAL."""
    if request.memory_nodes and os.uname().machine in _SYS_SET_MEMPOLICY:
        words = max(request.memory_nodes) // 64 + 1
        mask = (ctypes.c_ulong * words)()
        for node in request.memory_nodes:
            mask[node // 64] |= 1 << node % 64
        number = _SYS_SET_MEMPOLICY[os.uname().machine]
        # the kernel reads one bit less than it is told of
        _libc.syscall(ctypes.c_long(number), ctypes.c_long(_MPOL_BIND), mask, ctypes.c_ulong(words * 64 + 1))
    if not request.fifo_priority:
        return
    try:  # noqa: SIM105 - contextlib is not imported here
        prctl(_PR_SET_THP_DISABLE, 1)
    except (OSError, ValueError):
        pass
    for limit, value in ((resource.RLIMIT_RTPRIO, request.fifo_priority), (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)):
        raise_limit(limit, value)
    try:  # noqa: SIM105
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(request.fifo_priority))
    except OSError:
        pass


def _open_log(path: str, request: Spawn) -> int:
    """Its folder is not the workload's to write, so nobody can have put a link there."""
    log = os.open(path, _LOG_FLAGS, 0o640)
    if request.uid is not None and os.geteuid() == 0:
        os.fchown(log, request.uid, -1 if request.gid is None else request.gid)
    return log


def _open_outputs_as(outputs: Outputs, uid: int, gid: int) -> None:
    """With that user's rights, which this process then leaves again."""
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        _open_outputs(outputs)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _open_outputs(outputs: Outputs) -> None:
    """Onto 1 and 2. A pipe that nobody reads is refused rather than waited for; one that is read is written like any other."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | (os.O_TRUNC if outputs.truncate else 0)
    opened: dict[str, int] = {}
    for path, number in ((outputs.stdout, 1), (outputs.stderr, 2)):
        if path is None:
            continue
        if path not in opened:
            opened[path] = os.open(path, flags, 0o644)
            os.set_blocking(opened[path], True)
        os.dup2(opened[path], number)
    for fd in opened.values():
        os.close(fd)


def _arrange(inherited: Inherited, stdout: int, stderr: int, numbers: Sequence[int], passed: Sequence[int], error_fd: int) -> int:
    """Put each descriptor on its number and close all others (Python 3.11 receives them without CLOEXEC). Returns where the error
    pipe is now."""
    wanted = {0: inherited.stdin, 1: stdout, 2: stderr}
    if numbers or min(*wanted.values(), error_fd) <= 2:
        # All are copied above the highest wanted number first, so that no dup2 lands on one that is still needed.
        wanted |= zip(numbers, passed, strict=True)
        above = max(wanted) + 1
        wanted = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in wanted.items()}
        error_fd = fcntl.fcntl(error_fd, fcntl.F_DUPFD_CLOEXEC, above)
    for number, fd in wanted.items():
        os.dup2(fd, number)
    low = 3
    for kept in (*sorted(numbers), error_fd, inherited.open_max):
        if low < kept:  # an empty range would reach os.closerange as "up to the last one there is"
            os.closerange(low, kept)
        low = max(low, kept + 1)
    return error_fd


def _explain(step: str, request: Spawn, err: BaseException) -> str:
    if not isinstance(err, OSError):
        return str(err) or type(err).__name__
    words = err.strerror or str(err)
    if step == "exec":
        return f"{request.argv[0]}: {words}"
    if step == "chdir":
        return f"{request.cwd}: {words} (as uid {os.geteuid()})"
    if step == "volumes" and err.filename == mounts.NAMESPACE:
        return f"{err.filename}: {words} ({mounts.WITHOUT})"
    if step == "output":
        return f"{err.filename}: {words} (as uid {os.geteuid()})"
    return f"{err.filename}: {words}" if err.filename else words
