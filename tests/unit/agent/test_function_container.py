"""What a container of a function is made of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from steelyard.agent.device_grants import DeviceGrants
from steelyard.agent.function_container import start_contained
from steelyard.errors import Refused
from steelyard.model.cdi import CdiFacts, DeviceEdits, NvidiaDriver, OwnNode
from steelyard.model.function import FunctionSpec
from steelyard.model.image import Image
from steelyard.model.job import Owner, Plan
from steelyard.model.topology import Gpu, Topology
from steelyard.runtime.container import Wanted

GPU = "0000:0f:00.0"
TOPOLOGY = Topology(gpus=(Gpu(GPU, vendor="NVIDIA", pci=GPU),))
FACTS = CdiFacts(driver=NvidiaDriver("1", ()), own_nodes={GPU: (OwnNode("/dev/nvidia0", (195, 0)),)})


def start(tmp_path: Path, plan: Plan, facts: CdiFacts) -> DeviceEdits:
    """What the container was made with."""
    made: list[Wanted] = []

    def make(workload: str, image: Image, wanted: Wanted, owner: object) -> tuple[tuple[str, ...], None]:
        made.append(wanted)
        return ("crun",), None

    async def launch(*args: object, **fields: object) -> None:
        return None

    edges = SimpleNamespace(
        grants=DeviceGrants(cast(Any, SimpleNamespace(observe=lambda: facts)), TOPOLOGY),
        containers=SimpleNamespace(make=make), runtime=SimpleNamespace(launch=launch),
        cleanup=SimpleNamespace(relay_folder=lambda workload: tmp_path / "relay"),
        settings=SimpleNamespace(tls_cert=None, work_uid=1000, work_gid=1000, admin_uid=0, admin_user="root"),
    )  # fmt: skip
    function = SimpleNamespace(
        name="f", owner=Owner("me", 1000), volumes=(), spec=FunctionSpec(argv=("app",), cwd="/", port=8080, image="docker://x")
    )
    host = SimpleNamespace(
        edges=edges, function=function, plan=plan, ids=(1000, 1000), env={}, code=Path("/"), secrets=SimpleNamespace(path=""),
        logs="l",
    )  # fmt: skip
    slot = SimpleNamespace(workload="f.1", page_fd=4)
    asyncio.run(start_contained(cast(Any, host), Image("d", "r"), cast(Any, slot), 3, False, {}))
    return made[0].edits


def test_it_gets_the_devices_of_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.chown", lambda *args: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert [node.path for node in start(tmp_path, Plan(gpus=(GPU,)), FACTS).nodes] == ["/dev/nvidia0"]


def test_without_devices_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.chown", lambda *args: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert start(tmp_path, Plan(), cast(Any, None)) == DeviceEdits()


def test_what_it_cannot_have_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(Refused, match=r"neither a CDI specification.*Nothing was started"):
        start(tmp_path, Plan(gpus=(GPU,)), CdiFacts(own_nodes=FACTS.own_nodes))
    assert not (tmp_path / "relay").exists()
