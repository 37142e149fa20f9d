"""Is a value hidden however a log is cut: into answers, by a rotation, in the middle of what is written?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.api.logs import Source, _show
from steelyard.lifecycle.redaction import Redactor
from steelyard.runtime.logs import read_log, rotate
from steelyard.wire.agent import Answer

VALUE = "abcdefgh"
HIDE = Redactor([("db", {"KEY": VALUE})])


def show(path: Path, offset: int, limit: int, *, ended: bool) -> tuple[bytes, int]:
    """One answer of the server, from one of the agent."""
    piece = read_log(path, offset, limit, HIDE.margin)
    source = Source("w", 1, ended, 0 if ended else None, "RUNNING", None, "", HIDE)
    answer = Answer(1, piece.data, piece.next_offset, "", piece.gap, piece.before, piece.after, piece.cut)
    return _show(source, answer)


def read_all(path: Path, offset: int, limit: int, *, ended: bool) -> tuple[bytes, int]:
    found = b""
    while True:
        data, following = show(path, offset, limit, ended=ended)
        if not data and following == offset:
            return found, offset
        assert following > offset, "a reader would ask for the same for ever"
        found, offset = found + data, following


@settings(max_examples=60)
@given(
    writes=st.lists(st.sampled_from(["x", "abc", VALUE, "abcde", "fgh", "\n"]), min_size=1, max_size=20),
    limit=st.integers(1, 30),
    turns=st.sets(st.integers(0, 20), max_size=3),
)
def test_what_is_followed_is_the_whole_with_its_values_replaced(writes: list[str], limit: int, turns: set[int]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path, shown, offset = folder / "stdout", b"", 0
        path.touch()
        for number, text in enumerate(writes):
            with path.open("a") as file:
                file.write(text)
            if number in turns:
                rotate(path, 1200)  # nothing of so little is lost
            data, offset = read_all(path, offset, limit, ended=False)
            shown += data
        data, offset = read_all(path, offset, limit, ended=True)
        assert (shown + data).decode() == "".join(writes).replace(VALUE, "[secret db.KEY]")
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["x", VALUE, "abcde", "fgh"]), min_size=5, max_size=40), st.integers(3, 60), st.integers(1, 30))
def test_a_log_with_a_gap_is_read_to_its_end_and_tells_no_value(writes: list[str], keep: int, limit: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "stdout"
        path.write_text("".join(writes[: len(writes) // 2]))
        rotate(path, keep)
        with path.open("a") as file:
            file.write("".join(writes[len(writes) // 2 :]))
        rotate(path, keep)
        shown, _ = read_all(path, 0, limit, ended=False)
        assert VALUE.encode() not in shown
    finally:
        shutil.rmtree(folder)
