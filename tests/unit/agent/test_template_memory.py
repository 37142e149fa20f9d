"""Does the keeper evict and bring back what the pure rules say? Templates are stand-ins; no process is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from steelyard.agent.functions import FunctionKeeper


@dataclass
class Template:
    rss: int
    last_used_ns: int
    pid: int | None = 1
    missed_ns: int | None = None
    evicted_bytes: int = 0
    done: list[str] = field(default_factory=list)

    def evict(self) -> None:
        self.done.append("evicted")
        self.evicted_bytes, self.pid = self.rss, None

    def rebuild(self) -> None:
        self.done.append("rebuilt")


def make_keeper(templates: dict[str, Template], budget: int) -> FunctionKeeper:
    edges = SimpleNamespace(machine=SimpleNamespace(memory_bytes=1000), template_budget_bytes=budget)
    keeper = FunctionKeeper(
        cast(Any, edges),
        cast(Any, None),
        lambda: None,
        lambda _: None,
        devices=cast(Any, None),
        presence=cast(Any, None),
        lending=cast(Any, None),
    )
    hosts = {name: SimpleNamespace(hosts=[SimpleNamespace(name=name, template=item)]) for name, item in templates.items()}
    keeper._hosts = cast(Any, hosts)
    return keeper


def test_over_budget_the_least_recently_used_goes_and_returns_once_missed():
    old, new = Template(100, 1), Template(100, 2)
    keeper = make_keeper({"old": old, "new": new}, budget=150)
    keeper.check_memory(available_bytes=900)
    assert (old.done, new.done) == (["evicted"], [])
    keeper.check_memory(available_bytes=900)
    assert old.done == ["evicted"], "nobody missed it"
    old.missed_ns = 5
    keeper.check_memory(available_bytes=900)
    assert old.done == ["evicted"], "it would not fit"
    new.rss = 40
    keeper.check_memory(available_bytes=900)
    assert old.done == ["evicted", "rebuilt"]


def test_a_machine_short_of_memory_evicts_within_the_budget():
    only = Template(100, 1)
    make_keeper({"only": only}, budget=500).check_memory(available_bytes=10)
    assert only.done == ["evicted"]
