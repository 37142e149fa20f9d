"""Which inputs of a `map` are sent together, how many requests are on their way, and what is handed out next? No I/O, no clock.

A driver (`map_drivers.py`) asks for batches, carries them, and tells what came back. How many inputs a batch holds follows from
how long they are seen to run; how many batches are on their way from how many inputs the replicas can work on. Inputs are pulled
only while fewer than a window of them are on their way or wait to be handed out.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from steelyard.sdk import frames
from steelyard.sdk.errors import Error
from steelyard.sdk.frames import Buffer, Frame
from steelyard.sdk.outcome import Attempts, Failure

#: a batch is meant to last that long in a replica
BATCH_NS = 30_000_000
BATCH_MAX = 2000
BATCH_BYTES = 1 << 20
#: what an input costs this side: shorter ones need no more replicas than this side can feed
OWN_NS = 20_000
#: requests after a lost replica that carry one input
CAREFUL = 50
#: without a result for so long, inputs are taken for long ones
PATIENCE_S = 0.02
#: on their way or waiting to be handed out, at most
WINDOW_MIN, WINDOW_MAX = 64, 20_000
WINDOW_BYTES = 256 << 20
#: requests on their way at a time; where the replicas can work on more inputs, each carries several
FLIGHTS_MAX = 256


class Entry:
    """One input."""

    __slots__ = ("attempts", "index", "items", "not_before", "segments", "size", "suspect")

    def __init__(self, index: int, segments: list[Buffer], attempts: Attempts) -> None:
        self.index = index
        self.segments = segments
        self.size = sum(map(len, segments))
        self.attempts = attempts
        self.not_before = 0.0
        #: it was with a replica that went away: it travels alone from now on
        self.suspect = False
        #: what a generator yielded so far
        self.items: list[Any] | None = None


class Batch:
    """Inputs in one request; an entry's place in `entries` is its id there."""

    def __init__(self, entries: list[Entry], sent_s: float) -> None:
        self.entries = entries
        self.sent_s = sent_s
        #: ids below this may have begun
        self.started = 1 if len(entries) == 1 else 0
        #: ids that were not answered
        self.open = set(range(len(entries)))

    def encode(self) -> list[Buffer]:
        buffers: list[Buffer] = []
        for number, entry in enumerate(self.entries):
            buffers += frames.encode(frames.CALL, number, entry.segments)
        return frames.join(buffers)


