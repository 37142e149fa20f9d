"""What do words of a command line mean to a function? `parse(target, words)` gives (args, kwargs) by its signature.

    def train(data: str, *, epochs: int = 3, fast: bool = False, layers: list[int] = [])
    train.csv --epochs 5 --fast --layers 64 --layers 32        (or --layers '[64, 32]')

Parameters take words in order or by name (`--name value`, `--name=value`, `--flag`, `--no-flag`); after `--` all words are taken
in order. Annotations say how a word is read: text, numbers, bool, paths, enums, literals and lists of these; everything else is
JSON. Without an annotation the default's type counts, else a word is text. ArgumentError says which word is wrong and what was
expected.
"""

from __future__ import annotations

import enum
import inspect
import json
import pathlib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from steelyard.sdk.errors import Error

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LISTS: dict[Any, Callable[[list[Any]], Any]] = {list: list, tuple: tuple, set: set, frozenset: frozenset}


class ArgumentError(Error, ValueError):
    """The words do not fit the function; nothing was started."""


def parse(target: Callable[..., Any], words: Sequence[str], *, skip: int = 0) -> tuple[list[Any], dict[str, Any]]:
    """`skip`: so many first parameters are not the caller's (`self`)."""
    return _Parser(target, skip).parse(list(words))


def render_help(target: Callable[..., Any], name: str, *, skip: int = 0) -> str:
    """What `--help` behind the target shows. Pure."""
    parser = _Parser(target, skip)
    usage, lines = [name], list[tuple[str, str]]()
    for parameter in parser.named.values():
        kind = parser.kinds[parameter.name]
        option = _option(parameter.name)
        if kind is bool:
            option = f"{option} / --no-{option[2:]}"
        required = parameter.default is parameter.empty
        usage.append(f"{option} {_show(kind)}" if required and kind is not bool else f"[{option}]")
        said = "" if kind is bool else _show(kind)
        lines.append((f"  {option} {said}".rstrip(), "required" if required else f"default: {parameter.default!r}"))
    if parser.rest is not None:
        usage.append(f"[{parser.rest.name.upper()}...]")
    if parser.more is not None:
        usage.append("[--NAME VALUE ...]")
    width = max((len(left) for left, _ in lines), default=0)
    listed = "\n".join(f"{left.ljust(width)}  {right}" for left, right in lines)
    doc = inspect.getdoc(target) if target.__doc__ else ""
    return "\n\n".join(part for part in (f"Usage: {' '.join(usage)}", doc, listed) if part)


