"""Who keeps the programs alive? Adopts those that live, starts those that do not, starts again what dies, after the wait that
`lifecycle/program.py` decides. Ends when it is told to by SIGTERM or SIGINT; killed with -9, everything else goes on and the next
supervisor adopts it.

It watches by pidfd, which also works for programs that an earlier supervisor started. It signals nothing while it watches.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence

from steelyard.cli.programs import (
    SUPERVISOR,
    Program,
    ProgramRecord,
    find_program,
    make_record,
    open_pidfd,
    rotate_log,
    start_program,
    write_record,
)
from steelyard.clock import Clock
from steelyard.config import Paths
from steelyard.lifecycle.program import ProgramRuns, decide_wait_ns, note_death, note_start

#: how often logs are looked at
ROTATE_S = 30.0


class Supervisor:
    """One per home (the caller holds the home's lock). `say` gets a line per thing that happened."""

    def __init__(self, paths: Paths, programs: Sequence[Program], clock: Clock, say: Callable[[str], None]) -> None:
        self._paths = paths
        self._programs = {program.name: program for program in programs}
        self._clock = clock
        self._say = say
        self._runs = {program.name: ProgramRuns() for program in programs}
        self._records: dict[str, ProgramRecord] = {}
        self._pidfds: dict[str, int] = {}
        #: only those that are our own children; others are reaped by whoever is
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped_by: int | None = None

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Returns with the programs still running: ending them is the caller's decision."""
        with _signals_as_descriptor(self._note_signal) as wake_fd:
            write_record(self._paths, make_record(self._paths, SUPERVISOR, os.getpid(), self._clock))
            for name in self._programs:
                self._adopt(name)
            while self.stopped_by is None:
                wait_s = self._start_what_is_due()
                self._wait(wake_fd, wait_s)
                for name in self._programs:
                    rotate_log(self._paths.program_logs / f"{name}.log")
            for pidfd in self._pidfds.values():
                os.close(pidfd)

    def _note_signal(self, signum: int) -> None:
        self.stopped_by = signum

    def _adopt(self, name: str) -> None:
        record = find_program(self._paths, name, self._clock)
        if record is None:
            return
        pidfd = open_pidfd(record)
        if pidfd is None:
            return
        write_record(self._paths, record)
        self._watch(record, pidfd)
        self._say(f"{name} runs already (pid {record.pid}): adopted")

    def _watch(self, record: ProgramRecord, pidfd: int) -> None:
        self._records[record.name] = record
        self._pidfds[record.name] = pidfd
        self._runs[record.name] = note_start(self._runs[record.name], self._clock.mono_ns())

    def _start_what_is_due(self) -> float:
        """Start each dead program whose wait is over; returns seconds until the next is due."""
        wait_s = ROTATE_S
        for name in self._programs:
            if name in self._pidfds:
                continue
            wait_ns = decide_wait_ns(self._runs[name], self._clock.mono_ns())
            if wait_ns > 0 or not self._start(name):
                wait_s = min(wait_s, max(wait_ns, 1_000_000) / 1e9)
        return wait_s

    def _start(self, name: str) -> bool:
        try:
            record, process = start_program(self._paths, self._programs[name], self._clock, self._runs[name].deaths)
        except OSError as err:
            self._runs[name] = note_death(self._runs[name], self._clock.mono_ns())
            self._say(f"{name} could not be started: {err}")
            return False
        # our own child: the pid can't be given to somebody else before we reap it
        self._watch(record, os.pidfd_open(record.pid))
        self._children[name] = process
        self._say(f"{name} started (pid {record.pid})")
        return True

    def _wait(self, wake_fd: int, wait_s: float) -> None:
        poll = select.poll()
        poll.register(wake_fd, select.POLLIN)
        by_fd = {pidfd: name for name, pidfd in self._pidfds.items()}
        for pidfd in by_fd:
            poll.register(pidfd, select.POLLIN)
        # rounded up: waking before it is due would spin
        for fd, _ in poll.poll(int(wait_s * 1000) + 1):
            if fd == wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_fd, 512)
            else:
                self._bury(by_fd[fd])

    def _bury(self, name: str) -> None:
        os.close(self._pidfds.pop(name))
        child = self._children.pop(name, None)
        code = child.wait() if child is not None else None
        if code is None:
            ended = "ended (an earlier supervisor started it, so its code is not known)"
        elif code < 0:
            ended = f"was killed by signal {-code}"
        else:
            ended = f"exited with code {code}"
        self._runs[name] = note_death(self._runs[name], self._clock.mono_ns())
        record = self._records.pop(name)
        write_record(
            self._paths,
            ProgramRecord(
                name=name,
                pid=record.pid,
                start_time=record.start_time,
                boot_id=record.boot_id,
                started_at=record.started_at,
                deaths=self._runs[name].deaths,
                ended=ended,
                exit_code=code,
            ),
        )
        wait_s = decide_wait_ns(self._runs[name], self._clock.mono_ns()) / 1e9
        self._say(f"{name} (pid {record.pid}) {ended}: it is started again {f'in {wait_s:.2g} s' if wait_s else 'now'}")


@contextlib.contextmanager
def _signals_as_descriptor(note: Callable[[int], None]) -> Iterator[int]:
    """SIGTERM and SIGINT are noted and make the returned descriptor readable, so that poll() ends. Undone on leaving."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous_fd = signal.set_wakeup_fd(write_fd)
    previous = {
        signum: signal.signal(signum, lambda received, _frame: note(received)) for signum in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield read_fd
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(read_fd)
        os.close(write_fd)
