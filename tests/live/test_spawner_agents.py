"""The spawner and those who ask it: agents that die, held sockets, its own end, and what a start costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spawner_rig import (
    LIMIT_S,
    WORK_GID,
    WORK_UID,
    Rig,
    W,
    needs_root,
    open_descriptors,
    play,
    spawn_request,
    spawner_pid,
    until,
)

from steelyard.errors import EdgeFailed
from steelyard.model.ids import WorkloadId
from steelyard.runtime import records
from steelyard.runtime.process import FAILPOINT, AdoptedState
from steelyard.runtime.procstat import observe_process, process_runs
from steelyard.runtime.spawner_client import SpawnerClient
from steelyard.wire import spawn as wire

# agents that die

AGENT = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from steelyard.clock import SystemClock
    from steelyard.host.cgroup import open_cgroups
    from steelyard.host.proc import boot_id
    from steelyard.model.job import Plan
    from steelyard.runtime.process import ProcessRuntime
    from steelyard.runtime.record_lane import RecordLane
    from steelyard.runtime.spawner_client import SpawnerClient

    async def main():
        folder, tag, uid, gid, witness = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
        client = SpawnerClient(folder / "spawner.sock", lambda exited: None)
        await client.connect()
        clock, lane = SystemClock(), RecordLane()
        runtime = ProcessRuntime(folder / "agent", folder / "workloads", open_cgroups(tag), client, clock, boot_id(), lane)
        await runtime.start("job-1.1", kind="job", argv=["sh", "-c", f"echo ran >> {witness}; exec sleep 1000"],
            env={"PATH": "/bin:/usr/bin"}, cwd="/", uid=uid, gid=gid, plan=Plan())
        print("started")

    asyncio.run(main())
""")


@pytest.mark.parametrize(
    ("failpoint", "state"),
    [
        ("after-intent", AdoptedState.NOT_STARTED),
        ("after-cgroup", AdoptedState.NOT_STARTED),
        ("after-spawn", AdoptedState.RUNNING),
        ("after-handle", AdoptedState.RUNNING),
    ],
)
def test_an_agent_killed_at_each_step_of_a_start_left_it_run_once_or_not_at_all(failpoint: str, state: AdoptedState) -> None:
    async def script(rig: Rig) -> None:
        witness = rig.folder / "witness"
        witness.touch()
        witness.chmod(0o666)
        tag = f"rig-{os.getpid()}-{rig.folder.name[-6:].replace('_', 'x')}"
        agent = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", AGENT, str(rig.folder), tag, str(WORK_UID), str(WORK_GID), str(witness)],
            env={**os.environ, FAILPOINT: failpoint},
            capture_output=True,
            timeout=LIMIT_S,
        )
        assert agent.returncode == 137, agent.stderr.decode()
        runtime = rig.make_runtime()
        (adopted,) = runtime.adopt(await rig.connect())
        assert (adopted.workload, adopted.state) == (W, state)
        with pytest.raises(Exception, match="started before"):
            await rig.run(runtime, W, "true")
        if state is AdoptedState.RUNNING:
            assert adopted.handle is not None
            assert records.load_handle(rig.agent_dir, W) == adopted.handle
            assert process_runs(adopted.handle.pid, adopted.handle.start_time)
            await until(witness.read_text, "a sign of life")
            runtime.kill(W)
            assert (await rig.next_exit(W)).signal == signal.SIGKILL
            assert witness.read_text() == "ran\n"
        else:
            assert witness.read_text() == ""
        await until(lambda: runtime.forget(W), "its cgroup empty")
        assert rig.cgroups.workloads() == []
        assert runtime.adopt(await rig.connect()) == []

    play(script)


def test_what_a_dead_agent_had_asked_for_is_done_before_its_successor_is_told_anything() -> None:
    async def script(rig: Rig) -> None:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as successor,
        ):
            for peer in (dead, successor):
                peer.settimeout(LIMIT_S)
                peer.connect(str(rig.socket))
                peer.send(wire.encode(wire.ListHeld()))
                assert wire.decode_from_spawner(peer.recv(wire.PACKET_MAX)) == wire.Running(())
            os.kill(spawner_pid(rig), signal.SIGSTOP)
            await until(lambda: getattr(observe_process(spawner_pid(rig)), "state", "") == "T", "the spawner stopped")
            try:
                successor.send(wire.encode(wire.ListHeld()))  # it is the first in the kernel's list
                dead.send(wire.encode(spawn_request(rig, W, "sleep", "1000")))
                dead.close()
            finally:
                os.kill(spawner_pid(rig), signal.SIGCONT)
            running = wire.decode_from_spawner(successor.recv(wire.PACKET_MAX))
        assert isinstance(running, wire.Running)
        assert [workload for workload, _, _ in running.children] == [W]
        os.kill(running.children[0][1], signal.SIGKILL)
        await rig.next_exit(W)

    play(script)


