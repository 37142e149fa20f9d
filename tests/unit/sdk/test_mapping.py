"""What a map sends and hands out, against a made-up platform that loses replicas, refuses, and answers out of order."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.sdk import frames
from steelyard.sdk.errors import Overloaded, ReplicaLost
from steelyard.sdk.frames import Frame
from steelyard.sdk.mapping import BATCH_MAX, WINDOW_MIN, Batch, Mapping
from steelyard.sdk.outcome import Failure, lost

REFUSED = Failure(Overloaded("full"), again=True)


def make(inputs: Iterator[Any], width: int = 4, retries: int = 0, ordered: bool = True, exceptions: bool = False) -> Mapping:
    return Mapping(
        inputs,
        lambda one: [pickle.dumps(one)],
        ordered=ordered,
        return_exceptions=exceptions,
        retries=retries,
        width=width,
        now_s=0.0,
    )


class Platform:
    """Answers batches in one of several ways; counts what it executes."""

    def __init__(self, mapping: Mapping, seed: int, faults: float) -> None:
        self.mapping = mapping
        self.random = random.Random(seed)
        self.faults = faults
        self.executed: Counter[int] = Counter()
        self.flying: list[Batch] = []
        self.now_s = 0.0

    def explain(self, frame: Frame) -> Failure:
        return Failure(ValueError(bytes(frame.segments[0]).decode()), retriable=True)

    def step(self) -> None:
        self.now_s += 0.01
        while (batch := self.mapping.next_batch(self.now_s)) is not None:
            self.flying.append(batch)
        if self.flying:
            self.answer(self.flying.pop(self.random.randrange(len(self.flying))))

    def answer(self, batch: Batch) -> None:
        fate = self.random.random()
        if fate < self.faults / 2:
            self.mapping.on_end(batch, REFUSED, self.now_s, 0.5)
            return
        count = len(batch.entries)
        begun = self.random.randrange(1, count + 1) if fate < self.faults else count
        if count > 1:
            self.tell(batch, [Frame(frames.STARTED, begun, [])])
        answered = list(range(begun))
        self.random.shuffle(answered)
        for number in answered:
            self.executed[pickle.loads(batch.entries[number].segments[0])] += 1
        if fate < self.faults:
            answered = answered[: self.random.randrange(begun)]
        for number in answered:
            self.tell(batch, [Frame(frames.RESULT, number, [batch.entries[number].segments[0]])])
        if fate < self.faults:
            self.mapping.on_end(batch, lost("f"), self.now_s, 0.5)
            return
        if count > 1:
            self.tell(batch, [Frame(frames.DONE, count, [(count * 1000).to_bytes(8, "little")])])
        self.mapping.on_end(batch, None, self.now_s, 0.5)

    def tell(self, batch: Batch, came: list[Frame]) -> None:
        self.mapping.on_frames(batch, came, lambda frame: pickle.loads(frame.segments[0]), self.explain, self.now_s, 0.5)


def run(mapping: Mapping, platform: Platform) -> list[Any]:
    results: list[Any] = []
    for _ in range(100_000):
        if mapping.finished:
            return results
        platform.step()
        while mapping.ready:
            results.append(mapping.take())
    raise AssertionError("it never ends")


@settings(max_examples=60)
@given(st.integers(0, 300), st.integers(0, 20), st.integers(), st.sampled_from([0.0, 0.3]), st.booleans(), st.integers(0, 2))
def test_every_input_has_one_outcome_and_runs_no_more_often_than_it_may(
    count: int, width: int, seed: int, faults: float, ordered: bool, retries: int
) -> None:
    mapping = make(iter(range(count)), width, retries, ordered, exceptions=True)
    platform = Platform(mapping, seed, faults)
    results = run(mapping, platform)
    assert len(results) == count
    good = [result for result in results if not isinstance(result, Exception)]
    if ordered:
        assert good == sorted(good)
        assert all(result == index for index, result in enumerate(results) if not isinstance(result, Exception))
    assert len(set(good)) == len(good)
    assert all(isinstance(result, ReplicaLost) for result in results if isinstance(result, Exception))
    assert max(platform.executed.values(), default=0) <= 1 + retries
    if not faults:
        assert sorted(good) == list(range(count))
        assert set(platform.executed.values()) <= {1}


def test_inputs_are_pulled_only_as_results_are_consumed() -> None:
    pulled: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            pulled.append(number)
            yield number
            number += 1

    mapping = make(endless())
    platform = Platform(mapping, 1, 0.0)
    for _ in range(500):
        platform.step()
    first = len(pulled)
    assert first <= max(WINDOW_MIN, 2 * BATCH_MAX * 5)
    for _ in range(100):
        platform.step()
    assert len(pulled) == first
    while mapping.ready:
        mapping.take()
    platform.step()
    assert len(pulled) > first


def test_batches_grow_with_short_inputs_and_stay_single_with_long_ones() -> None:
    for ran_ns, grows in ((1_000, True), (500_000_000, False)):
        mapping = make(iter(range(100_000)), width=2)
        sizes: list[int] = []
        for turn in range(30):
            batch = mapping.next_batch(turn)
            assert batch is not None
            sizes.append(len(batch.entries))
            count = len(batch.entries)
            came = [Frame(frames.RESULT, number, [pickle.dumps(1)]) for number in range(count)]
            came.append(Frame(frames.DONE, count, [(ran_ns * count).to_bytes(8, "little")]))
            mapping.on_frames(batch, came, lambda frame: 1, lambda frame: REFUSED, turn, 0.5)
            mapping.on_end(batch, None, turn, 0.5)
            while mapping.ready:
                mapping.take()
        assert sizes[0] == 1
        assert (max(sizes) > 500) is grows


def test_long_inputs_go_to_all_replicas_at_once_after_a_moment() -> None:
    mapping = make(iter(range(100)), width=8)
    first = 0
    while mapping.next_batch(0.0) is not None:
        first += 1
    assert first == 2
    wake_at = mapping.wake_at(0.0)
    assert wake_at is not None
    later = 0
    while mapping.next_batch(wake_at) is not None:
        later += 1
    assert first + later == 9


def test_an_input_that_cannot_be_encoded_is_its_own_result() -> None:
    def encode(one: int) -> list[bytes]:
        if one == 1:
            raise TypeError("no")
        return [pickle.dumps(one)]

    mapping = Mapping(iter(range(3)), encode, ordered=True, return_exceptions=True, retries=0, width=1, now_s=0.0)
    results = run(mapping, Platform(mapping, 0, 0.0))
    assert [results[0], results[2]] == [0, 2] and isinstance(results[1], TypeError)


def test_the_first_error_ends_it_unless_errors_are_results() -> None:
    for exceptions in (False, True):
        mapping = make(iter([7]), exceptions=exceptions)
        batch = mapping.next_batch(0.0)
        assert batch is not None
        failed = Frame(frames.ERROR, 0, [b"bad"])
        mapping.on_frames(batch, [failed], lambda frame: None, lambda frame: Failure(ValueError("bad")), 0.0, 0.5)
        mapping.on_end(batch, None, 0.0, 0.5)
        if exceptions:
            assert isinstance(mapping.take(), ValueError)
        else:
            with pytest.raises(ValueError, match="bad"):
                mapping.take()
        assert mapping.next_batch(0.0) is None and mapping.finished


def test_what_was_with_a_lost_replica_travels_alone_the_next_time() -> None:
    mapping = make(iter(range(50)), width=1, retries=1)
    mapping._batch = 10
    batch = mapping.next_batch(0.0)
    assert batch is not None and len(batch.entries) == 10
    mapping.on_frames(batch, [Frame(frames.STARTED, 4, [])], lambda frame: 0, lambda frame: REFUSED, 0.0, 0.5)
    mapping.on_end(batch, lost("f"), 0.0, 0.5)
    sizes = []
    for _ in range(5):
        again = mapping.next_batch(100.0)
        assert again is not None
        sizes.append((len(again.entries), again.entries[0].suspect))
        mapping.on_end(again, REFUSED, 100.0, 0.5)
    assert sizes.count((1, True)) >= 4


def test_what_a_generator_yields_is_collected() -> None:
    mapping = make(iter(["a"]))
    batch = mapping.next_batch(0.0)
    assert batch is not None
    came = [Frame(frames.YIELD, 0, [b"1"]), Frame(frames.YIELD, 0, [b"2"]), Frame(frames.END, 0, [])]
    mapping.on_frames(batch, came, lambda frame: int(frame.segments[0]), lambda frame: REFUSED, 0.0, 0.5)
    mapping.on_end(batch, None, 0.0, 0.5)
    assert mapping.take() == [1, 2]
