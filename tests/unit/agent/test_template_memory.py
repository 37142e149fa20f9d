"""Does the keeper evict and bring back what the pure rules say? Templates are stand-ins; no process is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from agent_parts import no_secrets
from steelyard.agent.functions import ASLEEP_NS, FunctionKeeper
from steelyard.clock import VirtualClock


@dataclass
class Template:
    own_bytes: int
    last_used_ns: int
    process: object = field(default_factory=lambda: SimpleNamespace(parent="tmpl-environment.e.1"))
    missed_ns: int | None = None
    evicted_bytes: int = 0
    done: list[str] = field(default_factory=list)
    parent_key: str = "e"
    wanted: object = field(default_factory=lambda: SimpleNamespace(image=None))
    ready: bool = True

    def evict(self) -> None:
        self.done.append("evicted")
        self.evicted_bytes, self.process, self.ready = self.own_bytes, None, False

    def rebuild(self) -> None:
        self.done.append("rebuilt")


class Node:
    """An environment that ends when it is told to."""

    def __init__(self, key: str, own_bytes: int) -> None:
        self.key, self.own_bytes, self.last_used_ns = key, own_bytes, 0
        self.workload, self.parent = f"tmpl-environment.{key}.1", "tmpl-base.b.1"
        self.ended = False

    def end(self) -> None:
        self.ended = True


def look(keeper: FunctionKeeper, available_bytes: int = 900) -> None:
    """As often as it is while everything sleeps."""
    cast(VirtualClock, keeper._edges.clock).advance(ASLEEP_NS / 1e9)
    keeper.check_memory(available_bytes)


def make_keeper(templates: dict[str, Template], budget: int, *nodes: Node) -> FunctionKeeper:
    edges = SimpleNamespace(machine=SimpleNamespace(memory_bytes=1000), template_budget_bytes=budget, clock=VirtualClock())
    keeper = FunctionKeeper(
        cast(Any, edges),
        cast(Any, None),
        lambda: None,
        lambda _: None,
        on_wake=lambda: None,
        devices=cast(Any, None),
        presence=cast(Any, None),
        lending=cast(Any, None),
        secrets=no_secrets(),
    )
    hosts = {name: SimpleNamespace(hosts=[SimpleNamespace(name=name, template=item)]) for name, item in templates.items()}
    keeper._hosts = cast(Any, hosts)
    keeper.tree.nodes = cast(Any, {node.key: node for node in nodes})
    return keeper


def test_over_budget_the_least_recently_used_goes_and_returns_once_missed() -> None:
    old, new = Template(100, 1), Template(100, 2)
    keeper = make_keeper({"old": old, "new": new}, 150)
    look(keeper)
    assert (old.done, new.done) == (["evicted"], [])
    look(keeper)
    assert old.done == ["evicted"], "nobody missed it"
    old.missed_ns = 5
    look(keeper)
    assert (old.done, new.done) == (["evicted", "rebuilt"], ["evicted"]), "it was wanted later than the other"


def test_a_machine_short_of_memory_evicts_within_the_budget() -> None:
    only = Template(100, 1)
    make_keeper({"only": only}, 500).check_memory(available_bytes=10)
    assert only.done == ["evicted"]


def test_an_environment_goes_only_when_no_living_template_came_from_it() -> None:
    child, environment = Template(100, 1), Node("e", 300)
    keeper = make_keeper({"child": child}, 450, environment)
    look(keeper)
    assert (child.done, environment.ended) == ([], False), "what it holds is its child's too"
    cast(Any, keeper._edges).template_budget_bytes = 350
    look(keeper)
    assert (child.done, environment.ended) == (["evicted"], False), "held together they are over the budget"
    look(keeper, 10)
    assert environment.ended and not keeper.tree.nodes


def test_while_everything_sleeps_it_is_looked_at_now_and_then_but_at_once_when_memory_is_short_or_somebody_woke() -> None:
    one, two = Template(100, 1), Template(100, 2)
    keeper = make_keeper({"one": one, "two": two}, 500)
    look(keeper)
    cast(Any, keeper._edges).template_budget_bytes = 150
    keeper.check_memory(900)
    assert (one.done, two.done) == ([], []), "nobody woke, so nothing can have changed"
    keeper._awake[cast(Any, "two")] = None
    keeper.check_memory(900)
    assert (one.done, two.done) == (["evicted"], [])
    keeper._awake.clear()
    keeper.check_memory(10)
    assert two.done == ["evicted"], "the machine is short of memory"
