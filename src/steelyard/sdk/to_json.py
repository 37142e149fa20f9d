"""What is a Python value in JSON, and what does a JSON text say?

Beyond what `json` knows: dataclasses, enums, dates, durations (seconds), UUID, Decimal, paths, bytes (base64), sets, arrays of
NumPy and PyTorch, models of pydantic and Structs of msgspec. A NamedTuple is a list. Pure; imports nothing of the user's.
"""

from __future__ import annotations

import base64
import collections
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import sys
import uuid
from typing import Any


class NoJson(TypeError):
    """A type, or a value, that has no JSON form."""


def name_of(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.") if isinstance(kind, type) else str(kind)


def show(value: Any) -> str:
    """For error texts, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def dumps(value: Any) -> bytes:
    """JSON of a result. NoJson says which type in it has none."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except NoJson:
        raise
    except RecursionError:
        raise NoJson("it holds itself, or is nested too deeply") from None
    except (TypeError, UnicodeEncodeError) as err:
        raise NoJson(str(err)) from None
    except ValueError as err:
        text = "it holds NaN or infinity, which JSON doesn't have" if "float" in str(err) else "it holds itself"
        raise NoJson(text) from None


def loads(text: str | bytes) -> Any:
    """ValueError for what is no JSON, or nested too deeply to be read."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _plain(found: object) -> Any:
    """What `json` doesn't know, by what it does."""
    value: Any = found
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(type(value), "__struct_fields__") and "msgspec" in sys.modules:
        return sys.modules["msgspec"].to_builtins(value)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime.date | datetime.time):  # datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, uuid.UUID | decimal.Decimal | pathlib.PurePath):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, collections.abc.Set | collections.deque | collections.abc.ValuesView):
        return list(value)
    if isinstance(value, collections.abc.Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy and PyTorch
        return value.tolist()
    if hasattr(value, "parse_obj") and hasattr(value, "dict"):
        return json.loads(value.json())
    raise NoJson(f"{name_of(type(value))} has no JSON form")
