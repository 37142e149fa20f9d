"""Logs: offsets that stay true through any rotation, gaps that are said, and a bound that holds."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from steelyard.errors import EdgeFailed
from steelyard.runtime.logs import Layout, find_part, read_log, render_gap, rotate

GAP = re.compile(rb"\n\[steelyard: (\d+) bytes of output were dropped here\]\n")


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def read_all(path: Path, offset: int = 0, limit: int = 7) -> tuple[bytes, int]:
    found = b""
    while True:
        data, following = read_log(path, offset, limit).plain
        if following == offset:
            return found, offset
        found, offset = found + data, following


class LogMachine(RuleBasedStateMachine):
    """The whole stream is kept beside; whatever the reader gets must be a piece of it at the offset it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "stdout"
        self.path.touch()
        self.stream = b""
        self.offset = 0

    @rule(data=st.binary(max_size=60))
    def write(self, data: bytes) -> None:
        append(self.path, data)
        self.stream += data

    @rule(keep=st.integers(1, 80))
    def turn(self, keep: int) -> None:
        rotated = rotate(self.path, keep)
        sizes = [file.stat().st_size for file in (self.path, self.folder / "stdout.old") if file.exists()]
        if rotated:
            assert sum(sizes) <= max(1, keep // 3)

    @rule(limit=st.integers(1, 50))
    def follow(self, limit: int) -> None:
        data, following = read_log(self.path, self.offset, limit).plain
        dropped = 0
        gap = GAP.match(data)
        if gap and data not in self.stream:
            dropped, data = int(gap[1]), data[gap.end() :]
        assert following == self.offset + dropped + len(data)
        assert data == self.stream[self.offset + dropped : following]
        assert len(data) <= limit
        self.offset = following

    @rule(fraction=st.floats(0, 1))
    def look_back(self, fraction: float) -> None:
        self.offset = int(self.offset * fraction)

    @invariant()
    def the_newest_byte_can_be_read(self) -> None:
        if self.stream:
            assert read_log(self.path, len(self.stream) - 1, 9).plain == (self.stream[-1:], len(self.stream))
        assert read_log(self.path, len(self.stream), 9).plain == (b"", len(self.stream))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=60, stateful_step_count=25)


@given(
    st.builds(Layout, old_start=st.integers(0, 100), old_bytes=st.integers(0, 50), live_start=st.integers(150, 200)),
    st.integers(0, 60),
    st.integers(-5, 400),
    st.integers(1, 70),
)
def test_a_part_is_inside_its_file_and_after_what_was_asked_for(layout: Layout, live_bytes: int, offset: int, limit: int) -> None:
    part = find_part(layout, live_bytes, offset, limit)
    assert part.dropped >= 0
    assert 0 <= part.length <= limit
    assert part.position + part.length <= (layout.old_bytes if part.in_old else live_bytes)
    assert part.offset == max(0, min(offset, layout.live_start + live_bytes)) + part.dropped
    assert part.position + (layout.old_start if part.in_old else layout.live_start) == part.offset


def test_a_gap_is_said_in_the_text_once(tmp_path: Path) -> None:
    log = tmp_path / "stdout"
    append(log, b"0123456789")
    assert rotate(log, 12)
    append(log, b"ab")
    assert read_all(log) == (render_gap(6) + b"6789ab", 12)
    assert read_all(log, 6) == (b"6789ab", 12)
    assert read_all(log, 11) == (b"b", 12)


def test_nothing_is_rotated_before_it_is_large(tmp_path: Path) -> None:
    log = tmp_path / "stdout"
    assert not rotate(log, 100)
    assert read_log(log, 5, 10).plain == (b"", 0)
    append(log, b"x" * 33)
    assert not rotate(log, 100)
    assert sorted(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize("truncated", [False, True])
def test_a_rotation_cut_short_loses_and_doubles_nothing(tmp_path: Path, truncated: bool) -> None:
    log = tmp_path / "stdout"
    append(log, b"0123456789")
    layout = Layout(old_start=6, old_bytes=4, live_start=10, truncating=10)
    (tmp_path / "stdout.offsets").write_bytes(msgspec.json.encode(layout))
    (tmp_path / "stdout.old").write_bytes(b"6789")
    if truncated:
        log.write_bytes(b"")
    append(log, b"ab")
    assert read_all(log, 7) == (b"789ab", 12)
    assert rotate(log, 9) is (not truncated)
    assert read_all(log, 9)[0] == b"9ab"


def test_a_log_that_the_workload_truncated_itself_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "stdout"
    append(log, b"0123456789")
    log.write_bytes(b"")
    assert read_log(log, 10, 5).plain == (b"", 0)
    append(log, b"new")
    assert read_log(log, 0, 5).plain == (b"new", 3)


def test_a_damaged_sidecar_and_a_link_are_named(tmp_path: Path) -> None:
    log = tmp_path / "stdout"
    append(log, b"x")
    (tmp_path / "stdout.offsets").write_bytes(b"{")
    with pytest.raises(EdgeFailed, match="offsets"):
        read_log(log, 0, 5)
    (tmp_path / "link").symlink_to(log)
    with pytest.raises(EdgeFailed):
        read_log(tmp_path / "link", 0, 5)
    with pytest.raises(EdgeFailed):
        rotate(tmp_path / "link", 1)
