"""Is each fabric file recognised by what is in it, is the rest refused with what to give instead, and do several files join?"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.fabric.read import join_fabrics, read_fabric, read_fabric_text
from steelyard.host.fabric.topograph import read_topograph_model
from steelyard.model.fabric import Fabric

TREE = "SwitchName=s0 Nodes=n[1-2]\nSwitchName=s1 Nodes=n[3-4]\nSwitchName=s2 Switches=s[0-1]\n"
ONE, OTHER = "5e797fc6-0f46-421a-8724-0e102c0f723c", "5e797fc6-0f46-421a-8724-0e102c0f721e"
DOMAINS = f"n1: {ONE}\nn2: {ONE}\nn3: {OTHER} 32766\nn4: 00000000-0000-0000-0000-000000000000\n"
MODEL = """\
switches:
  core:
    labels:
      zone: no
    switches: [leaf-1, leaf-2, leaf-3]
blocks:
- switch: leaf-1
  nodes: ["[0101-0102]", x]
  annotations: {accelerator.topology.test/domain: nvl1, accelerator.topology.test/sub-domain: "r1"}
- switch: leaf-2
  nodes: [y]
"""


def text(content: str) -> Fabric:
    return read_fabric_text(content, "f")


def test_a_tree_and_a_domain_list_join_by_host_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(TREE)
    (tmp_path / "b").write_text(DOMAINS)
    fabric = read_fabric([tmp_path / "b", tmp_path / "a"])
    assert [group.hosts for group in fabric.domains] == [("n1", "n2"), ("n3",)]
    assert fabric.hosts[0].ports[0].leaf == "s0" and len(fabric.switches) == 3
    assert fabric.sources == ("NVLink domains (b)", "Slurm topology.conf (a)")


def test_hosts_that_no_switch_has_are_told() -> None:
    fabric = join_fabrics([text(TREE), text(DOMAINS + f"n9: {OTHER} 1\n")])
    assert fabric.notes == ("1 of 5 hosts are on no known switch",) and fabric.hosts[-1].ports == ()


def test_contradictions_are_refused() -> None:
    with pytest.raises(Refused, match="each tell the switches"):
        join_fabrics([text(TREE), text(TREE)])
    with pytest.raises(Refused, match="disagree about the NVLink domains"):
        join_fabrics([text(DOMAINS), text(f"n1: {ONE}\nn3: {ONE}\n")])
    with pytest.raises(Refused, match="second NVLink domain"):
        text(DOMAINS + f"n1: {OTHER}\n")
    assert join_fabrics([text(DOMAINS), text(DOMAINS)]).domains == text(DOMAINS).domains


def test_a_topograph_model_gives_tree_domains_and_blocks_without_turning_names_into_numbers() -> None:
    fabric = text(MODEL)
    assert [host.name for host in fabric.hosts] == ["0101", "0102", "x", "y"]
    assert [group.hosts for group in fabric.domains] == [("0101", "0102", "x")] and fabric.blocks[0].id == "r1"
    assert {switch.id: switch.level for switch in fabric.switches} == {"leaf-1": 1, "leaf-2": 1, "core": 2}
    assert "1 switches have no hosts and are left out" in fabric.notes
    with pytest.raises(Refused, match="give it one domain"):
        text(MODEL + "- switch: leaf-2\n  nodes: [x]\n  annotations: {accelerator/domain: other}\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty"),
        ("\x00\x01", "binary"),
        ("a\nb\nc\n", "list of names"),
        ("PARTITION\ngpu\n", "partitions"),
        ("block 1  : # of Nodes = 18\n|---|\n", "drawing"),
        ("part number        | X\n", "ibswinfo"),
        ("# Port extended counters: Lid 1 port 1\n", "perfquery"),
        ('{"lldp": {}}', "lldpctl"),
        ('{"netq_nodes": []}', "NetQ"),
        ("CA 'mlx5_0'\n\tCA type: MT4129\n", "ibstat"),
        ("<topology/>", "one machine"),
        ("[1, 2]", "JSON"),
        ("once upon a time\n", "no known kind"),
        (f"n1: {ONE}\nn2: 5e797fc6-0f46", "line 2"),
    ],
)
def test_other_files_are_refused_with_what_to_give_instead(content: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        text(content)


def test_a_file_that_is_gone_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="can't be read"):
        read_fabric([tmp_path / "gone"])
    with pytest.raises(Refused, match="not a regular file"):
        read_fabric([tmp_path])
    monkeypatch.setattr("steelyard.host.fabric.read.FILE_BYTES_MAX", 1 << 20)
    (tmp_path / "big").write_bytes(b"x " * (1 << 20))
    with pytest.raises(Refused, match="larger than 1 MiB"):
        read_fabric([tmp_path / "big"])
    with pytest.raises(Refused, match="no fabric file"):
        read_fabric([])


@pytest.mark.timeout(20)
def test_long_dull_files_do_not_take_long() -> None:
    dull = ("\n" * 300_000, "a\n" * 200_000, " " * 300_000 + "x y", "a: " * 100_000, "[" * 100_000, "- " * 50_000)
    slurm = ("BlockName=" * 50_000, "SwitchName=a\n" + "b" * 300_000, "SwitchName=a Nodes=" + "[1-2]" * 50_000)
    yaml = ("topology: a\n" * 50_000, "switches:\n" + "- " * 3000, "switches:\n" + " - a\n" * 50_000)
    for content in (*dull, *slurm, *yaml, "CA 1 1 0x1 4x EDR" + " - SW 1 1 0x1 ( '" * 5000):
        with pytest.raises(Refused):
            text(content)


READ = {
    "azure-block_topology.txt": (72, 0),
    "azure-nodes_clusterUUIDs.txt": (72, 0),
    "ibnetdiscover-gb200-nvl72-ndr.out": (122, 40),
    "ohio-ibnetdiscover-test.out": (3, 4),
    "ohio-ibnetdiscover-test3.out": (0, 1),
    "topograph-expected.slinky-dra-block.conf": (96, 0),
    "topograph-expected.slinky-oci-sim-tree.conf": (96, 19),
    "topograph-model-dual-accelerator.yaml": (96, 19),
    "topograph-model-dual-level.yaml": (255, 32),
    "topograph-model-dual-xclr-regular.yaml": (96, 19),
    "topograph-model-large.yaml": (96, 19),
    "topograph-model-medium.yaml": (8, 7),
    "topograph-model-nvl72.yaml": (72, 7),
    "topograph-model-small-h100.yaml": (6, 3),
    "topograph-model-small-tree.yaml": (6, 3),
}


def test_every_recorded_fabric_file_is_read_right_or_refused_in_one_sentence() -> None:
    for path in sorted(recorded("fabric").iterdir()):
        if path.name in READ:
            fabric = read_fabric([path])
            assert (len(fabric.hosts), len(fabric.switches)) == READ[path.name], path.name
        else:
            with pytest.raises(Refused, match=r"give|no blocks") as refused:
                read_fabric([path])
            assert refused.value.public.startswith(path.name) and "\n" not in refused.value.public


@settings(max_examples=200)
@given(st.sampled_from([TREE, DOMAINS, MODEL]), st.data())
def test_damaged_files_are_read_or_refused(whole: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 30)))
    damaged = whole[:start] + data.draw(st.text(max_size=6)) + whole[end:]
    for read in (read_fabric_text, read_topograph_model):
        try:
            said = read(damaged, "f").sources[0]
        except Refused as refused:
            said = refused.public
        assert "f" in said and "\n" not in said


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_junk_is_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):
        read_fabric_text(data.decode(errors="replace"), "f")
