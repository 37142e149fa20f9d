"""What stands in Slurm's files: golden ones of small machines (`UPDATE=1` writes them anew), and the way back."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines import cube_mesh, make_topology, nvswitch_16
from slurm_machines import seen_host, spec_of, with_pci
from steelyard.engine.bringup.kept import read_nodes
from steelyard.engine.bringup.node import Node, NodeGpu, Socketing, choose_socketing, gpu_type, make_node
from steelyard.engine.bringup.plan import plan_bring_up
from steelyard.engine.bringup.slurm_conf import Choices, render_gres_conf, render_slurm_conf
from steelyard.engine.bringup.topology_conf import BLOCK, TREE, render_topology_conf
from steelyard.engine.bringup.written import sign
from steelyard.host.fabric.slurm import read_slurm_topology
from steelyard.model.cluster import HostEntry, StepKind
from steelyard.model.cores import Cache
from steelyard.model.fabric import Fabric, FabricHost, FabricLink, FabricPort, FabricSwitch, HostGroup
from steelyard.model.topology import PathClass, Topology

GOLDEN = Path(__file__).parent / "golden"
PLAIN = make_topology([], lambda a, b: (PathClass.SYS, 0, None))
_FOUR = make_topology([], lambda a, b: (PathClass.SYS, 0, None), nodes=4)
#: two NUMA nodes in each of two packages
HALVED = msgspec.structs.replace(
    _FOUR, cores=tuple(msgspec.structs.replace(core, package=core.package // 2) for core in _FOUR.cores)
)
#: four machines, two to a leaf, below one spine; two rails on the second pair
FABRIC = Fabric(
    sources=("ibnetdiscover (site.out)",),
    hosts=(
        FabricHost("n1", (FabricPort("leafA"),)),
        FabricHost("n2", (FabricPort("leafA"),)),
        FabricHost("n3", (FabricPort("leafB", rail=0), FabricPort("leafC", rail=1))),
        FabricHost("n4", (FabricPort("leafB", rail=0), FabricPort("leafC", rail=1))),
    ),
    switches=(FabricSwitch("leafA", 1), FabricSwitch("leafB", 1), FabricSwitch("leafC", 1), FabricSwitch("spine1", 2)),
    links=tuple(FabricLink(leaf, "spine1") for leaf in ("leafA", "leafB", "leafC")),
)


def split(topology: Topology, groups: int) -> Topology:
    """With that many level-3 caches."""
    size = len(topology.cores) // groups
    caches = tuple(
        Cache(3, "Unified", 32 << 20, tuple(cpu for core in topology.cores[at * size : (at + 1) * size] for cpu in core.cpus))
        for at in range(groups)
    )
    return msgspec.structs.replace(topology, caches=caches)


@pytest.mark.parametrize("name", ["dgx", "cube"])
def test_files_are_as_agreed(name: str) -> None:
    machine = {"dgx": split(nvswitch_16(), 8), "cube": cube_mesh()}[name]
    seen = {"n1": seen_host("n1", PLAIN), "n2": seen_host("n2", with_pci(machine))}
    if name == "cube":
        seen["n1"] = msgspec.structs.replace(seen["n1"], name_is_public=False, cgroups="none", steelyard="")
    plan = plan_bring_up(spec_of("n1", "n2"), seen, {}, FABRIC if name == "dgx" else None)
    text = "".join(
        f"==> {step.subject} <==\n{step.content}" for step in plan.steps if step.kind is StepKind.WRITE and step.host == "n1"
    )
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE"):
        golden.write_text(text)
    assert text == golden.read_text()


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
WORDS = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), max_size=3, unique=True).map(tuple)


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    made: list[Node] = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        count = draw(st.integers(0, 4))
        gpus = tuple(
            NodeGpu(
                f"/dev/nvidia{at}",
                draw(st.sampled_from(["h100", "a100"])),
                tuple(-1 if other == at else draw(st.integers(0, 18)) for other in range(count)),
                tuple(sorted(draw(st.sets(st.integers(0, 9), max_size=6)))),
            )
            for at in range(count)
        )
        partitions = tuple(word for word in draw(WORDS) if word not in ("main", "gpu"))
        made.append(
            Node(
                name, draw(NAMES), *(draw(st.integers(1, 8)) for _ in range(3)), draw(st.integers(1, 10**6)),
                draw(st.integers(0, 10**5)), gpus, draw(WORDS), partitions,
                ("It is left away.",) if draw(st.booleans()) else (),
            )
        )  # fmt: skip
    return made


@given(nodes())
def test_nodes_come_back_from_the_files_they_went_into(given_nodes: list[Node]) -> None:
    choices = Choices("lab", given_nodes[0].name, "10.0.0.1")
    slurm, gres = sign(render_slurm_conf(choices, given_nodes)), sign(render_gres_conf(given_nodes))
    again = list(read_nodes(slurm, gres).values())
    # the order of a node's partitions is that of the file
    assert [sorted(node.partitions) for node in again] == [sorted(node.partitions) for node in given_nodes]
    assert [msgspec.structs.replace(node, partitions=()) for node in again] == [
        msgspec.structs.replace(node, partitions=()) for node in given_nodes
    ]
    assert sign(render_slurm_conf(choices, again)) == slurm and sign(render_gres_conf(again)) == gres
    assert read_nodes(slurm.replace("ClusterName", "#ClusterName"), gres) == {}


def test_a_socket_is_what_has_memory_or_a_cache_of_its_own() -> None:
    four = make_topology([], lambda a, b: (PathClass.SYS, 0, None), nodes=4)
    HALVED = msgspec.structs.replace(
        four, cores=tuple(msgspec.structs.replace(core, package=core.package // 2) for core in four.cores)
    )
    assert choose_socketing([PLAIN])[0] is Socketing.PACKAGE
    assert choose_socketing([PLAIN, HALVED])[0] is Socketing.NUMA
    assert choose_socketing([PLAIN, split(PLAIN, 4)])[0] is Socketing.L3
    # a cache for each core tells no group
    assert choose_socketing([split(PLAIN, len(PLAIN.cores))])[0] is Socketing.PACKAGE
    node = make_node(HostEntry("n1"), seen_host("n1", HALVED), Socketing.NUMA)
    assert (node.sockets, node.cores_per_socket, node.threads_per_core, node.cpus) == (4, 8, 2, 64)


def test_no_memory_without_cpus_is_taken_for_a_socket() -> None:
    four = make_topology([], lambda a, b: (PathClass.SYS, 0, None), nodes=4)
    HALVED = msgspec.structs.replace(
        four, cores=tuple(msgspec.structs.replace(core, package=core.package // 2) for core in four.cores)
    )
    bare = msgspec.structs.replace(PLAIN.numa_nodes[0], id=9, cpus=())
    lonely = msgspec.structs.replace(PLAIN, numa_nodes=(*PLAIN.numa_nodes, bare))
    socketing, why = choose_socketing([HALVED, lonely])
    assert socketing is Socketing.PACKAGE and "without CPUs" in why


def test_gpus_without_a_driver_and_cut_ones_are_left_away_with_the_reason() -> None:
    machine = with_pci(cube_mesh())
    cut = msgspec.structs.replace(machine, gpus=(msgspec.structs.replace(machine.gpus[0], mig=True), *machine.gpus[1:]))
    host = seen_host("n1", cut)
    host = msgspec.structs.replace(host, gpu_files={pci: file for pci, file in host.gpu_files.items() if file != "/dev/nvidia1"})
    node = make_node(HostEntry("n1"), host, Socketing.PACKAGE)
    assert [gpu.file for gpu in node.gpus] == [f"/dev/nvidia{at}" for at in range(2, 8)]
    assert "MIG" in node.notes[0] and "no device file" in node.notes[1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("Tesla V100-SXM3-32GB", "v100"),
        ("NVIDIA L40S", "l40s"), ("AMD Instinct MI300X", "mi300x"), ("AMD", "gpu"),
        ("", "gpu"), ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)  # fmt: skip
def test_a_gpus_type_is_the_word_people_use(name: str, kind: str) -> None:
    assert gpu_type(name) == kind


def test_a_fabric_becomes_a_tree_that_our_own_reader_understands() -> None:
    plugin, text = render_topology_conf(FABRIC, ["n1", "n2", "n3", "n4"], (22, 5))
    again = read_slurm_topology(text, "topology.conf")
    leaves = {
        frozenset(host.name for host in again.hosts if host.ports[0].leaf == leaf) for leaf in ("leaf-leafA", "leaf-leafB-1")
    }
    assert plugin == TREE and leaves == {frozenset({"n1", "n2"}), frozenset({"n3", "n4"})}
    assert "Unknown to it, and far from all others for Slurm: n5." in render_topology_conf(FABRIC, ["n1", "n5"], (22, 5))[1]
    assert render_topology_conf(FABRIC, ["n5"], (22, 5))[0] == render_topology_conf(None, ["n1"], (22, 5))[0] == ""


def test_nvlink_domains_are_blocks_where_slurm_has_them() -> None:
    domains = Fabric(
        sources=("NVLink domains",),
        hosts=tuple(FabricHost(f"n{at}") for at in range(1, 6)),
        domains=(HostGroup("a", ("n1", "n2")), HostGroup("b", ("n3", "n4", "n5"))),
    )
    names = [host.name for host in domains.hosts]
    plugin, text = render_topology_conf(domains, names, (23, 11))
    assert plugin == BLOCK and "BlockSizes=2" in text
    assert [block.hosts for block in read_slurm_topology(text, "t").blocks] == [("n1", "n2"), ("n3", "n4", "n5")]
    plugin, text = render_topology_conf(domains, names, (22, 5))
    assert plugin == TREE and "Slurm 22.05 has none" in text
    assert render_topology_conf(domains, [*names, "n6"], (24, 11))[0] == TREE
