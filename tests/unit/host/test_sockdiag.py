from __future__ import annotations

import struct

from steelyard.host.sockdiag import SOCK_DIAG_BY_FAMILY, make_request, parse_answer

HEADER = struct.Struct("=IHHII")
MESSAGE = struct.pack("=BBBBIII", 1, 1, 10, 0, 4711, 1, 0)


def answer(attributes: bytes, kind: int = SOCK_DIAG_BY_FAMILY) -> bytes:
    body = MESSAGE + attributes
    return HEADER.pack(HEADER.size + len(body), kind, 0, 1, 0) + body


def test_a_request_asks_for_the_queue_length_of_one_inode() -> None:
    request = make_request(4711, 7)
    length, kind, flags, sequence, _ = HEADER.unpack_from(request)
    assert (length, kind, flags, sequence) == (len(request), SOCK_DIAG_BY_FAMILY, 1, 7)
    family, protocol, _, states, inode, show = struct.unpack_from("=BBHIII", request, HEADER.size)
    assert (family, protocol, states, inode, show) == (1, 0, 0xFFFFFFFF, 4711, 0x10)


def test_the_queue_length_is_found_behind_other_attributes() -> None:
    name = struct.pack("=HH", 4 + 3, 0) + b"/a\0" + b"\0"
    queue = struct.pack("=HHII", 12, 4, 17, 4096)
    assert parse_answer(answer(name + queue)) == 17


def test_an_error_a_cut_packet_and_a_missing_attribute_are_unknown() -> None:
    queue = struct.pack("=HHII", 12, 4, 17, 4096)
    assert parse_answer(answer(queue, kind=2)) is None
    assert parse_answer(answer(queue)[:-6]) is None
    assert parse_answer(answer(b"")) is None
    assert parse_answer(answer(struct.pack("=HH", 0, 9))) is None
