"""Which logs do functions have, and how are those of several shown while they run? On stderr, lines behind names."""

from __future__ import annotations

import sys
import threading

from steelyard.cli.attend import END, START, Cursor, cursor_after
from steelyard.cli.follow import Followers, Printer, Stream
from steelyard.cli.output import say
from steelyard.cli.session import quote
from steelyard.errors import NotFound, SteelyardError, Unreachable
from steelyard.wire.api import LogChunk
from steelyard.wire.http import ApiClient

#: between two questions while the server is away
AWAY_S = 0.3


def poll_function(client: ApiClient, name: str, cursor: Cursor, wait_s: float) -> LogChunk:
    params: dict[str, str | int | float] = {"stdout_offset": cursor.stdout, "stderr_offset": cursor.stderr, "wait_s": wait_s}
    return client.fetch(LogChunk, "GET", f"/v1/functions/{quote(name)}/logs", params=params, wait_s=wait_s)


def find_end(client: ApiClient, name: str) -> Cursor:
    """Where its log ends now. Its start, where there is none yet."""
    try:
        after = cursor_after(poll_function(client, name, END, 0.0))
    except NotFound:
        return START
    # what can't be read answers with the offset that was asked for
    return START if END.stdout in (after.stdout, after.stderr) else after


class FunctionLogs:
    """Shows on stderr what functions write, each line behind `[label]`. At the end, what is left is shown too."""

    def __init__(self, client: ApiClient, width: int) -> None:
        self._client = client
        self._followers = Followers()
        self._printer = Printer(width, sys.stderr.buffer, sys.stderr.buffer)
        self._streams: dict[str, tuple[str, Stream, Cursor]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="logs", daemon=True)

    def __enter__(self) -> FunctionLogs:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        self._over.set()
        self._followers.poke()
        self._thread.join()
        if kind is None:
            for name, stream, cursor in self._streams.values():
                self._finish(name, stream, cursor)
        self._printer.finish()

    def add(self, name: str, label: str, begin: Cursor = START) -> None:
        stream = Stream(label, lambda cursor, wait_s: self._poll(name, cursor, wait_s))
        self._streams[label] = (name, stream, begin)
        self._followers.add(stream, begin)

    def _poll(self, name: str, cursor: Cursor, wait_s: float) -> LogChunk:
        over = False
        try:
            return poll_function(self._client, name, cursor, wait_s)
        except NotFound:
            over = True  # it was deleted: that is the end of its log
        except Unreachable:
            # a server that comes back knows where we were
            self._over.wait(AWAY_S)
        return LogChunk(b"", b"", cursor.stdout, cursor.stderr, over, None, "", None, "")

    def _show(self) -> None:
        while not self._over.is_set():
            self._followers.wait(3600.0)
            try:
                taken = self._followers.take()
            except SteelyardError as err:
                say(f"steelyard: their output can't be shown any more: {err.public}")
                return
            for stream, chunk in taken:
                name, _, _ = self._streams[stream.label]
                self._streams[stream.label] = (name, stream, cursor_after(chunk))
                self._printer.write(stream.label, chunk)

    def _finish(self, name: str, stream: Stream, cursor: Cursor) -> None:
        while True:
            try:
                chunk = poll_function(self._client, name, cursor, 0.0)
            except SteelyardError:
                return  # nobody is there to be asked
            if not chunk.stdout and not chunk.stderr:
                return
            cursor = cursor_after(chunk)
            self._printer.write(stream.label, chunk)
