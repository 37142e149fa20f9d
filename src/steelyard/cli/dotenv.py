"""What does a .env file say? Pure: its text in, names and values out; Refused with the line where it is no such file.

NAME=VALUE in each line, perhaps behind `export`. A value in single quotes is taken as it stands, one in double quotes knows
\\n, \\t, \\r, \\", \\\\ and \\$; both may go over several lines. A value without quotes ends at ` #`. Variables in values are not
filled in.
"""

from __future__ import annotations

import re

from steelyard.errors import Refused

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_NAME = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_BARE = re.compile(r"[^\n]*")
_REST = re.compile(r"[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$"}


def parse_dotenv(text: str, source: str) -> dict[str, str]:
    """Of a name that is given twice, the last value."""
    found: dict[str, str] = {}
    at = _SPACE.match(text, 0).end()  # type: ignore[union-attr]
    while at < len(text):
        name = _NAME.match(text, at)
        if name is None:
            raise _wrong(text, at, source, "write NAME=VALUE")
        value, at = _read_value(text, name.end(), source)
        found[name[1]] = value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    return found


def _read_value(text: str, at: int, source: str) -> tuple[str, int]:
    """The value that begins there, and where its line ends."""
    quote = text[at : at + 1]
    if quote not in ("'", '"'):
        bare = _BARE.match(text, at)
        assert bare is not None
        return re.split(r"(?:^|[ \t])#", bare[0])[0].strip(), bare.end()
    quoted = (_SINGLE if quote == "'" else _DOUBLE).match(text, at)
    if quoted is None:
        raise _wrong(text, at, source, f"the quote {quote} is never closed")
    rest = _REST.match(text, quoted.end())
    if rest is None:
        raise _wrong(text, quoted.end(), source, "something stands behind the closing quote")
    value = quoted[1] if quote == "'" else re.sub(r"\\(.)", _unescape, quoted[1], flags=re.S)
    return value, rest.end()


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[0])


def _wrong(text: str, at: int, source: str, why: str) -> Refused:
    """Never with what stands there: it may be a value."""
    return Refused(f"{source}:{text.count(chr(10), 0, at) + 1}: {why}. Nothing was stored.", code="bad-dotenv")
