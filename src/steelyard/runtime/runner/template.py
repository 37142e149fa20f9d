"""How does a template live? It imports the user's app once, runs what may be shared, warms the server up, and then makes a
replica per packet.

Takes JSON packets on a listening SEQPACKET Unix socket (the kernel keeps them while the import still runs, so no thread is
needed):
    {"op": "status"}                                                      -> {"state": "ready" | "failed", ...}
    {"op": "fork", "replica", "cpus", "cgroups", "private", "sent_ns"}    -> {"pid", "start_time", ...} | {"refused", "detail"}
with descriptors [listening socket, page, stdout, stderr, cgroup files...]. One thread, no event loop of its own.

One replica is forked ahead (spare.py): a fork costs a Python process about 3 ms, most of it page faults on memory that it
shared a moment ago, and a spare has those behind it. It holds a few MB and no core, belongs to no workload until it is handed
an order, and ends with the template. Orders that come before the next spare is ready are forked on the spot.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
import time
from typing import Any

from . import page as pages
from . import user
from .fork import SiblingFork, start_time
from .isolate import Server, import_server
from .join import join
from .page import Page
from .serve import Machinery, Serving, report_failure, warm_up
from .spare import Order, Packet, Spare, receive, wait_for_order
from .threads import unaccounted_threads

#: a failed template waits this long for somebody to ask why
FAILED_WAIT_S = 10.0
#: quiet time after an order until the next spare is forked, so that the replica just woken has the cores for itself
SPARE_DELAY_MS = 100


class Template:
    """`run` returns an exit code: the template's own, or, in a forked child, the replica's."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._control = socket.socket(fileno=config["control_fd"])
        self._control.setblocking(False)
        self._agents: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._status: dict[str, Any] = {"state": "failed", "traceback": ""}
        self._told = False
        self._app: Any = None
        self._machinery: Machinery
        self._forking: SiblingFork
        self._ahead = bool(config.get("ahead", True))
        self._spare: Spare | None = None

    def run(self) -> int:
        try:
            self._prepare()
        except user.UserCodeFailed as err:
            report_failure(None, str(err))
            self._status["traceback"] = str(err)
        except Exception as err:  # the server's own import or warm-up: nothing the user can mend, but they should see it
            text = f"Steelyard could not prepare its HTTP server in {sys.executable}: {type(err).__name__}: {err}"
            report_failure(None, text)
            self._status["traceback"] = text
        self._poll.register(self._control, select.POLLIN)
        if self._status["state"] == "failed":
            return self._tell_failure()
        order = self._fork_ahead()
        while order is None:
            order = self._turn()
        return self._be_replica(order)

    def _turn(self) -> Order | None:
        """Wait for packets and answer them; fork ahead when it is quiet. An `Order` comes back only in a child."""
        quiet = True
        for fd, _ in self._poll.poll(SPARE_DELAY_MS if self._ahead and self._spare is None else None):
            quiet = False
            if fd == self._control.fileno():
                self._welcome()
                continue
            order = self._hear(self._agents[fd])
            if order is not None:
                return order
        return self._fork_ahead() if quiet else None

    def _prepare(self) -> None:
        config = self._config
        began = time.monotonic_ns()
        server: Server = import_server(config["lib_dir"], compiled=config.get("compiled", True))
        sys.path.append(config["lib_dir"])
        self._app = user.load_app(config["code_dir"], config["file"], config["attr"], config["function"], config["concurrency"])
        imported = time.monotonic_ns()
        user.run_hooks(shared=True)
        entered = time.monotonic_ns()
        self._machinery = Machinery(server, config["concurrency"])
        self._forking = SiblingFork(twice=config.get("fork") == "twice")
        warm_up(self._machinery)
        gc.collect()
        gc.freeze()
        self._status = {
            "state": "ready",
            "traceback": "",
            "import_ms": (imported - began) / 1e6,
            "enter_ms": (entered - imported) / 1e6,
            "modules": len(sys.modules),
            "server": server.names,
            "fork": self._forking.way,
        }

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
            agent, _ = self._control.accept()
        except OSError:
            return
        self._agents[agent.fileno()] = agent
        self._poll.register(agent, select.POLLIN)

    def _hear(self, agent: socket.socket) -> Order | None:
        """Answer one packet. An `Order` comes back only in a forked child."""
        try:
            packet = receive(agent)
        except BlockingIOError:
            return None
        if packet is None:
            self._poll.unregister(agent)
            del self._agents[agent.fileno()]
            agent.close()
            return None
        try:
            answer = self._answer(packet)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            answer = {"refused": "not-understood", "detail": repr(err)}
        if isinstance(answer, Order):
            return answer
        packet.close()
        try:
            agent.send(json.dumps(answer).encode())
            self._told = True
        except OSError:
            pass  # gone; the next poll says so
        return None

    def _answer(self, packet: Packet) -> dict[str, Any] | Order:
        op = packet.asked.get("op")
        if op == "status":
            status = {**self._status, "threads": unaccounted_threads(), "rss_bytes": _rss_bytes()}
            return {**status, "traceback": status["traceback"][-50_000:]}
        if op == "fork" and self._status["state"] == "ready":
            return self._fork(packet)
        return {"refused": "not-understood", "detail": f"state {self._status['state']}, asked {op!r}"}

    def _fork(self, packet: Packet) -> dict[str, Any] | Order:
        received_ns = time.monotonic_ns()
        threads = unaccounted_threads()
        if threads:
            return {"refused": "template-has-threads", "detail": "; ".join(str(thread["name"]) for thread in threads)}
        order = Order(packet)
        spare, self._spare = self._spare, None
        if spare is not None and spare.hand_over(packet):
            return {
                "pid": spare.pid,
                "start_time": spare.start_time,
                "received_ns": received_ns,
                "forked_ns": time.monotonic_ns(),
            }
        try:
            pid = self._forking.fork()
        except OSError as err:
            return {"refused": "fork-failed", "detail": str(err)}
        if pid == 0:
            self._close_control()
            os.setsid()
            return order
        return {"pid": pid, "start_time": start_time(pid), "received_ns": received_ns, "forked_ns": time.monotonic_ns()}

    def _fork_ahead(self) -> Order | None:
        """Make the spare. Returns None in the template, and in the spare the order that it was handed."""
        if not self._ahead or self._spare is not None or unaccounted_threads():
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = self._forking.fork()
        except OSError as err:
            sys.stderr.write(f"no replica could be forked ahead: {err}\n")
            self._ahead = False  # orders try on their own and report
            pid = -1
        if pid == 0:
            ours.close()
            self._close_control()
            os.setsid()
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
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {"op": "fork", "replica": "", "cpus": [0], "cgroups": 0, "private": False, "sent_ns": 0}
        socket.send_fds(here, [json.dumps(asked).encode()], [here.fileno()] * 4)
        kept, self._spare = self._spare, Spare(0, 0, here.dup())
        self._agents[there.fileno()] = there
        self._poll.register(there, select.POLLIN)
        self._poll.poll(0)
        self._hear(there)
        self._poll.unregister(there)
        del self._agents[there.fileno()]
        here.close()
        there.close()
        self._spare = kept

    def _close_control(self) -> None:
        self._control.close()
        for agent in self._agents.values():
            agent.close()

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
        serving = Serving(self._machinery, page, socket.socket(fileno=order.listener), order.private)
        page.joined_ns = page.imported_ns = time.monotonic_ns()
        page.state = pages.IMPORTED
        return serving.run(self._app)


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
