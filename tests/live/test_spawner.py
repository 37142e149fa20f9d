"""The spawner with real processes: what a workload gets, and what is written about its end."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from spawner_rig import (
    LIMIT_S,
    WORK_GID,
    WORK_UID,
    Rig,
    W,
    all_gone,
    children_of,
    make_fifo,
    needs_root,
    open_descriptors,
    play,
    read_log,
    spawn_request,
    spawner_pid,
    until,
)

from steelyard.errors import EdgeFailed, Unreachable
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime import records
from steelyard.runtime.process import AdoptedState
from steelyard.runtime.procstat import observe_process, process_runs
from steelyard.wire import spawn as wire

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
#: signals 32 and 33 belong to glibc: its posix_spawn (make uses it) leaves them ignored, and its sigaction refuses to change them
GLIBC_OWN = 1 << 31 | 1 << 32
PORTRAIT = ("/usr/bin/python3", "-I", "-S", "-c", SELF_PORTRAIT)

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
        assert int(status["SigIgn"], 16) & ~(1 << 12 | 1 << 24 | GLIBC_OWN) == 0
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
        assert int(read_log(rig, W).split()[1], 16) & ~GLIBC_OWN == 0

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
