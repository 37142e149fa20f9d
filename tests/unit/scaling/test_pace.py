"""Is a busy function left alone, and asked again in full once it answers?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steelyard.scaling.pace import PAUSE_FIRST_S, PAUSE_MAX_S, WINDOW_MAX, Pace, quicken, slow


def test_a_refusal_pauses_and_lets_one_call_ask_alone() -> None:
    pace = slow(Pace(), 0, 1.0)
    assert pace == Pace(1, round(PAUSE_FIRST_S * 1e9), 1)
    assert slow(pace, pace.not_before_ns - 1, 1.0) is pace, "what was asked before the pause began is part of it"
    longer = slow(pace, pace.not_before_ns, 1.0)
    assert longer.not_before_ns - pace.not_before_ns == 2 * pace.not_before_ns and longer.window == 1


def test_each_answer_doubles_how_many_may_ask() -> None:
    pace = slow(Pace(), 0, 0.0)
    windows = [(pace := quicken(pace)).window for _ in range(25)]
    assert windows[:4] == [2, 4, 8, 16] and windows[-1] == WINDOW_MAX and pace == Pace()


@given(st.integers(0, 1 << 62), st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_pause_never_exceeds_its_maximum_nor_ends_at_once(now_ns: int, jitters: list[float]) -> None:
    pace = Pace()
    for jitter in jitters:
        after = slow(pace, now_ns, jitter)
        assert PAUSE_FIRST_S / 2 * 1e9 <= after.not_before_ns - now_ns <= PAUSE_MAX_S * 1e9 + 1
        now_ns, pace = after.not_before_ns, after
