"""Which texts must no error of a replica show? The values of the secrets that it was given, which it knows by their names.

A replica answers its callers itself, so nobody behind it could take a value out of a traceback. What it prints is hidden where
the log is shown. Nothing is looked at where there are no secrets.
"""

from __future__ import annotations

import contextlib
import os

#: `name.KEY name.KEY ...`, and the folder of those that are files
KEYS, FOLDER = "STEELYARD_SECRET_KEYS", "STEELYARD_SECRETS"
#: shorter ones would hide half of a text
VALUE_MIN = 6


def hidden_values() -> list[tuple[str, str]]:
    """(value, what is shown instead), the longest first."""
    found: list[tuple[str, str]] = []
    for told in os.environ.get(KEYS, "").split():
        name, _, key = told.partition(".")
        value = os.environ.get(key, "")
        if folder := os.environ.get(FOLDER):
            path = os.path.join(folder, name, key)
            with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
                value = file.read()
        if len(value.strip()) >= VALUE_MIN:
            found.append((value.strip(), f"[secret {told}]"))
    return sorted(found, key=lambda each: -len(each[0]))


def hide(text: str) -> str:
    for value, shown in hidden_values():
        text = text.replace(value, shown)
    return text


def hide_in_error(err: BaseException) -> None:
    """In what it was raised with, as far as those are texts."""
    values = hidden_values()
    if values and any(isinstance(each, str) for each in err.args):
        with contextlib.suppress(Exception):
            err.args = tuple(hide(each) if isinstance(each, str) else each for each in err.args)


def holds_value(raw: bytes) -> bool:
    return any(value.encode() in raw for value, _ in hidden_values())
