"""Which shares and tags are refused at the door."""

from __future__ import annotations

import msgspec

from steelyard.api.door_traffic import check_tag, check_traffic
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName
from steelyard.model.job import Owner


def functions(*names: str, tags: tuple[str, ...] = ()) -> dict[FunctionName, Function]:
    made = [Function(FunctionName(name), DEFAULT_PROJECT, Owner("ann", 7), 1, 1, FunctionSpec(argv=("x",)), 0) for name in names]
    return {row.name: msgspec.structs.replace(row, tags=tags) for row in made}


def codes(name: str, percent: int = 100, tag: str = "", there: dict[FunctionName, Function] | None = None) -> list[str]:
    return [finding.code for finding in check_traffic(name, percent, tag, there or {})]


def test_a_revision_is_reached_by_a_share_or_a_tag() -> None:
    assert codes("f") == codes("f", 1) == codes("f", 0, "next") == []
    assert codes("f", 0) == ["no-way-in"]


def test_a_tag_is_part_of_a_host_name() -> None:
    assert check_tag("f", "v2-blue", {}) == []
    for tag in ("", "UPPER", "a_b", "-a", "a.b", "x" * 61):
        assert [finding.code for finding in check_tag("f", tag, {})] == ["bad-tag"], tag
    assert check_tag("f", "x" * 60, {}) == [] and check_tag("ff", "x" * 60, {}) != []


def test_a_tag_and_a_function_never_have_the_same_address() -> None:
    assert [finding.code for finding in check_tag("b", "a", functions("a--b"))] == ["bad-tag"]
    assert codes("a--b", there=functions("b", tags=("a",))) == ["bad-name"]
    assert codes("a--b--c", there=functions("c", tags=("a--b",))) == ["bad-name"]
    assert codes("a--b", there=functions("b", tags=("c",))) == []
