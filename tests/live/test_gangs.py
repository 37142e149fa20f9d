"""Gangs on one machine: a process per rank, which start all or none and end all or none, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from keeper_rig import A, KeeperRig, cgroup_tag, make_job, open_folder, play
from spawner_rig import LIMIT_S, WORK_UID, until

from steelyard.model.batch import Gang, Launcher, RankEnd
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.process import FAILPOINT

#: how long a gang may run in part
PARTLY_S = 5.0


def rank(number: int) -> WorkloadId:
    return WorkloadId(f"{A}.{number}")


def pid_of(rig: KeeperRig, number: int) -> int:
    return next(pid for workload, pid, _ in rig.keeper.running if workload == rank(number))


def test_ranks_run_in_groups_of_their_own_and_know_their_places() -> None:
    async def script(rig: KeeperRig) -> None:
        say = f"cat $STEELYARD_HOSTFILE; echo $RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT >> {rig.witness}"
        rig.assign(make_job("sh", "-c", f"{say}; exec sleep 60", ranks=3))
        state = await rig.until_phase("running")
        assert state.ranks == () and state.started_at is not None
        lines = await rig.until_witness(3)
        port = lines[0].rpartition(":")[2]
        assert lines == [f"{number}/3 {number} 127.0.0.1:{port}" for number in range(3)]
        assert rig.rig.cgroups.workloads() == [rank(number) for number in range(3)]
        assert {workload for workload, _, _ in rig.keeper.running} == {rank(number) for number in range(3)}
        assert rig.log(rank(2)) == f"{rig.machine.hostname} slots=3\n" == rig.log(A)
        rig.keeper.observe_proofs()
        proof = rig.keeper.proof(A)
        assert proof is not None and proof.got["uid"] == WORK_UID
        rig.change(stop_signal=int(signal.SIGTERM))
        ended = await rig.until_phase("ended")
        assert ended.signal == signal.SIGTERM and len(ended.ranks) == 3
        rig.assign()
        assert rig.state() is None and rig.rig.cgroups.workloads() == []

    play(script)


def test_a_rank_that_is_killed_takes_the_stubborn_others_with_it_in_time() -> None:
    async def script(rig: KeeperRig) -> None:
        stubborn = f"trap '' TERM; echo up >> {rig.witness}; while :; do sleep 0.05; done"
        rig.assign(make_job("sh", "-c", stubborn, ranks=4))
        await rig.until_phase("running")
        await rig.until_witness(4)
        os.kill(pid_of(rig, 1), signal.SIGKILL)
        async with asyncio.timeout(PARTLY_S):
            ended = await rig.until_phase("ended")
        assert rig.pids() == []
        assert (ended.signal, ended.exit_code, ended.reason) == (signal.SIGKILL, None, Reason.KILLED_BY_SIGNAL)
        assert ended.detail == "rank 1 was ended by signal 9; the other 3 ranks were ended with it."
        assert ended.ranks == tuple(RankEnd(number, None, 9) for number in range(4))

    play(script)


def test_a_rank_that_fails_tells_the_exit_code_and_the_others_are_asked_first() -> None:
    async def script(rig: KeeperRig) -> None:
        program = f"test $RANK = 2 && exit 7; trap 'echo asked >> {rig.witness}; exit 0' TERM; while :; do sleep 0.05; done"
        rig.assign(make_job("sh", "-c", program, ranks=3))
        ended = await rig.until_phase("ended")
        assert (ended.exit_code, ended.signal, ended.reason) == (7, None, Reason.EXITED_NONZERO)
        assert ended.detail.startswith("rank 2 exited with code 7")

    play(script)


def test_a_rank_that_is_done_early_is_waited_for_by_nobody() -> None:
    async def script(rig: KeeperRig) -> None:
        go = rig.rig.folder / "go"
        rig.assign(make_job("sh", "-c", f"test $RANK = 0 || while ! test -e {go}; do sleep 0.02; done", ranks=3))
        await rig.until_phase("running")
        await until(lambda: getattr(rig.state(), "ranks", ()) == (RankEnd(0, 0, None),), "rank 0 to be done")
        assert getattr(rig.state(), "phase", "") == "running" and len(rig.keeper.running) == 2
        go.touch()
        ended = await rig.until_phase("ended")
        assert (ended.reason, ended.exit_code, len(ended.ranks)) == (Reason.EXITED, 0, 3)

    play(script)


def test_a_gang_whose_program_is_not_there_never_started() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_job("/no/such/program", ranks=3))
        state = await rig.until_phase("not-started", "ended")
        assert (state.phase, state.reason) == ("not-started", Reason.START_FAILED)
        assert "No such file" in state.detail
        assert rig.pids() == []
        rig.assign()
        assert rig.rig.cgroups.workloads() == []

    play(script)


def test_a_gang_of_which_one_rank_can_not_be_started_is_ended_as_a_whole() -> None:
    async def script(rig: KeeperRig) -> None:
        program = open_folder(rig, "bin") / "once"
        program.write_text(f"#!/bin/sh\nrm $0\necho up >> {rig.witness}\nexec sleep 60\n")
        program.chmod(0o755)
        hold = rig.keeper._runtime.launch

        async def launch(workload: WorkloadId, **fields: object) -> object:
            if workload == rank(2):
                await rig.until_witness(1)
            return await hold(workload, **fields)  # type: ignore[arg-type]

        rig.keeper._runtime.launch = launch  # type: ignore[method-assign, assignment]
        rig.assign(make_job(str(program), ranks=3))
        state = await rig.until_phase("ended", "not-started")
        assert (state.phase, state.reason, state.exit_code, state.signal) == ("ended", Reason.START_FAILED, None, None)
        assert rig.pids() == []

    play(script)


def test_a_gang_outlives_its_agent_and_ends_as_one_under_the_next() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_job("sh", "-c", f"echo $RANK >> {rig.witness}; exec sleep 60", ranks=3))
        await rig.until_phase("running")
        before = sorted(pid for _, pid, _ in rig.keeper.running)
        await rig.restart()
        assert getattr(rig.state(), "phase", "") == "running"
        assert sorted(pid for _, pid, _ in rig.keeper.running) == before
        rig.drop_agent()
        # while no agent is there, nobody sees it; the next one does
        os.kill(pid_of(rig, 0), signal.SIGKILL)
        await until(lambda: (rig.rig.agent_dir / "exits" / f"{rank(0)}.json").exists(), "the exit record")
        await rig.restart()
        ended = await rig.until_phase("ended")
        assert ended.detail.startswith("rank 0 was ended by signal 9; the other 2 ranks")
        assert rig.witness.read_text().split() == ["0", "1", "2"]

    play(script)


def test_ranks_whose_spawner_is_dead_end_together_with_an_unknown_exit() -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assign(make_job("sleep", "60", ranks=2))
        await rig.until_phase("running")
        rig.rig.kill_spawner()
        await rig.rig.client.close()
        victim = pid_of(rig, 1)
        fd = os.pidfd_open(victim)
        os.kill(victim, signal.SIGKILL)
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, gone.set)
        await gone.wait()
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        rig.keeper.on_lost(rank(1))
        await until(lambda: rig.rig.cgroups.pids(rank(0)) == [], "the other rank to be gone")
        rig.keeper.on_lost(rank(0))
        ended = await rig.until_phase("ended")
        assert (ended.reason, ended.exit_code, ended.signal) == (Reason.EXIT_UNKNOWN, None, None)
        assert "rank 1 ended unseen" in ended.detail

    play(script)


AGENT = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    sys.path[:0] = [sys.argv[1], sys.argv[2]]
    import spawner_rig
    from keeper_rig import KeeperRig, make_job
    from steelyard.host.cgroup import open_cgroups
    from steelyard.host.machine import observe_machine

    async def main():
        rig = spawner_rig.Rig(Path(sys.argv[3]), open_cgroups(sys.argv[4]))
        await rig.client.connect()
        keeper = KeeperRig(rig, observe_machine(), Path(sys.argv[3]))
        keeper.assign(make_job("sh", "-c", f"echo $RANK >> {keeper.witness}; exec sleep 60", ranks=3))
        await keeper.until_phase("running")

    asyncio.run(main())
""")


