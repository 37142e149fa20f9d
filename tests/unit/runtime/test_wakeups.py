"""The timer loop and the page that a watcher shares. The only test here that waits does so for 60 ms: it measures waiting."""

from __future__ import annotations

import struct
from pathlib import Path

from steelyard.runtime.wakeups import PAGE_BYTES, WARM_UP, Watched, measure, read_page


def test_the_loop_counts_its_wake_ups_without_the_first_ones() -> None:
    late = measure(0.06, 500, 0)
    assert 0 < len(late) <= 120 - WARM_UP
    assert min(late) >= 0


def test_a_page_is_read_only_when_its_writer_has_begun(tmp_path: Path) -> None:
    page = tmp_path / "page"
    assert read_page(page) is None
    page.write_bytes(bytes(PAGE_BYTES))
    assert read_page(page) is None
    page.write_bytes(struct.pack("<6Q", 0x53594157414B4531, 200, 5000, 2, 900_000, 77))
    assert read_page(page) == Watched(limit_us=200, samples=5000, breaches=2, worst_ns=900_000, seen_ns=77)
