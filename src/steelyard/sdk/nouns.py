"""When does a function run by itself, and what is it given? Schedules, secrets and volumes as plain values.

Nothing here talks to anything; the command line reads the values when it deploys.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

from steelyard.sdk.errors import DeclarationError

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_name(name: object, what: str) -> str:
    """Names are small letters, digits and dashes, at most 63. DeclarationError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            f"{name!r} can't be the name of {what}: use small letters, digits and dashes, at most 63, such as 'my-name'."
        )
    return name


class _Value(ABC):
    """Equal by content."""

    __slots__ = ()

    @abstractmethod
    def as_json(self) -> dict[str, Any]: ...

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.as_json() == other.as_json()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.as_json().items())
        return f"steelyard.{type(self).__name__}({inside})"


class Cron(_Value):
    """Five fields (or `@daily` and the like), in a time zone. Whether it ever fires is checked when it is deployed."""

    __slots__ = ("line", "timezone")

    def __init__(self, line: str, timezone: str = "UTC") -> None:
        if not isinstance(line, str) or not (line.startswith("@") or len(line.split()) == 5):
            raise DeclarationError(f"{line!r} is no cron line. Write minute hour day month weekday, such as '*/5 * * * *'.")
        if not isinstance(timezone, str) or not timezone:
            raise DeclarationError(f"{timezone!r} is no time zone. Write for example 'Europe/Berlin'.")
        self.line = line
        self.timezone = timezone

    def as_json(self) -> dict[str, Any]:
        return {"cron": self.line, "timezone": self.timezone}


class Every(_Value):
    """A period: `Every(minutes=5)`. The parts add up."""

    __slots__ = ("seconds",)

    def __init__(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        if not 1 <= total <= 366 * 86400:
            raise DeclarationError(f"Every({total:g} s) is out of range: between one second and a year.")
        self.seconds = float(total)

    def as_json(self) -> dict[str, Any]:
        return {"every_s": self.seconds}


class Secret(_Value):
    """A secret of `steelyard secrets create NAME`, by its name; its values are never here. Its keys become variables of the
    function, or files below the folder `$STEELYARD_SECRETS/NAME`."""

    __slots__ = ("as_files", "name")

    def __init__(self, name: str, as_files: bool) -> None:
        self.name = check_name(name, "a secret")
        if not isinstance(as_files, bool):
            raise DeclarationError(f"as_files={as_files!r}: it is True or False.")
        self.as_files = as_files

    @classmethod
    def from_name(cls, name: str, *, as_files: bool = False) -> Secret:
        """Whether there is one of that name is checked when the function is deployed."""
        return cls(name, as_files)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "as_files": self.as_files}


class Volume(_Value):
    """A named folder that outlives what mounts it: `volumes={"/data": sy.Volume.from_name("data")}`. What is written there is on
    its disk, and seen by all others that mount it, at once."""

    __slots__ = ("create_if_missing", "name", "reads_only")

    def __init__(self, name: str, *, create_if_missing: bool = False, reads_only: bool = False) -> None:
        self.name = check_name(name, "a volume")
        self.create_if_missing = create_if_missing
        self.reads_only = reads_only

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False) -> Volume:
        """`create_if_missing`: made when the function is deployed; otherwise `steelyard volumes create` does it first."""
        return cls(name, create_if_missing=create_if_missing)

    def read_only(self) -> Volume:
        """The same one, which the function can't write."""
        return Volume(self.name, create_if_missing=self.create_if_missing, reads_only=True)

    def commit(self) -> None:
        """Nothing has to be done: what is written is there at once. For code that was written for Modal."""

    def reload(self) -> None:
        """Nothing has to be done: what others write is seen at once. For code that was written for Modal."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "create_if_missing": self.create_if_missing, "read_only": self.reads_only}
