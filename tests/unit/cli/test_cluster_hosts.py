"""What a hosts.yaml names, and what is refused at the door."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.cluster_hosts import read_hosts
from steelyard.errors import Refused
from steelyard.model.cluster import HostEntry

FULL = """
name: lab
controller: n2
user: admin
memory_reserve: 4GB
fabric: [ibnetdiscover.out, domains.txt]
hosts:
  - n[1-2]
  - name: big1
    address: 10.0.0.9
    port: 2222
    user: root
    features: [big, nvme]
    partitions: big
    memory_reserve: 8GB
"""


def test_a_bare_list_is_enough() -> None:
    spec = read_hosts("- n1\n- n2\n", "hosts.yaml")
    assert spec.hosts == (HostEntry("n1"), HostEntry("n2"))
    assert (spec.name, spec.controller_name) == ("steelyard", "n1")


def test_a_host_may_differ_from_what_is_true_of_all() -> None:
    spec = read_hosts(FULL, "hosts.yaml")
    assert (spec.name, spec.controller_name) == ("lab", "n2")
    assert spec.fabric == ("ibnetdiscover.out", "domains.txt")
    assert spec.hosts[1] == HostEntry("n2", user="admin", reserve_bytes=4 * 10**9)
    assert spec.hosts[2] == HostEntry("big1", "10.0.0.9", "root", 2222, ("big", "nvme"), ("big",), 8 * 10**9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- n1\n- n1\n", "n1 is listed twice"),
        ("- n[1-3]\n- n2\n", "n2 is listed twice"),
        ("- {name: a, address: 10.0.0.1}\n- {name: b, address: 10.0.0.1}\n", "same address"),
        ("hosts: [n1]\nuers: me\n", "line 2: 'uers' is not known here (meant: user?)"),
        ("hosts:\n- {name: n1, gpu: 8}\n", "'gpu' is not known here"),
        ("hosts: []\n", "names no hosts"),
        ("just a word\n", "names no hosts"),
        ("hosts: [n1]\ncontroller: n9\n", "n9 is not among the hosts"),
        ("- 'n1;reboot'\n", "is no name of a host"),
        ("- ALL\n", "is no name of a host"),
        ("- {name: n1, address: '$(reboot)'}\n", "is no address"),
        ("- {name: n1, user: 'a b'}\n", "is no user"),
        ("- {name: n1, port: 99999}\n", "is no port"),
        ("- {name: n1, memory_reserve: much}\n", "no size"),
        ("- {name: n1, features: [a, {b: c}]}\n", "is a list of words"),
        ("- [n1]\n", "not a list"),
        ("name: My Lab\nhosts: [n1]\n", "no name of a cluster"),
        ("- n[1-99999999]\n", "more than"),
        ("- n1: x\n", "is not known here"),
    ],
)
def test_bad_files_are_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(Refused, match=r"hosts\.yaml") as refused:
        read_hosts(text, "hosts.yaml")
    assert said in refused.value.public


@given(st.text(alphabet="hosts: -n1[]{},'\n&*!x\"", max_size=80))
def test_any_text_is_hosts_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert read_hosts(text, "hosts.yaml").hosts
