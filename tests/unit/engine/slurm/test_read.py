from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.engine.slurm.observe import check_version, is_newer
from steelyard.engine.slurm.read import (
    read_complaint,
    read_gres,
    read_nodes,
    read_partitions,
    read_record,
    read_records,
    read_settings,
    read_topology,
)
from steelyard.errors import Refused

#: Slurm 22.05, with GPUs and a drained state as its documentation shows them
NODE = (
    "NodeName=gpu01 Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=128 CPUTot=128 CPULoad=4.56 AvailableFeatures=ib,hdr "
    "ActiveFeatures=ib,hdr Gres=gpu:a100:4(S:0-1),nic:2 NodeAddr=10.0.0.3 NodeHostName=gpu01 Version=22.05.8 "
    "OS=Linux 6.1.0-18-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.76  RealMemory=515000 AllocMem=0 FreeMem=17982 Sockets=2 Boards=1 "
    "State=IDLE+DRAIN ThreadsPerCore=2 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=gpu,all  "
    "BootTime=2026-11-28T21:49:35 CfgTRES=cpu=128,mem=515000M,billing=128 AllocTRES= "
    "Reason=bad DIMM in slot 3 [root@2026-11-28T10:00:00]"
)


def test_a_node_is_read_with_values_that_hold_blanks() -> None:
    (node,) = read_nodes(NODE + "\n\n")
    assert (node.name, node.cpus, node.sockets, node.cores_per_socket, node.threads_per_core) == ("gpu01", 128, 2, 32, 2)
    assert node.memory_bytes == 515000 << 20
    assert node.gres == {"gpu:a100": 4, "nic": 2}
    assert (node.state, node.partitions) == ("IDLE+DRAIN", ("gpu", "all"))
    assert node.reason == "bad DIMM in slot 3 [root@2026-11-28T10:00:00]"


def test_a_partition_is_read() -> None:
    text = (
        "PartitionName=main AllowGroups=ALL AllowAccounts=ALL Default=YES QoS=N/A DefaultTime=NONE MaxNodes=UNLIMITED "
        "MaxTime=2-00:00:00 MinNodes=0 Nodes=n[1-3] State=UP TotalCPUs=6 TotalNodes=3 TRES=cpu=6,mem=3G,node=3,billing=6 \n"
    )
    (partition,) = read_partitions(text)
    assert (partition.name, partition.default, partition.state, partition.time_max) == ("main", True, "UP", "2-00:00:00")
    assert (partition.nodes, partition.cpus) == (3, 6)


def test_settings_that_are_not_set_are_left_out() -> None:
    text = "Configuration data as of 2026-11-29T05:59:22\nClusterName      = bed\nX = (null)\nSLURM_VERSION    = 22.05.8\n"
    assert read_settings(text) == {"ClusterName": "bed", "SLURM_VERSION": "22.05.8"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(null)", {}),
        ("gpu:2", {"gpu": 2}),
        ("gpu:h100:8(S:0,1),gpu:h100:2,shard:40", {"gpu:h100": 10, "shard": 40}),
        ("bandwidth:lustre:4G", {"bandwidth:lustre": 4 << 30}),
        ("craynetwork", {}),
    ],
)
def test_devices_are_counted_by_kind(text: str, found: dict[str, int]) -> None:
    assert read_gres(text) == found


def test_leaf_switches_and_blocks_name_their_nodes() -> None:
    leaf, spine = "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2]", "SwitchName=top Level=1 Nodes=n[1-4] Switches=leaf[1-2]"
    assert read_topology(f"{leaf}\n{spine}\n") == {"leaf1": "n[1-2]"}
    assert read_topology("BlockName=b1 BlockIndex=0 Nodes=n[1-18] BlockSize=18\n") == {"b1": "n[1-18]"}
    assert read_topology("scontrol: error: No topology information available") == {}


def test_slurms_own_words_lose_the_names_of_its_programs() -> None:
    assert read_complaint(
        "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n"
    ) == ("allocation failure: Invalid partition name specified; invalid partition specified: nope")
    assert read_complaint("") == ""


def test_versions_outside_are_told_apart() -> None:
    check_version("22.05.8")
    check_version("26.05.0-0rc1")
    assert not is_newer("26.05.2")
    assert is_newer("26.11.0")
    for text in ("21.08.8", "", "slurm"):
        with pytest.raises(Refused):
            check_version(text)


words = st.text(alphabet=string.ascii_letters + string.digits + "_-.:/[],()", max_size=12)
names = st.from_regex(r"[A-Z][A-Za-z]{0,9}", fullmatch=True)
# what may stand in a value and is no `name=`: blanks between words
values = st.lists(words, max_size=4).map(" ".join)


@given(st.dictionaries(names, values, min_size=1, max_size=6))
def test_whatever_stands_in_a_record_comes_back(record: dict[str, str]) -> None:
    line = " ".join(f"{name}={value}" for name, value in record.items())
    assert read_record(line) == {name: value.strip() for name, value in record.items()}


@given(st.text(max_size=300))
def test_no_text_upsets_a_reader(text: str) -> None:
    read_records(text)
    read_nodes(text)
    read_partitions(text)
    read_settings(text)
    read_gres(text)
    read_topology(text)
    read_complaint(text)
