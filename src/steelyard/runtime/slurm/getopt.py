"""What does a command line say, read as getopt_long reads it? Words in, pairs of option and value out.

`--name=value`, `--name value`, unambiguous beginnings of long names, `-nVALUE`, `-n VALUE`, several flags in one word (`-Hv`),
and `--` as the end. Reading stops at the first word that is no option: what follows belongs to the program that is named there.
"""

from __future__ import annotations

from typing import NamedTuple

#: how an option takes a value
NONE, NEEDED, MAY = "none", "needed", "may"


class Option(NamedTuple):
    name: str
    #: one letter, or ""
    short: str = ""
    value: str = NEEDED
    #: what is done about it: "acts", "ignored", "refused" or "client" (only the command itself minds)
    does: str = "acts"
    #: a sentence for people: what it becomes, or why it does not
    becomes: str = ""


class Given(NamedTuple):
    option: Option
    value: str | None
    #: which of the words named it
    at: int

    @property
    def text(self) -> str:
        """As one would write it."""
        return f"--{self.option.name}" if self.value is None else f"--{self.option.name}={self.value}"


class NotUnderstood(ValueError):
    """`at` is the word's place."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


def read_options(table: tuple[Option, ...], words: list[str]) -> tuple[list[Given], int]:
    """The options, and the place of the first word that is none of them. Raises NotUnderstood."""
    found: list[Given] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return found, at + 1
        if word == "-" or not word.startswith("-"):
            break
        at += _read_long(table, words, at, found) if word.startswith("--") else _read_short(table, words, at, found)
    return found, at


def find_option(table: tuple[Option, ...], name: str, at: int = 0) -> Option:
    """By its name or an unambiguous beginning of it."""
    exact = [option for option in table if option.name == name]
    matches = exact or [option for option in table if name and option.name.startswith(name)]
    if not matches:
        raise NotUnderstood(f"there is no option --{name[:80]}", at)
    if len(matches) > 1:
        names = ", ".join(f"--{option.name}" for option in matches)
        raise NotUnderstood(f"--{name[:80]} may mean {names}: write it out", at)
    return matches[0]


def _read_long(table: tuple[Option, ...], words: list[str], at: int, found: list[Given]) -> int:
    """How many words it took."""
    name, equals, value = words[at][2:].partition("=")
    option = find_option(table, name, at)
    if equals:
        if option.value == NONE:
            raise NotUnderstood(f"--{option.name} takes no value", at)
        found.append(Given(option, value, at))
        return 1
    if option.value != NEEDED:
        found.append(Given(option, None, at))
        return 1
    if at + 1 == len(words):
        raise NotUnderstood(f"--{option.name} needs a value", at)
    found.append(Given(option, words[at + 1], at))
    return 2


def _read_short(table: tuple[Option, ...], words: list[str], at: int, found: list[Given]) -> int:
    word = words[at]
    for place in range(1, len(word)):
        option = next((option for option in table if option.short == word[place]), None)
        if option is None:
            raise NotUnderstood(f"there is no option -{word[place]}", at)
        rest = word[place + 1 :]
        if option.value == NONE:
            found.append(Given(option, None, at))
        elif rest.startswith("="):
            raise NotUnderstood(f"-{option.short}{rest[:40]}: write -{option.short} VALUE or --{option.name}=VALUE", at)
        elif rest or option.value == MAY:
            found.append(Given(option, rest or None, at))
            return 1
        elif at + 1 == len(words):
            raise NotUnderstood(f"-{option.short} (--{option.name}) needs a value", at)
        else:
            found.append(Given(option, words[at + 1], at))
            return 2
    return 1
