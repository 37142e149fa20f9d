"""Do Slurm's topology files become the tree and the blocks that they tell, and are illegal ones refused?"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.fabric.slurm import read_slurm_topology
from steelyard.model.fabric import Fabric
from steelyard.model.hostlist import expand_hostlist

TREE = """\
# two leaves
SwitchName=s0 Nodes=tux[0-3] LinkSpeed=100
switchname=s1 nodes=tux[4-7]  # lower case is fine
SwitchName=s2 \\
    Switches=s[0-1]
"""
BLOCKS = "BlockName=b1 Nodes=n[01-18]\nBlockName=b2 Nodes=n[19-36]\nBlockName=b3 Nodes=n[37-54]\nBlockSizes=18,36\n"
YAML = """\
---
- topology: topo1
  cluster_default: true
  tree:
    switches:
      - switch: sw_root
        children: s[1-2]
      - switch: s1
        nodes: node[01-02]
      - switch: s2
        nodes: node[03-04]
- topology: topo2
  cluster_default: false
  block:
    block_sizes:
      - 2
      - 4
    blocks:
      - block: b1
        nodes: node[01-02]
      - block: b2
        nodes: node[03-04]
- topology: topo3
  cluster_default: false
  flat: true
"""


def read(text: str) -> Fabric:
    return read_slurm_topology(text, "t.conf")


def test_a_tree_is_read_with_continued_lines_comments_and_any_case() -> None:
    fabric = read(TREE)
    assert [host.name for host in fabric.hosts] == [f"tux{number}" for number in range(8)]
    assert {host.ports[0].leaf for host in fabric.hosts[:4]} == {"s0"}
    assert {switch.id: switch.level for switch in fabric.switches} == {"s0": 1, "s1": 1, "s2": 2}


def test_a_short_branch_does_not_lower_the_core() -> None:
    fabric = read(TREE + "SwitchName=lone Nodes=x1\nSwitchName=core Switches=s2,lone\n")
    assert {switch.id: switch.level for switch in fabric.switches}["core"] == 3


def test_blocks_are_read_in_their_order_with_their_sizes() -> None:
    fabric = read(BLOCKS)
    assert [block.id for block in fabric.blocks] == ["b1", "b2", "b3"] and fabric.block_sizes == (18, 36)
    assert fabric.blocks[0].hosts[:2] == ("n01", "n02") and not fabric.domains


def test_topology_yaml_gives_tree_and_blocks() -> None:
    fabric = read(YAML)
    assert {switch.id: switch.level for switch in fabric.switches} == {"s1": 1, "s2": 1, "sw_root": 2}
    assert [block.hosts for block in fabric.blocks] == [("node01", "node02"), ("node03", "node04")]
    assert fabric.notes == ("topologies that were not used: topo3",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a\n", "cycle"),
        ("SwitchName=a Switches=a\n", "cycle"),
        ("SwitchName=a\n", "neither Nodes nor Switches"),
        ("SwitchName=a Switches=gone\n", "never defined"),
        ("SwitchName=a Nodes=x\nSwitchName=a Nodes=y\n", "defined twice"),
        ("SwitchName=a Nodes=x[1-", "cut off"),
        ("SwitchName=a Nodes=x[1-2] \\", "cut off"),
        ("SwitchName=a Nodes=x[3-1]\n", "backwards"),
        ("SwitchName=a Nodes=x[1-9999999]\n", "more than 1000000"),
        ("SwitchName=a Nodes=x[1-999][1-999][1-9]\n", "more than 1000000"),
        ("SwitchName=a Node=x\n", "not understood"),
        ("BlockName=b Nodes=x[1-18]\nBlockSizes=20\n", "18 hosts and BlockSizes begins with 20"),
        ("BlockName=b Nodes=x[1-18]\nBlockSizes=18,27\n", "power of two"),
        ("BlockName=b Nodes=x[1-18]\nBlockSizes=0\n", "numbers from 1"),
        ("BlockName=b\n", "no Nodes"),
        ("BlockName=b Nodes=x,y\nBlockName=c Nodes=y\n", "y stands twice"),
        ("#BlockName=b Nodes=x\nBlockSizes=20\n", r"no blocks \(1 are commented out\)"),
        ("- topology: t\n  tree:\n    switches: nonsense\n", "list of mappings"),
        ("- topology: t\n  flat: true\n", "no topology in this file"),
        ("- topology: &a t\n- topology: *a\n", "aliases"),
        ("- topology: t\n  topology: u\n", "twice"),
        ("- topology: !!python/object:os.system t\n", "tags"),
        ("- topology: " + "[" * 500, "nested deeper"),
    ],
)
def test_what_slurm_would_not_take_is_refused_with_its_cause(text: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        read(text)


def test_a_host_on_two_leaves_is_allowed_and_told() -> None:
    fabric = read("SwitchName=a Nodes=x,y\nSwitchName=b Nodes=y\n")
    assert fabric.notes == ("1 hosts are on more than one leaf switch, first y",)


def test_hostlists_keep_their_zeros_and_multiply() -> None:
    assert expand_hostlist("a[1-3,5],b[08-10],c", "f") == ("a1", "a2", "a3", "a5", "b08", "b09", "b10", "c")
    assert expand_hostlist("r[1-2]n[01-02]", "f") == ("r1n01", "r1n02", "r2n01", "r2n02")
    assert expand_hostlist("[1101-1102]", "f") == ("1101", "1102")


def test_the_recorded_azure_topologies() -> None:
    fabric = read(recorded("fabric/azure-block_topology.txt").read_text())
    assert [len(block.hosts) for block in fabric.blocks] == [18] * 4 and fabric.block_sizes == (1,)
    with pytest.raises(Refused, match=r"no blocks \(4 are commented out\)"):
        read(recorded("fabric/azure-slurm_illegal_block_topology.txt").read_text())


def test_the_recorded_topograph_outputs() -> None:
    blocks = read(recorded("fabric/topograph-expected.slinky-dra-block.conf").read_text())
    assert len(blocks.blocks) == 12 and blocks.block_sizes == (8, 16, 32)
    tree = read(recorded("fabric/topograph-expected.slinky-oci-sim-tree.conf").read_text())
    assert (len(tree.switches), len(tree.hosts), max(switch.level for switch in tree.switches)) == (19, 96, 3)


_CONF = [
    "SwitchName=",
    "Nodes=",
    "Switches=",
    "BlockName=",
    "BlockSizes=",
    "a",
    "b[1-3]",
    "[",
    "]",
    ",",
    " ",
    "\n",
    "\\\n",
    "#",
    "9",
]
_YAML = [
    "- topology: t",
    "\n  tree:",
    "\n    switches:",
    "\n      - switch: a",
    "\n        nodes: n[1-2]",
    "&x ",
    "*x",
    "{",
    "}",
    "\t",
]
_WORDS = st.sampled_from(_CONF + _YAML)


@settings(max_examples=300)
@given(st.lists(_WORDS, max_size=25).map("".join))
def test_any_words_are_read_or_refused(text: str) -> None:
    try:
        said = read(text).sources[0]
    except Refused as refused:
        said = refused.public
    assert "t.conf" in said


@settings(max_examples=200)
@given(st.text(alphabet="ab01[]-,٣ ", max_size=20))
def test_any_hostlist_is_expanded_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert all(expand_hostlist(text, "f", 1000))
