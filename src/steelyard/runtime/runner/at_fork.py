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
        self._register = os.register_at_fork

    def collect(self) -> None:
        """From now on, until `stop`."""
        os.register_at_fork = self._take  # type: ignore[assignment]

    def stop(self) -> None:
        os.register_at_fork = self._register

    def _take(self, **given: Handler) -> None:
        self._register(**{when: self._guard(handler) for when, handler in given.items()})  # type: ignore[arg-type]

    def _guard(self, handler: Handler) -> Handler:
        return lambda: self.quiet or handler()


def reseed() -> None:
    """The one handler that is not about threads. By the base class, which has none of the options that cost pages."""
    random: Any = sys.modules.get("random")
    if random is not None:
        super(random.Random, random._inst).seed()


#: of this process; they are collected from before threading is imported (see the boot line in runtime/template.py)
handlers = Handlers()
