"""Fair share: ranks as Slurm's fair tree gives them, and what they lead to when somebody lives by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.site import Account
from steelyard.scheduling.amounts import count_gpus
from steelyard.scheduling.fair_share import (
    GPU_CORES,
    HALF_LIFE_S,
    accrued,
    charge,
    fair_share_ranks,
    list_standings,
    run_time_us,
)
from steelyard.scheduling.snapshot import Holding

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
OWNER = Owner("root", 0)

NAMES = st.sampled_from(["a", "b", "lab", "lab/x", "lab/y", "lab/x/1", "lab/x/2", "ops", "ops/z"])
USAGES = st.sampled_from([0.0, 1.0, 2.0, 1e6])


def account(name: str, shares: float = 1.0, usage: float = 0.0, at: int = 0) -> Account:
    return Account(name, DEFAULT_PROJECT, OWNER, 1, shares, usage, at)


def running(name: str, started_at: int | None, demand: Resources | None = None, **fields: object) -> Holding:
    demand = demand or Resources()
    job = Job(
        JobId(f"j-{name}"),
        DEFAULT_PROJECT,
        Owner("u", 1),
        1,
        1,
        JobSpec("x", ("true",), "/", resources=demand, account=name),
        JobState.RUNNING,
        0,
        plan=Plan(),
        started_at=started_at,
    )
    return Holding(demand, Plan(), msgspec.structs.replace(job, **fields))


def live(shares: Mapping[str, float], rounds: int, slots: int = 2, busy: Mapping[str, range] | None = None) -> dict[str, float]:
    """Everybody always has work: at each hour's end whoever is first gets the slot that became free. Returns parts."""
    known = {name: account(name, part) for name, part in shares.items()}
    takers = [name for name in shares if not any(other.startswith(f"{name}/") for other in shares)]
    done: dict[str, float] = dict.fromkeys(takers, 0.0)
    held: list[tuple[str, int]] = []
    for step in range(rounds):
        now = step * HOUR // slots
        for name, began in [each for each in held if now - each[1] >= HOUR]:
            held.remove((name, began))
            known[name] = charge(known[name], accrued(Resources(), HOUR), now)
            done[name] += 1
        wanting = [name for name in takers if busy is None or step in busy.get(name, range(rounds))]
        ranks = fair_share_ranks(known.values(), [running(name, began) for name, began in held], now)
        first = min(wanting, key=lambda name: (ranks[name], name))
        held.append((first, now))
    return {name: count / sum(done.values()) for name, count in done.items()}


@pytest.mark.parametrize(
    ("shares", "parts"),
    [
        ({"a": 3, "b": 1}, {"a": 0.75, "b": 0.25}),
        ({"a": 1, "b": 1, "c": 2}, {"a": 0.25, "b": 0.25, "c": 0.5}),
        ({"lab": 3, "ops": 1, "lab/x": 2, "lab/y": 1}, {"ops": 0.25, "lab/x": 0.5, "lab/y": 0.25}),
    ],
)
def test_usage_converges_to_the_shares(shares: dict[str, float], parts: dict[str, float]) -> None:
    got = live(shares, rounds=600)
    assert got == {name: pytest.approx(part, abs=0.02) for name, part in parts.items()}


def test_who_was_away_overtakes_and_then_shares_again() -> None:
    got = live({"a": 1, "b": 1}, rounds=400, busy={"b": range(200, 400)})
    # b catches up on the half that it left to a, but for what has faded by then
    assert 0.42 < got["b"] <= 0.5


def test_an_idle_account_goes_first() -> None:
    accounts = [account("a", 100, usage=5.0), account("b", 1)]
    assert fair_share_ranks(accounts, (), 0) == {"b": 0, "a": 1}


def test_what_runs_counts_before_it_ends() -> None:
    assert fair_share_ranks((), [running("a", 0), running("b", HOUR)], 2 * HOUR) == {"b": 0, "a": 1}
    assert fair_share_ranks((), [running("a", None), running("b", HOUR)], 2 * HOUR) == {"a": 0, "b": 1}


def test_frozen_time_does_not_count() -> None:
    frozen = running("a", 0, state=JobState.SUSPENDED, suspended_at=HOUR, suspended_s=1800.0).job
    assert frozen is not None and run_time_us(frozen, 5 * HOUR) == HOUR // 2


def test_a_gpu_counts_as_many_cores() -> None:
    hour = accrued(Resources(1), HOUR)
    assert accrued(Resources(1, gpus=GpuDemand(count=2)), HOUR) == pytest.approx(hour * (1 + 2 * GPU_CORES))
    assert count_gpus(Resources(gpus=GpuDemand(count=2, fraction=0.25))) == 0.5
    assert count_gpus(Resources(gpus=GpuDemand(count=3, mig_profile="1c.2g.20gb"))) == pytest.approx(6 / 7)
    assert accrued(Resources(1.5, exclusive=True), HOUR) == pytest.approx(2 * hour)


def test_labs_come_before_their_members() -> None:
    """`lab` has used less of its part than `ops`, so both of its members go before, even the one who used much."""
    accounts = [account("lab", 10), account("lab/x", usage=90.0), account("lab/y", usage=10.0), account("ops", usage=50.0)]
    assert fair_share_ranks(accounts, (), 0) == {"lab/y": 0, "lab/x": 1, "ops": 2}


def test_equal_labs_are_ranked_as_one() -> None:
    accounts = [account("m/a", usage=30), account("m/b", usage=10), account("n/c", usage=35), account("n/d", usage=5)]
    assert fair_share_ranks(accounts, (), 0) == {"n/d": 0, "m/b": 1, "m/a": 2, "n/c": 3}


