"""Who is the parent of every workload, so that the agent may die? `python -m steelyard.runtime.spawner --socket PATH --exits DIR`

A tiny single-threaded subreaper. It forks on request (wire/spawn.py), reaps everything, writes and fsyncs an exit record per
workload before it tells anybody (R5), and holds a copy of every listening socket. Agents come and go; it serves any number of
them at once. It never decides anything, never kills anything, and keeps under 20 MB.

SIGTERM ends it at once when no workload lives, after the last one has ended otherwise; a second SIGTERM ends it at once, and
workloads go on without it. Killed with -9 it leaves workloads running; the next one starts with no children and no sockets.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import resource
import select
import selectors
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from steelyard.clock import SystemClock
from steelyard.model.ids import WorkloadId
from steelyard.runtime.mount_calls import make_userns
from steelyard.runtime.procstat import observe_process
from steelyard.runtime.spare_files import SpareFiles
from steelyard.runtime.spawn_child import ALL_SIGNALS, block_signals, observe_inherited, prctl, run_child
from steelyard.runtime.spawner_peer import Peer, note, open_listener, peer_is_ours
from steelyard.wire import spawn as wire

#: requests of one agent in a row: a hundred jobs to be started must not hide that the first of them have ended
READ_MAX = 8
#: children that ended before a Claim came; grandchildren that were merely handed up to us pass through here too
UNCLAIMED_MAX = 4096
#: a start that takes longer (a slow disk under chdir or exec) is waited for beside everything else
EXEC_WAIT_MS = 5
#: while exit records can't be written (disk full)
RETRY_S = 0.5

#: exits between two looks for the records of earlier ones that the agent has let go of
SPARES_EVERY = 64

#: descriptors for ourselves: one per held socket, two per start; workloads get the limit that we were started with
NOFILE_MAX = 1 << 20

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_WALL = 0x40000000


class Child(msgspec.Struct, frozen=True):
    workload: WorkloadId
    pid: int
    start_time: int


class Starting(msgspec.Struct, frozen=True):
    """Forked, exec not confirmed yet. The pipe closes at exec, or brings the error."""

    child: Child
    pipe: int
    asked_by: Peer
    #: see `wire.Rootfs`
    leaves: str


class Spawner:
    def __init__(self, listener: socket.socket, exits: Path, nofile: tuple[int, int]) -> None:
        self._listener = listener
        self._exits, self._exits_path = exits, str(exits)
        self._clock = SystemClock()
        self._selector = selectors.DefaultSelector()
        self._peers: list[Peer] = []
        self._children: dict[int, Child] = {}
        self._starting: dict[int, Starting] = {}
        #: what kept it from its exec, told once it is gone: until then its control group has it
        self._failed: dict[int, tuple[Starting, str, str]] = {}
        #: programs that run only until they have left a workload to us
        self._leaving: dict[int, Starting] = {}
        self._unclaimed: OrderedDict[tuple[int, int], wire.Exited] = OrderedDict()
        #: ended, but the record is not on disk yet
        self._unsaved: dict[WorkloadId, wire.Exited] = {}
        self._spares = SpareFiles()
        self._saved = 0
        self._held: dict[str, int] = {}
        self._listing: list[Peer] = []
        self._terms = 0
        #: maps of ids -> a descriptor of a user namespace with these
        self._userns: dict[tuple[tuple[tuple[int, int, int], ...], ...], int] = {}
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signal)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's business, not ours
            signal.signal(number, signal.SIG_IGN)
        self._inherited = observe_inherited(nofile)

    def serve(self) -> None:
        while not (self._terms > 1 or (self._terms and not (self._children or self._failed or self._unsaved))):
            for key, events in self._selector.select(RETRY_S if self._unsaved else None):
                key.data(events)
            self._reap()
            if self._listing:
                self._answer_lists()
            self._save_exits()
            self._peers = [peer for peer in self._peers if not peer.closed]

    # signals and exits

    def _on_signal(self, _events: int) -> None:
        # SIGCHLD needs no more than having woken us: what ended is looked up anew each time round
        self._terms += os.read(self._wakeup, 4096).count(signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                # look before taking it away: the start time of one that we don't know is there only while it is a zombie
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self._starting:
                self._settle(self._starting[pid])
            if pid in self._failed:
                self._fail(*self._failed.pop(pid))
            child = self._children.pop(pid, None) or _observe_stranger(pid)
            _, status, usage = os.wait4(pid, _WALL)
            leaving = self._leaving.pop(pid, None)
            if leaving is not None:
                self._take_over(leaving, status)
                continue
            exited = wire.Exited(
                workload=child.workload,
                pid=pid,
                start_time=child.start_time,
                ended_at=self._clock.now_us(),
                exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                user_s=usage.ru_utime,
                system_s=usage.ru_stime,
                peak_rss_bytes=usage.ru_maxrss * 1024,
                read_bytes=usage.ru_inblock * 512,
                written_bytes=usage.ru_oublock * 512,
            )
            if child.workload:
                self._unsaved[child.workload] = exited
                continue
            self._unclaimed[pid, exited.start_time] = exited
            if len(self._unclaimed) > UNCLAIMED_MAX:
                self._unclaimed.popitem(last=False)

    def _save_exits(self) -> None:
        # all that ended while the last ones were being synced, for the price of one
        batch = list(self._unsaved.items())
        if not batch:
            return
        if self._saved % SPARES_EVERY + len(batch) >= SPARES_EVERY:
            self._spares.find(self._exits)
        self._saved += len(batch)
        results = self._spares.write([(self._exits / f"{w}.json", msgspec.json.encode(exited)) for w, exited in batch])
        for (workload, exited), error in zip(batch, results, strict=True):
            if error is not None:
                note(f"exit record of {workload} not written, {len(self._unsaved)} wait; will try again: {error}")
                continue
            del self._unsaved[workload]
            for peer in self._peers:
                peer.send(exited)

    # agents

    def _accept(self, _events: int) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if not peer_is_ours(sock):
                sock.close()
                continue
            peer = Peer(sock, self._selector)
            self._peers.append(peer)
            self._selector.register(sock, selectors.EVENT_READ, lambda events, peer=peer: self._on_peer(peer, events))

    def _on_peer(self, peer: Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            peer.flush()
        if events & selectors.EVENT_READ:
            self._read(peer)

    def _read(self, peer: Peer, at_most: int = READ_MAX) -> None:
        while at_most and (packet := peer.receive()) is not None:
            at_most -= 1
            message, fds = packet
            try:
                self._handle(peer, message, fds)
            except OSError as err:  # out of descriptors: this agent's request fails, everybody's children stay
                note(f"connection dropped: {type(message).__name__} not carried out: {err}")
                peer.close()
            finally:
                for fd in fds:
                    os.close(fd)

    def _handle(self, peer: Peer, message: wire.ToSpawner, fds: list[int]) -> None:
        match message:
            case wire.Spawn():
                self._spawn(peer, message, fds)
            case wire.Claim():
                self._claim(message)
            case wire.HoldSocket(name):
                self._let_go(name)
                self._held[name] = fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, 3)
            case wire.DropSocket(name):
                self._let_go(name)
            case wire.ListHeld():
                self._listing.append(peer)

    def _let_go(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            os.close(held)

    def _answer_lists(self) -> None:
        # An agent that was just killed may have left requests in its socket. They are carried out before the answer: otherwise
        # its successor could be told that they never ran, only because its own question happened to be read first.
        self._accept(0)
        for peer in list(self._peers):
            self._read(peer, sys.maxsize)
        children = [(child.workload, child.pid, child.start_time) for child in self._children.values()]
        # not recorded yet is not ended yet
        children += [(exited.workload, exited.pid, exited.start_time) for exited in self._unsaved.values()]
        listing, self._listing = self._listing, []
        for peer in listing:
            for name, fd in self._held.items():
                peer.send(wire.Held(name), fd)
            for start in range(0, len(children) + 1, wire.RUNNING_MAX):
                peer.send(wire.Running(tuple(children[start : start + wire.RUNNING_MAX])))

    # workloads

    def _spawn(self, peer: Peer, request: wire.Spawn, fds: list[int]) -> None:
        workload = request.workload
        refusal = self._check_new(workload)
        if refusal:
            peer.send(wire.SpawnFailed(workload, "start", refusal))
            return
        passed, joins = fds[: len(request.fds)], fds[len(request.fds) :]
        try:
            userns = self._find_userns(request.rootfs)
        except OSError as err:
            peer.send(wire.SpawnFailed(workload, "user namespace", err.strerror or str(err)))
            return
        pipe, error_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        blocked = block_signals(ALL_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                run_child(request, passed, joins, error_fd, self._inherited, userns)
        except OSError as err:
            os.close(pipe)
            peer.send(wire.SpawnFailed(workload, "fork", err.strerror or str(err)))
            return
        finally:
            os.close(error_fd)
            block_signals(blocked)
        # Standing still until exec is a third faster than going on: while both run, each write copies the page for the other.
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        ready = poll.poll(EXEC_WAIT_MS)
        child = Child(workload, pid, _observe_stranger(pid).start_time)
        self._children[pid] = child
        starting = self._starting[pid] = Starting(child, pipe, peer, request.rootfs.leaves if request.rootfs else "")
        if ready:
            self._settle(starting, watched=False)
        else:
            self._selector.register(pipe, selectors.EVENT_READ, lambda _events: self._settle(starting))

    def _find_userns(self, rootfs: wire.Rootfs | None) -> int | None:
        """One for all containers of an owner: making it takes a process, and is done once."""
        if rootfs is None or not rootfs.lower:
            return None
        maps = rootfs.uids, rootfs.gids
        if maps not in self._userns:
            self._userns[maps] = make_userns(*maps)
        return self._userns[maps]

    def _check_new(self, workload: WorkloadId) -> str | None:
        """Why it may not be started; a workload runs at most once, whoever asks."""
        if self._terms:
            return "the spawner was told to end"
        if any(child.workload == workload for child in self._children.values()):
            return "it runs already"
        if workload in self._unsaved or self._has_record(workload):
            return "it ran already"
        return None

    def _has_record(self, workload: WorkloadId) -> bool:
        return os.access(f"{self._exits_path}/{workload}.json", os.F_OK)

    def _settle(self, starting: Starting, watched: bool = True) -> None:
        """The pipe closed: exec worked, or there is an error to read. Also called when the child is already gone."""
        child = starting.child
        if self._starting.pop(child.pid, None) is None:
            return
        if watched:
            self._selector.unregister(starting.pipe)
        try:
            step, _, error = os.read(starting.pipe, 4096).decode(errors="replace").partition("\0")
        except BlockingIOError:
            step = error = ""
        os.close(starting.pipe)
        if not step and starting.leaves:
            self._leaving[child.pid] = starting
            return
        if not step:
            starting.asked_by.send(wire.Spawned(child.workload, child.pid, child.start_time, self._clock.mono_ns()))
            return
        self._children.pop(child.pid, None)
        self._failed[child.pid] = starting, step, error

    def _take_over(self, starting: Starting, status: int) -> None:
        """The program that was to leave us the workload has ended."""
        workload = starting.child.workload
        try:
            pid = int(Path(starting.leaves).read_text()) if status == 0 else 0
        except (OSError, ValueError):
            pid = 0
        ended = next((key for key in self._unclaimed if key[0] == pid), None)
        stat = observe_process(pid) if pid else None
        if ended is not None:  # the moment that it was ours
            self._unsaved[workload] = msgspec.structs.replace(self._unclaimed.pop(ended), workload=workload)
            start_time = ended[1]
        elif stat is not None and stat.parent == os.getpid():
            start_time = stat.start_time
            self._children[pid] = Child(workload, pid, start_time)
        else:
            code = os.waitstatus_to_exitcode(status)
            self._fail(starting, "container", f"{'exit code' if code >= 0 else 'signal'} {abs(code)}")
            return
        starting.asked_by.send(wire.Spawned(workload, pid, start_time, self._clock.mono_ns()))

    def _fail(self, starting: Starting, step: str, error: str) -> None:
        """It does not run, and its agent is told so."""
        child = starting.child
        if not starting.asked_by.send(wire.SpawnFailed(child.workload, step, error)):
            # Its agent is gone and the next one may have been told that it runs: the record says what a shell would
            note(f"{child.workload} not started: {step}: {error}")
            self._unsaved[child.workload] = wire.Exited(
                child.workload, child.pid, child.start_time, self._clock.now_us(), 127, None, 0.0, 0.0, 0
            )

    def _claim(self, claim: wire.Claim) -> None:
        workload, pid = claim.workload, claim.pid
        if pid in self._children or workload in self._unsaved or self._has_record(workload):
            return
        ended = self._unclaimed.pop((pid, claim.start_time), None)
        if ended is not None:
            self._unsaved[workload] = msgspec.structs.replace(ended, workload=workload)
            return
        stat = observe_process(pid)
        if stat is None or stat.start_time != claim.start_time:
            # it ended, and not as a child of ours: how, nobody knows
            self._unsaved[workload] = wire.Exited(workload, pid, claim.start_time, self._clock.now_us(), None, None, 0.0, 0.0, 0)
        elif stat.parent == os.getpid():
            self._children[pid] = Child(workload, pid, claim.start_time)
        else:
            note(f"{workload}: pid {pid} is no child of mine, its exit will be unknown")


def _observe_stranger(pid: int) -> Child:
    """A child of ours (a zombie at least, so it is there) that belongs to no workload yet."""
    stat = observe_process(pid)
    return Child(WorkloadId(""), pid, stat.start_time if stat else 0)


def main(argv: Sequence[str]) -> int:
    if len(argv) != 4 or argv[0] != "--socket" or argv[2] != "--exits":  # argparse would cost 1 MB for two options
        note("usage: python -m steelyard.runtime.spawner --socket PATH --exits DIR")
        return 2
    nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(nofile[0], min(nofile[1], NOFILE_MAX)), nofile[1]))
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # whatever leaked into us must not reach workloads
    path, exits = Path(argv[1]), Path(argv[3])
    exits.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = open_listener(path)
    if opened is None:
        note(f"another spawner serves {path}")
        return 1
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)  # for all workloads, which have it from us
    prctl(_PR_SET_PDEATHSIG, 0)  # we outlive whoever started us
    spawner = Spawner(opened[0], exits, nofile)
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)  # 4 MB left over from imports
    spawner.serve()
    path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
