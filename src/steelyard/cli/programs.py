"""Which programs does one home run, and which of them live? Starts a program in a session of its own and finds it again after
the supervisor was killed.

A program is known by (boot id, pid, start time), kept in `<home>/programs/<name>.json`. A program that was started but not
recorded (the supervisor died in between), or whose record is damaged, is found by the mark in its environment, so that a second
one is never started beside it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec

from steelyard.clock import Clock
from steelyard.config import Paths, write_file
from steelyard.host.proc import alive, boot_id, start_time

#: in the environment of every program: `<tag of the home>/<program>`
MARK = "STEELYARD_PROGRAM"
#: the supervisor's own record
SUPERVISOR = "up"
#: in the order they are started
PROGRAM_NAMES = ("spawner", "server", "agent", "envoy")

LOG_MAX_BYTES = 8 << 20


class Program(msgspec.Struct, frozen=True):
    """What to execute."""

    name: str
    argv: tuple[str, ...]


class ProgramRecord(msgspec.Struct, frozen=True):
    """Who is the program that was started last. Written by the supervisor, read by every command."""

    name: str
    pid: int
    start_time: int
    boot_id: str
    #: wall clock, microseconds
    started_at: int
    #: deaths in a row before this start
    deaths: int = 0
    #: how it ended; empty while it runs or where nobody saw it
    ended: str = ""
    exit_code: int | None = None


def make_programs(paths: Paths, envoy_argv: list[str]) -> tuple[Program, ...]:
    # -P: the folder somebody happens to stand in is no place to import from
    python = (sys.executable, "-P", "-m")
    return (
        Program(
            "spawner",
            (*python, "steelyard.runtime.spawner", "--socket", str(paths.spawner_socket), "--exits", str(paths.agent / "exits")),
        ),
        Program("server", (*python, "steelyard", "server", "--home", str(paths.home))),
        Program("agent", (*python, "steelyard", "agent", "--home", str(paths.home))),
        Program("envoy", tuple(envoy_argv)),
    )


def start_program(paths: Paths, program: Program, clock: Clock, deaths: int) -> tuple[ProgramRecord, subprocess.Popen[bytes]]:
    """Start in a session of its own with its output in `<home>/logs`, and record it. Raises OSError where it can't be
    executed."""
    log = os.open(paths.program_logs / f"{program.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, MARK: make_mark(paths, program.name), "STEELYARD_HOME": str(paths.home), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    finally:
        os.close(log)
    if program.name != "spawner":  # which raises its own, and gives workloads what it was started with
        _raise_descriptor_limit(process.pid)
    # it can't be reaped before we poll it, so its start time can be read even when it died at once
    record = make_record(paths, program.name, process.pid, clock, deaths)
    write_record(paths, record)
    return record, process


def _raise_descriptor_limit(pid: int) -> None:
    """To what is allowed: the usual 1,024 are soon gone in a gateway with a connection for each request."""
    with contextlib.suppress(ProcessLookupError):
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def make_record(paths: Paths, name: str, pid: int, clock: Clock, deaths: int = 0) -> ProgramRecord:
    return ProgramRecord(
        name=name, pid=pid, start_time=start_time(pid) or 0, boot_id=boot_id(), started_at=clock.now_us(), deaths=deaths
    )


def write_record(paths: Paths, record: ProgramRecord) -> None:
    write_file(paths.programs / f"{record.name}.json", msgspec.json.encode(record), 0o644)


def load_record(paths: Paths, name: str) -> ProgramRecord | None:
    """The record, or None where there is none or it can't be trusted (the mark finds the program then)."""
    try:
        return msgspec.json.decode((paths.programs / f"{name}.json").read_bytes(), type=ProgramRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def lives(record: ProgramRecord | None) -> bool:
    """Is this very process still there? A pid that was given to somebody else is not."""
    return record is not None and record.boot_id == boot_id() and alive(record.pid, record.start_time)


def find_program(paths: Paths, name: str, clock: Clock) -> ProgramRecord | None:
    """The living program of this home, by its record or else by its mark; None when it does not run."""
    record = load_record(paths, name)
    if record is not None and lives(record):
        return record
    for pid in _marked(make_mark(paths, name)):
        found = make_record(paths, name, pid, clock)
        if alive(pid, found.start_time):
            return found
    return None


def open_pidfd(record: ProgramRecord) -> int | None:
    """A descriptor that means this process and no later one; None when it is gone."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    if not lives(record):
        os.close(pidfd)
        return None
    return pidfd


def rotate_log(file: Path, keep_bytes: int = LOG_MAX_BYTES) -> None:
    """Keep a program's log bounded: its content moves to `<name>.log.1` and it begins anew. The program appends, so it need
    not know."""
    try:
        if file.stat().st_size <= keep_bytes:
            return
        with file.open("rb") as source, file.with_suffix(".log.1").open("wb") as copy:
            source.seek(-keep_bytes, os.SEEK_END)
            while piece := source.read(1 << 20):
                copy.write(piece)
        os.truncate(file, 0)
    except FileNotFoundError:
        return


def last_words(paths: Paths, name: str, lines: int = 3) -> str:
    """The end of a program's log, for a person who must know why it does not start."""
    try:
        with (paths.program_logs / f"{name}.log").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def make_mark(paths: Paths, name: str) -> str:
    """The value of MARK."""
    return f"{paths.tag}/{name}"


def _marked(mark: str) -> list[int]:
    """Pids whose environment carries the mark and that lead a session: what a program itself starts inherits the mark, but no
    session."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _pids() if wanted in _environ(pid) and _leads_session(pid)]


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        # gone, or another user's
        return []


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
