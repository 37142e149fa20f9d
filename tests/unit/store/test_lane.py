"""Do functions that wait run as one batch, in order, and does everybody get an answer?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from steelyard.errors import EdgeFailed, NoRoom
from steelyard.store import lane as lane_module
from steelyard.store.lane import Function, Lane, Outcome


class Recorder:
    """Carries out by calling; holds the first batch until told, so that the rest must wait behind it."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def carry_out(self, fns: Sequence[Function]) -> list[Outcome]:
        self.begun.set()
        assert self.go_on.wait(10)
        self.batches.append(len(fns))
        return [Outcome(fn(None)) for fn in fns]


def run(recorder: Recorder, waiting: int) -> tuple[list[object], list[int]]:
    """One function alone, then `waiting` more while it is held."""

    async def ask() -> list[object]:
        lane = Lane("test", recorder.carry_out)
        first = lane.submit(lambda _: -1)
        assert recorder.begun.wait(10)
        others = [lane.submit(lambda _, n=n: n) for n in range(waiting)]
        recorder.go_on.set()
        answers = await asyncio.gather(first, *others)
        lane.close()
        return list(answers)

    return asyncio.run(ask()), recorder.batches


def test_what_waits_is_one_batch_in_order() -> None:
    assert run(Recorder(), 100) == ([-1, *range(100)], [1, 100])


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "BATCH_MAX", 40)
    assert run(Recorder(), 100) == ([-1, *range(100)], [1, 40, 40, 20])


def test_too_many_waiting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "WAITING_MAX", 3)
    with pytest.raises(NoRoom) as caught:
        run(held := Recorder(), 4)
    assert caught.value.code == "store-busy"
    held.go_on.set()


def test_what_waits_at_the_end_is_still_carried_out_and_nothing_after_it() -> None:
    async def ask() -> list[object]:
        recorder = Recorder()
        rested: list[int] = []
        lane = Lane("test", recorder.carry_out, lambda: rested.append(len(recorder.batches)))
        waiting = [lane.submit(lambda _, n=n: n) for n in range(5)]
        recorder.go_on.set()
        lane.close()
        lane.close()
        with pytest.raises(EdgeFailed):
            lane.submit(lambda _: 0)
        assert rested[-1] == len(recorder.batches)
        return list(await asyncio.gather(*waiting))

    assert asyncio.run(ask()) == [0, 1, 2, 3, 4]


def test_a_given_up_call_is_not_carried_out() -> None:
    async def ask() -> list[int]:
        recorder = Recorder()
        lane = Lane("test", recorder.carry_out)
        first = lane.submit(lambda _: 0)
        assert recorder.begun.wait(10)
        given_up, kept = lane.submit(lambda _: 1), lane.submit(lambda _: 2)
        given_up.cancel()
        recorder.go_on.set()
        assert await asyncio.gather(first, kept) == [0, 2]
        lane.close()
        return recorder.batches

    assert asyncio.run(ask()) == [1, 1]


def test_stop_iteration_reaches_its_caller_and_the_others_are_answered() -> None:
    async def ask() -> list[object]:
        lane = Lane("test", lambda fns: [fn(None) for fn in fns])
        asked = [lane.submit(lambda _: Outcome(error=StopIteration())), lane.submit(lambda _: Outcome(7))]
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        lane.close()
        return list(answers)

    stopped, answered = asyncio.run(ask())
    assert isinstance(stopped, RuntimeError) and answered == 7
