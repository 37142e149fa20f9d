"""The spawner with real processes: what a workload gets, what is written about its end, and who can be killed without harm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from spawner_rig import LIMIT_S, PLAIN_ENV, WORK_GID, WORK_UID, Rig, all_gone, children_of, open_rig, until

from steelyard.errors import EdgeFailed, Unreachable
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime import records
from steelyard.runtime.process import FAILPOINT, AdoptedState
from steelyard.runtime.procstat import observe_process, process_runs
from steelyard.runtime.spawner_client import SpawnerClient
from steelyard.wire import spawn as wire

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT VERIFIED without root: giving processes to another uid")
W = WorkloadId("job-1.1")

#: what a process finds itself to be, as JSON on stdout; run by the system's python, which nobody may execute too
SELF_PORTRAIT = """
import json, os, resource, signal
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
fds = {}
for name in os.listdir("/proc/self/fd"):
    try: fds[name] = os.readlink("/proc/self/fd/" + name)
    except FileNotFoundError: pass
print(json.dumps(dict(status=status, fds=fds, sid=os.getsid(0), pid=os.getpid(), ppid=os.getppid(), cwd=os.getcwd(),
    env=dict(os.environ),
    umask=os.umask(0), nofile=resource.getrlimit(resource.RLIMIT_NOFILE), core=resource.getrlimit(resource.RLIMIT_CORE),
    affinity=sorted(os.sched_getaffinity(0)), cgroup=open("/proc/self/cgroup").read())))
