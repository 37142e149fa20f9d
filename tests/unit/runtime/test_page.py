"""The replica's page: numbers and text in 4096 bytes of shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from steelyard.runtime.runner import page as pages
from steelyard.runtime.runner.page import PAGE_BYTES, Page


@pytest.fixture
def both() -> Iterator[tuple[Page, Page]]:
    """The replica's view and the agent's."""
    fd = os.memfd_create("page")
    os.ftruncate(fd, PAGE_BYTES)
    writer, reader = Page.from_fd(fd), Page.from_fd(fd)
    os.close(fd)
    yield writer, reader
    writer.close()
    reader.close()


def test_what_one_side_writes_the_other_reads(both: tuple[Page, Page]) -> None:
    writer, reader = both
    writer.state = pages.SERVING
    writer.connections = 3
    writer.first_byte_ns = 2**63 + 5
    assert (reader.state, reader.connections, reader.first_byte_ns) == (pages.SERVING, 3, 2**63 + 5)
    assert reader.read() == writer.read()
    assert set(reader.read()) >= {"state", "busy", "accepted", "finished", "last_active_ns", "arrival_us"}


def test_every_number_has_a_place_of_its_own(both: tuple[Page, Page]) -> None:
    writer, reader = both
    for place, name in enumerate(writer.read()):
        setattr(writer, name, place + 100)
    assert sorted(reader.read().values()) == list(range(100, 100 + len(writer.read())))


def test_phases_and_error_stand_side_by_side(both: tuple[Page, Page]) -> None:
    writer, reader = both
    assert (reader.user_phases, reader.error) == ({}, "")
    writer.write_phases({"weights": 12.3456, "connect": 1.0})
    writer.fail("Traceback ...\nOSError: no disk\n")
    assert reader.user_phases == {"weights": 12.346, "connect": 1.0}
    assert reader.error.endswith("OSError: no disk\n")
    assert reader.state == pages.FAILED


def test_a_long_error_keeps_its_end(both: tuple[Page, Page]) -> None:
    writer, reader = both
    writer.write_phases({f"phase {number} {'x' * 60}": 1.0 for number in range(64)})
    writer.fail("é" * 50_000 + "ValueError: the last line")
    assert reader.error.endswith("ValueError: the last line")
    assert reader.state == pages.FAILED


def test_phases_that_do_not_fit_are_dropped_from_the_end(both: tuple[Page, Page]) -> None:
    writer, reader = both
    writer.write_phases({f"{number:03d}" + "y" * 77: float(number) for number in range(64)})
    kept = list(reader.user_phases.values())
    assert 10 < len(kept) < 64
    assert kept == [float(number) for number in range(len(kept))]


def test_a_text_in_the_middle_of_a_change_reads_as_nothing(both: tuple[Page, Page]) -> None:
    writer, reader = both
    writer.write_phases({"a": 1.0})
    writer._memory[pages.TEXT_AT + 8] = 0
    assert reader.user_phases == {}
    writer._memory[pages.TEXT_AT : pages.TEXT_AT + 8] = b"\xff" * 8
    assert reader.error == ""


def test_a_file_that_is_too_short_is_refused() -> None:
    fd = os.memfd_create("short")
    with pytest.raises(ValueError, match="greater than file size"):
        Page.from_fd(fd)
    os.close(fd)
