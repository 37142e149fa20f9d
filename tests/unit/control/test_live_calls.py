"""Does the server's copy of waiting calls agree with the store, whatever order changes come in?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.control.live_calls import LiveCalls
from steelyard.model.call import Call, CallState
from steelyard.model.ids import CallId, FunctionName
from stores import make_call


def make_row(name: str, state: CallState, not_before: int | None) -> Call:
    """A call's function and its age never change."""
    function = "xyz"[ord(name) % 3]
    return replace(make_call(name, function=function), state=state, submitted_at=ord(name) * 7 % 5, not_before=not_before)


_calls = st.builds(make_row, st.sampled_from("abcdefgh"), st.sampled_from(CallState), st.none() | st.integers(0, 9))


@given(st.lists(st.tuples(st.lists(_calls, max_size=4), st.integers(0, 9)), max_size=12))
def test_it_holds_what_waits_in_the_order_of_age(looks: list[tuple[list[Call], int]]) -> None:
    live, rows, now = LiveCalls(), dict[CallId, Call](), 0
    for change, (calls, step) in enumerate(looks, start=1):
        newest = {call.id: call for call in calls}
        rows |= newest
        live.apply(change, newest.values())
        live.apply(change, [make_call("late")])
        now += step
        live.wake(now)
        queued = [call for call in rows.values() if call.state is CallState.QUEUED]
        assert live.waiting == len(queued)
        assert set(live.running) == {call.id for call in rows.values() if call.state is CallState.RUNNING}
        for function in ("x", "y", "z"):
            ready = [call for call in queued if call.function == function and (call.not_before or 0) <= now]
            ready.sort(key=lambda call: (call.submitted_at, call.id))
            assert list(live.oldest(FunctionName(function), 100)) == ready
            assert list(live.oldest(FunctionName(function), 2)) == ready[:2]
            assert (function in live.functions) is bool(ready)
        assert live.next_wake == min((call.not_before for call in queued if (call.not_before or 0) > now), default=None)
