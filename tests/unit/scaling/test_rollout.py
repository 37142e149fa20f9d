"""Routes of a roll-out, and when it goes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.function import Rollout, Routes, Share
from steelyard.scaling.rollout import (
    ERRORS_MIN,
    FAILED_STARTS_MAX,
    REQUESTS_MIN,
    WINDOW_S,
    Counts,
    Verdict,
    Wanted,
    decide_rollback,
    divide,
    plan_rollout,
    split,
)

SECOND = 1_000_000


def shares(**percents: int) -> tuple[Share, ...]:
    """`r1=90, r2=10`."""
    return tuple(Share(int(key[1:]), percent) for key, percent in percents.items())


def wanted(**percents: int) -> list[Wanted]:
    return [Wanted(share.revision, share.percent) for share in shares(**percents)]


@pytest.mark.parametrize(
    ("asked", "ready", "failed", "routed", "expected", "make_ready", "retire"),
    [
        # the first deploy, and a replacement
        (wanted(r1=100), [], [], (), (), 1, ()),
        (wanted(r1=100), [1], [], (), shares(r1=100), None, ()),
        (wanted(r2=100), [1], [], shares(r1=100), shares(r1=100), 2, ()),
        (wanted(r2=100), [1, 2], [], shares(r1=100), shares(r2=100), None, (1,)),
        (wanted(r2=100), [1], [2], shares(r1=100), shares(r1=100), None, ()),
        # a part of the traffic
        (wanted(r1=90, r2=10), [1], [], shares(r1=100), shares(r1=100), 2, ()),
        (wanted(r1=90, r2=10), [1, 2], [], shares(r1=100), shares(r1=90, r2=10), None, ()),
        (wanted(r1=90, r2=10), [1], [2], shares(r1=100), shares(r1=100), None, ()),
        # what is leaving keeps the share of what is not ready, and no more than it has
        (wanted(r1=50, r3=50), [2, 3], [], shares(r2=100), shares(r2=50, r3=50), 1, ()),
        (wanted(r1=50, r2=50), [2, 3], [], shares(r2=90, r3=10), shares(r2=90, r3=10), 1, ()),
        (wanted(r2=100), [2, 3], [], shares(r2=90, r3=10), shares(r2=100), None, (3,)),
        # deleted
        ([], [1, 2], [], shares(r1=90, r2=10), (), None, (1, 2)),
    ],
)  # fmt: skip
def test_routes_of_each_step(
    asked: list[Wanted],
    ready: list[int],
    failed: list[int],
    routed: tuple[Share, ...],
    expected: tuple[Share, ...],
    make_ready: int | None,
    retire: tuple[int, ...],
) -> None:
    plan = plan_rollout(asked, ready, failed, Routes(routed))
    assert (plan.routes.shares, plan.make_ready) == (expected, make_ready)
    kept = {share.revision for share in expected}
    assert plan.retire == retire and not kept & set(retire)


def test_a_tag_leads_to_a_revision_once_it_is_ready() -> None:
    asked = [Wanted(1, 100), Wanted(2, 0, ("next", "beta"))]
    before = plan_rollout(asked, [1], [], Routes(shares(r1=100)))
    assert (before.routes.tags, before.make_ready) == ((), 2)
    after = plan_rollout(asked, [1, 2], [], before.routes)
    assert after.routes == Routes(shares(r1=100), (("beta", 2), ("next", 2)))
    gone = plan_rollout([Wanted(1, 100)], [1, 2], [], after.routes)
    assert gone.routes == Routes(shares(r1=100)) and gone.retire == (2,)


numbers = st.integers(1, 5)
sets = st.frozensets(numbers, max_size=5)


@st.composite
def share_tuples(draw: st.DrawFn) -> tuple[Share, ...]:
    parts = draw(st.dictionaries(numbers, st.integers(1, 100), min_size=1, max_size=4))
    return tuple(Share(key, part) for key, part in sorted(divide(100, parts).items()) if part)


@given(share_tuples(), share_tuples(), sets, sets)
def test_nothing_is_lost_and_a_second_look_changes_nothing(
    asked: tuple[Share, ...], routed: tuple[Share, ...], ready: frozenset[int], failed: frozenset[int]
) -> None:
    want = [Wanted(share.revision, share.percent) for share in asked]
    ready |= {share.revision for share in routed}  # who is routed is ready
    plan = plan_rollout(want, ready, failed, Routes(routed))
    assert sum(share.percent for share in plan.routes.shares) == 100
    assert plan.routes.revisions <= ready and not plan.routes.revisions & set(plan.retire)
    if all(share.revision in ready for share in asked):
        assert plan.routes.shares == asked and plan.make_ready is None
    again = plan_rollout(want, ready - set(plan.retire), failed, plan.routes)
    assert (again.routes, again.retire) == (plan.routes, ())


@given(share_tuples(), numbers, st.integers(1, 100))
def test_a_new_revision_gets_its_share_and_the_others_the_rest(before: tuple[Share, ...], revision: int, percent: int) -> None:
    after = {share.revision: share.percent for share in split(before, revision, percent)}
    assert sum(after.values()) == 100
    assert after[revision] == (100 if {share.revision for share in before} == {revision} else percent)


def test_the_first_revision_gets_everything() -> None:
    assert split((), 1, 10) == shares(r1=100)
    assert split(shares(r1=100), 2, 10) == shares(r1=90, r2=10)
    assert split(shares(r1=90, r2=10), 3, 50) == shares(r1=45, r2=5, r3=50)


ROLLOUT = Rollout(2, shares(r1=100), 0.05, since=0)


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        (Counts(1000, 0), Counts(1000, 0), Verdict.WATCH),
        (Counts(REQUESTS_MIN - 1, REQUESTS_MIN - 1), Counts(1000, 0), Verdict.WATCH),
        (Counts(REQUESTS_MIN, ERRORS_MIN - 1), Counts(1000, 0), Verdict.WATCH),
        (Counts(REQUESTS_MIN, ERRORS_MIN), Counts(1000, 0), Verdict.BACK),
        (Counts(1000, 49), Counts(1000, 0), Verdict.WATCH),
        (Counts(1000, 51), Counts(1000, 0), Verdict.BACK),
        # the others fail as well: it is something else
        (Counts(1000, 500), Counts(1000, 480), Verdict.WATCH),
        (Counts(0, 0, FAILED_STARTS_MAX - 1), Counts(), Verdict.WATCH),
        (Counts(0, 0, FAILED_STARTS_MAX), Counts(), Verdict.BACK),
    ],
)
def test_a_new_revision_goes_back_when_more_fails_than_before(new: Counts, old: Counts, verdict: Verdict) -> None:
    assert decide_rollback(SECOND, ROLLOUT, new, old)[0] is verdict


def test_the_others_are_judged_over_the_same_time_where_they_had_requests_in_it() -> None:
    watched = Rollout(2, shares(r1=90), 0.05, since=0, old_requests=10_000, old_errors=0)
    assert decide_rollback(SECOND, watched, Counts(100, 50), Counts(10_100, 50))[0] is Verdict.WATCH
    assert decide_rollback(SECOND, watched, Counts(100, 50), Counts(10_005, 5))[0] is Verdict.BACK


def test_what_it_counted_by_a_tag_before_is_not_held_against_it() -> None:
    watched = Rollout(2, shares(r1=100), 0.05, since=0, new_requests=100, new_errors=100)
    assert decide_rollback(SECOND, watched, Counts(200, 100), Counts(1000, 0))[0] is Verdict.WATCH


def test_it_is_judged_only_with_traffic_and_has_proved_itself_after_the_window() -> None:
    waits = Rollout(2, shares(r1=100), 0.05)
    assert decide_rollback(SECOND, waits, Counts(100, 100, 9), Counts())[0] is Verdict.WATCH
    late = round(WINDOW_S * SECOND) + 1
    assert decide_rollback(late, ROLLOUT, Counts(100, 1), Counts(100, 0))[0] is Verdict.PROVED
    assert decide_rollback(late, ROLLOUT, Counts(100, 50), Counts(100, 0))[0] is Verdict.BACK


def test_the_reason_tells_both_shares() -> None:
    _, why = decide_rollback(SECOND, ROLLOUT, Counts(40, 20), Counts(1000, 10))
    assert why == "20 of its 40 requests failed (50.0%), 1.0% before"
