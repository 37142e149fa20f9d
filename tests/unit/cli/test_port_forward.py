"""Which ports are meant?"""

from __future__ import annotations

import pytest

from steelyard.cli.port_forward import Forward, parse_forward
from steelyard.errors import Refused


@pytest.mark.parametrize(("text", "expected"), [("80", (80, 80)), ("8080:80", (8080, 80)), ("0:65535", (0, 65535))])
def test_ports_are_read(text: str, expected: tuple[int, int]) -> None:
    assert parse_forward(text) == Forward(*expected)


@pytest.mark.parametrize("text", ["", ":80", "80:", "0", "65536", "80:0", "a:80", "-1", "1:2:3", "٨٠", "8 0"])
def test_what_names_no_port_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_forward(text)
