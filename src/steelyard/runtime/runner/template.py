"""How does a template live? It prepares what its place in the tree asks for (grow.py), and then makes replicas and further
templates, one per packet.

Takes JSON packets on a listening SEQPACKET Unix socket (the kernel keeps them while an import runs, so no thread is needed):
    {"op": "status"}                                       -> {"state": "ready" | "failed", ...}
    {"op": "show"}                                         -> the same and what `steelyard template` shows
    {"op": "fork", "replica", "cpus", "cgroups", "private", "sent_ns"[, "revision"]}
                                                           -> {"pid", "start_time", ...} | {"refused", "detail"}
    {"op": "grow", "role", "env", "cgroups", ...}          -> {"pid", "start_time"}, or the same
    {"op": "scan", "file", "code_dir"}                     -> {"names", "stamp"}: what a file imports of what is installed
    {"op": "learn"}                                        -> {"names"}: those that the user's loaded files import
In a container pids mean nothing to who asks, so an answer with one comes with a descriptor of that process too.
fork comes with descriptors [listening socket, page, stdout, stderr, cgroup files...], grow with [control socket, stdout, stderr,
cgroup files...]. One thread, no event loop of its own. Whatever is forked has the template's own parent as its parent.

A revision's template in use keeps one replica forked ahead (spare.py): a fork costs a Python process about 3 ms, most of it
page faults on memory that it shared a moment ago, and a spare has those behind it. It holds a few MB and no core, belongs to no
workload until it is handed an order, and ends with the template or after SPARE_KEEP_S without one. Orders that come while there
is none are forked on the spot.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from typing import Any

from . import page as pages
from . import user
from .at_fork import handlers, reseed
from .fork import SiblingFork, start_time
from .grow import Failed, Seed, become, enter_folder, load_app, make_base, take_environment
from .holes import fill_holes, give_back
from .imports import find_installed, installation_stamp, learn, note_loaded, scan, top_level
from .join import join, reseed_numpy
from .packets import Connection, Packet, accept, make_pair, receive, send, seqpacket, write_json
from .page import Page
from .rehearse import rehearse
from .serve import Machinery, Serving, flush, report_failure
from .spare import Order, Spare, wait_for_order
from .threads import unaccounted_threads
from .unsafe import unsafe_state

#: a failed template waits this long for somebody to ask why
FAILED_WAIT_S = 10.0
#: quiet time after an order until the next spare is forked, so that the replica just woken has the cores for itself
SPARE_DELAY_MS = 100
#: a spare that nobody wanted for so long goes: most functions sleep longer than their memory is worth
SPARE_KEEP_S = 60.0


class Template:
    """`run` returns an exit code: the template's own, or, in a forked child, that of whatever the child became."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._machinery: Machinery
        self._forking = SiblingFork(twice=config.get("fork") == "twice")
        if "alive_fd" in config:  # kept for whoever looks whether we, or what we fork, live; what is executed is nobody's concern
            os.set_inheritable(config["alive_fd"], False)
        #: our parent is in another pid namespace
        self._apart = os.getppid() == 0
        self._app: Any = None
        self._revision: dict[str, Any] = {}
        self._server: list[str] = []
        self._begin("base", seqpacket(config["control_fd"]))

    def _begin(self, role: str, control: Connection) -> None:
        self._role = role
        self._control = control
        self._control.setblocking(False)
        self._agents: dict[int, Connection] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._status: dict[str, Any] = {"state": "failed", "traceback": ""}
        self._told = False
        self._forks = 0
        #: unsafe without threads, which are looked at anew before each fork
        self._unsafe: list[dict[str, str]] = []
        self._ahead = False
        self._spare: Spare | None = None
        #: monotonic s of the last order
        self._used_s = 0.0

    def child(self, role: str, control_fd: int) -> Template:
        """That of a child of this process. This one stays as it is: what it frees would be written to shared pages."""
        child = Template.__new__(Template)
        child._config, child._machinery, child._forking, child._apart = self._config, self._machinery, self._forking, self._apart
        child._app, child._revision, child._server = None, {}, self._server
        child._begin(role, seqpacket(control_fd))
        return child

    def run(self, seed: Seed | None = None) -> int:
        try:
            self._prepare(seed)
        except Failed as err:
            report_failure(None, err.text)
            self._status |= {**err.status, "traceback": err.text}
            return self._tell_failure()
        grown = self._serve()
        if isinstance(grown, Order):
            return self._be_replica(grown)
        return self.child(grown.role, grown.control).run(grown)

    def _prepare(self, seed: Seed | None) -> None:
        if seed is None:
            self._machinery, self._server = make_base(self._config)
            told: dict[str, Any] = {}
        else:
            told = become(seed, self._fork_quietly)
            self._app = told.pop("app", None)
            self._revision = seed.asked
        if self._role != "revision":
            self._learn_way()
        if self._role == "environment":
            note_loaded()
        user.forget_phases()
        flush()  # what is left in a buffer would be written by every child
        gc.collect()
        if self._role != "revision":
            user.make_module_ahead()
            fill_holes()
        gc.freeze()
        self._unsafe = unsafe_state()
        if self._role == "revision":
            give_back()
        self._status = {
            "state": "ready",
            "traceback": "",
            "role": self._role,
            "modules": len(sys.modules),
            "server": self._server,
            "fork": self._forking.way,
            **told,
        }

    def _learn_way(self) -> None:
        """So that what it forks has nothing to learn on it."""
        gc.collect()
        gc.freeze()
        try:
            rehearse(self, self._role)
        except Exception as err:  # it costs memory, and nothing else
            sys.stderr.write(f"the way of a revision could not be rehearsed: {err}\n")

    def _serve(self) -> Order | Seed:
        """Answer packets; comes back only in a child."""
        while True:
            child = self._turn()
            if child is not None:
                return child

    def _turn(self) -> Order | Seed | None:
        quiet = True
        for fd, _ in self._poll.poll(self._patience_ms()):
            quiet = False
            if fd == self._control.fileno():
                self._welcome()
                continue
            child = self._hear(self._agents[fd])
            if child is not None:
                return child
        return self._look_after_spare() if quiet else None

    def _patience_ms(self) -> float | None:
        if not self._ahead:
            return None
        if self._spare is None:
            return SPARE_DELAY_MS
        return max(0.0, self._used_s + self._config.get("spare_keep_s", SPARE_KEEP_S) - time.monotonic()) * 1000 + 1

    def _look_after_spare(self) -> Order | None:
        if not self._ahead:
            return None
        if self._spare is None:
            return self._fork_ahead()
        if time.monotonic() >= self._used_s + self._config.get("spare_keep_s", SPARE_KEEP_S):
            self._rest()
        return None

    def _rest(self) -> None:
        self._ahead = False
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()

    def _tell_failure(self) -> int:
        """Stay until the first status was answered, then leave with 1."""
        deadline = time.monotonic() + FAILED_WAIT_S
        while not self._told and (left := deadline - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left * 1000):
                if fd == self._control.fileno():
                    self._welcome()
                else:
                    self._hear(self._agents[fd])
        return 1

    def _welcome(self) -> None:
        try:
            agent = accept(self._control)
        except OSError:
            return
        self._agents[agent.fileno()] = agent
        self._poll.register(agent, select.POLLIN)

    def _hear(self, agent: Connection) -> Order | Seed | None:
        """Answer one packet. Something comes back only in a forked child."""
        try:
            packet = receive(agent)
        except BlockingIOError:
            return None
        if packet is None:
            self._forget(agent)
            agent.close()
            return None
        try:
            answer = self._answer(packet, agent)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            answer = {"refused": "not-understood", "detail": repr(err)}
        if isinstance(answer, (Order, Seed)):
            return answer
        packet.close()
        if answer is not None:
            self._send(agent, answer)
        return None

    def _forget(self, agent: Connection) -> None:
        self._poll.unregister(agent)
        del self._agents[agent.fileno()]

    def _send(self, agent: Connection, answer: dict[str, Any]) -> None:
        data = write_json(answer)
        try:
            if self._apart and "pid" in answer:
                process = os.pidfd_open(answer["pid"])
                try:
                    send(agent, data, [process])
                finally:
                    os.close(process)
            else:
                agent.send(data)
            self._told = True
        except ProcessLookupError:
            self._send(agent, {"refused": "fork-failed", "detail": "it ended at once"})
        except OSError:
            pass  # gone; the next poll says so

    def _answer(self, packet: Packet, agent: Connection) -> dict[str, Any] | Order | Seed | None:
        asked = packet.asked
        op = asked.get("op")
        if op in ("status", "show"):
            status = {**self._status, "threads": unaccounted_threads(), "unsafe": self._unsafe, "forks": self._forks}
            more = {"top_level": top_level()} if op == "show" else {}
            return {**status, **more, "traceback": status["traceback"][-50_000:]}
        if self._status["state"] == "ready":
            if op == "fork":
                return self._fork(packet)
            if op == "grow":
                return self._grow(packet, agent)
            if op == "scan" and self._role == "base":
                path = os.path.join(asked["code_dir"], asked["file"])
                names = find_installed(scan(path), [asked["code_dir"], user.package_of(path)[0]])
                return {"names": names, "stamp": installation_stamp()}
            if op == "learn" and self._role == "revision":
                return self._learn(agent)
        return {"refused": "not-understood", "detail": f"{self._role}, state {self._status['state']}, asked {op!r}"}

    def _learn(self, agent: Connection) -> dict[str, Any] | None:
        """Answered by a child, whose memory goes with it. Only on a connection that is asked nothing else, since the template may
        answer other packets before."""
        if self._refuse() is not None:
            return {"names": self._learned()}
        if self._fork_quietly():
            return None
        try:
            self._send(agent, {"names": self._learned()})
        finally:
            os._exit(0)

    def _learned(self) -> list[str]:
        path = os.path.join(self._revision["code_dir"], self._revision["file"])
        return learn([self._revision["code_dir"], user.package_of(path)[0]])

    def _grow(self, packet: Packet, agent: Connection) -> dict[str, Any] | Seed | None:
        """Answered by the child, on a connection that is asked nothing else. Of what this process writes after the fork it gets
        a copy, and the page as it was is the child's alone: so it does as little as it can."""
        refused = self._refuse()
        if refused is not None:
            return refused
        seed = Seed(packet)
        try:
            pid = self._fork_quietly()
        except OSError as err:
            pid = -1
            self._send(agent, {"refused": "fork-failed", "detail": str(err)})
        if pid == 0:
            reseed()
            self._send(agent, {"pid": os.getpid(), "start_time": start_time(os.getpid())})
            self._leave_template()
            return seed
        self._forget(agent)
        agent.close()
        self._forks += pid > 0
        return None

    def _fork_quietly(self) -> int:
        """For a child that needs no more of the interpreter than this process does."""
        handlers.quiet = True
        try:
            return self._forking.fork()
        finally:
            handlers.quiet = False

    def _fork_fully(self) -> int:
        """For a replica, where users' code runs."""
        handlers.lone = True
        try:
            return self._forking.fork()
        finally:
            handlers.lone = False

    def _fork(self, packet: Packet) -> dict[str, Any] | Order:
        received_ns = time.monotonic_ns()
        refused = self._refuse()
        if refused is not None:
            return refused
        order = Order(packet)
        if (order.revision is None) is not (self._role == "revision"):
            raise ValueError(f"a replica of {'nothing' if order.revision is None else 'a revision'} from {self._role}")
        self._ahead = self._config.get("ahead", True) and self._role == "revision"
        self._used_s = time.monotonic()
        spare, self._spare = self._spare, None
        if spare is not None and spare.hand_over(packet):
            self._forks += 1
            return {
                "pid": spare.pid,
                "start_time": spare.start_time,
                "received_ns": received_ns,
                "forked_ns": time.monotonic_ns(),
            }
        return self._fork_now(order, received_ns)

    def _refuse(self) -> dict[str, Any] | None:
        if threads := unaccounted_threads():
            return {"refused": "template-has-threads", "detail": "; ".join(str(thread["name"]) for thread in threads)}
        if self._unsafe:
            return {"refused": "template-unsafe", "detail": "; ".join(each["name"] for each in self._unsafe)}
        return None

    def _fork_now(self, order: Order, received_ns: int) -> dict[str, Any] | Order:
        """The child gets its order, the template its answer."""
        try:
            pid = self._fork_fully()
        except OSError as err:
            return {"refused": "fork-failed", "detail": str(err)}
        if pid == 0:
            self._leave_template()
            return order
        self._forks += 1
        return {"pid": pid, "start_time": start_time(pid), "received_ns": received_ns, "forked_ns": time.monotonic_ns()}

    def _fork_ahead(self) -> Order | None:
        """Make the spare. Returns None in the template, and in the spare the order that it was handed."""
        if self._refuse() is not None:
            self._ahead = False
            return None
        ours, theirs = make_pair()
        try:
            pid = self._fork_fully()
        except OSError as err:
            sys.stderr.write(f"no replica could be forked ahead: {err}\n")
            self._ahead = False  # orders try on their own and report
            pid = -1
        if pid == 0:
            ours.close()
            self._leave_template()
            self._machinery.allow(self._revision["concurrency"])
            return wait_for_order(theirs, self._machinery)
        theirs.close()
        if pid < 0:
            ours.close()
            return None
        self._spare = Spare(pid, start_time(pid), ours)
        self._rehearse()
        return None

    def _rehearse(self) -> None:
        """The fork has made this process's memory shared again. Handle one order that leads nowhere, so that the next real
        one meets no page faults here."""
        here, there = make_pair()
        asked = {"op": "fork", "replica": "", "cpus": [0], "cgroups": 0, "private": False, "sent_ns": 0}
        send(here, write_json(asked), [here.fileno()] * 4)
        kept, self._spare = self._spare, Spare(0, 0, seqpacket(os.dup(here.fileno())))
        used_s, forks = self._used_s, self._forks
        self._agents[there.fileno()] = there
        self._poll.register(there, select.POLLIN)
        self._poll.poll(0)
        self._hear(there)
        self._forget(there)
        here.close()
        there.close()
        self._spare, self._used_s, self._forks = kept, used_s, forks

    def _leave_template(self) -> None:
        """In the child: nothing of the template's conversations, and a session of its own."""
        self._control.close()
        for agent in self._agents.values():
            agent.close()
        if self._spare is not None:
            self._spare.close()
        if self._forking.answer is None:
            os.setsid()

    def _be_replica(self, order: Order) -> int:
        page = Page.from_fd(order.page)
        page.alive_ns = order.alive_ns or time.monotonic_ns()
        page.state = pages.ALIVE
        os.close(order.page)
        try:
            join(order.cgroups, order.cpus, order.stdout, order.stderr)
        except OSError as err:
            report_failure(page, f"the replica could not join its cgroups or cores: {err}")
            return 1
        if not order.alive_ns:
            reseed_numpy()
        revision = order.revision or self._revision
        self._machinery.allow(revision["concurrency"])
        serving = Serving(self._machinery, page, socket.socket(fileno=order.listener), order.private)
        page.joined_ns = time.monotonic_ns()
        page.state = pages.JOINED
        if order.revision is not None:
            try:
                take_environment(revision["env"])
                enter_folder(revision["code_dir"])
                self._app = load_app(revision)
                page.imported_ns = time.monotonic_ns()
                page.state = pages.IMPORTED
                user.run_hooks(shared=True)
            except (user.UserCodeFailed, OSError) as err:
                report_failure(page, str(err))
                return 1
        else:
            page.imported_ns = page.joined_ns
            page.state = pages.IMPORTED
        return serving.run(self._app)
