"""Is it a file here, or inside a job?"""

from __future__ import annotations

import pytest

from steelyard.cli.copy import Inside, parse_place
from steelyard.errors import Refused


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("j-000012:/tmp/x", Inside("j-000012", "/tmp/x")),
        ("12:x", Inside("12", "x")),
        ("13_4:a:b", Inside("13_4", "a:b")),
        ("./12:x", "./12:x"),
        ("/12:x", "/12:x"),
        ("C:x", "C:x"),
        ("12:", "12:"),
        ("data.csv", "data.csv"),
    ],
)
def test_a_place_is_read(text: str, place: Inside | str) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_what_names_no_file_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_place(text)
