"""A sleeping function lends its core to a preemptible job, has it to itself again on a wake, and gives it back. A GPU, for which
/dev/full stands in, is off a job's hands within the bound, and free, before the function starts."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from apps import MANY, deploy, free_cores
from keeper_rig import A, KeeperRig, make_job, play
from steelyard_cluster import Cluster, wait_until

from queues import small_machine
from steelyard.agent.devices import DeviceEdge
from steelyard.agent.lending import Lending
from steelyard.host.machine import observe_machine
from steelyard.model.batch import Preemption
from steelyard.model.job import Plan
from steelyard.model.reason import Reason

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or (os.cpu_count() or 1) < 2, reason="needs root and two cores: one core always stays shared"
)

EVERYWHERE = tuple(range(os.cpu_count() or 2))
WAKES = 5


def allowed(pid: str) -> tuple[int, ...]:
    status = Path(f"/proc/{pid}/status").read_text()
    text = next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list:"))
    parts = [part.split("-") for part in text.split(",")]
    return tuple(cpu for part in parts for cpu in range(int(part[0]), int(part[-1]) + 1))


def lends(cluster: Cluster, name: str) -> bool:
    return any(row["lends"] for row in json.loads(cluster.ok("functions", "--json")) if row["name"] == name)


def start_job(cluster: Cluster) -> tuple[str, str]:
    """All cores' worth of share, which only fits while the function lends its own; its id and pid."""
    command = ("--preemptible", "--cpus", str(len(EVERYWHERE)), "--", "sh", "-c", "echo $$; exec sleep 100")
    job = cluster.ok("run", "--detach", *command).strip()
    cluster.wait_job(job, "RUNNING")
    wait_until(lambda: cluster.ok("logs", job).strip() != "", 20, "the job to say its pid")
    return job, cluster.ok("logs", job).strip()


def wakes_of(cluster: Cluster, name: str) -> list[dict[str, float]]:
    rows = json.loads(cluster.ok("coldstarts", "--json"))
    return [{**row["phases"], "wall": row["wall_ms"]} for row in rows if row["function"] == name]


def wake(cluster: Cluster, name: str, times: int) -> None:
    for _ in range(times):
        assert cluster.call(f"/{name}/pid").status == 200
        wait_until(lambda: cluster.function(name)["state"] == "SLEEPING", 20, "it to sleep")


def test_a_preemptible_job_has_the_core_of_a_function_while_that_sleeps_and_only_then(shared: Cluster) -> None:
    options = ("--timing", "dedicated", "--cpus", "1", "--idle-timeout", "300ms")
    deploy(shared, "lender", MANY, *options, "--wake-bound", "2s")
    wait_until(lambda: lends(shared, "lender"), 20, "the function to lend its core")
    refused = shared.ok("run", "--detach", "--cpus", str(len(EVERYWHERE)), "--", "true").strip()
    assert shared.wait_job(refused, "QUEUED")["reason"] == "no-cores-left", "it is held against what does not give way"
    shared.ok("stop", refused)
    job, pid = start_job(shared)
    assert allowed(pid) == EVERYWHERE
    own = allowed(shared.call("/lender/pid").body.split()[1].decode())
    assert len(own) == 1 and allowed(pid) == tuple(cpu for cpu in EVERYWHERE if cpu not in own)
    wait_until(lambda: allowed(pid) == EVERYWHERE, 20, "the core to be lent again")
    assert shared.job(job)["attempt"] == 1, "nobody ends for cores"
    wake(shared, "lender", WAKES)
    shared.ok("delete", "lender")
    shared.ok("stop", job)
    free_cores(shared)
    deploy(shared, "keeper", MANY, *options)
    wake(shared, "keeper", WAKES)
    shared.ok("delete", "keeper")
    free_cores(shared)
    lender, keeper = wakes_of(shared, "lender"), wakes_of(shared, "keeper")
    assert all("take_back" in row for row in lender) and not any("take_back" in row for row in keeper)
    p50 = {name: statistics.median(row["wall"] for row in rows) for name, rows in (("lends", lender), ("keeps", keeper))}
    taken = statistics.median(row["take_back"] for row in lender)
    print(f"wake p50 (ms): {p50['lends']:.2f} lending its core, {p50['keeps']:.2f} keeping it; take_back p50 {taken:.3f}")


