"""How does a process learn a way before anybody asks for it? CPython (since 3.11) writes into the code that it runs until it has
seen often enough what happens there, and until then looks up names, which writes to them: each template would do that in copied
pages. And what it runs lies all over, among what it does not, so that counting references copies a page for each function.

`practise` goes a way until there is nothing left to learn, and puts what ran on it side by side. Whoever goes it puts back what
that changes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from opcode import opmap
from types import CodeType, FunctionType
from typing import Any

from .holes import SMALL_MAX, fill_holes

#: CPython rewrites code after some eight runs, and then once more by what it meets there
ROUNDS = 16
#: functions of these packages are replaced by copies of their own; of others only their code is, which nobody can tell
_OURS = ("steelyard_runner", "steelyard")

_NOP = opmap["NOP"]
#: that of functions which lie side by side already
_gathered: set[CodeType] = set()


def practise(ways: Sequence[Callable[[int], None]], everything: bool) -> None:
    """The most usual one first; each is told how often it was gone before. `everything`: functions are looked for among all
    objects, which is written to each of them; otherwise by their names."""
    for way in reversed(ways):  # what is imported on the way is there before anything is moved
        way(0)
    for way in ways:  # what runs on the first lies together, then what else runs on the next
        _gather(_watch(lambda way=way: way(0)) - _gathered, everything)
    for way in reversed(ways):  # code that meets several kinds of objects is rewritten for the one that it met last
        for at in range(1, ROUNDS + 1):
            way(at)


def _gather(ran: set[CodeType], everything: bool) -> None:
    if everything:
        gc.unfreeze()  # what is frozen is not listed
        gc.collect()
    fill_holes()
    owners = list(_owners(ran))
    every = [each for each in gc.get_objects() if type(each) is FunctionType] if everything else _functions(owners)
    chosen = [each for each in every if each.__code__ in ran]
    moved = _copies([each.__code__ for each in chosen], ran)
    for function, code in zip(chosen, moved, strict=True):
        function.__code__ = code
    _replace(owners, set(moved))
    _gathered.update(moved)


def _copies(codes: list[CodeType], ran: set[CodeType]) -> list[CodeType]:
    """Side by side: what they are made of is there before, and those that they replace are released after."""
    longer = [_longer(code) for code in codes]
    constants = [tuple([_copies([each], ran)[0] if _is_of(each, ran) else each for each in code.co_consts]) for code in codes]
    made = zip(codes, longer, constants, strict=True)
    return [code.replace(co_code=text, co_consts=each) for code, text, each in made]


def _is_of(value: Any, ran: set[CodeType]) -> bool:
    return type(value) is CodeType and value in ran


def _longer(code: CodeType) -> bytes:
    """By instructions behind its end, which are never reached: small blocks lie by their size, all over, larger ones do not."""
    return code.co_code + bytes((_NOP, 0)) * max(0, (SMALL_MAX + 16 - sys.getsizeof(code)) // 2)


def _watch(way: Callable[[], None]) -> set[CodeType]:
    """The code that runs on it."""
    found: set[CodeType] = set()
    before = sys.getprofile()  # of a package that is loaded
    sys.setprofile(lambda frame, event, _: found.add(frame.f_code) if event == "call" else None)
    try:
        way()
    finally:
        sys.setprofile(before)
    return found


def _replace(owners: list[Any], moved: set[CodeType]) -> None:
    """Functions of ours that ran, by copies that lie side by side."""
    copies: dict[FunctionType, FunctionType] = {}
    for owner in owners:
        for name, value in list(vars(owner).items()):
            if type(value) is FunctionType and value.__code__ in moved and _is_ours(value.__module__):
                if value not in copies:
                    copies[value] = _copy(value)
                setattr(owner, name, copies[value])


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _OURS


def _copy(function: FunctionType) -> FunctionType:
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__, made.__qualname__, made.__module__ = function.__kwdefaults__, function.__qualname__, function.__module__
    made.__doc__, made.__annotations__ = function.__doc__, function.__annotations__
    made.__dict__.update(function.__dict__)
    return made


def _functions(owners: list[Any]) -> Iterator[FunctionType]:
    for owner in owners:
        values = list(vars(owner).values())
        for value in [*values, *chain.from_iterable(each.values() for each in values if type(each) is dict)]:
            for each in (value, getattr(value, "__func__", None), getattr(value, "fget", None), getattr(value, "fset", None)):
                if type(each) is FunctionType:
                    yield each


def _owners(ran: set[CodeType]) -> Iterator[Any]:
    """The modules that this code is of, ours, and the classes that are defined in them."""
    files = {code.co_filename for code in ran}
    for name, module in list(sys.modules.items()):
        if _is_ours(name) or f"<frozen {name}>" in files or getattr(module, "__file__", None) in files:
            yield module
            yield from _classes(module, name)


def _classes(owner: Any, module: str) -> Iterator[type]:
    for value in list(vars(owner).values()):
        if isinstance(value, type) and value.__module__ == module and value is not owner:
            yield value
            yield from _classes(value, module)
