"""Which templates go, and which come back?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steelyard.agent.memory import STALE_NS, UNWANTED_NS, NodeUse, TemplateUse, choose_evictions, choose_return

USES = [TemplateUse("new", 100, 30), TemplateUse("old", 100, 10), TemplateUse("mid", 100, 20)]
KINDS = st.sampled_from(list(NodeUse))
ANY_USES = st.lists(
    st.builds(TemplateUse, st.uuids().map(str), st.integers(0, 500), st.integers(0, 50), KINDS),
    max_size=20,
    unique_by=lambda use: use.name,
)


def evict(uses: list[TemplateUse], budget: int = 1000, available: int = 1000, reserve: int = 0, now: int = 100) -> list[str]:
    return choose_evictions(uses, now, budget, available, reserve)


def test_the_least_recently_used_go_until_the_budget_and_the_machines_reserve_hold() -> None:
    assert evict(USES, 300) == []
    assert evict(USES, 250) == ["old"]
    assert evict(USES, 150) == ["old", "mid"]
    assert evict(USES, 300, available=50, reserve=100) == ["old"]
    assert evict([], 0, 0, 100) == []


def test_revisions_go_before_the_environments_that_make_their_next_wake_short() -> None:
    environment = TemplateUse("environment", 100, 1, NodeUse.WANTED)
    assert evict([environment, *USES], 350) == ["old"]
    assert evict([environment], 50) == ["environment"]
    assert evict([environment, *USES], 350, now=STALE_NS + 2) == ["environment"], "nobody has used it for long"


def test_what_nothing_wants_goes_after_a_while_though_there_is_room() -> None:
    environment = TemplateUse("environment", 100, 1, NodeUse.UNWANTED)
    assert evict([environment, *USES]) == []
    assert evict([environment, *USES], now=UNWANTED_NS + 2) == ["environment"]
    assert evict([environment, *USES], 300, now=UNWANTED_NS + 2) == ["environment"], "its end is enough"


def test_the_most_recently_missed_comes_back_where_it_fits() -> None:
    missed = [TemplateUse("early", 100, 10), TemplateUse("late", 100, 20), TemplateUse("huge", 900, 30)]
    assert choose_return(missed, [], 500, spare_bytes=1000) == ("late", [])
    assert choose_return(missed, [], 500, spare_bytes=150) == (None, [])
    assert choose_return([], USES, 500, 1000) == (None, [])


def test_a_missed_one_takes_the_room_of_those_unused_for_longer_and_of_no_others() -> None:
    assert choose_return([TemplateUse("back", 100, 25)], USES, 300, 1000) == ("back", ["old"])
    assert choose_return([TemplateUse("back", 150, 25)], USES, 300, 1000) == ("back", ["old", "mid"])
    assert choose_return([TemplateUse("back", 250, 25)], USES, 300, 1000) == (None, [])
    kept = [TemplateUse("environment", 300, 1, NodeUse.WANTED)]
    assert choose_return([TemplateUse("back", 100, 25)], kept, 300, 1000) == (None, []), (
        "an environment does not go for a revision"
    )


@given(ANY_USES, st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 500))
def test_after_evictions_the_bounds_hold_or_nothing_is_left(
    uses: list[TemplateUse], budget: int, available: int, reserve: int
) -> None:
    evicted = evict(uses, budget, available, reserve)
    assert len(evicted) == len(set(evicted))
    freed = sum(use.own_bytes for use in uses if use.name in evicted)
    held = sum(use.own_bytes for use in uses) - freed
    left = [use for use in uses if use.name not in evicted]
    assert (held <= budget and available + freed >= reserve) or all(use.kind is NodeUse.PARENT for use in left)
    assert not [use for use in uses if use.name in evicted and use.kind is NodeUse.PARENT]
    if len(evicted) > 1:  # none goes that need not
        last = next(use for use in uses if use.name == evicted[-1])
        assert held + last.own_bytes > budget or available + freed - last.own_bytes < reserve


@given(ANY_USES, ANY_USES, st.integers(0, 2000))
def test_what_comes_back_keeps_the_budget_and_displaces_only_the_longer_unused(
    missed: list[TemplateUse], live: list[TemplateUse], budget: int
) -> None:
    back, out = choose_return(missed, live, budget, 10_000)
    if back is None:
        assert out == []
        return
    returned = next(use for use in missed if use.name == back)
    gone = [use for use in live if use.name in out]
    assert all(use.last_used_ns < returned.last_used_ns and use.kind is NodeUse.REVISION for use in gone)
    assert not out or sum(use.own_bytes for use in live if use.name not in out) + returned.own_bytes <= budget