"""
PORTRAIT = ("/usr/bin/python3", "-I", "-S", "-c", SELF_PORTRAIT)


def play(script: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), open_rig() as rig:
            await script(rig)

    asyncio.run(main())


def read_log(rig: Rig, workload: str, stream: str = "stdout") -> str:
    return (rig.workloads / workload / stream).read_text()


def make_fifo(rig: Rig, name: str) -> Path:
    """A workload that opens it waits until the test writes."""
    path = rig.folder / name
    os.mkfifo(path)
    path.chmod(0o666)
    return path


def spawner_pid(rig: Rig) -> int:
    assert rig.spawner is not None
    return rig.spawner.pid


def open_descriptors(rig: Rig) -> int:
    return len(os.listdir(f"/proc/{spawner_pid(rig)}/fd"))


def spawn_request(rig: Rig, workload: str, *argv: str, **more: Any) -> wire.Spawn:
    logs = rig.folder / "raw"
    logs.mkdir(exist_ok=True)
    return wire.Spawn(
        WorkloadId(workload), argv, PLAIN_ENV, "/", str(logs / f"{workload}.out"), str(logs / f"{workload}.err"), **more
    )


# what is written about an end


def test_exit_codes_and_signals_are_true_in_record_and_message() -> None:
    async def script(rig: Rig) -> None:
        runtime = rig.make_runtime()
        cases = {
            "zero": ("exit 0", 0, None),
            "code": ("exit 37", 37, None),
            "killed": ("kill -9 $$", None, 9),
            "segv": ("kill -11 $$", None, 11),
        }
        for workload, (program, code, signum) in cases.items():
            before = time.time_ns() // 1000
            handle = await rig.run(runtime, workload, "sh", "-c", program)
            exited = await rig.next_exit(workload)
            assert (exited.exit_code, exited.signal) == (code, signum)
            assert (exited.pid, exited.start_time) == (handle.pid, handle.start_time)
            assert before <= exited.ended_at <= time.time_ns() // 1000
            assert records.load_exit(rig.agent_dir, WorkloadId(workload)) == exited
        assert set(records.load_exits(rig.agent_dir)) == set(cases)

    play(script)


def test_used_time_and_peak_memory_come_from_the_kernel() -> None:
    async def script(rig: Rig) -> None:
        program = "x = bytearray(64 << 20)\nimport time\nwhile time.process_time() < 0.2: pass"
        await rig.run(rig.make_runtime(), W, "/usr/bin/python3", "-I", "-S", "-c", program)
        exited = await rig.next_exit()
        assert exited.exit_code == 0
        assert exited.user_s + exited.system_s >= 0.2
        assert 64 << 20 < exited.peak_rss_bytes < 200 << 20

    play(script)


def test_exits_while_no_agent_is_connected_are_on_disk_with_code_and_time() -> None:
    async def script(rig: Rig) -> None:
        runtime = rig.make_runtime()
        go = make_fifo(rig, "go")
        await rig.run(runtime, W, "sh", "-c", f"read line < {go}; exit 5")
        await rig.client.close()
        before = time.time_ns() // 1000
        go.write_text("now\n")
        await until(records.exit_path(rig.agent_dir, W).exists, "an exit record")
        running = await rig.connect()
        (adopted,) = rig.make_runtime().adopt(running)
        assert adopted.state is AdoptedState.ENDED
        assert adopted.exited is not None
        assert adopted.exited.exit_code == 5
        assert before <= adopted.exited.ended_at <= time.time_ns() // 1000
        assert rig.exits.empty()

    play(script)


def test_exits_that_cannot_be_written_are_kept_and_written_later() -> None:
    async def script(rig: Rig) -> None:
        rig.kill_spawner()
        with open("/dev/full", "wb") as full:  # its own log is on the full disk as well
            rig.log.close()
            rig.log = full  # type: ignore[assignment]
            await rig.start_spawner()
            runtime = rig.make_runtime()
            exits, away = rig.agent_dir / "exits", rig.agent_dir / "away"
            go = make_fifo(rig, "go")
            handle = await rig.run(runtime, W, "sh", "-c", f"read line < {go}; exit 9")
            exits.rename(away)
            exits.write_text("not a folder")
            go.write_text("now\n")
            await until(lambda: all_gone([(handle.pid, handle.start_time)]), "the end of the workload")
            running = await rig.connect()
            assert running.children == ((W, handle.pid, handle.start_time),), "not recorded yet is not ended yet"
            exits.unlink()
            away.rename(exits)
            assert (await rig.next_exit(W)).exit_code == 9
            assert records.load_exits(rig.agent_dir)[W].exit_code == 9

    play(script)


# what a workload is


def test_a_workload_is_a_plain_unprivileged_process_of_its_own() -> None:
    async def script(rig: Rig) -> None:
        limits = (("RLIMIT_NOFILE", 777, 888), ("RLIMIT_CORE", 0, 0))
        handle = await rig.run(rig.make_runtime(), W, *PORTRAIT, rlimits=limits, env={"PATH": "/bin", "MINE": "yes"}, cwd="/usr")
        assert (await rig.next_exit()).exit_code == 0, read_log(rig, W, "stderr")
        seen = json.loads(read_log(rig, W))
        status = seen["status"]
        assert seen["pid"] == seen["sid"] == handle.pid
        assert seen["ppid"] == spawner_pid(rig)
        assert status["Uid"].split() == [str(WORK_UID)] * 4
        assert status["Gid"].split() == [str(WORK_GID)] * 4
        if os.geteuid() == 0:
            assert status["Groups"].strip() == ""
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert int(status["SigBlk"], 16) == 0
        # Python itself ignores SIGPIPE (13) and SIGXFSZ (25); nothing else may be ignored
        assert int(status["SigIgn"], 16) & ~(1 << 12 | 1 << 24) == 0
        assert seen["fds"]["0"] == "/dev/null"
        assert seen["fds"]["1"] == str(rig.workloads / W / "stdout")
        assert seen["fds"]["2"] == str(rig.workloads / W / "stderr")
        assert {number for number, name in seen["fds"].items() if "/proc/" not in name} == {"0", "1", "2"}
        assert (seen["cwd"], seen["umask"]) == ("/usr", 0o022)
        assert (seen["nofile"], seen["core"]) == ([777, 888], [0, 0])
        assert {name: seen["env"][name] for name in ("PATH", "MINE")} == {"PATH": "/bin", "MINE": "yes"}
        assert not any(name.startswith(("LISTEN", "STEELYARD", "VIRTUAL")) for name in seen["env"])

    play(script)


def test_ignored_signals_are_not_inherited() -> None:
    async def script(rig: Rig) -> None:
        await rig.run(rig.make_runtime(), W, "sh", "-c", "grep SigIgn /proc/self/status")
        await rig.next_exit()
        assert int(read_log(rig, W).split()[1], 16) == 0

    play(script)


def test_the_spawners_raised_descriptor_limit_does_not_reach_workloads() -> None:
    async def script(rig: Rig) -> None:
        await rig.run(rig.make_runtime(), W, *PORTRAIT)
        await rig.next_exit()
        assert json.loads(read_log(rig, W))["nofile"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))

    play(script)


def test_a_workload_is_in_its_cgroup_before_its_first_instruction() -> None:
    async def script(rig: Rig) -> None:
        if rig.cgroups.flavour == "none":
            pytest.skip("NOT VERIFIED: no control groups here")
        cpu = min(os.sched_getaffinity(0))
        await rig.run(rig.make_runtime(), W, *PORTRAIT, plan=Plan(cpus=(cpu,), memory_bytes=256 << 20))
        assert (await rig.next_exit()).exit_code == 0
        seen = json.loads(read_log(rig, W))
        assert seen["affinity"] == [cpu]
        assert seen["cgroup"].count(W) >= len(rig.cgroups.controllers)

    play(script)


def test_descriptors_land_on_their_numbers_even_where_they_overlap() -> None:
    async def script(rig: Rig) -> None:
        files = [open(rig.folder / f"file-{number}", "wb") for number in range(40)]  # noqa: SIM115
        numbers = tuple(reversed(range(40, 80)))  # some in use inside the spawner, some the very next that it would get
        runtime = rig.make_runtime()
        try:
            fds = [file.fileno() for file in files]
            await rig.run(runtime, W, *PORTRAIT, fds=fds, fd_numbers=numbers, listen_fds=2)
            assert (await rig.next_exit()).exit_code == 0, read_log(rig, W, "stderr")
            seen = json.loads(read_log(rig, W))
            assert {int(number): Path(name).name for number, name in seen["fds"].items() if "file-" in name} == {
                number: f"file-{index}" for index, number in enumerate(numbers)
            }
            assert (seen["env"]["LISTEN_FDS"], seen["env"]["LISTEN_PID"]) == ("2", str(seen["pid"]))
        finally:
            for file in files:
                file.close()

    play(script)


def test_logs_are_appended_and_belong_to_the_workload() -> None:
    async def script(rig: Rig) -> None:
        await rig.run(rig.make_runtime(), W, "sh", "-c", "echo out; echo err >&2; cat /proc/self/fdinfo/1")
        await rig.next_exit()
        assert read_log(rig, W).startswith("out\n")
        assert read_log(rig, W, "stderr") == "err\n"
        flags = next(line for line in read_log(rig, W).splitlines() if line.startswith("flags:"))
        assert int(flags.split()[1], 8) & os.O_APPEND
        for stream in ("stdout", "stderr"):
            stat = (rig.workloads / W / stream).stat()
            assert (stat.st_mode & 0o777, stat.st_uid, stat.st_gid) == (0o640, WORK_UID, WORK_GID)
        assert (rig.workloads / W).stat().st_uid == os.geteuid()

    play(script)


@needs_root
def test_a_log_that_is_a_link_is_refused() -> None:
    async def script(rig: Rig) -> None:
        (rig.workloads / W).mkdir(parents=True)
        (rig.workloads / W / "stdout").symlink_to(rig.folder / "precious")
        with pytest.raises(EdgeFailed, match="logs"):
            await rig.run(rig.make_runtime(), W, "true")
        assert not (rig.folder / "precious").exists()

    play(script)


def test_failures_before_exec_name_their_step_and_leave_nothing() -> None:
    async def script(rig: Rig) -> None:
        runtime = rig.make_runtime()
        closed = rig.folder / "closed"
        closed.mkdir(mode=0o700)
        descriptors = open_descriptors(rig)
        cases: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
            "exec: nope: No such file": (("nope",), {}),
            "exec: /etc: Permission denied": (("/etc",), {}),
            "exec: /etc/passwd: Permission denied": (("/etc/passwd",), {}),
            "chdir: /no/such: No such file": (("true",), {"cwd": "/no/such"}),
            "rlimit RLIMIT_NOPE": (("true",), {"rlimits": (("RLIMIT_NOPE", 1, 1),)}),
            "exec: embedded null": (("true", "a\0b"), {}),
        }
        if os.geteuid() == 0:
            cases[f"chdir: {closed}: Permission denied .as uid {WORK_UID}"] = (("true",), {"cwd": str(closed)})
            cases["setgid: a uid needs a gid"] = (("true",), {"gid": None})
        for number, (words, (argv, more)) in enumerate(cases.items()):
            with pytest.raises(EdgeFailed, match=words) as failed:
                await rig.run(runtime, f"bad.{number}", *argv, **more)
            assert failed.value.code == "start-failed"
        running = await rig.connect()
        assert running.children == ()
        assert records.load_exits(rig.agent_dir) == {}
        assert all(adopted.state is AdoptedState.NOT_STARTED for adopted in runtime.adopt(running))
        await until(lambda: open_descriptors(rig) == descriptors, "every descriptor closed again")
        await until(lambda: children_of(spawner_pid(rig)) == [], "every failed child reaped")

    play(script)


def test_a_cgroup_that_cannot_be_joined_stops_the_start() -> None:
    async def script(rig: Rig) -> None:
        unwritable = os.open("/dev/null", os.O_RDONLY)
        try:
            with pytest.raises(EdgeFailed, match="cgroup: Bad file descriptor"):
                await rig.client.spawn(spawn_request(rig, W, "true"), cgroup_fds=[unwritable])
        finally:
            os.close(unwritable)

    play(script)


def test_what_does_not_fit_a_packet_is_refused_before_it_is_sent() -> None:
    async def script(rig: Rig) -> None:
        with pytest.raises(EdgeFailed, match="larger than"):
            await rig.client.spawn(spawn_request(rig, W, "true", "x" * wire.PACKET_MAX))
        big = "y" * (wire.PACKET_MAX - 5_000)  # one argument may have 128 KB: two of them then
        half = len(big) // 2
        await rig.client.spawn(spawn_request(rig, W, "sh", "-c", "test ${#0} = $1", big[:half], str(half)))
        assert (await rig.next_exit()).exit_code == 0

    play(script)


# families of processes


def test_escapees_with_their_own_session_are_killed_by_cgroup_and_reaped() -> None:
    async def script(rig: Rig) -> None:
        if rig.cgroups.flavour == "none":
            pytest.skip("NOT VERIFIED: no control groups here")
        runtime = rig.make_runtime()
        # two forks and a new session each: the classic daemon; the parent goes on for a while, then leaves them behind
        await rig.run(runtime, W, "sh", "-c", "for i in 1 2 3; do (setsid sh -c 'sleep 1000 & exec sleep 1000' &); done; exit 4")
        assert (await rig.next_exit()).exit_code == 4
        await until(lambda: len(rig.cgroups.pids(W)) == 6, "the daemons")
        pids = rig.cgroups.pids(W)
        family = [(pid, stat.start_time) for pid in pids if (stat := observe_process(pid))]
        assert set(children_of(spawner_pid(rig))) & set(pids), "who loses its parent becomes a child of the spawner"
        assert not runtime.forget(W), "it is not forgotten while something of it runs"
        runtime.kill(W)
        await until(lambda: all_gone(family), "the end of all daemons")
        await until(lambda: children_of(spawner_pid(rig)) == [], "no zombie left")
        assert runtime.forget(W)
        assert set(records.load_exits(rig.agent_dir)) == set(), "forgotten, and nothing was written for grandchildren"
        assert rig.exits.empty()

    play(script)


def test_workloads_outlive_the_spawner_and_a_new_one_starts_empty() -> None:
    async def script(rig: Rig) -> None:
        runtime = rig.make_runtime()
        handle = await rig.run(runtime, W, "sleep", "1000")
        with socket.socket(socket.AF_UNIX) as listener:
            rig.client.hold_socket("fn", listener.fileno())
            first = rig.client.instance
            rig.kill_spawner()
            await asyncio.wait_for(rig.client.closed.wait(), LIMIT_S)
            assert not rig.client.connected
            with pytest.raises(Unreachable):
                rig.client.hold_socket("fn", listener.fileno())
            with pytest.raises(Unreachable):
                await rig.run(runtime, "job-2.1", "true")
            assert records.load_intent(rig.agent_dir, WorkloadId("job-2.1")) is None
            assert process_runs(handle.pid, handle.start_time)
            running = await rig.start_spawner()
            assert (running.children, rig.held) == ((), {})
            assert rig.client.instance != first
            rig.client.hold_socket("fn", listener.fileno())
            (adopted,) = runtime.adopt(running)
            assert (adopted.state, adopted.watched) == (AdoptedState.RUNNING, False)
            await rig.connect()
            assert os.fstat(rig.held["fn"]).st_ino == os.fstat(listener.fileno()).st_ino
            os.close(rig.held["fn"])
        runtime.kill(W)

    play(script)


#: A template as the runner has it: its child is the spawner's by CLONE_PARENT. Says the child's pid, which ends with 7 on order.
TEMPLATE = """
import ctypes, os, sys
clone = ctypes.CDLL(None, use_errno=True).syscall
r, w = os.pipe()
pid = clone(56 if os.uname().machine == "x86_64" else 220, 0x8000 | 17, 0, 0, 0, 0)
if pid == 0:
    os.close(w); os.read(r, 1); os._exit(7)
