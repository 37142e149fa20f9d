"""How does a Steelyard end? Programs first (so that nothing is started any more), then all its workloads: SIGTERM, a grace,
SIGKILL by cgroup; then the spawner, which has recorded every exit by then; then the run folder. Every step may be repeated, so
that whoever is killed in the middle of it can be followed by another who does the rest.

Ends only what belongs to this home: by record or mark (programs), by cgroup, by being a child of this home's spawner, by handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from steelyard.cli.programs import PROGRAM_NAMES, ProgramRecord, find_program, open_pidfd
from steelyard.clock import Clock
from steelyard.config import Paths, Settings, load_settings
from steelyard.engine.slurm.attachment import end_pilots, load_attachment
from steelyard.errors import SteelyardError, StoreDamaged
from steelyard.host import Cgroups
from steelyard.host.cgroup import open_cgroups
from steelyard.host.journal import SettingsJournal
from steelyard.host.memory_folder import remove_memory_folder
from steelyard.host.proc import boot_id, observe_processes
from steelyard.host.scratch import ScratchDisk
from steelyard.runtime.launcher import find_launchers
from steelyard.runtime.records import load_handles

#: seconds from SIGTERM to SIGKILL
PROGRAM_GRACE_S = 5.0
WORK_GRACE_S = 10.0


def end_programs(paths: Paths, names: Sequence[str], clock: Clock, say: Callable[[str], None]) -> None:
    """SIGTERM to each that lives, all at once; SIGKILL to what is left after the grace."""
    living = [record for name in names if (record := find_program(paths, name, clock)) is not None]
    for record in living:
        say(f"Stopping {record.name} (pid {record.pid})")
    left = _end([(record, pidfd) for record in living if (pidfd := open_pidfd(record)) is not None])
    for record in left:
        say(f"{record.name} did not stop in {PROGRAM_GRACE_S:.0f} s and was killed")


def end_everything(paths: Paths, clock: Clock, say: Callable[[str], None]) -> None:
    """All of this home but its supervisor. What is kept: the home itself, with all state and logs."""
    end_programs(paths, [name for name in PROGRAM_NAMES if name != "spawner"], clock, say)
    _give_back_pilots(paths, say)
    spawner = find_program(paths, "spawner", clock)
    settings = _load_settings(paths)
    cgroups = open_cgroups(paths.tag, own=settings is None or not settings.pilot)
    _track_handles(paths, cgroups, say)
    ended = _end_work(cgroups, spawner, clock)
    if ended:
        say(f"Ended {ended} process{'es' if ended != 1 else ''} of jobs and functions")
    end_programs(paths, ["spawner"], clock, say)
    cgroups.destroy()
    _remove_scratch(paths, settings, say)
    _put_back_settings(paths, say)
    for name in (*PROGRAM_NAMES, "up"):
        (paths.programs / f"{name}.json").unlink(missing_ok=True)
    remove_memory_folder(paths.secrets)
    remove_memory_folder(paths.containers)
    shutil.rmtree(paths.run, ignore_errors=True)
    with contextlib.suppress(OSError):
        # other homes may have theirs beside it
        paths.run.parent.rmdir()


def _give_back_pilots(paths: Paths, say: Callable[[str], None]) -> None:
    """Machines that a Slurm cluster gave to pools, with what runs there."""
    try:
        attachment = load_attachment(paths)
        given_back = 0 if attachment is None else asyncio.run(end_pilots(attachment, os.environ, paths.tag))
    except SteelyardError as err:
        say(f"Note: machines of pools could not be given back to Slurm: {err.public}")
        return
    if given_back:
        say(f"Gave {given_back} machine{'s' if given_back != 1 else ''} of pools back to Slurm")


def _load_settings(paths: Paths) -> Settings | None:
    try:
        return load_settings(paths)
    except SteelyardError:
        return None  # damaged, which the next `up` says


def _remove_scratch(paths: Paths, settings: Settings | None, say: Callable[[str], None]) -> None:
    """Its processes are gone: nothing holds it any more. What is mounted is found by its name, also without settings."""
    configured = Path(settings.scratch_dir) if settings is not None and settings.scratch_dir else None
    if not ScratchDisk(paths.home, paths.tag, configured=configured).destroy():
        say("Note: some scratch space of jobs could not be removed; the next `steelyard up` tries again")


def _put_back_settings(paths: Paths, say: Callable[[str], None]) -> None:
    """What this home's work still held of the machine's settings; other homes' stays."""
    try:
        SettingsJournal(paths.run.parent, boot_id()).restore(lambda holder: not holder.startswith(f"{paths.tag}/"))
    except OSError as err:
        say(f"Note: settings of this machine could not be put back ({err.strerror}); the next `steelyard up` tries again")


