"""Who is the parent of every workload, so that the agent may die? `python -m steelyard.runtime.spawner --socket PATH --exits DIR`

A tiny single-threaded subreaper. Launchers fork for it on request (wire/spawn.py, launcher.py); it reaps everything, writes and
fsyncs an exit record per workload before it tells anybody (R5), and holds a copy of every listening socket. Agents come and go;
it serves any number at once. It never decides anything, never kills work, and keeps under 20 MB.

SIGTERM ends it at once when no workload lives, after the last one has ended otherwise; a second SIGTERM ends it at once, and
workloads go on without it. Killed with -9 it leaves workloads running; the next one starts with no children and no sockets.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import resource
import selectors
import signal
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from steelyard.clock import SystemClock
from steelyard.model.ids import WorkloadId
from steelyard.runtime.launcher import Launcher, Start, pack
from steelyard.runtime.mount_calls import make_userns
from steelyard.runtime.procstat import observe_process
from steelyard.runtime.spare_files import SpareFiles
from steelyard.runtime.spawn_child import prctl
from steelyard.runtime.spawner_peer import Peer, note, open_listener, peer_is_ours
from steelyard.wire import spawn as wire

#: requests of one agent in a row: a hundred jobs to be started must not hide that the first of them have ended
READ_MAX = 8
#: children that ended before a Claim came; grandchildren that were merely handed up to us pass through here too
UNCLAIMED_MAX = 4096
#: one forks while the child of the other is on its way to its program
LAUNCHERS = 2
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


class Spawner:
    def __init__(self, listener: socket.socket, exits: Path, nofile: tuple[int, int]) -> None:
        self._listener = listener
        self._exits, self._exits_path = exits, str(exits)
        self._clock = SystemClock()
        self._selector = selectors.DefaultSelector()
        self._peers: list[Peer] = []
        self._children: dict[int, Child] = {}
        self._launchers: list[Launcher] = []
        #: for a launcher that takes more
        self._waiting: deque[Start] = deque()
        #: asked for, and not executed yet
        self._starting: dict[WorkloadId, Start] = {}
        #: what kept it from its exec, told once it is gone: until then its control group has it
        self._failed: dict[int, tuple[Start, str, str]] = {}
        #: programs that run only until they have left a workload to us
        self._leaving: dict[int, Start] = {}
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
        self._nofile = nofile

    def serve(self) -> None:
        self._make_launchers()
        while not (self._terms > 1 or (self._terms and not (self._children or self._starting or self._failed or self._unsaved))):
            for key, events in self._selector.select(RETRY_S if self._unsaved else None):
                key.data(events)
            self._reap()
            if self._listing:
                self._answer_lists()
            self._save_exits()
            self._peers = [peer for peer in self._peers if not peer.closed]
        for launcher in self._launchers:
            launcher.close()
            os.waitpid(launcher.pid, 0)

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
            launcher = next((each for each in self._launchers if each.pid == pid), None)
            if launcher is not None:
                self._lose(launcher)
                os.waitpid(pid, 0)
                continue
            self._settle_gone(pid)
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
        if not all(start.pid for start in self._starting.values()):
            return  # told when they have been forked, or can't be
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
        """Takes `fds` over."""
        workload = request.workload
        refusal = self._check_new(workload)
        if refusal:
            peer.send(wire.SpawnFailed(workload, "start", refusal))
            return
        try:
            userns = self._find_userns(request.rootfs)
        except OSError as err:
            peer.send(wire.SpawnFailed(workload, "user namespace", err.strerror or str(err)))
            return
        pipe, error_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        leaves = request.rootfs.leaves if request.rootfs else ""
        start = Start(workload, pipe, peer, pack(request), [error_fd, *fds], userns, leaves)
        fds.clear()
        self._starting[workload] = start
        self._waiting.append(start)
        self._hand_out()

    def _hand_out(self) -> None:
        """What waits, to launchers that take it."""
        while self._waiting and self._make_launchers():
            launcher = min(self._launchers, key=lambda each: len(each.starts))
            try:
                if not launcher.send(self._waiting[0]):
                    return
            except OSError as err:
                if err.errno != errno.EMSGSIZE:
                    self._lose(launcher)
                    return
                self._refuse(self._waiting[0], f"\0start\0{err.strerror}")
            self._waiting.popleft()

    def _make_launchers(self) -> bool:
        """As many as there should be; False without any, and what waits for one has failed then."""
        try:
            while len(self._launchers) < LAUNCHERS:
                self._launchers.append(Launcher(self._nofile, self._selector, self._on_launcher))
        except OSError as err:
            note(f"a launcher could not be made: {err}")
        while self._waiting and not self._launchers:
            self._refuse(self._waiting.popleft(), "\0fork\0there can be no other process")
        return bool(self._launchers)

    def _refuse(self, start: Start, told: str) -> None:
        start.told = told.encode()
        start.let_go()
        self._settle(start)

    def _on_launcher(self, launcher: Launcher) -> None:
        if launcher not in self._launchers:
            return  # lost since the selector saw it
        try:
            for start in launcher.take():
                self._on_start(start)
        except (EOFError, OSError):
            self._lose(launcher)
        self._hand_out()

    def _lose(self, launcher: Launcher) -> None:
        """It was killed."""
        note(f"launcher {launcher.pid} is gone")
        self._launchers.remove(launcher)
        for start in launcher.close():
            self._on_start(start)
        self._hand_out()

    def _on_start(self, start: Start) -> None:
        if start.pipe >= 0 and self._look(start):
            self._settle(start)

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
        if workload in self._starting or any(child.workload == workload for child in self._children.values()):
            return "it runs already"
        if workload in self._unsaved or self._has_record(workload):
            return "it ran already"
        return None

    def _has_record(self, workload: WorkloadId) -> bool:
        return os.access(f"{self._exits_path}/{workload}.json", os.F_OK)

    def _look(self, start: Start, watch: bool = True) -> bool:
        """What its pipe says; True when that is all. Else the selector goes on looking, where it is to `watch`."""
        done = start.look()
        if start.pid and not start.start_time:
            start.start_time = _observe_stranger(start.pid).start_time
            self._children[start.pid] = Child(start.workload, start.pid, start.start_time)
        if watch and not done and not start.watched:
            start.watched = True
            self._selector.register(start.pipe, selectors.EVENT_READ, lambda _events: self._on_start(start))
        return done

    def _settle_gone(self, pid: int) -> None:
        """A child has ended: what its pipe says is all, whether its launcher has told of it or not."""
        if pid not in self._children:
            for start in [start for start in self._starting.values() if not start.pid]:
                self._look(start, watch=False)
        child = self._children.get(pid)
        start = None if child is None else self._starting.get(child.workload)
        if start is not None and start.pid == pid:
            self._look(start, watch=False)
            self._settle(start)

    def _settle(self, start: Start) -> None:
        """It was executed, or was not: its pipe closed, or it is gone."""
        del self._starting[start.workload]
        if start.watched:
            self._selector.unregister(start.pipe)
        os.close(start.pipe)
        start.pipe = -1
        step, error = start.error()
        if not start.pid:
            start.asked_by.send(wire.SpawnFailed(start.workload, step, error))
        elif step:
            self._children.pop(start.pid, None)
            self._failed[start.pid] = start, step, error
        elif start.leaves:
            self._leaving[start.pid] = start
        else:
            start.asked_by.send(wire.Spawned(start.workload, start.pid, start.start_time, self._clock.mono_ns()))

    def _take_over(self, start: Start, status: int) -> None:
        """The program that was to leave us the workload has ended."""
        workload = start.workload
        try:
            pid = int(Path(start.leaves).read_text()) if status == 0 else 0
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
            self._fail(start, "container", f"{'exit code' if code >= 0 else 'signal'} {abs(code)}")
            return
        start.asked_by.send(wire.Spawned(workload, pid, start_time, self._clock.mono_ns()))

    def _fail(self, start: Start, step: str, error: str) -> None:
        """It does not run, and its agent is told so."""
        if not start.asked_by.send(wire.SpawnFailed(start.workload, step, error)):
            # Its agent is gone and the next one may have been told that it runs: the record says what a shell would
            note(f"{start.workload} not started: {step}: {error}")
            self._unsaved[start.workload] = wire.Exited(
                start.workload, start.pid, start.start_time, self._clock.now_us(), 127, None, 0.0, 0.0, 0
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
