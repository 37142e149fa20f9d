"""Which handlers run around the fork of a template? Those that the interpreter's own modules register (threading, logging) put in
order what other threads left behind. A template has one thread, and so has its child: nothing is to be put in order, and doing so
writes to a quarter of a megabyte that both share.

`Handlers` stands in for `os.register_at_fork` while the base is prepared and no code of others was imported. What it was given
runs around the fork of a replica, as ever, and not while `quiet` is set; what anybody registers later always runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[[], object]


class Handlers:
    def __init__(self) -> None:
        #: set around the fork of a template; its child calls `reseed`
        self.quiet = False
        #: set around the fork of a replica by a template, whose only thread it is: all of them run in the child
        self.lone = False
        self._register = os.register_at_fork
        #: all in the order in which they run
        self._before: list[Handler] = []
        self._in_parent: list[Handler] = []
        self._in_child: list[Handler] = []

    def collect(self) -> None:
        """From now on, until `stop`."""
        self._register(before=self._run_before, after_in_parent=self._run_in_parent, after_in_child=self._run_in_child)
        os.register_at_fork = self._take  # type: ignore[assignment]

    def stop(self) -> None:
        os.register_at_fork = self._register

    def _take(
        self, *, before: Handler | None = None, after_in_parent: Handler | None = None, after_in_child: Handler | None = None
    ) -> None:
        self._before[:0] = [before] if before else []
        self._in_parent += [after_in_parent] if after_in_parent else []
        self._in_child += [after_in_child] if after_in_child else []

    def _run_before(self) -> None:
        if not self.quiet and not self.lone:
            for handler in self._before:
                handler()

    def _run_in_parent(self) -> None:
        if not self.quiet and not self.lone:
            for handler in self._in_parent:
                handler()

    def _run_in_child(self) -> None:
        if not self.quiet:
            for handler in [*(self._before if self.lone else ()), *self._in_child]:
                handler()
            self.lone = False


_seeds: list[Callable[[], None]] = []


def reseed() -> None:
    """The one handler that is not about threads. By the base class, which has none of the options that cost pages."""
    random: Any = sys.modules.get("random")
    if not _seeds and random is not None:
        _seeds.append(super(random.Random, random._inst).seed)  # found once, by the base
    for seed in _seeds:
        seed()


#: of this process; they are collected from before threading is imported (see the boot line in runtime/template.py)
handlers = Handlers()
