"""Who shares a template with whom, and what happens when one can't be made? No process is started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from msgspec.structs import replace

from steelyard.agent import template_tree
from steelyard.agent.template_tree import (
    FAILED_NS,
    Environment,
    TemplateTree,
    Wanted,
    base_key,
    environment_key,
    environment_variables,
    startup_variables,
)
from steelyard.clock import VirtualClock
from steelyard.errors import EdgeFailed
from steelyard.host.volumes import VolumeFolders
from steelyard.model.ids import FunctionName
from steelyard.model.mount import MountedVolume
from steelyard.runtime.template import Load, TemplateStatus

ENV = {"PATH": "/bin", "HOME": "/home", "PYTHONPATH": "/libs", "A": "b", "STEELYARD_TOKEN": "t1"}


def want(function: str = "f", ids: tuple[int, int] | None = (64000, 64000), python: str = "/py", **env: str) -> Wanted:
    return Wanted(FunctionName(function), python, ids, Load(function, {**ENV, **env}, "/code", "app.py", "app", 1))


def test_a_base_is_shared_by_all_that_an_interpreter_starts_alike_for() -> None:
    key = base_key(want(), "/lib", 1)
    assert key == base_key(want("g", A="c", STEELYARD_TOKEN="t2"), "/lib", 1)
    others = [
        base_key(want(PYTHONPATH="/others"), "/lib", 1),
        base_key(want(LD_PRELOAD="x.so"), "/lib", 1),
        base_key(want(ids=(1000, 1000)), "/lib", 1),
        base_key(want(python="/other"), "/lib", 1),
        base_key(want(), "/other", 1),
        base_key(want(), "/lib", 2),
        base_key(replace(want(), volumes=(MountedVolume("a", "/srv/a", "/a"),)), "/lib", 1),
        base_key(replace(want(), volumes=(MountedVolume("a", "/srv/a", "/a", read_only=True),)), "/lib", 1),
    ]
    assert len({key, *others}) == 9


def test_an_environment_is_shared_by_the_same_variables_and_packages_whatever_their_order() -> None:
    numpy = Environment(("numpy", "torch"), "s1")
    key = environment_key("base", ENV, numpy)
    assert key == environment_key("base", {**ENV, "STEELYARD_TOKEN": "t2"}, Environment(("torch", "numpy"), "s1"))
    others = [
        environment_key("base", {**ENV, "A": "c"}, numpy),
        environment_key("base", ENV, Environment(("numpy",), "s1")),
        environment_key("base", ENV, Environment(numpy.packages, "s2")),
        environment_key("other", ENV, numpy),
    ]
    assert len({key, *others}) == 5


def test_an_environment_knows_nothing_of_who_a_function_is() -> None:
    assert environment_variables(ENV) == {name: value for name, value in ENV.items() if name != "STEELYARD_TOKEN"}
    assert startup_variables(ENV) == {"PATH": "/bin", "HOME": "/home", "PYTHONPATH": "/libs"}


class Process:
    """Stands in for a template process. `answers` by role: what the next ones say, or raise; else they are ready."""

    answers: ClassVar[dict[str, list[Any]]] = {}
    made: ClassVar[list[tuple[str, tuple[str, ...]]]] = []

    def __init__(self, edges: object, workload: str, role: str, key: str, parent: str | None) -> None:
        self.workload, self.role, self.key, self.parent = workload, role, key, parent
        self.client: Any = None

    async def start(self, *arguments: object, **more: object) -> TemplateStatus:
        return await self._come(())

    async def grow(self, *arguments: object, packages: tuple[str, ...], **more: object) -> TemplateStatus:
        return await self._come(packages)

    async def _come(self, packages: tuple[str, ...]) -> TemplateStatus:
        Process.made.append((self.role, packages))
        await asyncio.sleep(0)
        planned = Process.answers.get(self.role)
        answer = planned.pop(0) if planned else TemplateStatus(state="ready")
        if isinstance(answer, Exception):
            raise answer
        self.client = SimpleNamespace(closed=asyncio.Event())
        return answer

    @property
    def forks(self) -> bool:
        return self.client is not None

    def end(self) -> None:
        self.client = None


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> TemplateTree:
    monkeypatch.setattr(template_tree, "TemplateProcess", Process)
    Process.answers, Process.made = {}, []
    edges = SimpleNamespace(lib_dir=Path("/lib"), clock=VirtualClock(), volumes=VolumeFolders(Path("/nonexistent"), ()))
    return TemplateTree(cast(Any, edges), cast(Any, SimpleNamespace(learned={})))


def parent_of(tree: TemplateTree, *packages: str) -> Any:
    return asyncio.run(tree.parent(want(), Environment(packages)))


def test_each_template_is_made_once_however_many_want_it(tree: TemplateTree) -> None:
    async def story() -> list[Any]:
        wanted = [tree.parent(want(f"f{at}"), Environment(("numpy",))) for at in range(5)]
        return await asyncio.gather(*wanted)

    found = asyncio.run(story())
    assert Process.made == [("base", ()), ("environment", ("numpy",))]
    assert len({id(each) for each in found}) == 1 and found[0].role == "environment"


def test_without_packages_the_base_itself_is_the_environment(tree: TemplateTree) -> None:
    assert parent_of(tree).role == "base"
    assert Process.made == [("base", ())]


def test_a_package_that_cannot_be_imported_before_a_fork_is_left_out_of_all_environments(tree: TemplateTree) -> None:
    culprit = TemplateStatus(state="failed", culprit="grpc", why="its import starts a thread 'poller'")
    Process.answers = {"environment": [culprit]}
    assert parent_of(tree, "grpc", "numpy").role == "environment"
    assert parent_of(tree, "grpc").role == "base"
    assert Process.made == [("base", ()), ("environment", ("grpc", "numpy")), ("environment", ("numpy",))]
    assert list(tree.left_out.values()) == [{"grpc": "its import starts a thread 'poller'"}]


def test_an_environment_that_comes_to_nothing_is_done_without_for_a_while(tree: TemplateTree) -> None:
    Process.answers = {"environment": [EdgeFailed("it ended while it imported", code="start-failed")]}
    assert parent_of(tree, "crashes").role == "base"
    assert parent_of(tree, "crashes").role == "base"
    assert Process.made.count(("environment", ("crashes",))) == 1
    cast(Any, tree._edges).clock.advance(FAILED_NS / 1e9 + 1)
    assert parent_of(tree, "crashes").role == "environment"


def test_a_base_that_fails_is_an_error_in_its_own_words_and_is_tried_again(tree: TemplateTree) -> None:
    Process.answers = {"base": [TemplateStatus(state="failed", traceback="could not prepare its HTTP server")]}
    with pytest.raises(EdgeFailed, match="HTTP server"):
        parent_of(tree)
    assert parent_of(tree).role == "base"


def test_one_that_has_ended_is_made_again_when_it_is_wanted(tree: TemplateTree) -> None:
    first = parent_of(tree, "numpy")
    assert tree.on_exit(cast(Any, SimpleNamespace(workload=first.workload, exit_code=None, signal=9)))
    assert not tree.on_exit(cast(Any, SimpleNamespace(workload="tmpl.f.1.x", exit_code=0, signal=None)))
    second = parent_of(tree, "numpy")
    assert second is not first and [role for role, _ in Process.made] == ["base", "environment", "environment"]
