"""Handlers of the interpreter's own modules run around the fork of a replica, and not around that of a template."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from steelyard.runtime.runner.at_fork import Handlers, reseed


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], object]]:
    """What the interpreter was given, by when it runs."""
    found: dict[str, Callable[[], object]] = {}
    monkeypatch.setattr(os, "register_at_fork", lambda **given: found.update(given))
    return found


def test_what_was_collected_runs_as_ever_but_not_while_it_is_quiet(registered: dict[str, Callable[[], object]]) -> None:
    said: list[str] = []
    handlers = Handlers()
    handlers.collect()
    os.register_at_fork(before=lambda: said.append("before"), after_in_child=lambda: said.append("child"))
    os.register_at_fork(before=lambda: said.append("before that"), after_in_parent=lambda: said.append("parent"))
    os.register_at_fork(after_in_child=lambda: said.append("child after that"))
    handlers.stop()
    for when in ("before", "after_in_parent", "after_in_child"):
        registered[when]()
    assert said == ["before that", "before", "parent", "child", "child after that"]  # the order of the interpreter's own
    handlers.quiet = True
    for handler in registered.values():
        handler()
    assert len(said) == 5
    handlers.quiet = False
    registered["after_in_parent"]()
    assert said[5:] == ["parent"]


def test_before_the_fork_of_a_replica_nothing_runs_in_its_template(registered: dict[str, Callable[[], object]]) -> None:
    said: list[str] = []
    handlers = Handlers()
    handlers.collect()
    for name in ("before", "after_in_parent", "after_in_child"):
        os.register_at_fork(**{name: functools.partial(said.append, name)})  # type: ignore[call-overload]
    handlers.stop()
    handlers.lone = True
    registered["before"]()
    registered["after_in_parent"]()
    assert said == []
    registered["after_in_child"]()
    assert said == ["before", "after_in_child"]
    for when in ("before", "after_in_parent", "after_in_child"):  # what the replica forks itself
        registered[when]()
    assert said[2:] == ["before", "after_in_parent", "after_in_child"]


def test_what_is_registered_later_always_runs(registered: dict[str, Any]) -> None:
    handlers = Handlers()
    handlers.collect()
    handlers.stop()
    handlers.quiet = True
    mine = object()
    os.register_at_fork(before=mine)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    assert registered["before"] is mine


def test_random_numbers_begin_anew() -> None:
    state = random.getstate()
    try:
        random.seed(1)
        same = random.random()
        random.seed(1)
        reseed()
        assert random.random() != same
    finally:
        random.setstate(state)
