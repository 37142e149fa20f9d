"""What does a YAML file say, when nothing in it may be clever? Mappings, lists and text only.

Every scalar stays text (`0190` is a name, `no` is a word). Aliases, tags, keys given twice and deep nesting are refused, so a
small file never becomes a large structure. PyYAML splits the text into events; the structure is built here and knows its lines.
"""

from __future__ import annotations

from typing import TypeAlias

import yaml

from steelyard.errors import Refused

CHARACTERS_MAX = 16 << 20
DEPTH_MAX = 32
#: libyaml's parser is some twenty times faster; the other one needs no compiler
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"


class PlainMapping(dict[str, Plain]):
    """A mapping, and where it stands: lines from 1."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        #: of each key
        self.lines: dict[str, int] = {}


class _Open:
    """A mapping or list that is not closed yet."""

    def __init__(self, value: dict[str, Plain] | list[Plain]) -> None:
        self.value = value
        self.key: str | None = None


def read_plain_yaml(text: str, source: str) -> Plain:
    """The one document in `text`. `Refused` for what is not plain."""
    done = read_plain_documents(text, source)
    if len(done) != 1:
        raise Refused(f"{source}: one YAML document is needed here, this file has {len(done)}")
    return done[0]


def read_plain_documents(text: str, source: str) -> list[Plain]:
    """All documents in `text`, in order. `Refused` for what is not plain."""
    if len(text) > CHARACTERS_MAX:
        raise Refused(f"{source}: this YAML file has more than {CHARACTERS_MAX >> 20} million characters: give a smaller one")
    done: list[Plain] = []
    stack: list[_Open] = []
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            _take(event, stack, done, source)
    except (yaml.YAMLError, RecursionError, ValueError) as err:
        where = getattr(err, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        problem = getattr(err, "problem", None) or "it can't be read"
        raise Refused(f"{source}: this is no YAML{line}: {problem}", detail=str(err)) from err
    return done


def _take(event: yaml.Event, stack: list[_Open], done: list[Plain], source: str) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise Refused(f"{source}: YAML aliases (*{event.anchor}) are not taken: write the value out")
    if isinstance(event, (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)) and event.tag not in (None, "!"):
        raise Refused(f"{source}: YAML tags ({event.tag}) are not taken: write plain text, lists and mappings")
    if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
        if len(stack) >= DEPTH_MAX:
            raise Refused(f"{source}: this YAML is nested deeper than {DEPTH_MAX} levels")
        if stack and isinstance(stack[-1].value, dict) and stack[-1].key is None:
            raise Refused(f"{source}: a key of a YAML mapping must be text")
        stack.append(_Open(PlainMapping(_line(event)) if isinstance(event, yaml.MappingStartEvent) else []))
    elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
        _add(stack.pop().value, stack, done, source, 0)
    elif isinstance(event, yaml.ScalarEvent):
        _add(event.value, stack, done, source, _line(event))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1


def _add(value: Plain, stack: list[_Open], done: list[Plain], source: str, line: int) -> None:
    if not stack:
        done.append(value)
        return
    top = stack[-1]
    if isinstance(top.value, list):
        top.value.append(value)
    elif top.key is None:
        # Only scalars come here: a mapping or list as key was refused when it began.
        top.key = str(value)
        if top.key in top.value:
            raise Refused(f"{source}: {top.key[:60]!r} stands twice in one YAML mapping")
        if isinstance(top.value, PlainMapping):
            top.value.lines[top.key] = line
    else:
        top.value[top.key] = value
        top.key = None