def test_a_start_that_fails_after_its_agent_died_is_recorded() -> None:
    async def script(rig: Rig) -> None:
        dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        dead.connect(str(rig.socket))
        assert rig.spawner is not None
        rig.spawner.send_signal(signal.SIGSTOP)  # what it answers before the agent is gone reaches that agent
        os.waitid(os.P_PID, rig.spawner.pid, os.WSTOPPED)
        dead.send(wire.encode(spawn_request(rig, W, "/no/such/program")))
        dead.close()
        rig.spawner.send_signal(signal.SIGCONT)
        assert (await rig.next_exit(W)).exit_code == 127

    play(script)


def test_two_agents_at_once_do_not_confuse_each_other() -> None:
    async def script(rig: Rig) -> None:
        heard: asyncio.Queue[wire.Exited] = asyncio.Queue()
        other = SpawnerClient(rig.socket, heard.put_nowait)
        await other.connect()
        await rig.client.spawn(spawn_request(rig, "a", "true"))
        await other.spawn(spawn_request(rig, "b", "true"))
        for queue in (rig.exits, heard):
            assert {(await asyncio.wait_for(queue.get(), LIMIT_S)).workload for _ in range(2)} == {"a", "b"}
        starts = await asyncio.gather(
            rig.client.spawn(spawn_request(rig, "c", "sleep", "1000")),
            other.spawn(spawn_request(rig, "c", "sleep", "1000")),
            return_exceptions=True,
        )
        assert sorted(type(start).__name__ for start in starts) == ["EdgeFailed", "Spawned"]
        await other.close()
        running = await rig.connect()
        assert [workload for workload, _, _ in running.children] == ["c"]
        os.kill(running.children[0][1], signal.SIGKILL)
        assert (await rig.next_exit("c")).signal == signal.SIGKILL

    play(script)


def test_malformed_packets_cost_only_their_own_connection() -> None:
    async def script(rig: Rig) -> None:
        await rig.client.spawn(spawn_request(rig, W, "sleep", "1000"))
        descriptors = open_descriptors(rig)
        null = os.open("/dev/null", os.O_RDONLY)
        good = spawn_request(rig, "x", "true")
        packets: list[tuple[bytes, list[int]]] = [
            (b"garbage", []),
            (b"\x80", [null]),
            (os.urandom(50_000), [null] * 60),
            (wire.encode(good), [null]),
            (wire.encode(wire.HoldSocket("fn")), []),
            (wire.encode(wire.HoldSocket("fn")), [null, null]),
            (wire.encode(spawn_request(rig, "../../etc/x", "true")), []),
            (wire.encode(spawn_request(rig, "x", "true", fds=(3, 3))), [null, null]),
            (wire.encode(spawn_request(rig, "x", "true", fds=(5000,))), [null]),
            (wire.encode(spawn_request(rig, "x", "true", rlimits=(("__class__", 1, 1),))), []),
            (wire.encode(spawn_request(rig, "x")), []),
            (wire.encode(wire.Claim(WorkloadId("a/b"), 1, 1)), []),
            (wire.encode(good)[:-3], []),
        ]
        for data, fds in packets:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.settimeout(LIMIT_S)
                peer.connect(str(rig.socket))
                socket.send_fds(peer, [data], fds) if fds else peer.send(data)
                with contextlib.suppress(ConnectionResetError):  # it closed with more to read
                    assert peer.recv(100) == b"", f"answered {data[:40]!r}"
        os.close(null)
        await until(lambda: open_descriptors(rig) == descriptors, "nothing kept of what they passed")
        assert rig.client.connected
        running = await rig.connect()
        assert [workload for workload, _, _ in running.children] == [W]
        os.kill(running.children[0][1], signal.SIGKILL)
        await rig.next_exit(W)

    play(script)


@needs_root
def test_other_users_are_turned_away() -> None:
    program = (
        "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\nassert s.recv(10) == b''"
    )

    async def script(rig: Rig) -> None:
        def attempt() -> subprocess.CompletedProcess[str]:
            command = ["/usr/bin/python3", "-I", "-S", "-c", program, str(rig.socket)]
            return subprocess.run(command, user=WORK_UID, group=WORK_GID, capture_output=True, text=True, timeout=LIMIT_S)

        assert rig.socket.stat().st_mode & 0o777 == 0o600
        assert "PermissionError" in attempt().stderr
        rig.socket.chmod(0o666)
        opened = attempt()
        assert opened.returncode == 0, opened.stderr

    play(script)


# sockets


def test_held_sockets_come_back_and_are_dropped_when_told() -> None:
    async def script(rig: Rig) -> None:
        path = str(rig.folder / "fn.sock")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
            listener.bind(path)
            listener.listen(16)
            descriptors = open_descriptors(rig)
            rig.client.hold_socket("fn", other.fileno())
            rig.client.hold_socket("fn", listener.fileno())
            rig.client.hold_socket("second", other.fileno())
        await rig.connect()
        assert set(rig.held) == {"fn", "second"}
        with socket.socket(fileno=rig.held["fn"]) as back, socket.socket(socket.AF_UNIX) as caller:
            back.settimeout(LIMIT_S)
            caller.connect(path)
            assert back.accept()[0].fileno() >= 0
        os.close(rig.held["second"])
        rig.client.drop_socket("fn")
        rig.client.drop_socket("second")
        rig.client.drop_socket("never there")
        await rig.connect()
        assert rig.held == {}
        assert open_descriptors(rig) == descriptors

    play(script)


