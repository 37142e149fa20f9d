"""Do our questions to this kernel get true answers: backlogs by netlink, processes by /proc, the machine itself?"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.host.machine import observe_machine
from steelyard.host.proc import alive, boot_id, observe_process, rss_bytes, start_time
from steelyard.host.sockdiag import SocketQueue


def test_the_backlog_is_counted_and_shrinks_with_each_accept(home: Path) -> None:
    path = str(home.with_suffix(".sock"))
    clients: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener, SocketQueue() as queue:
        listener.bind(path)
        listener.listen(64)
        if queue.length(listener.fileno()) is None:
            pytest.skip("this kernel has no unix_diag")
        for waiting in range(5):
            assert queue.length(listener.fileno()) == waiting
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(path)
        assert queue.length(listener.fileno()) == 5
        clients.append(listener.accept()[0])
        assert queue.length(listener.fileno()) == 4
    for client in clients:
        client.close()


def test_what_is_no_socket_has_no_backlog() -> None:
    with open(os.devnull) as file, SocketQueue() as queue:
        assert queue.length(file.fileno()) is None


def test_an_ended_process_is_not_alive_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-Sc", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    since = start_time(child.pid)
    assert since is not None
    assert alive(child.pid, since)
    assert not alive(child.pid, since + 1)
    assert (rss_bytes(child.pid) or 0) > 1 << 20
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert observe_process(child.pid) is not None
    assert not alive(child.pid, since)
    child.communicate()
    assert start_time(child.pid) is None
    assert rss_bytes(child.pid) is None


def test_this_machine_is_described_as_the_kernel_sees_it() -> None:
    machine = observe_machine()
    assert set(machine.cpus) == os.sched_getaffinity(0)
    assert machine.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.hostname == socket.gethostname()
    assert machine.kernel == os.uname().release
    assert len(machine.boot_id) == 36
    assert machine.boot_id == boot_id()
    assert machine == observe_machine()