class _Parser:
    def __init__(self, target: Callable[..., Any], skip: int) -> None:
        parameters = list(inspect.signature(target).parameters.values())[skip:]
        self.named = {one.name: one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        self.rest = next((one for one in parameters if one.kind is one.VAR_POSITIONAL), None)
        self.more = next((one for one in parameters if one.kind is one.VAR_KEYWORD), None)
        try:
            hints = typing.get_type_hints(target)
        except Exception:
            hints = {}  # an annotation that only a type checker can resolve
        self.kinds = {one.name: _kind_of(one, hints.get(one.name, one.annotation)) for one in parameters}
        self._given: dict[str, list[str]] = {}
        self._extra: dict[str, list[str]] = {}

    def parse(self, words: list[str]) -> tuple[list[Any], dict[str, Any]]:
        in_order = self._take_named(words)
        free = [one.name for one in self.named.values() if one.kind is not one.KEYWORD_ONLY and one.name not in self._given]
        for name, word in zip(free, in_order, strict=False):
            self._given[name] = [word]
        left = in_order[len(free) :]
        if left and self.rest is None:
            takes = ", ".join(_option(name) for name in self.named) or "nothing"
            raise ArgumentError(f"{left[0]!r} is one word too many; the function takes {takes}.")
        return self._read(left)

    def _take_named(self, words: list[str]) -> list[str]:
        """Sets aside what is given by name; the words in order remain."""
        in_order: list[str] = []
        while words:
            word = words.pop(0)
            if word == "--":
                return [*in_order, *words]
            # a negative number is a value
            if not word.startswith("--") or len(word) == 2:
                in_order.append(word)
                continue
            written, equals, value = word[2:].partition("=")
            name = written.replace("-", "_")
            negated = name[3:] if name.startswith("no_") and name not in self.named else ""
            if negated and self.kinds.get(negated) is bool and not equals:
                self._given.setdefault(negated, []).append("false")
            elif name in self.named:
                if not equals:
                    value = "true" if self.kinds[name] is bool else self._value_of(word, words)
                self._given.setdefault(name, []).append(value)
            elif self.more is not None:
                self._extra.setdefault(name, []).append(value if equals else self._value_of(word, words))
            else:
                takes = ", ".join(_option(one) for one in self.named) or "no arguments"
                raise ArgumentError(f"There is no argument --{written}; the function takes {takes}.")
        return in_order

    @staticmethod
    def _value_of(word: str, words: list[str]) -> str:
        if not words:
            raise ArgumentError(f"{word} needs a value.")
        return words.pop(0)

    def _read(self, left: list[str]) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        by_place = True
        missing = [one.name for one in self.named.values() if one.default is one.empty and one.name not in self._given]
        if missing:
            raise ArgumentError(f"The function needs {', '.join(_option(name) for name in missing)}.")
        for one in self.named.values():
            if one.name not in self._given:
                # what comes behind it can only be given by name
                by_place = False
                continue
            value = _read_words(self._given[one.name], self.kinds[one.name], _option(one.name))
            if one.kind is one.KEYWORD_ONLY or not by_place:
                kwargs[one.name] = value
            else:
                args.append(value)
        if self.rest is not None and left:
            if not by_place:
                raise ArgumentError(f"{left[0]!r}: give the arguments before *{self.rest.name} too.")
            args += [_read_word(word, self.kinds[self.rest.name], self.rest.name) for word in left]
        for name, words in self._extra.items():
            assert self.more is not None
            kwargs[name] = _read_words(words, self.kinds[self.more.name], _option(name))
        return args, kwargs


def _kind_of(parameter: inspect.Parameter, annotation: Any) -> Any:
    """What its words are read as: a type, or a typing form."""
    if annotation is parameter.empty or isinstance(annotation, str):
        if parameter.default is parameter.empty or parameter.default is None:
            return str
        return type(parameter.default)
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _read_words(words: list[str], kind: Any, where: str) -> Any:
    """One value; lists take a word per item, or one word of JSON."""
    make = _LISTS.get(typing.get_origin(kind) or kind)
    if make is None:
        if len(words) > 1:
            raise ArgumentError(f"{where} is given {len(words)} times; it takes one value.")
        return _read_word(words[0], kind, where)
    inside = [one for one in typing.get_args(kind) if one is not Ellipsis]
    items: list[Any] = list(words)
    if len(words) == 1 and words[0].lstrip().startswith("["):
        items = _read_json(words[0], where)
        # their own types are looked at as if each had been given
        items = [item if isinstance(item, list | dict) else _as_word(item) for item in items]
    if len(inside) > 1 and len(inside) != len(items):
        raise ArgumentError(f"{where} takes {len(inside)} values, {_show(kind)}; not {len(items)}.")
    kinds = inside if len(inside) > 1 else (inside or [str]) * len(items)
    return make(
        [item if not isinstance(item, str) else _read_word(item, one, where) for item, one in zip(items, kinds, strict=True)]
    )


def _as_word(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def _read_word(word: str, kind: Any, where: str) -> Any:
    if kind is str or kind is Any or kind is object:
        return word
    try:
        if kind is bool:
            if word.lower() not in (*_TRUE, *_FALSE):
                raise ValueError
            return word.lower() in _TRUE
        if kind is int or kind is float:
            return kind(word)
        if typing.get_origin(kind) is typing.Literal:
            return next(one for one in typing.get_args(kind) if _as_word(one) == word or str(one) == word)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind[word] if word in kind.__members__ else next(one for one in kind if str(one.value) == word)
        if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
            return kind(word)
    except (ValueError, StopIteration):
        raise ArgumentError(f"{where}: {word!r} is not {_show(kind)}.") from None
    # imported here: most functions take numbers and text
    from steelyard.sdk.convert import FieldError, Shapes, read_text
    from steelyard.sdk.to_json import NoJson

    try:
        return read_text(Shapes().of(kind), [word], where)
    except FieldError as err:
        raise ArgumentError(f"{err} ({word!r})") from None
    except NoJson as err:
        raise ArgumentError(f"{where} can't be given on a command line: {err}.") from None


def _read_json(word: str, where: str) -> Any:
    try:
        return json.loads(word)
    except ValueError as err:
        raise ArgumentError(f"{where}: {word!r} is no JSON: {err}.") from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _show(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(kind.__members__)
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(str(one) for one in typing.get_args(kind))
    return {"str": "TEXT", "int": "INT", "float": "NUMBER"}.get(shown := inspect.formatannotation(kind), shown)