def test_an_account_equal_to_a_lab_has_the_rank_of_its_first_member() -> None:
    accounts = [account("a", usage=10), account("lab/x", usage=4), account("lab/y", usage=6), account("z", usage=99)]
    assert fair_share_ranks(accounts, (), 0) == {"a": 0, "lab/x": 0, "lab/y": 2, "z": 3}


def test_jobs_of_a_lab_itself_are_one_more_member() -> None:
    accounts = [account("lab", 5, usage=10), account("lab/x", usage=20)]
    assert fair_share_ranks(accounts, (), 0) == {"lab": 0, "lab/x": 1}
    whole = list_standings(accounts, (), 0)
    assert [(row.name, row.shares, row.usage, row.rank) for row in whole] == [("lab", 5, 30, 0), ("lab/x", 1, 20, 1)]


def test_accounts_that_only_jobs_name_are_ranked_and_labs_without_jobs_are_not() -> None:
    assert fair_share_ranks([account("lab/x", usage=1)], (), 0, names=["lab/new", "u"]) == {"lab/new": 1, "lab/x": 2, "u": 0}


def test_the_table_says_how_a_rank_came_about() -> None:
    rows = list_standings([account("a", 3, usage=50), account("b", 1, usage=50)], (), 0)
    assert [(row.norm_shares, row.norm_usage, row.level_fs, row.rank) for row in rows] == [
        (0.75, 0.5, 1.5, 0),
        (0.25, 0.5, 0.5, 1),
    ]
    assert list_standings([account("a")], (), 0)[0].level_fs == math.inf


def test_usage_fades_by_half_in_a_half_life() -> None:
    assert accrued(Resources(2), SECOND) == pytest.approx(2.0)
    day_by_day = sum(2 * 86400 * 2 ** (-(day + 0.5) / 7) for day in range(70))
    assert accrued(Resources(2), 70 * DAY) == pytest.approx(day_by_day, rel=1e-3)
    after = charge(account("a", usage=8.0), 0.0, round(3 * HALF_LIFE_S * SECOND))
    assert after.usage == pytest.approx(1.0) and after.usage_at == 3 * HALF_LIFE_S * SECOND


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 90 * DAY)), min_size=1, max_size=8))
def test_charges_add_up_to_the_closed_form_in_any_order(charges: list[tuple[float, int]]) -> None:
    grown = account("a")
    for amount, at in charges:
        grown = charge(grown, amount, at)
    end = max(at for _, at in charges)
    closed = math.fsum(amount * 2 ** (-(end - at) / SECOND / HALF_LIFE_S) for amount, at in charges)
    assert grown.usage_at == end and grown.usage == pytest.approx(closed, rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(1, 40 * DAY), min_size=1, max_size=6))
def test_usage_does_not_jump_when_an_attempt_ends(parts: list[int]) -> None:
    """Charged in pieces or at once, a run has used the same."""
    once = accrued(Resources(2), sum(parts))
    pieces, now = account("a"), 0
    for part in parts:
        now += part
        pieces = charge(pieces, accrued(Resources(2), part), now)
    assert pieces.usage == pytest.approx(once, rel=1e-9)


def slow_ranks(tree: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """The rules of Slurm's page, one by one, for accounts of which only leaves have usage."""
    leaves = [name for name in tree if not any(other.startswith(f"{name}/") for other in tree)]

    def siblings(name: str) -> list[str]:
        parent = name.rpartition("/")[0]
        return [other for other in tree if other.rpartition("/")[0] == parent]

    def usage(name: str) -> float:
        return math.fsum(tree[leaf][1] for leaf in leaves if leaf == name or leaf.startswith(f"{name}/"))

    def level_fs(name: str) -> float:
        level = siblings(name)
        part = tree[name][0] / math.fsum(tree[each][0] for each in level)
        used, of_all = usage(name), math.fsum(usage(each) for each in level)
        return math.inf if used == 0 else part / (used / of_all)

    ranks: dict[str, int] = {}

    def visit(names: Sequence[str], first: int | None) -> None:
        left = list(names)
        while left:
            most = max(level_fs(name) for name in left)
            equal = [name for name in left if level_fs(name) == most]
            left = [name for name in left if name not in equal]
            rank = len(ranks) if first is None else first
            first = None
            for name in equal:
                if name in leaves:
                    ranks[name] = rank
            visit([each for each in tree if each.rpartition("/")[0] in equal], rank)

    visit([name for name in tree if "/" not in name], None)
    return ranks


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from([1.0, 2.0, 5.0]), USAGES), min_size=1))
def test_ranks_are_what_the_rules_say_one_by_one(tree: dict[str, tuple[float, float]]) -> None:
    whole = {name: (1.0, 0.0) for leaf in tree for name in (leaf[: at - 1] for at in range(2, len(leaf)) if leaf[at - 1] == "/")}
    whole.update(tree)
    has_children = {name for name in whole if any(other.startswith(f"{name}/") for other in whole)}
    whole = {name: (shares, 0.0 if name in has_children else used) for name, (shares, used) in whole.items()}
    accounts = [account(name, *facts) for name, facts in whole.items()]
    ranks = fair_share_ranks(accounts, (), 0)
    assert ranks == slow_ranks(whole)
    assert ranks == fair_share_ranks(accounts[::-1], (), 0), "the order of the accounts does not count"
    assert list_standings(accounts, (), 0) == list_standings(accounts[::-1], (), 0)
