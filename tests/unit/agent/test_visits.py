"""Which replica is meant by whoever wants to be inside a function, and how long it is kept for them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from steelyard.agent.visits import HOLD_S, ReplicaThere, Visits, choose_replica
from steelyard.clock import VirtualClock
from steelyard.errors import Conflict, NotFound
from steelyard.model.ids import WorkloadId


def there(name: str, state: str = "serving") -> ReplicaThere:
    return ReplicaThere(WorkloadId(name), int(name.split(".")[1]), state)


#: the times in ids are of different lengths
SEVERAL = [there("f.1.ff"), there("f.2.9"), there("f.2.10"), there("f.2.11", "starting")]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", "f.2.10"), ("f.2.9", "f.2.9"), ("9", "f.2.9"), ("1.ff", "f.1.ff"), ("11", None), ("f.2.11", None)],
)
def test_the_newest_that_serves_is_meant_or_the_one_that_is_named(wanted: str, found: str | None) -> None:
    assert choose_replica(SEVERAL, 2, wanted) == found


def test_none_of_an_older_revision_is_meant_unless_it_is_named() -> None:
    assert choose_replica([there("f.1.ff")], 2, "") is None
    with pytest.raises(NotFound, match=r"are there: f\.2\.11, f\.2\.10, f\.2\.9, f\.1\.ff\."):
        choose_replica(SEVERAL, 2, "f")


class Revision:
    """As far as it is asked here; it serves when it was woken."""

    opened, draining = True, False

    def __init__(self) -> None:
        self.function = SimpleNamespace(revision=1)
        self.live: list[Any] = []
        self.refuses = False

    def wake(self) -> None:
        if self.refuses:
            raise Conflict("It could not be started.", code="start-failed")
        if not self.live:
            self.live.append(SimpleNamespace(workload=WorkloadId("f.1.a"), state="starting"))


def hold(visits: Visits, revision: Revision, wait_s: float = 30.0) -> Any:
    return visits.hold(lambda: [cast(Any, revision)], "", wait_s)


def test_whoever_asks_waits_until_it_serves_and_has_it_kept_for_a_moment() -> None:
    clock, inside, revision = VirtualClock(), set[WorkloadId](), Revision()
    visits = Visits(clock, lambda: inside)

    async def ask() -> None:
        asked = asyncio.create_task(hold(visits, revision))
        while not revision.live:
            await asyncio.sleep(0)
        visits.news.set()
        await asyncio.sleep(0)
        assert not asked.done() and visits.held == set()
        revision.live[0].state = "serving"
        visits.news.set()
        assert await asked == "f.1.a"

    asyncio.run(ask())
    assert visits.held == {"f.1.a"}
    clock.advance(HOLD_S + 0.1)
    assert visits.held == set()
    inside.add(WorkloadId("f.1.a"))
    assert visits.held == {"f.1.a"}, "somebody is inside"


def test_what_does_not_start_is_said_and_what_takes_long_can_be_asked_again() -> None:
    visits, revision = Visits(VirtualClock(), set), Revision()
    assert asyncio.run(hold(visits, revision, 0.0)) is None
    revision.live, revision.refuses = [], True
    with pytest.raises(Conflict, match="could not be started"):
        asyncio.run(hold(visits, revision))
    revision.draining = True
    with pytest.raises(Conflict, match="No revision of it can be reached"):
        asyncio.run(hold(visits, revision))