@pytest.mark.parametrize(
    ("failpoint", "phase", "started"),
    [
        ("after-intent:1", "not-started", 0),
        ("after-cgroup:2", "not-started", 0),
        ("after-cgroup:3", "not-started", 0),
        ("after-spawn:1", "ended", 1),
        ("after-handle:1", "ended", 1),
        ("after-spawn:2", "ended", 2),
        ("after-spawn:3", "running", 3),
        ("after-handle:3", "running", 3),
    ],
)
def test_an_agent_killed_at_each_step_of_a_start_leaves_all_or_none(failpoint: str, phase: str, started: int) -> None:
    async def script(rig: KeeperRig) -> None:
        rig.assigned = {A: make_job("sh", "-c", f"echo $RANK >> {rig.witness}; exec sleep 60", ranks=3)}
        here = Path(__file__).parent
        agent = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", AGENT, str(here), str(here.parent), str(rig.rig.folder), cgroup_tag(rig)],
            env={**os.environ, FAILPOINT: failpoint},
            capture_output=True,
            timeout=LIMIT_S,
        )
        assert agent.returncode == 137, agent.stderr.decode()
        await rig.restart()
        state = await rig.until_phase(phase)
        assert len(rig.pids()) == (3 if phase == "running" else 0)
        if phase == "ended":
            assert state.reason is Reason.NODE_LOST
            assert f"when {started} of 3 ranks had been started" in state.detail
        elif phase == "running":
            await rig.until_witness(3)
        else:
            assert state.reason is Reason.NOT_STARTED
        rig.keeper.reconcile(rig.assigned.values())  # assigned all the same: it is not started again
        ran = Counter(rig.witness.read_text().split())
        assert all(count == 1 for count in ran.values()) and len(ran) <= started
        rig.assign()
        if phase == "running":
            await until(lambda: rig.state() is not None and rig.state().phase == "ended", "its end")  # type: ignore[union-attr]
            rig.assign()
        assert rig.state() is None and rig.rig.cgroups.workloads() == []

    play(script)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="NOT VERIFIED on one core: ranks can't have cores of their own")
