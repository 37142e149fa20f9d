"""Waiting for work that runs elsewhere: a signal reaches it whenever it comes, and what was waited for is had otherwise."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from steelyard.cli.attend import Detached, Interrupts


@pytest.fixture
def sent() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def interrupts(sent: list[tuple[int, int]]) -> Iterator[Interrupts]:
    made = Interrupts(lambda signum, told: sent.append((signum, told)), leave=True)
    yield made
    made.restore()


def test_what_was_waited_for_is_returned(interrupts: Interrupts) -> None:
    assert interrupts.wait_for(lambda: "chunk") == "chunk"


def test_what_it_raises_is_raised(interrupts: Interrupts) -> None:
    with pytest.raises(ValueError, match="no chunk"):
        interrupts.wait_for(lambda: (_ for _ in ()).throw(ValueError("no chunk")))


def test_a_wait_that_sees_no_signals_is_broken_off_all_the_same(interrupts: Interrupts, sent: list[tuple[int, int]]) -> None:
    """As in the moment between Python's last look at signals and the system call that waits."""
    let_go, ended = threading.Event(), threading.Event()

    def blocking() -> bool:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            os.kill(os.getpid(), signal.SIGINT)
            return let_go.wait(2)
        finally:
            ended.set()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    assert interrupts.wait_for(blocking) is None
    assert not ended.is_set()
    let_go.set()
    interrupts.forward()
    assert sent == [(signal.SIGINT, 1)]


def test_the_second_kills_and_sigquit_lets_go(interrupts: Interrupts, sent: list[tuple[int, int]]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        os.kill(os.getpid(), signum)
        assert interrupts.wait_for(lambda: "not begun to matter") in (None, "not begun to matter")
    with pytest.raises(Detached):
        interrupts.forward()
    assert sent == [(signal.SIGTERM, 1), (signal.SIGKILL, 2)]
    assert interrupts.first_signal == signal.SIGTERM