print(pid, flush=True)
open(sys.argv[1]).read()
os.write(w, b"x")
open(sys.argv[2]).read()
"""


@pytest.mark.parametrize("claimed", ["before it ended", "after it ended"])
def test_a_templates_child_is_claimed_and_its_true_exit_recorded(claimed: str) -> None:
    async def script(rig: Rig) -> None:
        end_child, end_template = make_fifo(rig, "end-child"), make_fifo(rig, "end-template")
        runtime = rig.make_runtime()
        replica = WorkloadId("hello.1.1")
        runtime.prepare(replica, kind="replica", plan=Plan())
        await rig.run(
            runtime,
            "template",
            "/usr/bin/python3",
            "-I",
            "-S",
            "-c",
            TEMPLATE,
            str(end_child),
            str(end_template),
            kind="template",
        )
        await until(lambda: read_log(rig, "template").endswith("\n"), "the fork")
        pid = int(read_log(rig, "template"))
        stat = observe_process(pid)
        assert stat is not None
        assert stat.parent == spawner_pid(rig)
        if claimed == "after it ended":
            end_child.write_text("")
            await until(lambda: observe_process(pid) is None, "the child reaped")
        handle = runtime.claim(replica, pid, stat.start_time)
        assert records.load_handle(rig.agent_dir, replica) == handle
        if claimed == "before it ended":
            runtime.claim(replica, pid, stat.start_time)  # again, as after a reconnect
            running = await rig.connect()
            assert (replica, pid, stat.start_time) in running.children
            end_child.write_text("")
        exited = await rig.next_exit(replica)
        assert (exited.exit_code, exited.pid, exited.start_time) == (7, pid, stat.start_time)
        assert records.load_exit(rig.agent_dir, replica) == exited
        runtime.claim(replica, pid, stat.start_time)  # too late: what is recorded stays
        end_template.write_text("")
        assert (await rig.next_exit("template")).exit_code == 0
        assert records.load_exit(rig.agent_dir, replica) == exited

    play(script)


def test_a_claim_of_something_that_never_was_a_child_is_recorded_as_unknown() -> None:
    async def script(rig: Rig) -> None:
        rig.client.claim(W, 2**22 - 1, 1)
        exited = await rig.next_exit(W)
        assert (exited.exit_code, exited.signal) == (None, None)
        rig.client.claim(WorkloadId("me"), os.getpid(), getattr(observe_process(os.getpid()), "start_time", 0))
        assert (await rig.connect()).children == (), "a living process of others is neither child nor ended"

    play(script)


# agents that die

AGENT = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from steelyard.clock import SystemClock
    from steelyard.host.cgroup import open_cgroups
    from steelyard.host.proc import boot_id
    from steelyard.model.job import Plan
    from steelyard.runtime.process import ProcessRuntime
    from steelyard.runtime.spawner_client import SpawnerClient

    async def main():
        folder, tag, uid, gid, witness = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
        client = SpawnerClient(folder / "spawner.sock", lambda exited: None)
        await client.connect()
        runtime = ProcessRuntime(folder / "agent", folder / "workloads", open_cgroups(tag), client, SystemClock(), boot_id())
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
        dead.send(wire.encode(spawn_request(rig, W, "/no/such/program")))
        dead.close()
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
