"""Why can't this value travel? Finds the part that can't and says where it is: which variable of which function, which key of
which dict, which attribute of which object.

Only asked after pickling failed. Looks, and changes nothing.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Iterator
from typing import Any

#: values looked into at most, and how deep
LOOKS_MAX = 2000
DEPTH_MAX = 8

#: type's module and name begin with -> what to do instead
_HINTS = (
    ("socket.", "a socket"),
    ("ssl.", "a TLS connection"),
    ("_thread.", "a lock"),
    ("threading.", "a thread or lock"),
    ("multiprocessing.", "a lock or queue between processes"),
    ("queue.", "a queue between threads"),
    ("_queue.", "a queue between threads"),
    ("_io.", "an open file"),
    ("sqlite3.", "a database connection"),
    ("psycopg", "a database connection"),
    ("generator", "a generator"),
    ("async_generator", "a generator"),
    ("coroutine", "a coroutine that nobody awaited"),
    ("module", "a module"),
    ("_asyncio.", "part of an event loop"),
    ("asyncio.", "part of an event loop"),
)

_OPEN = ("socket.", "ssl.", "_thread.", "threading.", "_io.", "sqlite3.", "psycopg", "multiprocessing.")


def explain(value: Any, what: str, err: Exception) -> str:
    """One or two sentences for the user."""
    found = find(value)
    if found is None:
        return f"{what} can't travel: {_first_line(err)}"
    return tell(what, *found, "Give back what was made with it instead.")


def tell(what: str, path: str, part: Any, instead: str = "Open it inside the function, or in @sy.enter.") -> str:
    """What `find` found, for the user. `instead`: of what is open."""
    kind = describe_kind(part)
    where = f"{path} is {kind}" if path else f"it is {kind}"
    return f"{what} can't travel: {where}." + (f" {instead}" if _is_open(part) else "")


def find(value: Any) -> tuple[str, Any] | None:
    """(where, the innermost part that can't be pickled); None when the fault can't be pinned on one."""
    looks = [LOOKS_MAX]
    seen: set[int] = set()

    def descend(value: Any, path: str, depth: int) -> tuple[str, Any] | None:
        looks[0] -= 1
        if looks[0] < 0 or id(value) in seen:
            return None
        seen.add(id(value))
        if _travels(value):
            return None
        if depth < DEPTH_MAX:
            for where, part in _parts(value, path):
                found = descend(part, where, depth + 1)
                if found is not None:
                    return found
        return path, value

    return descend(value, "", 0)


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    inside = f" of {path}" if path else ""
    if isinstance(value, types.FunctionType):
        name = value.__qualname__
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield f"the variable '{variable}' that '{name}'{inside} holds on to", cell.cell_contents
            except ValueError:
                continue
        for variable in value.__code__.co_names:
            if variable in value.__globals__ and not isinstance(value.__globals__[variable], types.ModuleType):
                yield f"the global '{variable}' that '{name}'{inside} uses", value.__globals__[variable]
        for number, default in enumerate(value.__defaults__ or ()):
            yield f"default {number} of '{name}'{inside}", default
    elif isinstance(value, types.MethodType):
        yield f"the object of '{value.__qualname__}'{inside}", value.__self__
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r}]{inside}" if not path else f"{path}[{key!r}]", part
    elif isinstance(value, tuple | list | set | frozenset):
        for number, part in enumerate(value):
            yield f"{path}[{number}]" if path else f"[{number}]", part
    else:
        if type(value).__module__ in ("builtins", "_thread", "_io", "socket", "threading"):
            return
        attributes = dict(getattr(value, "__dict__", None) or {})
        for slot in getattr(type(value), "__slots__", ()) or ():
            if isinstance(slot, str) and hasattr(value, slot):
                attributes[slot] = getattr(value, slot)
        for name, part in attributes.items():
            yield f"{path}.{name}" if path else f"its attribute '{name}'", part


def _travels(value: Any) -> bool:
    from steelyard.sdk.payload import make_careful_pickler

    try:
        make_careful_pickler(False)(io.BytesIO(), 5, buffer_callback=lambda _: False).dump(value)
    except Exception:
        return False
    return True


def describe_kind(part: Any) -> str:
    kind = type(part)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    for begins, words in _HINTS:
        if name.startswith(begins):
            return f"{words} ({name})"
    return f"of type {name}, which can't be pickled"


def _is_open(part: Any) -> bool:
    kind = type(part)
    return f"{kind.__module__}.".startswith(_OPEN)


def _first_line(err: Exception) -> str:
    text = str(err) or type(err).__name__
    if isinstance(err, pickle.PicklingError | TypeError | AttributeError):
        return text.splitlines()[0]
    return f"{type(err).__name__}: {text.splitlines()[0]}"
