"""How long do the functions of `run` and `serve` live? As long as the command that made them: it renews their lease, and deletes
them at its end. Should it be killed, the server deletes them when the lease is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from steelyard.cli.output import say
from steelyard.errors import SteelyardError
from steelyard.wire.function_api import LeaseRenewal, LeaseView
from steelyard.wire.http import ApiClient

#: outlives a restart of the server, and is renewed three times in between
LEASE_S = 30.0
RENEW_S = 8.0


class Ended(BaseException):
    """SIGTERM or SIGHUP: the command cleans up as after Ctrl-C. `code`: what a shell says of that end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


def make_suffix() -> str:
    """Of the names of one `run`. Five letters and digits: 33 million, and only what lives at the same time can meet."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    # not `secrets`, whose import costs a command more than a request
    return "-" + "".join(letters[byte % len(letters)] for byte in os.urandom(5))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    def end(signum: int, _frame: FrameType | None) -> None:
        raise Ended(signum)

    previous = {signum: signal.signal(signum, end) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Lease:
    """Of functions that are deployed meanwhile: add them by name. Renews on a thread of its own; deletes all at the end."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._names: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        # once more Ctrl-C must not leave them behind: this takes milliseconds
        with _deaf():
            self.give_back(list(self._names))

    def add(self, name: str) -> None:
        if name not in self._names:
            self._names.append(name)

    def give_back(self, names: Sequence[str]) -> None:
        """Delete these now."""
        self._names = [name for name in self._names if name not in names]
        if not names:
            return
        try:
            self._client.fetch(LeaseView, "POST", "/v1/leases", body=LeaseRenewal(tuple(names), 0.0))
        except SteelyardError as err:
            say(f"steelyard: {', '.join(names)} could not be deleted now; the server does it in {LEASE_S:.0f} s. {err.public}")

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            names = tuple(self._names)
            if not names:
                continue
            try:
                left = self._client.fetch(LeaseView, "POST", "/v1/leases", body=LeaseRenewal(names, LEASE_S)).names
            except SteelyardError:
                continue  # the server is away: the lease outlives its restart
            gone = [name for name in names if name not in left and name in self._names]
            if gone and not self._over.is_set():
                say(f"steelyard: {', '.join(gone)} was deleted by somebody else, or the server was away for too long.")
                self._names = [name for name in self._names if name not in gone]


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {signum: signal.signal(signum, signal.SIG_IGN) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