def test_a_wake_takes_its_core_back_while_the_server_is_away(shared: Cluster) -> None:
    deploy(shared, "alone", MANY, "--timing", "dedicated", "--cpus", "1", "--idle-timeout", "300ms", "--wake-bound", "2s")
    wait_until(lambda: lends(shared, "alone"), 20, "the function to lend its core")
    job, pid = start_job(shared)
    assert allowed(pid) == EVERYWHERE
    shared.kill("server")
    own = allowed(shared.call("/alone/pid").body.split()[1].decode())
    assert len(own) == 1 and not set(own) & set(allowed(pid))
    wait_until(lambda: allowed(pid) == EVERYWHERE, 20, "the core to be lent again")
    shared.wait_ready()
    shared.ok("stop", job)
    shared.ok("delete", "alone")
    free_cores(shared)


MACHINE = msgspec.structs.replace(observe_machine(), topology=small_machine(gpus=1).topology)
GPU = MACHINE.topology.gpus[0].id if MACHINE.topology else ""
ON_GPU = Plan(share=0.1, gpus=(GPU,), preemptible=True)
NEVER_S = 600.0


class StandIn(DeviceEdge):
    """Everything is real but which file belongs to the GPU, and that its memory can be read."""

    def nodes(self) -> dict[str, tuple[str, ...]]:
        return {GPU: ("/dev/full",)}

    def memory(self) -> dict[str, int]:
        return {GPU: 0}


def stand_in(rig: KeeperRig) -> Lending:
    rig.devices._edge = StandIn()
    rig.keeper._starter._presence = cast(Any, SimpleNamespace(check=lambda plan: None))
    return Lending(lambda: None, rig.keeper.make_way, rig.devices)


def hold_gpu(rig: KeeperRig, trap: str, preemption: Preemption) -> None:
    script = f"exec 3</dev/full; trap '{trap}' TERM; echo holds >>{rig.witness}; while :; do sleep 0.05; done"
    rig.assign(make_job("/bin/sh", "-c", script, plan=ON_GPU, preemption=preemption))


def now_ns(rig: KeeperRig) -> int:
    return rig.keeper._clock.mono_ns()


def test_a_job_that_ignores_its_signal_is_off_the_gpu_when_the_bound_is_over() -> None:
    async def script(rig: KeeperRig) -> None:
        lending = stand_in(rig)
        hold_gpu(rig, "", Preemption(grace_s=NEVER_S))
        await rig.until_witness(1)
        await rig.until_phase("running")
        began_ns = now_ns(rig)
        await lending.take_back(ON_GPU, "f", began_ns + 500_000_000)
        took_s = (now_ns(rig) - began_ns) / 1e9
        assert 0.5 <= took_s < 2.5, f"it took {took_s} s"
        assert rig.pids() == [] and rig.devices.waiting == ()
        state = await rig.until_phase("ended")
        assert (state.reason, state.signal) == (Reason.PREEMPTED, 9) and "function f" in state.detail

    play(script, MACHINE)


def test_an_agent_that_comes_after_one_that_was_killed_during_the_wake_ends_the_job() -> None:
    async def script(rig: KeeperRig) -> None:
        stand_in(rig)
        hold_gpu(rig, "", Preemption(grace_s=NEVER_S))
        await rig.until_witness(1)
        await rig.until_phase("running")
        # told to end, and then the agent is killed: the request that woke the function still waits in its socket
        rig.keeper._attempts[A].kill_at_ns = now_ns(rig) + round(NEVER_S * 1e9)
        rig.keeper._step()
        await rig.restart()
        assert (await rig.until_phase("running")).reason is None
        began_ns = now_ns(rig)
        await stand_in(rig).take_back(ON_GPU, "f", began_ns + 200_000_000)
        assert rig.pids() == [] and rig.devices.waiting == ()
        assert (await rig.until_phase("ended")).reason is Reason.PREEMPTED

    play(script, MACHINE)
