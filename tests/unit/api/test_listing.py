"""Which jobs a list shows."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from steelyard.api.listing import Wanted, find_wanted, list_folded, parse_states
from steelyard.errors import NotFound, Refused
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.store import Tx
from steelyard.store.memory import MemoryStore


def make(name: str, state: JobState = JobState.QUEUED, account: str = "", user: str = "ann") -> Job:
    return Job(JobId(name), DEFAULT_PROJECT, Owner(user, 0), 1, 0, JobSpec("x", ("true",), "/", account=account), state, 0)


def list_(wanted: Wanted, fold: bool = False) -> list[str]:
    """Ids as a list over this store shows them; of an array `id*elements`."""
    store = MemoryStore()

    def put(tx: Tx) -> None:
        tx.put_job(make("j-000001", JobState.RUNNING, "lab/ann"))
        for id_, place in make_places(JobId("j-000002"), parse_array("0-3")):
            state = JobState.SUCCEEDED if place.index < 2 else JobState.QUEUED
            tx.put_job(msgspec.structs.replace(make(id_, state, "lab"), array=place))
        tx.put_job(make("j-000003", JobState.QUEUED, "laboratory", "bob"))

    async def play() -> list[str]:
        await store.write(put)
        found = await store.read(lambda tx: list_folded(tx, wanted) if fold else find_wanted(tx, wanted))
        return [f"{row[0].array.id}*{len(row)}" if isinstance(row, list) and row[0].array else row.id for row in found]  # type: ignore[union-attr]

    return asyncio.run(play())


def test_states_are_read_as_people_write_them() -> None:
    assert parse_states(JobState, " running,QUEUED, ") == {JobState.RUNNING, JobState.QUEUED}
    assert parse_states(JobState, None) is None


@pytest.mark.parametrize("text", ["", ",", "DONE", "RUNNING,DONE", "RUNNING QUEUED"])
def test_a_state_that_there_is_not_is_named(text: str) -> None:
    with pytest.raises(Refused, match="There are QUEUED, STARTING"):
        parse_states(JobState, text)


def test_an_array_is_one_row_when_folded_and_is_listed_when_one_of_its_elements_would_be() -> None:
    assert list_(Wanted(10)) == ["j-000001", "j-000002_0", "j-000002_1", "j-000002_2", "j-000002_3", "j-000003"]
    assert list_(Wanted(10), fold=True) == ["j-000001", "j-000002*4", "j-000003"]
    done = Wanted(10, frozenset({JobState.SUCCEEDED}))
    assert list_(done) == ["j-000002_0", "j-000002_1"]
    assert list_(done, fold=True) == ["j-000002*4"]
    assert list_(Wanted(10, frozenset({JobState.RUNNING})), fold=True) == ["j-000001"]


def test_the_newest_stay_when_there_are_more_than_asked_for() -> None:
    assert list_(Wanted(2)) == ["j-000002_3", "j-000003"]
    assert list_(Wanted(2), fold=True) == ["j-000002*4", "j-000003"]


def test_an_account_brings_those_below_it_and_no_namesake() -> None:
    assert list_(Wanted(10, account="lab"), fold=True) == ["j-000001", "j-000002*4"]
    assert list_(Wanted(1, account="lab/ann")) == ["j-000001"]
    assert list_(Wanted(10, user="bob")) == ["j-000003"]


def test_the_elements_of_one_array() -> None:
    assert list_(Wanted(10, frozenset({JobState.QUEUED}), array="2")) == ["j-000002_2", "j-000002_3"]
    assert list_(Wanted(10, array="2"), fold=True) == ["j-000002*4"]
    with pytest.raises(NotFound, match="no array 1"):
        list_(Wanted(10, array="1"))
