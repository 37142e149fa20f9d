"""How long does a command outlive an absent server? It calls again until the server is back, for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from steelyard.cli.output import say
from steelyard.cli.session import find_paths
from steelyard.clock import Clock
from steelyard.errors import Unreachable

T = TypeVar("T")

#: how long a submit and a log stream outlive an absent server
AWAY_S = 120.0


class Patience:
    """Calls again while the server is away, for a bounded time; at once gives up where nobody is there to bring it back. Several
    threads may call; an absence is said once."""

    def __init__(self, clock: Clock, supervised: Callable[[], bool]) -> None:
        self._clock = clock
        self.supervised = supervised
        self._pause = threading.Event()
        self._saying = threading.Lock()
        self._said = False

    def call(self, attempt: Callable[[], T], what: str) -> T:
        deadline_ns: int | None = None
        while True:
            try:
                answer = attempt()
                self._said = False
                return answer
            except Unreachable as err:
                if deadline_ns is None:
                    deadline_ns = self._clock.mono_ns() + int(AWAY_S * 1e9)
                    if self.supervised():
                        self._say(f"steelyard: the server is away; {what} goes on when it is back")
                if not self.supervised() or self._clock.mono_ns() > deadline_ns:
                    raise err
                self._pause.wait(0.1)

    def _say(self, text: str) -> None:
        with self._saying:
            if not self._said:
                self._said = True
                say(text)


def make_patience(home: Path | None, clock: Clock) -> Patience:
    def supervised() -> bool:
        from steelyard.cli.programs import SUPERVISOR, lives, load_record

        return lives(load_record(find_paths(home), SUPERVISOR))

    return Patience(clock, supervised)