class Mapping:
    """`encode` makes an input's segments, `read` a frame's value (either may raise), `explain` an ERROR frame's failure."""

    def __init__(
        self,
        inputs: Iterator[Any],
        encode: Callable[[Any], list[Buffer]],
        *,
        ordered: bool,
        return_exceptions: bool,
        retries: int,
        width: int,
        now_s: float,
    ) -> None:
        self._inputs: Iterator[Any] | None = inputs
        self._encode = encode
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._retries = retries
        #: inputs that the replicas can work on; 0 until a reply tells
        self.width = width
        self._pulled = 0
        self._handed = 0
        self._bytes = 0
        self._began_s = now_s
        self._again: deque[Entry] = deque()
        #: (value, error) by index where order matters, else as they come
        self._ready: dict[int, tuple[Any, Exception | None]] = {}
        self._loose: deque[tuple[Any, Exception | None]] = deque()
        self._flying: set[Batch] = set()
        #: of one input in a replica, smoothed; 0: not known
        self._mean_ns = 0.0
        self._batch = 1
        #: after a lost replica so many requests carry one input, so that it is known which one it was
        self._careful = 0
        #: after an overflow fewer requests are made
        self._brake = 0

    # -- what is handed out

    @property
    def finished(self) -> bool:
        return self._inputs is None and not self._again and not self._flying and not self.ready

    @property
    def ready(self) -> bool:
        return self._handed in self._ready if self._ordered else bool(self._loose)

    def take(self) -> Any:
        """The next result; only when `ready`. Raises an input's error unless errors are results too."""
        value, error = self._ready.pop(self._handed) if self._ordered else self._loose.popleft()
        self._handed += 1
        if error is None:
            return value
        if self._return_exceptions:
            return error
        raise error

    # -- what is sent

    def next_batch(self, now_s: float) -> Batch | None:
        """The next request, or None when there is nothing to send or enough on its way. Pulls inputs."""
        if len(self._flying) >= self._flights(now_s):
            return None
        entries = self._due(now_s) or self._pull(now_s)
        if not entries:
            return None
        batch = Batch(entries, now_s)
        self._flying.add(batch)
        return batch

    def wake_at(self, now_s: float) -> float | None:
        """When to ask for a batch again although nothing came back; None: no need to."""
        times = [entry.not_before for entry in self._again]
        if not self._mean_ns and self._flying and now_s < self._began_s + PATIENCE_S:
            times.append(self._began_s + PATIENCE_S)
        return min(times, default=None)

    def _flights(self, now_s: float) -> int:
        most = min(FLIGHTS_MAX, self.width or 2) + 1
        if not self._mean_ns:
            wanted = most if now_s - self._began_s >= PATIENCE_S else 2
        else:
            wanted = max(3, int(self._mean_ns / OWN_NS))
        return max(1, min(most, wanted) >> self._brake)

    def _due(self, now_s: float) -> list[Entry]:
        """Inputs that are asked for again; a suspect travels alone."""
        found: list[Entry] = []
        for entry in list(self._again):
            if entry.not_before > now_s or len(found) >= self._batch:
                continue
            if entry.suspect and found:
                continue
            self._again.remove(entry)
            found.append(entry)
            if entry.suspect:
                break
        return found

    def _pull(self, now_s: float) -> list[Entry]:
        entries: list[Entry] = []
        size = 0
        window = min(WINDOW_MAX, max(WINDOW_MIN, 2 * self._batch * (self.width + 1)))
        count = min(self._batch, max(1, self._remaining() // max(1, self.width)))
        while (
            self._inputs is not None
            and len(entries) < count
            and size < BATCH_BYTES
            and self._pulled - self._handed < window
            and (self._bytes < WINDOW_BYTES or not self._flying)
        ):
            try:
                given = next(self._inputs)
            except StopIteration:
                self._inputs = None
                break
            index = self._pulled
            self._pulled += 1
            try:
                segments = self._encode(given)
            except Exception as err:
                self._settle(index, None, err)
                continue
            entry = Entry(index, segments, Attempts(self._retries, now_s))
            size += entry.size
            self._bytes += entry.size
            entries.append(entry)
        return entries

    def _remaining(self) -> int:
        """As far as the inputs tell."""
        return operator.length_hint(self._inputs, BATCH_MAX * 1000) if self._inputs is not None else 0

    # -- what came back

    def on_frames(
        self,
        batch: Batch,
        came: list[Frame],
        read: Callable[[Frame], Any],
        explain: Callable[[Frame], Failure],
        now_s: float,
        luck: float,
    ) -> None:
        for frame in came:
            kind = frame.kind
            if kind == frames.STARTED:
                batch.started = max(batch.started, frame.id)
                continue
            if kind == frames.DONE:
                self._note(batch, int.from_bytes(bytes(frame.segments[0]), "little"))
                continue
            if frame.id not in batch.open:
                continue
            entry = batch.entries[frame.id]
            if kind != frames.YIELD:
                batch.open.discard(frame.id)
            if kind == frames.ERROR:
                self._fail(entry, explain(frame), now_s, luck)
            elif kind == frames.END:
                self._end(entry, entry.items or [], None)
            else:
                try:
                    value = read(frame)
                except Exception as err:
                    batch.open.discard(frame.id)
                    self._end(entry, None, err)
                    continue
                if kind == frames.RESULT:
                    self._end(entry, value, None)
                elif entry.items is None:
                    entry.items = [value]
                else:
                    entry.items.append(value)

    def on_end(self, batch: Batch, failure: Failure | None, now_s: float, luck: float) -> None:
        """The request is over. `failure`: the answer broke off or was none; else its inputs were answered, or not begun."""
        self._flying.discard(batch)
        if failure is None:
            failure = Failure(Error("its replica is being replaced"), again=True)
        elif failure.again:
            self._brake = min(4, self._brake + 1)
        else:
            self._careful, self._batch = CAREFUL, 1
        for number in sorted(batch.open):
            entry = batch.entries[number]
            if number < batch.started and not failure.again:
                entry.suspect = len(batch.entries) > 1 or entry.suspect
                self._fail(entry, failure, now_s, luck)
            elif failure.retriable or failure.again:
                self._fail(entry, Failure(failure.error, again=True), now_s, luck)
            else:
                self._fail(entry, failure, now_s, luck)

    def _note(self, batch: Batch, ran_ns: int) -> None:
        mean = max(1.0, ran_ns / len(batch.entries))
        self._mean_ns = (self._mean_ns + mean) / 2 if self._mean_ns else mean
        fitting = max(int(BATCH_NS / self._mean_ns), -(-self.width // FLIGHTS_MAX))
        self._careful = max(0, self._careful - 1)
        self._batch = 1 if self._careful else max(1, min(BATCH_MAX, fitting, 8 * self._batch))
        self._brake = max(0, self._brake - 1)

    def _fail(self, entry: Entry, failure: Failure, now_s: float, luck: float) -> None:
        wait_s = entry.attempts.wait(failure, now_s, luck)
        if wait_s is None:
            self._end(entry, None, failure.error)
            return
        entry.items = None
        entry.not_before = now_s + wait_s
        self._again.append(entry)

    def _end(self, entry: Entry, value: Any, error: Exception | None) -> None:
        entry.segments = []
        self._bytes -= entry.size
        self._settle(entry.index, value, error)

    def _settle(self, index: int, value: Any, error: Exception | None) -> None:
        if self._ordered:
            self._ready[index] = (value, error)
        else:
            self._loose.append((value, error))
