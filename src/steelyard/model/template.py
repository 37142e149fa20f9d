"""What is known of the templates that a function's replicas are forked from?"""

from __future__ import annotations

from typing import Any

import msgspec


class PackageSeen(msgspec.Struct, frozen=True):
    """A package that an environment has imported, with all that it imported first."""

    name: str
    ms: float
    #: memory that only this template had then
    bytes: int


class TemplateSeen(msgspec.Struct, frozen=True):
    """One template of the line from the base to the revision."""

    #: base, environment or revision
    role: str
    #: ready, or why nothing can be forked from it now: a value of `Reason`
    state: str
    pid: int | None = None
    #: microseconds since the epoch
    since: int | None = None
    #: replicas and templates forked from it, those forked ahead left out
    forks: int = 0
    #: templates that live and came from it
    children: int = 0
    #: bytes: resident, of that nobody else's, and of that shared with others
    resident_bytes: int = 0
    private_bytes: int = 0
    shared_bytes: int = 0
    #: all loaded modules; and by first name those that are no part of Python
    modules: int = 0
    top_level: dict[str, int] = {}
    #: an environment's, the slowest first
    packages: tuple[PackageSeen, ...] = ()
    #: a revision's: its own files, and what runs once before the fork
    import_ms: float = 0.0
    enter_ms: float = 0.0
    threads: tuple[str, ...] = ()
    #: what else makes a fork unsafe, and what to do about it
    unsafe: tuple[tuple[str, str], ...] = ()
    #: packages that are not imported before forks, and why
    left_out: tuple[tuple[str, str], ...] = ()
    #: in a container: of which image, and what the kernel keeps it apart by (namespaces, seccomp, capabilities)
    image: str = ""
    walls: dict[str, Any] = {}