def _track_handles(paths: Paths, cgroups: Cgroups, say: Callable[[str], None]) -> None:
    """Without control groups, and with a spawner that was killed, the handles are all that is known of orphans."""
    try:
        for handle in load_handles(paths.agent).values():
            if handle.boot_id == boot_id():
                cgroups.track(handle.workload, handle.pid, handle.start_time)
    except StoreDamaged as err:
        say(f"Note: {err.public}")


def _end_work(cgroups: Cgroups, spawner: ProgramRecord | None, clock: Clock) -> int:
    """Returns how many processes were told to end."""
    told: set[int] = set()
    for workload in cgroups.workloads():
        if cgroups.frozen(workload):
            # a suspended job answers nothing before it goes on
            cgroups.freeze(workload, False)
    deadline_ns = clock.mono_ns() + int(WORK_GRACE_S * 1e9)
    while pids := _work_pids(cgroups, spawner):
        forced = clock.mono_ns() >= deadline_ns
        if forced:
            for workload in cgroups.workloads():
                cgroups.kill(workload)
        # new ones appear while we look: what forks when it is told to end is told as well
        fresh = pids if forced else pids - told
        told |= fresh
        pidfds = _open_all(pids)
        # a pid may have been given away between looking and opening; what is still ours after opening is what the descriptor
        # means
        ours = _work_pids(cgroups, spawner)
        for pid in fresh & ours & pidfds.keys():
            _signal(pidfds[pid], signal.SIGKILL if forced else signal.SIGTERM)
        _poll(list(pidfds.values()), 0.2)
        for pidfd in pidfds.values():
            os.close(pidfd)
    return len(told)


def _open_all(pids: set[int]) -> dict[int, int]:
    pidfds: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfds[pid] = os.pidfd_open(pid)
    return pidfds


def _work_pids(cgroups: Cgroups, spawner: ProgramRecord | None) -> set[int]:
    """All processes of all workloads: by cgroup, and (without cgroups) the spawner's whole family: it is the subreaper of every
    orphan below it, so nothing escapes by a double fork."""
    pids = {pid for workload in cgroups.workloads() for pid in cgroups.pids(workload)}
    if spawner is not None:
        pids |= _descendants(spawner.pid) - set(find_launchers(spawner.pid))  # which end with it, and not before
    return pids - {os.getpid()}


def _descendants(root: int) -> set[int]:
    """Everything below a pid that still runs (zombies are the parent's to reap)."""
    below: dict[int, list[int]] = {}
    for pid, stat in observe_processes().items():
        below.setdefault(stat.parent, []).append(pid)
    found: set[int] = set()
    queue = [root]
    while queue:
        children = below.get(queue.pop(), [])
        found.update(children)
        queue.extend(children)
    return found


def _end(living: list[tuple[ProgramRecord, int]]) -> list[ProgramRecord]:
    """Returns those that had to be killed. Closes the descriptors."""
    for _, pidfd in living:
        _signal(pidfd, signal.SIGTERM)
    left = [(record, pidfd) for record, pidfd in living if not _poll([pidfd], PROGRAM_GRACE_S)]
    for _, pidfd in left:
        _signal(pidfd, signal.SIGKILL)
        _poll([pidfd], PROGRAM_GRACE_S)
    for _, pidfd in living:
        os.close(pidfd)
    return [record for record, _ in left]


def _signal(pidfd: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signum)


def _poll(pidfds: list[int], wait_s: float) -> bool:
    """Did one of them end within the time?"""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(wait_s * 1000)))
