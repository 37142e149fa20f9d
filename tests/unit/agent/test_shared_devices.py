"""Jobs and functions keep their devices by the same rules: one keeper, one list of what is missing, one answer to "in use?"."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent_parts import no_secrets
from machines import make_hgx
from steelyard.agent.function import FunctionHost
from steelyard.agent.functions import FunctionKeeper
from steelyard.agent.loop import Agent
from steelyard.agent.presence import GONE, Presence
from steelyard.agent.revision import RevisionHost
from steelyard.clock import VirtualClock
from steelyard.config import Settings
from steelyard.model.health import NODE
from steelyard.model.ids import FunctionName, WorkloadId
from steelyard.model.job import Owner, Plan
from steelyard.model.reason import Reason
from steelyard.scaling.rollout import Counts
from steelyard.wire.spawn import Exited, Running

GPU = make_hgx().gpus[0].id
PLAN = Plan(gpus=(GPU,), gpu_fraction=0.5)
SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=64000, work_gid=64001, admin_user="root", admin_uid=0)


class Devices:
    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    async def note_start(self, plan: Plan) -> None:
        self.log.append(("start", plan))

    def note_end(self, workloads: set[str], plan: Plan) -> None:
        self.log.append(("end", set(workloads), plan))


def make_edges(folder: Path) -> Any:
    machine = SimpleNamespace(topology=make_hgx(), boot_id="boot-1", id="m1", memory_bytes=1 << 30)
    paths = SimpleNamespace(
        environments=folder,
        agent=folder,
        workloads=folder,
        function_sockets=folder,
        agent_token=folder / "token",
        run=folder,
        pages=folder,
        secrets=folder,
    )
    return SimpleNamespace(
        paths=paths,
        settings=SETTINGS,
        machine=machine,
        clock=VirtualClock(),
        cgroups=SimpleNamespace(),
        spawner=SimpleNamespace(connected=True, drop_socket=lambda name: None),
        runtime=SimpleNamespace(),
        cleanup=SimpleNamespace(),
        lane=SimpleNamespace(),
        gateway=SimpleNamespace(),
        queue=SimpleNamespace(),
        journal=SimpleNamespace(),
        slurm_bin="/slurm/bin",
        containers=SimpleNamespace(),
        images=SimpleNamespace(),
        grants=SimpleNamespace(),
        lib_dir=folder,
        template_budget_bytes=0,
        observe_topology=None,
        scratch=SimpleNamespace(sweep=lambda living: True),
        volumes=SimpleNamespace(sweep=lambda: None),
    )


def make_function() -> Any:
    spec = SimpleNamespace(
        image="",
        attr=None,
        served_by_runner=False,
        as_root=False,
        env={},
        startup_deadline_s=1.0,
        replicas_min=0,
        bundle=None,
        cwd="/",
        wake_bound_s=None,
        secrets=(),
    )
    return SimpleNamespace(name=FunctionName("f"), revision=1, owner=Owner("root", 0), spec=spec, plan=PLAN, token="", volumes=())


def make_revision(folder: Path, presence: Presence) -> RevisionHost:
    listener = SimpleNamespace(close=lambda: None, fileno=lambda: 0)
    return RevisionHost(
        make_edges(folder),
        make_function(),
        folder,
        cast(Any, listener),
        presence,
        lambda: None,
        lambda row: None,
        lambda: None,
        cast(Any, None),
        cast(Any, None),
        no_secrets(),
    )


def make_host(folder: Path, devices: Devices, presence: Presence) -> FunctionHost:
    ledger = SimpleNamespace(set_draining=lambda function, holds: None)
    nothing = cast(Any, lambda *arguments: None)
    return FunctionHost(
        make_edges(folder),
        FunctionName("f"),
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        cast(Any, ledger),
        cast(Any, devices),
        presence,
        cast(Any, None),
        cast(Any, None),
        no_secrets(),
    )


def make_there(root: Path) -> Presence:
    (root / "sys/bus/pci/devices" / GPU).mkdir(parents=True)
    return Presence(make_hgx(), root)


def make_agent(folder: Path) -> Agent:
    agent = Agent(make_edges(folder))
    revision = SimpleNamespace(
        workloads={"f.1.5af3"}, plan=PLAN, function=make_function(), running=[(WorkloadId("f.1.5af3"), 1, 1)]
    )
    idle = SimpleNamespace(workloads=set[str](), plan=Plan(gpus=(make_hgx().gpus[1].id,)), function=make_function(), running=[])
    agent.functions._hosts = cast(Any, {"f": SimpleNamespace(hosts=[revision, idle], placed=True)})
    agent.functions._awake[FunctionName("f")] = None
    return agent


def test_a_functions_gpus_are_in_use_while_a_process_of_it_runs(tmp_path: Path) -> None:
    assert make_agent(tmp_path)._in_use() == {GPU, NODE}


def test_jobs_and_functions_share_one_keeper_which_knows_the_replicas_as_living(tmp_path: Path) -> None:
    agent = make_agent(tmp_path)
    assert agent.jobs._devices is agent.functions._devices is agent.devices
    assert agent.jobs._starter._presence is agent.functions._presence is agent.presence
    assert agent.devices._live() == {"f.1.5af3"}


def test_what_is_back_after_a_start_missed_it_is_told_without_another_cause(tmp_path: Path) -> None:
    agent, told = make_agent(tmp_path), list[bool]()
    presence = SimpleNamespace(missing=("gpu-gone",))
    agent.presence, agent._changed = cast(Any, presence), lambda: told.append(True)
    agent._look_at_missing()
    assert told == [True], "what is missed newly is told"
    agent._missing = ("gpu-gone",)
    agent._look_at_missing()
    assert told == [True], "nothing changed"
    presence.missing = ()
    agent._look_at_missing()
    assert told == [True, True]


def test_a_roll_out_on_a_gpu_that_went_away_fails_with_that_reason_and_starts_nothing(tmp_path: Path) -> None:
    devices = Devices()
    host = make_host(tmp_path, devices, Presence(make_hgx(), tmp_path))
    asyncio.run(host._roll_out(make_function()))
    reason, detail = host._failed[1]
    assert reason is Reason.DEVICE_GONE and GPU in detail
    assert devices.log == []


def test_a_roll_out_notes_how_its_gpus_looked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*arguments: object) -> None:
        raise OSError("as far as the test goes")

    monkeypatch.setattr(FunctionHost, "make_host", fail)
    devices = Devices()
    asyncio.run(make_host(tmp_path, devices, make_there(tmp_path))._roll_out(make_function()))
    assert devices.log == [("start", PLAN)]


def test_the_gpus_of_a_closed_revision_wait_with_all_that_ran_on_them(tmp_path: Path) -> None:
    devices = Devices()
    revision = SimpleNamespace(workloads={"f.1.5af3"}, plan=PLAN, function=make_function(), since=1, counts=Counts())
    # what is asked after the end knows of no processes any more
    revision.close = revision.workloads.copy().clear
    make_host(tmp_path, devices, make_there(tmp_path))._close(cast(Any, revision))
    assert devices.log == [("end", {"f.1.5af3"}, PLAN)]


def test_a_replica_is_not_started_without_its_gpu(tmp_path: Path) -> None:
    async def life() -> None:
        revision = make_revision(tmp_path, Presence(make_hgx(), tmp_path))
        failed: list[Reason] = []
        revision._count_failure = lambda reason, detail: failed.append(reason)
        with pytest.raises(Exception, match=GPU) as caught:
            await revision._start(0, woken=True)
        assert getattr(caught.value, "code", "") == GONE and failed == [Reason.DEVICE_GONE]

    asyncio.run(life())


@pytest.mark.parametrize("runs", [True, False])
def test_a_functions_share_of_a_gpu_is_told_to_mps_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    monkeypatch.setattr("steelyard.agent.device_proof.mps_runs", lambda: runs)
    env = make_revision(tmp_path, make_there(tmp_path)).env
    assert env.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE") == ("50" if runs else None)


def test_a_template_counts_as_a_process_of_its_revision(tmp_path: Path) -> None:
    revision = make_revision(tmp_path, make_there(tmp_path))
    assert revision.workloads == set()
    revision.template = cast(Any, SimpleNamespace(workload=WorkloadId("tmpl.f.1.5a")))
    assert revision.workloads == {"tmpl.f.1.5a"}
    keeper = FunctionKeeper(
        make_edges(tmp_path),
        cast(Any, None),
        lambda: None,
        lambda _: None,
        on_wake=lambda: None,
        devices=cast(Any, None),
        presence=cast(Any, None),
        lending=cast(Any, None),
        secrets=no_secrets(),
    )
    keeper._hosts = cast(Any, {"f": SimpleNamespace(hosts=[revision], placed=True)})
    assert (keeper.workloads, keeper.devices_in_use) == ({"tmpl.f.1.5a"}, {GPU})


def test_an_exit_that_is_told_before_anything_was_taken_over_is_nobodys_to_forget(tmp_path: Path) -> None:
    """It comes right behind the spawner's list. Forgotten, the job would have been started a second time."""
    agent = make_agent(tmp_path)
    forgotten: list[str] = []
    agent._edges.cleanup.forget = cast(Any, forgotten.append)
    exited = Exited(WorkloadId("j-000001.1"), 1, 1, 5, 0, None, 0.0, 0.0, 0)
    agent.on_exit(exited)
    assert forgotten == []

    async def adopt() -> None:
        agent._edges.runtime.adopt = cast(Any, lambda running: [])
        agent._edges.containers.sweep = cast(Any, lambda: None)
        agent.jobs.adopt = cast(Any, lambda *arguments: None)
        agent.functions.adopt = cast(Any, lambda *arguments: asyncio.sleep(0))
        agent.functions.on_exit = cast(Any, lambda exited: False)
        await agent._adopt({}, Running(()))

    agent.functions._hosts = {}
    asyncio.run(adopt())
    assert forgotten == ["j-000001.1"], "what nobody knows is forgotten once everything is known"
