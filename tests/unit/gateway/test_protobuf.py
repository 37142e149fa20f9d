"""The wire format against bytes worked out by hand and the examples of its specification."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.gateway.protobuf import FIELDS, encode, encode_any, read_fields, write_field


def test_scalars_durations_and_wrappers() -> None:
    thresholds = "envoy.config.cluster.v3.CircuitBreakers.Thresholds"
    # the specification's own example: 150 is 96 01
    assert encode(thresholds, {"max_connections": 150}) == bytes.fromhex("12 03 08 96 01")
    action = "envoy.config.route.v3.RouteAction"
    assert encode(action, {"cluster": "a.1"}) == b"\x0a\x03a.1"
    assert encode(action, {"timeout": "0s"}) == bytes.fromhex("42 04 08 00 10 00")  # there, and zero
    assert encode(action, {"idle_timeout": "1.5s"}) == bytes.fromhex("c2 01 08 08 01 10 80 ca b5 ee 01")
    assert encode("envoy.config.route.v3.FilterConfig", {"disabled": True}) == b"\x18\x01"


def test_any_names_its_type() -> None:
    message = {"@type": "type.googleapis.com/envoy.config.core.v3.Pipe", "path": "/p"}
    url = b"type.googleapis.com/envoy.config.core.v3.Pipe"
    assert encode_any(message) == b"\x0a" + bytes((len(url),)) + url + b"\x12\x04\x0a\x02/p"


def test_unknown_field_is_an_error_and_not_left_out() -> None:
    with pytest.raises(KeyError):
        encode("envoy.config.core.v3.Pipe", {"mode": 1})


def test_every_kind_is_known() -> None:
    scalars = {"string", "bool", "number", "google.protobuf.UInt32Value", "google.protobuf.Duration", "google.protobuf.Any"}
    for fields in FIELDS.values():
        assert len({number for number, _ in fields.values()}) == len(fields)
        for _, kind in fields.values():
            assert kind.removeprefix("map:") in scalars | FIELDS.keys()


fields_written = st.lists(st.tuples(st.integers(1, 5000), st.binary(max_size=300)))


@given(fields_written)
def test_what_is_written_is_read(fields: list[tuple[int, bytes]]) -> None:
    assert list(read_fields(b"".join(write_field(number, value) for number, value in fields))) == fields


@given(st.binary(max_size=100))
def test_damaged_bytes_are_an_error_or_fields_but_never_anything_else(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(len(value) <= len(data) for _, value in read_fields(data))