def test_each_rank_has_the_cores_of_its_own_task_and_the_proof_says_so() -> None:
    async def script(rig: KeeperRig) -> None:
        first, second = sorted(os.sched_getaffinity(0))[:2]
        plan = Plan(cpus=(first, second), tasks=(Plan(cpus=(first,)), Plan(cpus=(second,))))
        rig.assign(make_job("sleep", "60", ranks=2, plan=plan))
        await rig.until_phase("running")
        assert os.sched_getaffinity(pid_of(rig, 0)) == {first}
        assert os.sched_getaffinity(pid_of(rig, 1)) == {second}
        proof = rig.keeper.proof(A)
        assert proof is not None
        assert (proof.asked["cpus[0]"], proof.got["cpus[1]"]) == ([first], [second])
        assert proof.asked["no_new_privs"] is True

    play(script)


@pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="NOT VERIFIED here: Open MPI is not installed (apt install openmpi-bin)"
)
@pytest.mark.parametrize("alone", [True, False])
def test_mpirun_starts_the_ranks_and_binds_them_where_nobody_shares_their_cores(*, alone: bool) -> None:
    async def script(rig: KeeperRig) -> None:
        say = 'echo "$OMPI_COMM_WORLD_RANK/$OMPI_COMM_WORLD_SIZE $(grep Cpus_allowed_list /proc/self/status)"'
        gang = Gang(tasks_per_node=2, launcher=Launcher.MPI)
        cores = len(rig.machine.cores)
        plan = Plan(share=float(cores) if alone else 0.2)
        rig.assign(make_job("sh", "-c", say, gang=gang, plan=plan))
        ended = await rig.until_phase("ended", "not-started")
        assert (ended.exit_code, ended.ranks) == (0, ()), (ended, rig.log(stream="stderr"))
        lines = sorted(rig.log().splitlines())
        assert [line.split()[0] for line in lines] == ["0/2", "1/2"]
        placed = [line.split()[-1] for line in lines]
        assert (placed[0] != placed[1]) == (alone and cores >= 2), lines

    play(script)


@pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="NOT VERIFIED here: Open MPI is not installed (apt install openmpi-bin)"
)
def test_an_mpi_rank_that_fails_ends_the_job() -> None:
    async def script(rig: KeeperRig) -> None:
        program = "test $OMPI_COMM_WORLD_RANK = 1 && exit 4; exec sleep 60"
        rig.assign(make_job("sh", "-c", program, gang=Gang(tasks_per_node=2, launcher=Launcher.MPI)))
        ended = await rig.until_phase("ended")
        assert ended.exit_code == 4 and rig.pids() == []

    play(script)


TORCH_STAND_IN = """
import os, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
rest = [word for word in sys.argv[1:] if not word.startswith("--")]
count = int(next(word.partition("=")[2] for word in options if word.startswith("--nproc-per-node")))
ranks = [subprocess.Popen([sys.executable, *rest], env={**os.environ, "RANK": str(rank)}) for rank in range(count)]
sys.exit(max(rank.wait() for rank in ranks))
"""


def test_torchrun_is_the_one_process_and_its_ranks_end_with_it() -> None:
    """With a stand-in for torch's launcher, which is far too large to install for every run of the tests."""

    async def script(rig: KeeperRig) -> None:
        folder = open_folder(rig, "site")
        (folder / "torch" / "distributed").mkdir(parents=True)
        for place in (folder / "torch", folder / "torch" / "distributed"):
            (place / "__init__.py").touch()
        (folder / "torch" / "distributed" / "run.py").write_text(TORCH_STAND_IN)
        train = folder / "train.py"
        train.write_text(f"import os, time\nopen({str(rig.witness)!r}, 'a').write(os.environ['RANK'] + '\\n')\ntime.sleep(60)\n")
        gang = Gang(tasks_per_node=2, launcher=Launcher.TORCHRUN)
        env = {"PATH": os.defpath, "PYTHONPATH": str(folder)}
        rig.assign(make_job("python3", str(train), gang=gang, env=env))
        await rig.until_phase("running")
        assert await rig.until_witness(2) == ["0", "1"]
        assert rig.rig.cgroups.workloads() == [A] and len(rig.pids()) == 3
        os.kill(next(pid for _, pid, _ in rig.keeper.running), signal.SIGKILL)
        ended = await rig.until_phase("ended")
        assert ended.signal == signal.SIGKILL and rig.pids() == []

    play(script)
