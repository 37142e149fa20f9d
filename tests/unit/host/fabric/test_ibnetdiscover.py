"""Does the output of ibnetdiscover become the fabric that it shows, and is half of it refused?"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.fabric.ibnetdiscover import read_ibnetdiscover
from steelyard.model.fabric import Fabric

#: two leaves on two rails, two spines; b's second adapter is crossed over, one adapter hides its host, one sits in a switch
Cable = tuple[str, int, str, int, str]
NODES = {
    "S-1": "MF0;leaf-1:MQM9700/U1",
    "S-2": "MF0;leaf-2:MQM9700/U1",
    "S-3": "MF0;spine:MCS8500/S01/U1",
    "S-4": "MF0;spine:MCS8500/S02/U1",
    "H-11": "a mlx5_0",
    "H-12": "a mlx5_1",
    "H-13": "b HCA-1",
    "H-14": "b HCA-2",
    "H-15": "c mlx5_0",
    "H-16": "c mlx5_1",
    "H-17": "MT4129 ConnectX7   Mellanox Technologies",
    "H-18": "Mellanox Technologies Aggregation Node",
}
CABLES: list[Cable] = [
    ("S-1", 1, "H-11", 1, "4xNDR"),
    ("S-2", 1, "H-12", 1, "4xNDR"),
    ("S-1", 2, "H-13", 1, "4xNDR"),
    ("S-2", 2, "H-14", 1, "4xHDR"),
    ("S-1", 3, "H-15", 1, "4xNDR"),
    ("S-2", 3, "H-16", 1, "4xNDR"),
    ("S-1", 4, "H-17", 1, "4xNDR"),
    ("S-1", 65, "H-18", 1, "4xNDR"),
    ("S-1", 30, "S-3", 1, "4xNDR"),
    ("S-1", 31, "S-3", 2, "4xNDR"),
    ("S-1", 32, "S-4", 1, "2xNDR"),
    ("S-2", 30, "S-3", 3, "4xNDR"),
]


def write_blocks(nodes: dict[str, str] = NODES, cables: list[Cable] = CABLES) -> str:
    text = "#\n# Topology file: generated on Wed Aug  6 16:11:23 2025\n#\n"
    ends = [*cables, *((b, there, a, here, rate) for a, here, b, there, rate in cables)]
    for node, description in nodes.items():
        kind = "Switch\t65" if node.startswith("S") else "Ca\t1"
        text += f'\nvendid=0x2c9\n{kind} "{node}"\t\t# "{description}" enhanced port 0 lid 73 lmc 0\n'.replace(
            " enhanced port 0 lid 73 lmc 0" if kind.startswith("Ca") else "\0", ""
        )
        for a, here, b, there, rate in sorted(ends, key=lambda end: end[1]):
            if a == node:
                text += f'[{here}]\t"{b}"[{there}]\t\t# "{nodes.get(b, "?")}" lid 647 {rate}\n'
    return text


def read(text: str) -> Fabric:
    return read_ibnetdiscover(text, "f.out")


def test_hosts_switches_levels_and_rates_are_read() -> None:
    fabric = read(write_blocks())
    assert [host.name for host in fabric.hosts] == ["a", "b", "c"]
    assert {switch.id: switch.level for switch in fabric.switches} == {
        "leaf-1": 1,
        "leaf-2": 1,
        "spine/S01/U1": 2,
        "spine/S02/U1": 2,
    }
    assert [(port.device, port.leaf, port.gbps) for port in fabric.hosts[1].ports] == [
        ("HCA-1", "leaf-1", 400.0),
        ("HCA-2", "leaf-2", 200.0),
    ]
    assert {(link.a, link.b): (link.count, link.gbps) for link in fabric.links} == {
        ("leaf-1", "spine/S01/U1"): (2, 400.0),
        ("leaf-1", "spine/S02/U1"): (1, 200.0),
        ("leaf-2", "spine/S01/U1"): (1, 400.0),
    }
    assert any("1 adapters do not tell their host" in note for note in fabric.notes)


def test_rails_are_where_devices_meet_whatever_drivers_call_them() -> None:
    fabric = read(write_blocks())
    assert [[port.rail for port in host.ports] for host in fabric.hosts] == [[0, 1], [0, 1], [0, 1]]


def test_a_crossed_cable_shows_the_rail_that_it_is_really_on() -> None:
    crossed = {**NODES, "H-13": "b HCA-2", "H-14": "b HCA-1"}
    b = read(write_blocks(crossed)).hosts[1]
    assert {port.device: port.rail for port in b.ports} == {"HCA-1": 1, "HCA-2": 0}


def test_hosts_with_all_ports_on_one_leaf_have_no_rails() -> None:
    nodes = {"S-1": "only", "H-1": "a mlx5_0", "H-2": "a mlx5_1", "H-3": "b mlx5_0", "H-4": "b mlx5_1"}
    fabric = read(write_blocks(nodes, [("S-1", at, f"H-{at}", 1, "4xNDR") for at in range(1, 5)]))
    assert {port.rail for host in fabric.hosts for port in host.ports} == {None}


def test_full_output_and_names_like_products_are_read() -> None:
    text = write_blocks({**NODES, "H-15": "intel-c mlx5_ib0", "H-16": "intel-c mlx5_ib1"}).replace("4xNDR", "4xNDR s=100 w=4 v=8")
    fabric = read(text)
    assert [host.name for host in fabric.hosts] == ["a", "b", "intel-c"] and fabric.hosts[0].ports[0].gbps == 400.0


def test_a_switch_without_a_name_has_its_guid() -> None:
    fabric = read(write_blocks({**NODES, "S-2": "Quantum Mellanox Technologies"}))
    assert {switch.id for switch in fabric.switches} == {"leaf-1", "S-2", "spine/S01/U1", "spine/S02/U1"}


def test_two_machines_of_one_name_are_left_out_and_told() -> None:
    fabric = read(write_blocks({**NODES, "H-13": "a mlx5_0"}))
    assert [host.name for host in fabric.hosts] == ["b", "c"]
    assert "1 host names are claimed by several machines: they are left out" in fabric.notes


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_half_of_a_file_is_refused(keep: float) -> None:
    text = write_blocks()
    with pytest.raises(Refused, match=r"f\.out: .*(cut off|disagree|not described)"):
        read(text[: int(len(text) * keep)])


def test_a_missing_block_and_a_changed_end_are_refused() -> None:
    text = write_blocks()
    with pytest.raises(Refused, match="not described"):
        read(
            text[: text.rindex("vendid", 0, text.index('Ca\t1 "H-11"'))]
            + text[text.index("vendid", text.index('Ca\t1 "H-11"')) :]
        )
    for changed in (text.replace('"S-4"[1]', '"S-4"[7]'), text.replace('"S-3"[2]', '"S-3"[1]')):
        with pytest.raises(Refused, match="disagree"):
            read(changed)


def test_a_port_list_gives_hosts_and_links_and_passes_over_ports_without_cable() -> None:
    text = (
        "CA   134  1 0x7cfe01 4x EDR - SW  1719 10 0x7cfe02 ( 'o1 HCA-1' - 'l1' )\n"
        "SW  1719 10 0x7cfe02 4x EDR - CA   134  1 0x7cfe01 ( 'l1' - 'o1 HCA-1' )\n"
        "SW  1719  1 0x7cfe02 4x HDR - SW  1516  1 0x7cfe03 ( 'l1' - 's1' )\n"
        "SW  2052 37 0x506b04 4x ???                                    'l2'\n"
        "SW  1781 80 0x08c005 4x SDR                                    'l3'\n"
    )
    fabric = read(text)
    assert [(host.name, host.ports[0].leaf, host.ports[0].gbps) for host in fabric.hosts] == [("o1", "l1", 100.0)]
    assert {switch.id: switch.level for switch in fabric.switches} == {"l1": 1, "s1": 2, "l2": 0, "l3": 0}
    assert fabric.links[0].gbps == 200.0
    with pytest.raises(Refused, match="line 5"):
        read(text[:-40])
    with pytest.raises(Refused, match="line 1"):
        read(text[:60])


def test_guids_do_not_come_out() -> None:
    assert "7cfe" not in str(read("CA 1 1 0x7cfe01 4x EDR - SW 2 10 0x7cfe02 ( 'o1 HCA-1' - 'l1' )\n"))


def test_the_recorded_gb200_cluster() -> None:
    path = recorded("fabric/ibnetdiscover-gb200-nvl72-ndr.out")
    fabric = read(path.read_text())
    assert len(fabric.switches) == 40 and Counter(switch.level for switch in fabric.switches) == {1: 31, 2: 9}
    assert len(fabric.hosts) == 122 and sum(len(host.ports) for host in fabric.hosts) == 582 - 40 - 69
    assert Counter(host.rails for host in fabric.hosts)[frozenset({0, 1, 2, 3})] == 109
    assert {port.gbps for host in fabric.hosts for port in host.ports} == {400.0}
    # One cable of this machine is crossed: its HCA-5 is on the leaf of everybody else's HCA-6.
    crossed = next(host for host in fabric.hosts if host.name == "b08-p1-dgx-08-c01")
    assert {port.device: port.rail for port in crossed.ports}["HCA-5"] == 3
    assert not fabric.domains
    with pytest.raises(Refused):
        read(path.read_text()[:150_000])


@pytest.mark.parametrize(("name", "hosts", "switches"), [("test", 3, 4), ("test3", 0, 1)])
def test_the_recorded_port_lists(name: str, hosts: int, switches: int) -> None:
    fabric = read(recorded(f"fabric/ohio-ibnetdiscover-{name}.out").read_text())
    assert (len(fabric.hosts), len(fabric.switches)) == (hosts, switches)


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    lines = write_blocks().splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["drop", "double", "cut", "text"]))
        if how == "drop":
            lines[at] = ""
        elif how == "double":
            lines.insert(at, lines[at])
        elif how == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, 40))]
        else:
            lines[at] += data.draw(st.text(max_size=8))
    try:
        said = read("\n".join(lines)).sources[0]
    except Refused as refused:
        said = refused.public
    assert "f.out" in said
