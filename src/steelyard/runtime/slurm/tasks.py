"""How do the tasks of a step run, from fork to exit? Output by line, signals passed on, the highest exit code.

When a task is killed by a signal, or fails under --kill-on-bad-exit, the others are ended too: they would wait for it for ever.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from dataclasses import dataclass, field

from .names import join_numbers

#: from the signal that ends the other tasks to SIGKILL
GRACE_S = 10.0
#: what `srun` gets and its tasks should
PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
)
_PIECE = 65536


@dataclass
class Task:
    rank: int
    command: list[str]
    env: dict[str, str]
    cpus: set[int] | None = None
    #: descriptors of the step's own; None: nothing to read, or nowhere to write
    stdin: int | None = None
    stdout: int | None = 1
    stderr: int | None = 2
    folder: str | None = None
    pid: int = 0
    #: what `waitpid` said
    status: int | None = None
    #: it was ended because of another one
    ended_by_us: bool = False


@dataclass
class _Source:
    """One stream of one task, on its way to a descriptor, line by line."""

    task: Task
    to: int
    held: bytearray = field(default_factory=bytearray)


class Step:
    def __init__(self, tasks: list[Task], *, label: bool, kill_on_bad_exit: bool, quiet: bool, host: str) -> None:
        self._tasks, self._label, self._kill, self._quiet, self._host = tasks, label, kill_on_bad_exit, quiet, host
        self._selector = selectors.DefaultSelector()
        self._width = len(str(max(len(tasks) - 1, 0)))
        self._running = 0
        self._kill_at: float | None = None

    def run(self) -> int:
        """The highest exit code of all tasks that ended by themselves; 128 + signal for one that a signal ended."""
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        for task in self._tasks:
            self._start(task)
        for signum in PASSED_ON:
            signal.signal(signum, lambda number, _frame: self._send(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        while self._running:
            self._wait()
        self._drain()
        self._explain()
        # what we did to the others is no answer
        return max(_code(task) for task in self._tasks if not task.ended_by_us)

    def _start(self, task: Task) -> None:
        pipes: list[tuple[int, int, int]] = []
        if self._label:
            for stream, to in ((1, task.stdout), (2, task.stderr)):
                if to is not None:
                    pipes.append((stream, *os.pipe()))
                    self._selector.register(pipes[-1][1], selectors.EVENT_READ, _Source(task, to))
        sys.stdout.flush()
        task.pid = os.fork()
        if task.pid == 0:
            _become(task, {stream: write for stream, _, write in pipes})
        with contextlib.suppress(OSError):
            os.setpgid(task.pid, task.pid)
        for _, _, write in pipes:
            os.close(write)
        self._selector.register(os.pidfd_open(task.pid), selectors.EVENT_READ, task)
        self._running += 1

    def _send(self, signum: int) -> None:
        for task in self._tasks:
            if task.status is None and task.pid:
                with contextlib.suppress(OSError):
                    os.killpg(task.pid, signum)

    def _wait(self) -> None:
        wait_s = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        ready = self._selector.select(wait_s)
        if not ready and self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = None
            self._send(signal.SIGKILL)
        for key, _ in ready:
            if isinstance(key.data, Task):
                self._reap(key.data, key.fd)
            else:
                self._read(key.data, key.fd)

    def _reap(self, task: Task, pidfd: int) -> None:
        _, task.status = os.waitpid(task.pid, 0)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._running -= 1
        bad = os.WIFSIGNALED(task.status) or (self._kill and task.status != 0)
        if bad and self._running and not any(other.ended_by_us for other in self._tasks):
            for other in self._tasks:
                other.ended_by_us = other.status is None
            self._kill_at = time.monotonic() + GRACE_S
            self._send(signal.SIGTERM)

    def _read(self, source: _Source, fd: int) -> None:
        data = os.read(fd, _PIECE)
        if data:
            source.held += data
            end = source.held.rfind(b"\n") + 1
            # a line that never ends is not held for ever
            if not end and len(source.held) >= 1 << 20:
                source.held += b"\n"
                end = len(source.held)
            good = self._write(source, bytes(source.held[:end]))
            del source.held[:end]
            if good:
                return
        elif source.held:
            self._write(source, bytes(source.held) + b"\n")
            source.held.clear()
        # at its end; or nobody reads any more, and the task shall learn of it as it would without us
        self._selector.unregister(fd)
        os.close(fd)

    def _write(self, source: _Source, lines: bytes) -> bool:
        prefix = f"{source.task.rank:{self._width}}: ".encode()
        text = (
            b"".join(prefix + line for line in lines.splitlines(keepends=True))
            if b"\r" not in lines
            else b"".join(prefix + line + b"\n" for line in lines.removesuffix(b"\n").split(b"\n"))
        )
        try:
            while text:
                text = text[os.write(source.to, text) :]
        except BrokenPipeError:
            return False
        return True

    def _drain(self) -> None:
        """What was written before the tasks ended; what others still hold open is not waited for."""
        for key in list(self._selector.get_map().values()):
            os.set_blocking(key.fd, False)
            with contextlib.suppress(BlockingIOError):
                while key.fd in self._selector.get_map():
                    self._read(key.data, key.fd)
            if key.data.held:
                self._write(key.data, bytes(key.data.held) + b"\n")

    def _explain(self) -> None:
        if self._quiet:
            return
        ends: dict[str, list[int]] = {}
        for task in self._tasks:
            if task.status:
                ends.setdefault(_describe(task), []).append(task.rank)
        for end, ranks in ends.items():
            noun = "task" if len(ranks) == 1 else "tasks"
            print(f"srun: error: {self._host}: {noun} {join_numbers(ranks)}: {end}", file=sys.stderr)


def _become(task: Task, pipes: dict[int, int]) -> None:
    """In the child. Never returns."""
    try:
        os.setpgid(0, 0)
        for signum in (*PASSED_ON, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if task.cpus:
            os.sched_setaffinity(0, task.cpus)
        if task.folder is not None:
            os.chdir(task.folder)
        nothing = os.open(os.devnull, os.O_RDWR)
        ours = {0: task.stdin, 1: pipes.get(1, task.stdout), 2: pipes.get(2, task.stderr)}
        # above all three first, so that none is overwritten before it was copied
        copies = {stream: os.dup(nothing if fd is None else fd) for stream, fd in ours.items()}
        for stream, fd in copies.items():
            os.dup2(fd, stream)
        os.execvpe(task.command[0], task.command, task.env | {"SLURM_TASK_PID": str(os.getpid())})
    except OSError as err:
        os.write(2, f"srun: error: {task.command[0]}: {err.strerror}\n".encode())
        os._exit(err.errno or 1)
    finally:
        os._exit(127)


def _code(task: Task) -> int:
    code = os.waitstatus_to_exitcode(task.status or 0)
    return code if code >= 0 else 128 - code


def _describe(task: Task) -> str:
    code = os.waitstatus_to_exitcode(task.status or 0)
    if code < 0:
        return f"{signal.strsignal(-code)}{' (ended because another task did not succeed)' if task.ended_by_us else ''}"
    return f"Exited with exit code {code}"
