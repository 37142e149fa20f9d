from __future__ import annotations

import pytest

from steelyard.cli.home import bind_address, parse_cluster_address
from steelyard.cli.pool import parse_gpus, parse_nodes
from steelyard.errors import Refused


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.5", ("10.0.0.5", 7690)),
        ("head.example.org:80", ("head.example.org", 80)),
        ("fd00::1", ("fd00::1", 7690)),
        ("[fd00::1]:99", ("fd00::1", 99)),
    ],
)
def test_an_address_may_name_a_port(text: str, found: tuple[str, int]) -> None:
    assert parse_cluster_address(text) == found


@pytest.mark.parametrize(
    "text", ["", ":7690", "localhost", "127.0.0.1:5", "0.0.0.0", "::", "::1", "a b", "head:x", "head:0", "head:70000"]
)
def test_what_others_cannot_reach_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_cluster_address(text)


def test_a_name_is_listened_to_on_every_address() -> None:
    assert (bind_address("head"), bind_address("10.0.0.5")) == ("0.0.0.0", "10.0.0.5")


def test_numbers_of_machines_and_gpus_are_read() -> None:
    assert (parse_nodes("0..8"), parse_nodes("4")) == ((0, 8), (4, 4))
    assert (parse_gpus(""), parse_gpus("4"), parse_gpus("h100:8")) == (("", 0), ("", 4), ("h100", 8))
    for wrong in ("..", "a..b", "4.."):
        with pytest.raises(Refused):
            parse_nodes(wrong)
    with pytest.raises(Refused):
        parse_gpus("h100:")
