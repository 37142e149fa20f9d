"""Do the phases of a wake sum to its wall time, whatever stamps there are?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.agent.coldstart import WakeStamps, make_coldstart
from steelyard.model.coldstart import PLATFORM_PHASES, USER_PHASES, Road
from steelyard.model.ids import FunctionName, ProjectName
from steelyard.model.reason import Reason

OFFSET_NS = 1_700_000_000_000_000_000
MS = 1_000_000


def make_row(stamps: WakeStamps):
    return make_coldstart(
        "hello.1.a", FunctionName("hello"), ProjectName("default"), 1, Road.TEMPLATE, Reason.TEMPLATE_READY, stamps, {}, OFFSET_NS
    )


def test_each_phase_is_the_time_between_its_stamps():
    arrival_us = (OFFSET_NS + 100 * MS) // 1000
    row = make_row(WakeStamps(101 * MS, 102 * MS, 104 * MS, 105 * MS, 105 * MS, 107 * MS, 108 * MS, 112 * MS, arrival_us))
    assert row.phases == {"held": 1, "plan": 1, "fork": 2, "join": 1, "import": 0, "enter": 2, "serve": 1, "first_byte": 4}
    assert row.wall_ms == 12
    assert row.at == arrival_us
    assert (row.platform_ms, row.user_ms) == (6, 6)


def test_a_request_later_than_the_wake_counts_from_the_wake():
    row = make_row(WakeStamps(100 * MS, 101 * MS, 0, 0, 0, 0, 105 * MS, 106 * MS, (OFFSET_NS + 103 * MS) // 1000))
    assert row.phases["held"] == 0
    assert row.wall_ms == 6


def test_the_time_that_taking_its_place_back_took_is_a_phase_of_its_own_where_a_place_was_lent():
    stamps = WakeStamps(1 * MS, 9 * MS, 11 * MS, 12 * MS, 12 * MS, 14 * MS, 15 * MS, 19 * MS, 0, taken=8 * MS)
    row = make_row(stamps)
    assert (row.phases["take_back"], row.phases["plan"], row.phases["fork"]) == (7, 1, 2)
    assert list(row.phases)[:3] == ["held", "take_back", "plan"]
    assert sum(row.phases.values()) == row.wall_ms == 18
    assert row.platform_ms == 12


@given(st.lists(st.integers(0, 10**12), min_size=8, max_size=8), st.integers(0, 10**9), st.integers(0, 10**12))
def test_phases_are_never_negative_and_always_sum_to_the_wall_time(stamps, arrival_us, taken):
    row = make_row(WakeStamps(*stamps, arrival_us=arrival_us and OFFSET_NS // 1000 + arrival_us, taken=taken))
    assert all(spent >= 0 for spent in row.phases.values())
    assert sum(row.phases.values()) == pytest.approx(row.wall_ms, abs=0.01)
    assert set(row.phases) | {"take_back"} == set(PLATFORM_PHASES) | set(USER_PHASES)
    assert ("take_back" in row.phases) is bool(taken)
