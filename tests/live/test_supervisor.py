"""The supervisor with small stand-in programs: what dies is started again, what lives is adopted, nothing is started twice."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from steelyard_cluster import wait_until

from steelyard.cli.programs import Program, ProgramRecord, find_program, lives, load_record, make_record, start_program
from steelyard.clock import SystemClock
from steelyard.config import Paths, make_paths

CLOCK = SystemClock()
SUPERVISE = """
import sys, msgspec
from pathlib import Path
from steelyard.cli.programs import Program
from steelyard.cli.supervisor import Supervisor
from steelyard.clock import SystemClock
from steelyard.config import Paths
paths, programs = msgspec.json.decode(sys.argv[1], type=tuple[Paths, tuple[Program, ...]], dec_hook=lambda kind, value:
kind(value))
Supervisor(paths, programs, SystemClock(), lambda line: print(line, flush=True)).run()
"""


@pytest.fixture
def paths(home: Path) -> Paths:
    made = make_paths(home, {}, os.getuid())
    made.programs.mkdir(parents=True)
    made.program_logs.mkdir()
    return made


@pytest.fixture
def supervise(paths: Paths) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts supervisors of the given programs; ends them and every program afterwards."""
    import msgspec

    started: list[subprocess.Popen[bytes]] = []
    names: set[str] = set()

    def start(*programs: Program) -> subprocess.Popen[bytes]:
        names.update(program.name for program in programs)
        argument = msgspec.json.encode((paths, programs), enc_hook=str)
        started.append(subprocess.Popen([sys.executable, "-c", SUPERVISE, argument], stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.kill()
        supervisor.wait()
    for name in names:
        record = find_program(paths, name, CLOCK)
        if record is not None:
            os.kill(record.pid, signal.SIGKILL)


def sleeper(name: str) -> Program:
    return Program(name, ("/bin/sleep", "1000"))


def wait_running(paths: Paths, name: str, but_not: int = 0) -> ProgramRecord:
    def running() -> ProgramRecord | None:
        record = load_record(paths, name)
        return record if record is not None and lives(record) and record.pid != but_not else None

    return wait_until(running, 10, f"{name} to run")


def kill(record: ProgramRecord) -> None:
    pidfd = os.pidfd_open(record.pid)
    os.kill(record.pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(5000)
    os.close(pidfd)


def test_what_dies_is_started_again_at_once(paths: Paths, supervise: Callable[..., subprocess.Popen[bytes]]) -> None:
    supervise(sleeper("one"), sleeper("two"))
    one, two = wait_running(paths, "one"), wait_running(paths, "two")
    kill(one)
    begun = time.monotonic()
    wait_running(paths, "one", but_not=one.pid)
    assert time.monotonic() - begun < 1.0
    assert wait_running(paths, "two") == two


def test_every_program_leads_a_session_of_its_own(paths: Paths, supervise: Callable[..., subprocess.Popen[bytes]]) -> None:
    supervise(sleeper("one"))
    record = wait_running(paths, "one")
    assert os.getsid(record.pid) == record.pid


def test_the_next_supervisor_adopts_and_starts_nothing_twice(
    paths: Paths, supervise: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = supervise(sleeper("one"), sleeper("two"))
    one, two = wait_running(paths, "one"), wait_running(paths, "two")
    first.kill()
    first.wait()
    second = supervise(sleeper("one"), sleeper("two"), sleeper("three"))
    wait_running(paths, "three")
    wait_until(lambda: (record := load_record(paths, "up")) is not None and record.pid == second.pid, 5, "the second supervisor")
    assert (wait_running(paths, "one").pid, wait_running(paths, "two").pid) == (one.pid, two.pid)
    # adopted means watched: it is no child of the second supervisor, and is started again all the same
    kill(one)
    wait_running(paths, "one", but_not=one.pid)


@pytest.mark.parametrize("record", [None, b"", b'{"name":"one","pid":'])
def test_a_program_whose_record_is_missing_or_damaged_is_found_all_the_same(
    paths: Paths, supervise: Callable[..., subprocess.Popen[bytes]], record: bytes | None
) -> None:
    started, process = start_program(paths, sleeper("one"), CLOCK, 0)
    file = paths.programs / "one.json"
    file.unlink() if record is None else file.write_bytes(record)
    supervise(sleeper("one"))
    assert wait_running(paths, "one").pid == started.pid
    process.kill()
    process.wait()


def test_a_pid_that_was_given_to_somebody_else_is_not_ours(paths: Paths) -> None:
    somebody = make_record(paths, "one", os.getpid(), CLOCK)
    assert lives(somebody)
    assert not lives(ProgramRecord("one", os.getpid(), somebody.start_time + 1, somebody.boot_id, 0))
    assert not lives(ProgramRecord("one", os.getpid(), somebody.start_time, "another boot", 0))


def test_a_program_that_cannot_start_is_tried_ever_more_rarely(
    paths: Paths, supervise: Callable[..., subprocess.Popen[bytes]]
) -> None:
    supervise(Program("broken", ("/bin/sh", "-c", "echo no; exit 2")))

    def given_up_for_now() -> ProgramRecord | None:
        record = load_record(paths, "broken")
        return record if record is not None and record.deaths >= 4 else None

    begun = time.monotonic()
    record = wait_until(given_up_for_now, 10, "four deaths")
    assert time.monotonic() - begun > 0.5
    assert record.deaths == 4
