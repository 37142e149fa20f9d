"""A packet of a template is what `json` would read and write."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.runtime.runner.packets import Packet, accept, make_pair, receive, send, seqpacket, write_json

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)


@given(st.dictionaries(st.text(max_size=10), VALUES, max_size=4))
def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    assert write_json(value) == json.dumps(value).encode()
    assert Packet(write_json(value), []).asked == value


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b"nonsense", b"\xff"])
def test_what_is_no_json_object_is_not_understood(data: bytes) -> None:
    with pytest.raises(ValueError):
        Packet(data, []).asked  # noqa: B018


def test_descriptors_come_with_a_packet_and_go_with_it() -> None:
    here, there = make_pair()
    reader, writer = os.pipe()
    send(here, b"{}", [reader, writer])
    packet = receive(there)
    assert packet is not None and packet.asked == {} and len(packet.fds) == 2
    assert [os.fstat(fd).st_ino for fd in packet.fds] == [os.fstat(fd).st_ino for fd in (reader, writer)]
    packet.close()
    here.close()
    assert receive(there) is None
    there.close()
    os.close(reader)
    os.close(writer)


def test_who_is_welcomed_can_be_heard() -> None:
    listening, asking = (seqpacket(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach()) for _ in range(2))
    listening.bind(b"")
    listening.listen(1)
    asking.connect(listening.getsockname())
    welcomed = accept(listening)
    asking.send(b'{"op": "status"}')
    packet = receive(welcomed)
    assert packet is not None and packet.asked == {"op": "status"}
    for each in (listening, asking, welcomed):
        each.close()
