"""Are .env files read as their writers meant them, and are mistakes told without what stands there?"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.dotenv import parse_dotenv
from steelyard.errors import Refused

TEXT = """\
# a comment
PLAIN=value
export EXPORTED = spaced out   # said behind it

EMPTY=
HASH=a#b
SINGLE='as it # stands \\n'   # again
DOUBLE="one\\ntwo \\"three\\" \\\\ \\$HOME \\q"
LINES="-----BEGIN-----
abc
-----END-----"
DOTTED.NAME=x\r
PLAIN=later
"""


def test_every_way_of_writing_a_value() -> None:
    assert parse_dotenv(TEXT, ".env") == {
        "PLAIN": "later",
        "EXPORTED": "spaced out",
        "EMPTY": "",
        "HASH": "a#b",
        "SINGLE": "as it # stands \\n",
        "DOUBLE": 'one\ntwo "three" \\ $HOME \\q',
        "LINES": "-----BEGIN-----\nabc\n-----END-----",
        "DOTTED.NAME": "x",
    }
    assert parse_dotenv("", ".env") == parse_dotenv("  \n# nothing", ".env") == {}
    assert parse_dotenv("A=#x", ".env") == {"A": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=1\nhunter22\n", ".env:2: write NAME=VALUE"),
        ("1A=hunter22", ".env:1: write NAME=VALUE"),
        ('A=1\n\nB="hunter22', '.env:3: the quote " is never closed'),
        ("A='hunter22' more", ".env:1: something stands behind"),
    ],
)
def test_a_mistake_is_told_by_its_line_and_not_by_what_stands_there(text: str, said: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_dotenv(text, ".env")
    assert caught.value.public.startswith(said) and "hunter22" not in caught.value.public


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.text(max_size=30), max_size=5))
def test_what_is_quoted_comes_back(values: dict[str, str]) -> None:
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in values.items()}
    text = "".join(f'{name}="{value}"\n' for name, value in quoted.items())
    assert parse_dotenv(text, ".env") == values


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        parse_dotenv(text, ".env")
