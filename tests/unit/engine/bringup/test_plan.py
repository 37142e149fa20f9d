"""What is left to do until machines are a cluster: all on bare ones, nothing the second time, never a file of others."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines import cube_mesh, make_topology, pcie_16
from slurm_machines import seen_host, spec_of, with_pci
from steelyard.engine.bringup.plan import find_obstacle, plan_bring_up, plan_removal
from steelyard.engine.bringup.seen import PATHS
from steelyard.engine.bringup.written import sign, whose
from steelyard.errors import Refused
from steelyard.model.cluster import BringUpPlan, ClusterSpec, SeenHost, StepKind, Written
from steelyard.model.topology import PathClass, Topology

PLAIN = make_topology([], lambda a, b: (PathClass.SYS, 0, None))
CONF = "/etc/slurm/slurm.conf"


def carried_out(plan: BringUpPlan, seen: dict[str, SeenHost]) -> dict[str, SeenHost]:
    """The hosts as they would be seen after all steps, by what each step says that it does."""
    after = dict(seen)
    key = next(iter(after.values())).key or hashlib.sha256(b"made").hexdigest()
    for step in plan.steps:
        host = after[step.host]
        match step.kind:
            case StepKind.INSTALL:
                changed = {"missing": ()}
            case StepKind.KEY:
                changed = {"key": key}
            case StepKind.WRITE:
                changed = {"files": {**host.files, step.subject: step.content}}
            case StepKind.REMOVE:
                changed = {"files": {path: text for path, text in host.files.items() if path != step.subject}}
            case StepKind.START | StepKind.RESTART:
                read = host.key if step.subject == "munged" else step.content
                changed = {"running": host.running | {step.subject}, "started": {**host.started, step.subject: read}}
            case StepKind.STOP:
                changed = {"running": host.running - {step.subject}}
        after[step.host] = msgspec.structs.replace(host, **changed)
    return after


def bare(*names: str, topology: Topology = PLAIN, **fields: object) -> dict[str, SeenHost]:
    return {name: seen_host(name, topology, **fields) for name in names}


def kinds(plan: BringUpPlan, host: str) -> list[str]:
    return [f"{step.kind} {step.subject.rpartition('/')[2]}" for step in plan.steps if step.host == host]


def test_bare_machines_get_packages_key_files_and_programs_in_this_order() -> None:
    seen = bare("n1", "n2", missing=("slurmd", "munge"), key="")
    plan = plan_bring_up(spec_of("n1", "n2"), seen, {}, None)
    assert kinds(plan, "n2")[:3] == ["install slurmd munge", "key munge.key", "write slurm.conf"]
    assert [kind for kind in kinds(plan, "n2") if kind.startswith("write")] == [
        f"write {path.rpartition('/')[2]}" for path in PATHS
    ]
    assert kinds(plan, "n2")[-2:] == ["start munged", "start slurmd"]
    assert kinds(plan, "n1")[-3:] == ["start munged", "start slurmctld", "start slurmd"]
    assert plan.nodes == ("n1", "n2") and plan.left_out == {}


@given(
    names=st.lists(st.sampled_from(["n1", "n2", "n3", "n4"]), min_size=1, unique=True),
    missing=st.sampled_from([(), ("munge",), ("slurmd", "slurm-client")]),
    key=st.sampled_from(["", "k" * 64]),
    done=st.integers(0, 40),
)
def test_cut_off_after_any_step_it_converges_and_then_nothing_is_to_do(
    names: list[str], missing: tuple[str, ...], key: str, done: int
) -> None:
    spec = spec_of(*names)
    seen = bare(*names, missing=missing, key=key)
    first = plan_bring_up(spec, seen, {}, None)
    seen = carried_out(msgspec.structs.replace(first, steps=first.steps[:done]), seen)
    seen = carried_out(plan_bring_up(spec, seen, {}, None), seen)
    assert plan_bring_up(spec, seen, {}, None).steps == ()


def test_only_the_controller_gets_slurmctld() -> None:
    plan = plan_bring_up(spec_of("n1", "n2"), bare("n1", "n2", missing=("slurmctld",)), {}, None)
    assert [step.host for step in plan.steps if step.kind is StepKind.INSTALL] == ["n1"]


def test_another_machine_changes_files_everywhere_and_restarts_what_reads_them() -> None:
    seen = bare("n1", "n2")
    seen = carried_out(plan_bring_up(spec_of("n1", "n2"), seen, {}, None), seen)
    seen["n3"] = seen_host("n3", PLAIN)
    plan = plan_bring_up(spec_of("n1", "n2", "n3"), seen, {}, None)
    assert kinds(plan, "n2") == ["write slurm.conf", "restart slurmd"]
    assert kinds(plan, "n1") == ["write slurm.conf", "restart slurmctld", "restart slurmd"]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_of_others_and_an_edited_one_keep_their_host_out(path: str) -> None:
    for text in ("ClusterName=theirs\n", sign("ClusterName=ours\n") + "SlurmUser=me\n"):
        seen = bare("n1", "n2") | {"n2": seen_host("n2", PLAIN, files={path: text})}
        plan = plan_bring_up(spec_of("n1", "n2"), seen, {}, None)
        assert path in plan.left_out["n2"] and not any(step.host == "n2" for step in plan.steps)
        assert "n2" not in plan.nodes
        seen = bare("n1", "n2") | {"n1": seen_host("n1", PLAIN, files={path: text})}
        with pytest.raises(Refused, match="Nothing was changed"):
            plan_bring_up(spec_of("n1", "n2"), seen, {}, None)


def test_a_host_that_cannot_be_reached_now_keeps_its_place() -> None:
    gpus = with_pci(cube_mesh())
    seen = {"n1": seen_host("n1", PLAIN), "n2": seen_host("n2", gpus)}
    spec = spec_of("n1", "n2")
    seen = carried_out(plan_bring_up(spec, seen, {}, None), seen)
    plan = plan_bring_up(spec, {"n1": seen["n1"]}, {"n2": "nobody answered"}, None)
    assert plan.steps == () and plan.nodes == ("n1", "n2") and plan.left_out == {"n2": "nobody answered"}
    # one that never was in it has no place to keep
    assert plan_bring_up(spec_of("n1", "n9"), {"n1": seen["n1"]}, {"n9": "nobody answered"}, None).nodes == ("n1",)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"root": False}, "sudo -n"),
        ({"distribution": "rocky 9.4"}, "rocky 9.4"),
        ({"hostname": "other"}, "calls itself other"),
        ({"clock_ahead_s": 400.0}, "400 s ahead"),
        ({"clock_ahead_s": -31.0}, "31 s behind"),
        ({"slurm": (21, 8)}, "Slurm 21.08"),
        ({"slurm": (0, 0)}, "no package slurmd"),
        ({"slurm": (23, 11)}, "newer than the controller's 22.05"),
        ({"topology": None, "unread": "the answer is no tar archive"}, "no tar archive"),
    ],
)
def test_what_keeps_a_machine_out_is_said(fields: dict[str, object], word: str) -> None:
    head, host = seen_host("n1", PLAIN), msgspec.structs.replace(seen_host("n2", PLAIN), **fields)
    assert word in find_obstacle(host, head)
    assert find_obstacle(seen_host("n2", PLAIN, clock_ahead_s=29.0), head) == ""


def test_no_controller_moves_and_no_node_changes_its_cluster_by_a_slip() -> None:
    seen = bare("n1", "n2")
    seen = carried_out(plan_bring_up(spec_of("n1", "n2"), seen, {}, None), seen)
    with pytest.raises(Refused, match="the cluster whose controller is n1"):
        plan_bring_up(spec_of("n2", "n1"), seen, {}, None)
    plan = plan_bring_up(spec_of("n9", "n2"), bare("n9") | {"n2": seen["n2"]}, {}, None)
    assert "controller is n1" in plan.left_out["n2"] and plan.nodes == ("n9",)


def test_a_machine_that_leaves_stops_slurmd_and_loses_only_our_files() -> None:
    seen = bare("n1", "n2")
    seen = carried_out(plan_bring_up(spec_of("n1", "n2"), seen, {}, None), seen)
    removal = plan_removal(seen["n2"])
    assert [step.kind for step in removal.steps] == [StepKind.STOP, *[StepKind.REMOVE] * 7]
    assert carried_out(removal, seen)["n2"].files == {}
    theirs = msgspec.structs.replace(seen["n2"], files={**seen["n2"].files, CONF: "ClusterName=theirs\n"})
    assert plan_removal(theirs).steps == () and CONF in plan_removal(theirs).left_out["n2"]


def test_partitions_are_those_of_the_file_else_main_and_gpu() -> None:
    seen = {"n1": seen_host("n1", PLAIN), "n2": seen_host("n2", with_pci(pcie_16()))}
    conf = conf_of(plan_bring_up(spec_of("n1", "n2"), seen, {}, None))
    assert "PartitionName=main Nodes=n1,n2 Default=YES" in conf and "PartitionName=gpu Nodes=n2 Default=NO" in conf
    spec = spec_of("n1", "n2")
    spec = ClusterSpec((spec.hosts[0], msgspec.structs.replace(spec.hosts[1], partitions=("big", "night"))))
    conf = conf_of(plan_bring_up(spec, seen, {}, None))
    assert "PartitionName=big Nodes=n2 Default=NO" in conf and "PartitionName=gpu" not in conf


def conf_of(plan: BringUpPlan) -> str:
    return next(step.content for step in plan.steps if step.subject == CONF)


@given(st.text(alphabet="ab#=\n ", max_size=60), st.integers(0, 300), st.sampled_from(["x", "", "\n"]))
def test_any_change_of_a_signed_file_is_seen(body: str, at: int, put: str) -> None:
    text = sign(body)
    assert whose(text) is Written.OURS
    at += len(text) - len(body)
    changed = text[:at] + put + text[at + 1 :]
    assert changed == text or whose(changed) is Written.EDITED
    assert whose(sign("#!/bin/sh\nexit 0\n")) is Written.OURS and sign("#!/bin/sh\nexit 0\n").startswith("#!/bin/sh\n")
