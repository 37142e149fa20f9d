"""What `steelyard call` sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.cli.call import read_arguments, write_result
from steelyard.errors import Refused


def test_words_are_json_where_they_are_and_text_elsewhere() -> None:
    words = ("7", "tea", "true", '{"a": 1}', "2x", '"3"')
    assert read_arguments(None, words) == {"args": [7, "tea", True, {"a": 1}, "2x", "3"], "kwargs": {}}


def test_json_gives_arguments_by_name_or_in_order(tmp_path: Path) -> None:
    assert read_arguments('{"x": 1}', ()) == {"args": [], "kwargs": {"x": 1}}
    assert read_arguments("[1, 2]", ()) == {"args": [1, 2], "kwargs": {}}
    assert read_arguments('{"args": [1], "kwargs": {"y": 2}}', ()) == {"args": [1], "kwargs": {"y": 2}}
    file = tmp_path / "query.json"
    file.write_text('{"q": "x"}')
    assert read_arguments(f"@{file}", ()) == {"args": [], "kwargs": {"q": "x"}}


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [("{", (), "no JSON"), ("3", (), "an object"), ("{}", ("1",), "not both"), ("@/no/such/file", (), "can't be read")],
)
def test_what_is_no_arguments_is_refused(text: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(Refused, match=said):
        read_arguments(text, words)


def test_json_is_indented_and_the_rest_left_alone(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_result(b'{"a":1}')
    write_result(b"\x00 raw")
    assert capfdbinary.readouterr().out == b'{\n  "a": 1\n}\n\x00 raw'
