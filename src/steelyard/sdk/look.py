"""What does a function take, and of which kind is it? As `inspect` tells, and nearly always without asking it.

Every template of a function asks this of the user's code. `inspect` goes a long way about it, for callables of all kinds, and
each step costs a template memory of its own; a plain function tells the same by its code. Everything else is left to `inspect`.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

#: what a plain function may have in its dict: by all others `inspect` is told something else
_OURS = frozenset(("__steelyard__",))

POSITIONAL_ONLY, PLAIN, ARGS, KEYWORD_ONLY, KWARGS = range(5)
_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: PLAIN,
    inspect.Parameter.VAR_POSITIONAL: ARGS,
    inspect.Parameter.KEYWORD_ONLY: KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD: KWARGS,
}

#: name, kind (of those above), whether it has a default
Taken = tuple[str, int, bool]


def parameters_of(function: Callable[..., Any]) -> list[Taken]:
    """In their order, without the first of a bound method. TypeError and ValueError as `inspect.signature` raises them."""
    plain = _plain(function)
    if plain is None:
        parameters = inspect.signature(function).parameters.values()
        return [(one.name, _KINDS[one.kind], one.default is not one.empty) for one in parameters]
    code = plain.__code__
    names, count, flags = code.co_varnames, code.co_argcount, code.co_flags
    first, by_name = count - len(plain.__defaults__ or ()), plain.__kwdefaults__ or {}
    found: list[Taken] = []
    for at in range(plain is not function, count):  # no comprehensions: those are functions, made in a template's copied pages
        found.append((names[at], POSITIONAL_ONLY if at < code.co_posonlyargcount else PLAIN, at >= first))
    last = count + code.co_kwonlyargcount
    if flags & inspect.CO_VARARGS:
        found.append((names[last], ARGS, False))
    for name in names[count:last]:
        found.append((name, KEYWORD_ONLY, name in by_name))
    if flags & inspect.CO_VARKEYWORDS:
        found.append((names[last + bool(flags & inspect.CO_VARARGS)], KWARGS, False))
    return found


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """As `typing.get_type_hints`, and raises what it raises."""
    plain = _plain(function)
    # up to Python 3.10 a default of None changes the hint
    if plain is None or sys.version_info < (3, 11):
        return typing.get_type_hints(function)
    given = plain.__annotations__
    for hint in given.values():
        if not _is_settled(hint):
            return typing.get_type_hints(function)
    found: dict[str, Any] = {}
    for name, hint in given.items():
        found[name] = type(None) if hint is None else hint
    return found


def is_async(function: Callable[..., Any]) -> bool:
    """A coroutine function, or one that gives an asynchronous generator."""
    plain = _plain(function)
    if plain is None:
        return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return bool(plain.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))


def is_generator(function: Callable[..., Any]) -> bool:
    """It yields, asynchronously or not."""
    plain = _plain(function)
    if plain is None:
        return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    return bool(plain.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))


def is_made_without(target: type) -> bool:
    """A class that has nothing to say about how it is made."""
    return type(target) is type and target.__init__ is object.__init__ and target.__new__ is object.__new__


def _plain(function: Any) -> FunctionType | None:
    """The function that it is, or is a bound method of."""
    bare = function.__func__ if type(function) is MethodType else function
    return bare if type(bare) is FunctionType and bare.__dict__.keys() <= _OURS else None


def _is_settled(hint: Any) -> bool:
    """Nothing in it is a text, or of a kind that is read in another way than it was written."""
    if type(hint) is types.GenericAlias or type(hint) is types.UnionType:
        return all(map(_is_settled, hint.__args__))
    return hint is None or isinstance(hint, type)
