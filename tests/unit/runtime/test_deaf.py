"""Which process a signal can't reach."""

from __future__ import annotations

import signal

import pytest

from steelyard.runtime.deaf import find_deaf

STATUS = "Name:\tx\nNSpid:\t{pids}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n"
NONE, TERM = "0" * 16, f"{1 << 14:016x}"


@pytest.mark.parametrize(
    ("pids", "blocked", "ignored", "caught", "signum", "deaf"),
    [
        ("50\t1", NONE, NONE, NONE, signal.SIGTERM, True),
        ("50\t1", NONE, NONE, TERM, signal.SIGTERM, False),
        ("50\t1", NONE, TERM, NONE, signal.SIGTERM, False),
        ("50\t1", TERM, NONE, NONE, signal.SIGTERM, False),
        ("50\t1", NONE, NONE, TERM, signal.SIGINT, True),
        ("50\t7", NONE, NONE, NONE, signal.SIGTERM, False),
        ("50", NONE, NONE, NONE, signal.SIGTERM, False),
        ("50\t1", NONE, NONE, NONE, signal.SIGCONT, False),
        ("50\t1", NONE, NONE, NONE, signal.SIGWINCH, False),
    ],
)
def test_only_a_first_process_without_a_handler_is_deaf(
    pids: str, blocked: str, ignored: str, caught: str, signum: int, deaf: bool
) -> None:
    status = STATUS.format(pids=pids, blocked=blocked, ignored=ignored, caught=caught)
    assert find_deaf({50: status}, signum) == ([50] if deaf else [])
