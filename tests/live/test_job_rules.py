"""What the agent does with a job by itself: its script, its output files, its limits, its suspension, its end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from keeper_rig import A, KeeperRig, make_job, open_folder, play, stopped
from spawner_rig import WORK_UID, needs_root, until

from steelyard.cli.ending import _end_work
from steelyard.clock import SystemClock
from steelyard.host.cgroup import open_cgroups
from steelyard.host.machine import observe_machine
from steelyard.model.batch import ArrayPlace, Warn
from steelyard.model.ids import AttemptId, JobId, WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason

CORES = sorted(os.sched_getaffinity(0))
needs_cpusets = pytest.mark.skipif(
    len(CORES) < 2 or "cpuset" not in open_cgroups("probe").controllers,
    reason="NOT VERIFIED here: whole cores need two of them and the cpuset controller",
)
#: counts as long as it runs, and says so at the start
TICKER = "echo up >> $WITNESS; while :; do echo tick; sleep 0.02; done"


def make_ticker(rig: KeeperRig, **fields: Any):
    return make_job("sh", "-c", TICKER, env={"PATH": os.defpath, "WITNESS": str(rig.witness)}, **fields)


# scripts


def test_a_script_runs_with_its_arguments_and_what_it_was_told_and_can_not_be_changed_by_the_job() -> None:
    async def script(rig: KeeperRig) -> None:
        say = 'echo "$1 $STEELYARD_RESTART_COUNT $STEELYARD_ARRAY_INDEX $STEELYARD_API_URL" >&2'
        text = f'#!/bin/sh\n{say}\necho "" >> $0 || cat $0\n'
        array = ArrayPlace(JobId("j-9"), 7, 8, 0, 7)
        rig.assign(make_job("train.sh", "one", script=text, restarts=2, array=array, token="secret"))
        ended = await rig.until_phase("ended", "not-started")
        assert (ended.phase, ended.exit_code) == ("ended", 0), ended
        assert rig.log(stream="stderr").splitlines()[0] == "one 2 7 http://127.0.0.1:1"
        if os.geteuid() == 0:
            assert rig.log() == text, "it could neither be written nor hidden from the job"

    play(script)


def test_a_script_without_an_interpreter_says_where_to_look() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_job(script="#!/no/such/shell\ntrue\n"))
        state = await rig.until_phase("not-started", "ended")
        assert (state.phase, state.reason) == ("not-started", Reason.START_FAILED)
        assert "first line" in state.detail

    play(script)


# output files


def test_output_goes_to_the_files_that_were_named_and_logs_shows_them() -> None:
    async def script(rig: KeeperRig) -> None:
        folder = open_folder(rig, "out")
        out, err = folder / "out.txt", folder / "err.txt"
        out.write_text("before\n")
        out.chmod(0o666)
        os.chown(out, WORK_UID, -1)
        rig.assign(make_job("sh", "-c", r"printf '\377\000x\n'; echo wrong >&2", stdout=str(out), stderr=str(err)))
        await rig.until_phase("ended")
        assert out.read_bytes() == b"before\n\xff\x00x\n"
        assert err.read_text() == "wrong\n" and err.stat().st_uid == WORK_UID
        assert rig.keeper.files.read_output(A, "stdout", 7, 100).plain == (b"\xff\x00x\n", 11)
        assert rig.log(stream="stderr") == "wrong\n"
        rig.assign()
        assert rig.log(stream="stderr") == "wrong\n", "also when the job is history"

    play(script)


def test_both_streams_of_all_ranks_share_one_file_that_is_emptied_once() -> None:
    async def script(rig: KeeperRig) -> None:
        out = str(open_folder(rig, "out") / "all.txt")
        Path(out).write_text("old\n")
        os.chown(out, WORK_UID, -1)
        say = "echo out $RANK; echo err $RANK >&2"
        rig.assign(make_job("sh", "-c", say, ranks=2, stdout=out, stderr=out, truncate_output=True))
        await rig.until_phase("ended")
        assert sorted(Path(out).read_text().splitlines()) == ["err 0", "err 1", "out 0", "out 1"]
        assert rig.keeper.files.read_output(f"{A}.1", "stderr", 0, 100).plain == (b"", 0), "all of it is told as stdout"
        assert rig.log(f"{A}.1") == rig.log(A) == Path(out).read_text()

    play(script)


@pytest.mark.parametrize("kind", ["missing folder", "read-only folder", "a folder", "a pipe nobody reads"])
def test_an_output_file_that_can_not_be_opened_fails_the_start_with_its_name(kind: str) -> None:
    async def script(rig: KeeperRig) -> None:
        folder = open_folder(rig, "out")
        path = folder / "x"
        if kind == "missing folder":
            path = folder / "not-there" / "x"
        elif kind == "read-only folder":
            folder.chmod(0o555)
        elif kind == "a folder":
            path.mkdir()
        else:
            os.mkfifo(path)
            path.chmod(0o666)
        rig.assign(make_job("sh", "-c", f"echo ran >> {rig.witness}", stdout=str(path)))
        state = await rig.until_phase("not-started", "ended")
        assert (state.phase, state.reason) == ("not-started", Reason.START_FAILED)
        assert str(path) in state.detail and "name another file" in state.detail
        assert rig.witness.read_text() == ""

    play(script)


@needs_root
def test_a_link_leads_neither_the_job_nor_its_reader_to_what_only_root_may_touch() -> None:
    async def script(rig: KeeperRig) -> None:
        secret = rig.rig.folder / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        link = open_folder(rig, "out") / "link"
        link.symlink_to(secret)
        rig.assign(make_job("echo", "overwritten", stdout=str(link)))
        state = await rig.until_phase("not-started", "ended")
        assert state.phase == "not-started" and "Permission denied" in state.detail
        assert secret.read_text() == "secret"
        assert "secret" not in rig.log().replace(str(link), "")
        link.unlink()
        os.link(secret, link)
        assert "no file of uid" in rig.log()

    play(script)


# limits


def test_a_job_over_its_time_is_warned_once_then_ended_with_no_server_there() -> None:
    async def script(rig: KeeperRig) -> None:
        traps = f"trap 'echo warned >> {rig.witness}' USR1; trap 'echo asked >> {rig.witness}; exit 0' TERM"
        program = f"{traps}; while :; do sleep 0.02; done"
        rig.assign(make_job("sh", "-c", program, max_duration_s=1.0, warn=Warn(int(signal.SIGUSR1), 0.6)))
        await rig.until_phase("running")
        ended = await rig.until_phase("ended")
        assert (ended.reason, ended.exit_code) == (Reason.MAX_DURATION, 0)
        assert "maximum duration of 1 s" in ended.detail
        assert rig.witness.read_text().split() == ["warned", "asked"]

    play(script)


def test_a_warning_for_steps_spares_the_script_around_them() -> None:
    async def script(rig: KeeperRig) -> None:
        step = f"trap 'echo warned >> {rig.witness}; exit 0' USR1; while :; do sleep 0.02; done"
        rig.assign(
            make_job(
                "sh",
                "-c",
                'SLURM_STEP_ID=0 sh -c "$STEP"; echo after >> $WITNESS',
                env={"PATH": os.defpath, "STEP": step, "WITNESS": str(rig.witness)},
                max_duration_s=30.0,
                warn=Warn(int(signal.SIGUSR1), 29.7, steps_only=True),
            )
        )
        ended = await rig.until_phase("ended")
        assert (ended.exit_code, ended.reason) == (0, Reason.EXITED)
        assert rig.witness.read_text().split() == ["warned", "after"]

    play(script)


def test_the_time_that_a_job_has_run_outlives_the_agent() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_job("sleep", "60", max_duration_s=1.5))
        await rig.until_phase("running")
        state = rig.keeper._attempts[A]
        await until(lambda: state.ran_ns(rig.keeper._clock.mono_ns()) > 500_000_000, "half a second")
        ran_ns = state.ran_ns(rig.keeper._clock.mono_ns())
        await rig.restart()
        found_ns = rig.keeper._attempts[A].ran_ns(rig.keeper._clock.mono_ns())
        assert ran_ns - 20_000_000 < found_ns < ran_ns + 1_000_000_000
        ended = await rig.until_phase("ended")
        assert (ended.reason, ended.signal) == (Reason.MAX_DURATION, signal.SIGTERM)

    play(script)


def test_the_reason_of_an_end_outlives_the_agent_that_began_it() -> None:
    async def script(rig: KeeperRig) -> None:
        go = rig.rig.folder / "go"
        program = f"trap 'echo asked >> {rig.witness}' TERM; while ! test -e {go}; do sleep 0.02; done"
        rig.assign(make_job("sh", "-c", program, max_duration_s=0.3))
        await rig.until_witness(1)
        rig.drop_agent()
        go.touch()
        await until(lambda: (rig.rig.agent_dir / "exits" / f"{A}.json").exists(), "the exit record")
        await rig.restart()
        ended = await rig.until_phase("ended")
        assert (ended.reason, ended.exit_code) == (Reason.MAX_DURATION, 0)

    play(script)


def test_a_job_that_never_comes_up_and_one_that_falls_silent_are_ended() -> None:
    async def script(rig: KeeperRig) -> None:
        silent = AttemptId("j-000002.1")
        beats = "i=0; while [ $i -lt 10 ]; do touch $STEELYARD_HEARTBEAT; sleep 0.1; i=$((i+1)); done; exec sleep 60"
        rig.assign(
            make_job("sleep", "60", start_timeout_s=0.5, heartbeat_timeout_s=30.0),
            make_job("sh", "-c", beats, attempt=silent, start_timeout_s=0.9, heartbeat_timeout_s=1.2),
        )
        ended = await rig.until_phase("ended")
        assert ended.reason is Reason.START_TIMEOUT and "start timeout of 0.5 s" in ended.detail
        ended = await rig.until_phase("ended", attempt=silent)
        assert ended.reason is Reason.HEARTBEAT_TIMEOUT and "1.2 s" in ended.detail
        assert ended.started_at is not None and ended.ended_at is not None
        assert ended.ended_at - ended.started_at > 2_000_000, "it was left alone while it touched the file"

    play(script)


# suspension


def test_a_suspended_job_stands_still_and_its_time_with_it_over_a_restart_of_the_agent() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_ticker(rig, max_duration_s=60.0, ranks=2))
        await rig.until_phase("running")
        await rig.until_witness(2)
        rig.change(suspended=True)
        await rig.until_phase("suspended")
        await until(lambda: all(stopped(pid) for _, pid, _ in rig.keeper.running), "all to stand still")
        ran_ns = rig.keeper._attempts[A].ran_ns(rig.keeper._clock.mono_ns())
        size = len(rig.log(f"{A}.0"))
        await rig.restart()
        assert getattr(rig.state(), "phase", "") == "suspended"
        assert len(rig.keeper.running) == 2, "it is watched all the same"
        found_ns = rig.keeper._attempts[A].ran_ns(rig.keeper._clock.mono_ns())
        assert abs(found_ns - ran_ns) < 200_000_000, "from the start of the last process on, or from the end of all starts"
        assert len(rig.log(f"{A}.0")) == size
        rig.change(suspended=False)
        await rig.until_phase("running")
        await until(lambda: len(rig.log(f"{A}.0")) > size and len(rig.log(f"{A}.1")) > size, "both to go on")
        frozen_ns = rig.keeper._attempts[A].progress.frozen_ns
        await rig.restart()
        assert rig.keeper._attempts[A].progress.frozen_ns == frozen_ns > 0

    play(script)


def test_a_suspended_job_is_stopped_by_the_signal_that_was_asked_for() -> None:
    async def script(rig: KeeperRig) -> None:
        program = f"trap 'echo int >> {rig.witness}; exit 5' INT; {TICKER}"
        rig.assign(make_job("sh", "-c", program, env={"PATH": os.defpath, "WITNESS": str(rig.witness)}))
        await rig.until_witness(1)
        rig.change(suspended=True)
        await rig.until_phase("suspended")
        rig.change(stop_signal=int(signal.SIGINT))
        assert (await rig.until_phase("ended")).exit_code == 5
        assert rig.witness.read_text().split() == ["up", "int"]

    play(script)


def test_a_suspended_job_ends_at_once_when_all_work_is_told_to_end() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_ticker(rig, suspended=True))
        await rig.until_phase("suspended")
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(_end_work, rig.rig.cgroups, None, SystemClock()) > 0
            assert (await rig.until_phase("ended")).signal == signal.SIGTERM

    play(script)


def test_a_suspended_job_that_nobody_assigns_any_more_ends_too() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_ticker(rig, suspended=True))
        await rig.until_phase("suspended")
        rig.assign()
        assert (await rig.until_phase("ended")).signal == signal.SIGTERM
        rig.assign()
        assert rig.rig.cgroups.workloads() == []

    play(script)


@pytest.mark.parametrize("suspended", [True, False])
def test_a_gang_that_was_frozen_in_part_when_the_agent_died_is_brought_in_line_by_the_next(*, suspended: bool) -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_ticker(rig, ranks=2))
        await rig.until_phase("running")
        await rig.until_witness(2)
        rig.drop_agent()
        rig.rig.cgroups.freeze(WorkloadId(f"{A}.1"), True)
        rig.assigned = {A: msgspec.structs.replace(rig.assigned[A], suspended=suspended)}
        await rig.restart()
        await rig.until_phase("suspended" if suspended else "running")
        assert [rig.rig.cgroups.frozen(WorkloadId(f"{A}.{rank}")) for rank in range(2)] == [suspended] * 2

    play(script)


@needs_cpusets
def test_whole_cores_are_lent_to_all_while_their_job_is_suspended() -> None:
    async def script(rig: KeeperRig) -> None:
        mine, other = (CORES[-1],), AttemptId("j-000002.1")
        rig.assign(make_job("sleep", "60", plan=Plan(cpus=mine)), make_job("sleep", "60", attempt=other))
        await rig.until_phase("running")
        await rig.until_phase("running", attempt=other)
        pid, common = (next(pid for workload, pid, _ in rig.keeper.running if workload == name) for name in (A, other))
        assert (os.sched_getaffinity(pid), os.sched_getaffinity(common)) == ({*mine}, {*CORES} - {*mine})

        def suspend(*, suspended: bool, cpus: tuple[int, ...] = mine) -> None:
            job = make_job("sleep", "60", plan=Plan(cpus=cpus), suspended=suspended)
            rig.assign(job, rig.assigned[other])

        suspend(suspended=True)
        await rig.until_phase("suspended")
        assert os.sched_getaffinity(common) == {*CORES}
        await rig.restart()
        assert os.sched_getaffinity(common) == {*CORES}
        suspend(suspended=False, cpus=(CORES[0],))  # it was given another core meanwhile
        await rig.until_phase("running")
        assert (os.sched_getaffinity(pid), os.sched_getaffinity(common)) == ({CORES[0]}, {*CORES} - {CORES[0]})

    play(script)


# ends


def test_a_second_stop_with_a_harder_signal_is_sent_too() -> None:
    async def script(rig: KeeperRig) -> None:
        program = f"trap 'echo int >> {rig.witness}' INT; trap 'echo term >> {rig.witness}; exit 3' TERM; {TICKER}"
        rig.assign(make_job("sh", "-c", program, env={"PATH": os.defpath, "WITNESS": str(rig.witness)}))
        await rig.until_witness(1)
        rig.change(stop_signal=int(signal.SIGINT))
        await rig.until_witness(2)
        rig.change(stop_signal=int(signal.SIGTERM))
        assert (await rig.until_phase("ended")).exit_code == 3
        assert rig.witness.read_text().split() == ["up", "int", "term"]

    play(script)


def test_what_forks_twice_and_leaves_its_session_is_killed_with_the_job() -> None:
    async def script(rig: KeeperRig) -> None:
        daemon = (
            "import os, time\n"
            "if os.fork(): os._exit(0)\n"
            "os.setsid()\n"
            "if os.fork(): os._exit(0)\n"
            f"open({str(rig.witness)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
            "time.sleep(600)\n"
        )
        rig.assign(make_job("sh", "-c", 'python3 -c "$DAEMON"; exec sleep 600', env={"PATH": os.defpath, "DAEMON": daemon}))
        (daemonic,) = await rig.until_witness(1)
        assert Path(f"/proc/{daemonic}").exists()
        rig.change(stop_signal=int(signal.SIGKILL))
        await rig.until_phase("ended")
        await until(lambda: not Path(f"/proc/{daemonic}").exists(), "the escaped process to be gone")

    play(script, observe_machine())


# checkpoints


@needs_root
def test_the_newest_checkpoint_is_looked_for_with_the_rights_of_the_job() -> None:
    async def script(rig: KeeperRig) -> None:
        folder = open_folder(rig, "checkpoints")
        for age, name in enumerate(("step-3", "step-1", ".step-9.tmp")):
            (folder / name).mkdir()
            os.utime(folder / name, (1000 - age, 1000 - age))
        os.utime(folder / ".step-9.tmp", (2000, 2000))
        rig.assign(make_job("sh", "-c", "echo $STEELYARD_CHECKPOINT", checkpoint_dir=str(folder)))
        await rig.until_phase("ended")
        assert rig.log() == f"{folder}/step-3\n"
        folder.chmod(0o700)
        private = AttemptId("j-000002.1")
        rig.assign(make_job("true", attempt=private, checkpoint_dir=str(folder)))
        state = await rig.until_phase("not-started", "ended", attempt=private)
        assert state.phase == "not-started" and "Permission denied" in state.detail
        assert os.geteuid() == 0 and folder.stat().st_uid == 0, "we are who we were"

    play(script)
