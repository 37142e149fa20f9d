"""How are the batches of a `map` carried? In the thread that consumes the results, over many connections at once; for coroutines,
a task for each request. What is sent when, `mapping.py` decides.

Nothing happens while nobody asks for the next result, but what is on its way goes on there. Dropping the iterator closes the
connections, and the replicas drop what they have not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from steelyard.sdk import address, caller, outcome, transport
from steelyard.sdk.address import Place
from steelyard.sdk.caller import Target, read_value
from steelyard.sdk.errors import NotReachable
from steelyard.sdk.frames import Buffer, Frame
from steelyard.sdk.mapping import Batch, Mapping
from steelyard.sdk.outcome import Failure
from steelyard.sdk.transport import AsyncExchange, Lost, Reply

#: results are handed out for so long before the connections are looked after again
LOOK_S = 0.002


class Judge:
    """What frames and endings mean to the mapping."""

    def __init__(self, target: Target, mapping: Mapping) -> None:
        self._target = target
        self._mapping = mapping
        self._keys_left = 3

    def frames(self, batch: Batch, came: list[Frame], reply: Reply) -> None:
        target = self._target
        if not self._mapping.width:
            self._mapping.width = int(reply.header(b"x-steelyard-width") or 1)
        self._mapping.on_frames(
            batch,
            came,
            lambda frame: read_value(frame, target, reply),
            lambda frame: outcome.read_error(frame, target.label, target.main_is(reply)),
            time.monotonic(),
            random.random(),
        )

    def done(self, batch: Batch, reply: Reply) -> None:
        failure = None
        if not reply.is_call:
            ran_s = time.monotonic() - batch.sent_s
            problem = transport.problem_of(reply)
            failure = self._explain(
                batch, outcome.read_problem(reply.status, problem, self._target.label, ran_s, self._target.timeout_s)
            )
            if failure.key and self._keys_left:
                self._keys_left -= 1
                address.forget()
                failure = Failure(failure.error, again=True)
        self._mapping.on_end(batch, failure, time.monotonic(), random.random())

    def broke(self, batch: Batch, err: Exception) -> None:
        now_s = time.monotonic()
        if isinstance(err, NotReachable):
            failure = outcome.unreachable(err)
        else:
            failure = self._explain(batch, outcome.lost(self._target.label, now_s - batch.sent_s, self._target.timeout_s))
        self._mapping.on_end(batch, failure, now_s, random.random())

    def _explain(self, batch: Batch, failure: Failure) -> Failure:
        return failure._replace(error=caller.explain_loss(failure.error, self._target, batch.sent_s))


class _Flight:
    """One request on its way."""

    def __init__(self, batch: Batch, place: Place, connection: socket.socket, request: list[Buffer]) -> None:
        self.batch = batch
        self.place = place
        self.connection = connection
        self.reply = Reply()
        self.unsent = deque(memoryview(buffer) for buffer in request)

    def send(self) -> bool:
        """As much as the kernel takes. True when all was sent."""
        while self.unsent:
            try:
                sent = self.connection.send(self.unsent[0])
            except transport.would_block():
                return False
            if sent == len(self.unsent[0]):
                self.unsent.popleft()
            else:
                self.unsent[0] = self.unsent[0][sent:]
        return True


class Driver:
    """Of one `map` in a thread."""

    def __init__(self, target: Target, mapping: Mapping) -> None:
        self._target = target
        self._mapping = mapping
        self._judge = Judge(target, mapping)
        self._selector = selectors.DefaultSelector()
        self._flights: dict[int, _Flight] = {}

    def results(self) -> Iterator[Any]:
        mapping = self._mapping
        try:
            while not mapping.finished:
                self._launch()
                if not mapping.ready:
                    self._look(self._patience())
                until_s = time.monotonic() + LOOK_S
                while mapping.ready and time.monotonic() < until_s:
                    yield mapping.take()
                if mapping.ready:
                    self._look(0.0)
        finally:
            for flight in self._flights.values():
                flight.connection.close()
            self._selector.close()

    def _patience(self) -> float | None:
        """How long nothing but an answer matters."""
        now_s = time.monotonic()
        at_s = self._mapping.wake_at(now_s)
        return None if at_s is None else max(0.0, at_s - now_s)

    def _launch(self) -> None:
        while (batch := self._mapping.next_batch(time.monotonic())) is not None:
            try:
                there = caller.gateway()
                connection = transport.pool.take(there.place)
            except NotReachable as err:
                self._judge.broke(batch, err)
                return
            connection.setblocking(False)
            flight = _Flight(batch, there.place, connection, self._target.request(there, batch.encode()))
            self._flights[connection.fileno()] = flight
            self._selector.register(connection, selectors.EVENT_READ)
            self._send(flight)

    def _send(self, flight: _Flight) -> None:
        try:
            sent = flight.send()
        except OSError:
            sent = True  # an answer may stand there all the same; reading tells
            flight.unsent.clear()
        wanted = selectors.EVENT_READ if sent else selectors.EVENT_READ | selectors.EVENT_WRITE
        if self._selector.get_key(flight.connection).events != wanted:
            self._selector.modify(flight.connection, wanted)

    def _look(self, wait_s: float | None) -> None:
        if not self._flights:
            if wait_s:
                time.sleep(wait_s)
            return
        for key, events in self._selector.select(wait_s):
            flight = self._flights[key.fd]
            if events & selectors.EVENT_WRITE:
                self._send(flight)
            if events & selectors.EVENT_READ:
                self._read(flight)

    def _read(self, flight: _Flight) -> None:
        reply = flight.reply
        while not reply.done:
            try:
                came = reply.feed(flight.connection.recv(transport.RECV_BYTES))
            except transport.would_block():
                return
            except (OSError, Lost) as err:
                self._land(flight, False)
                self._judge.broke(flight.batch, err)
                return
            if came:
                self._judge.frames(flight.batch, came, reply)
            if not flight.place.tls:  # where what was decrypted and not read yet wakes nobody
                break
        if reply.done:
            self._land(flight, reply.http.keep_alive and not flight.unsent)
            self._judge.done(flight.batch, reply)

    def _land(self, flight: _Flight, again: bool) -> None:
        del self._flights[flight.connection.fileno()]
        self._selector.unregister(flight.connection)
        if again:
            flight.connection.setblocking(True)
            transport.pool.give(flight.place, flight.connection)
        else:
            flight.connection.close()


async def results_async(target: Target, mapping: Mapping) -> AsyncIterator[Any]:
    """The same for coroutines."""
    judge = Judge(target, mapping)
    news = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()
    failed: list[Exception] = []

    async def carry(batch: Batch) -> None:
        try:
            there = await caller.gateway_async()
            async with await AsyncExchange.open(there.place, target.request(there, batch.encode())) as exchange:
                while not exchange.reply.done:
                    came = await exchange.read()
                    if came:
                        judge.frames(batch, came, exchange.reply)
                        news.set()
            judge.done(batch, exchange.reply)
        except (Lost, NotReachable) as err:
            judge.broke(batch, err)
        except Exception as err:
            failed.append(err)
        finally:
            news.set()

    try:
        while not mapping.finished:
            while (batch := mapping.next_batch(time.monotonic())) is not None:
                task = asyncio.ensure_future(carry(batch))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if not mapping.ready and not mapping.finished:  # the launch may have seen the end of the inputs
                now_s = time.monotonic()
                at_s = mapping.wake_at(now_s)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(news.wait(), None if at_s is None else max(0.0, at_s - now_s))
                news.clear()
                if failed:
                    raise failed[0]
            while mapping.ready:
                yield mapping.take()
    finally:
        for task in tasks:
            task.cancel()