def test_a_thousand_sockets_and_children_are_listed_whole() -> None:
    async def script(rig: Rig) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            for number in range(1200):
                rig.client.hold_socket(f"fn-{number}", listener.fileno())
        await rig.client.spawn(spawn_request(rig, W, "true"))  # in order: when it was answered, all were taken
        assert (await rig.next_exit(W)).exit_code == 0, "descriptors far above the workload's limit do not disturb a start"
        await rig.connect()
        assert len(rig.held) == 1200
        for fd in rig.held.values():
            os.close(fd)

    play(script)


# the spawner's own end


def signal_taken(rig: Rig) -> bool:
    """A SIGTERM sent before is no longer pending."""
    status = Path(f"/proc/{spawner_pid(rig)}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd"))
    return int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1) == 0


def test_sigterm_ends_it_when_idle_and_after_the_last_workload_otherwise() -> None:
    async def script(rig: Rig) -> None:
        assert rig.spawner is not None
        runtime = rig.make_runtime()
        await rig.run(runtime, W, "sleep", "1000")
        rig.spawner.terminate()
        await until(lambda: signal_taken(rig), "the signal taken")
        assert rig.spawner.poll() is None
        runtime.kill(W)
        assert (await rig.next_exit(W)).signal == signal.SIGKILL
        assert await asyncio.to_thread(rig.spawner.wait, LIMIT_S) == 0
        assert not rig.socket.exists()
        await rig.start_spawner()
        rig.spawner.terminate()
        assert await asyncio.to_thread(rig.spawner.wait, LIMIT_S) == 0

    play(script)


def test_a_second_sigterm_ends_it_at_once_and_work_goes_on() -> None:
    async def script(rig: Rig) -> None:
        assert rig.spawner is not None
        runtime = rig.make_runtime()
        handle = await rig.run(runtime, W, "sleep", "1000")
        rig.spawner.terminate()
        await until(lambda: signal_taken(rig), "the signal taken")
        with pytest.raises(EdgeFailed, match="told to end"):
            await rig.run(runtime, "late.1", "true")
        rig.spawner.terminate()
        assert await asyncio.to_thread(rig.spawner.wait, LIMIT_S) == 0
        assert process_runs(handle.pid, handle.start_time)
        runtime.kill(W)

    play(script)


def test_only_one_spawner_serves_a_socket() -> None:
    async def script(rig: Rig) -> None:
        command = [
            sys.executable,
            "-m",
            "steelyard.runtime.spawner",
            "--socket",
            str(rig.socket),
            "--exits",
            str(rig.folder / "x"),
        ]
        second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=LIMIT_S)
        assert (second.returncode, "another spawner" in second.stderr) == (1, True)
        assert await rig.connect() == wire.Running(())
        usage = await asyncio.to_thread(subprocess.run, [*command[:3], "--sock"], capture_output=True, text=True, timeout=LIMIT_S)
        assert (usage.returncode, "usage" in usage.stderr) == (2, True)

    play(script)


# cost


def test_ends_are_told_while_many_more_are_waiting_to_be_started() -> None:
    async def script(rig: Rig) -> None:
        request = spawn_request(rig, "w", "/bin/true")
        fields = {name: getattr(request, name) for name in request.__struct_fields__}
        starts = [
            asyncio.ensure_future(rig.client.spawn(wire.Spawn(**{**fields, "workload": f"many.{number}"})))
            for number in range(64)
        ]
        await rig.next_exit()
        assert not all(start.done() for start in starts)
        await asyncio.gather(*starts)
        for _ in range(63):
            await rig.next_exit()

    play(script)


def test_spawn_rate_and_size_are_reported(record_property: Callable[[str, object], None]) -> None:
    async def script(rig: Rig) -> None:
        request = spawn_request(rig, "w", "/bin/true")
        took_ms: list[float] = []
        for number in range(100):
            begin = time.perf_counter()
            await rig.client.spawn(wire.Spawn(**{**as_dict(request), "workload": f"w.{number}"}))
            took_ms.append((time.perf_counter() - begin) * 1e3)
            await rig.next_exit()
        took_ms.sort()
        rss = int(
            next(line for line in Path(f"/proc/{spawner_pid(rig)}/status").read_text().splitlines() if "VmRSS" in line).split()[1]
        )
        print(
            f"spawn round trip with exec of /bin/true: p50 {took_ms[50]:.2f} ms, p90 {took_ms[90]:.2f} ms; "
            f"spawner {rss / 1024:.1f} MB"
        )
        record_property("spawn_ms_p50", took_ms[50])
        record_property("spawner_rss_kb", rss)
        assert rss < 20 * 1024
        assert took_ms[50] < 30, "ten times what it takes: something is wrong, not slow"

    def as_dict(request: wire.Spawn) -> dict[str, Any]:
        return {name: getattr(request, name) for name in request.__struct_fields__}

    play(script)
