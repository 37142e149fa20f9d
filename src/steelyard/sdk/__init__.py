"""How does user code tell Steelyard what to do before the first request and after the last, and where its own time goes?

    import steelyard as sy

    @sy.enter(shared=True)      # once, in the template, before any replica is forked: load weights here
    def load(): ...

    @sy.enter                   # in every replica, before it serves: connections, threads, anything that can't be shared
    def connect(): ...

    @sy.exit                    # in every replica, after its last request
    def disconnect(): ...

    with sy.phase("weights"):   # shows up by name in the cold-start ledger
        ...

The same on methods of an `@app.cls` class, where they get the instance. What else `sy` offers is in the files of this folder.

Standard library only, Python 3.10 and later. Never talks to anything: the runner reads `hooks`, `exits` and `recorded` after the
user's module was imported. Outside of Steelyard the decorators do nothing and `phase` only measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, overload

__all__ = ["enter", "exit", "phase"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: names kept in `recorded`; more are dropped, so that a name made from a request can't grow memory
PHASES_MAX = 64

#: (shared, function) in the order of registration; read by the runner
hooks: list[tuple[bool, Callable[[], Any]]] = []
#: in the order of registration; the runner runs them the other way round
exits: list[Callable[[], Any]] = []
#: milliseconds spent per phase name; read and cleared by the runner
recorded: dict[str, float] = {}
#: the runner turns this off after the first answer, so that phases in later requests cost next to nothing
recording = True


@overload
def enter(function: _F, /) -> _F: ...
@overload
def enter(*, shared: bool = False, snap: bool = False) -> Callable[[_F], _F]: ...
def enter(function: _F | None = None, /, *, shared: bool = False, snap: bool = False) -> _F | Callable[[_F], _F]:
    """Register a function without parameters (or a method of an `@app.cls` class) to run before the first request.

    `shared=True` (Modal's word: `snap=True`) runs once in the template and its memory is shared by all replicas; it must leave
    no thread and no open connection behind. Otherwise it runs in every replica and may be a coroutine function."""
    in_template = shared or snap

    def register(hook: _F) -> _F:
        _check_hook(hook, "enter")
        if _is_method(hook):
            from steelyard.sdk.declare import marks_of

            marks_of(hook).enter = "shared" if in_template else "replica"
        else:
            hooks.append((in_template, hook))
        return hook

    return register if function is None else register(function)


@overload
def exit(function: _F, /) -> _F: ...  # noqa: A001
@overload
def exit() -> Callable[[_F], _F]: ...  # noqa: A001
def exit(function: _F | None = None, /) -> _F | Callable[[_F], _F]:  # noqa: A001
    """Register a function without parameters (or a method of an `@app.cls` class) to run in every replica after its last
    request. It may be a coroutine function."""

    def register(hook: _F) -> _F:
        _check_hook(hook, "exit")
        if _is_method(hook):
            from steelyard.sdk.declare import marks_of

            marks_of(hook).exit = True
        else:
            exits.append(hook)
        return hook

    return register if function is None else register(function)


def _check_hook(hook: object, word: str) -> None:
    if not callable(hook):
        raise TypeError(f"@sy.{word} decorates a function without parameters")


def _is_method(hook: Callable[..., Any]) -> bool:
    """It stands in the body of a class: its class runs it, with an instance."""
    outside = getattr(hook, "__qualname__", "").rpartition(".")[0]
    return bool(outside) and not outside.endswith("<locals>")


class phase:
    """Measure a block under a name. Blocks of the same name add up; may be nested and used in coroutines."""

    __slots__ = ("_began", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._began = 0.0

    def __enter__(self) -> phase:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_exc: object) -> None:
        if recording and (self.name in recorded or len(recorded) < PHASES_MAX):
            spent_ms = (time.perf_counter() - self._began) * 1000
            recorded[self.name] = recorded.get(self.name, 0.0) + spent_ms
