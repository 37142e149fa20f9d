"""How is one input sent to a function, and its result brought back? For calling threads and, `..._async`, for coroutines.

The target says which function; `outcome.py` decides what is tried again. A generator's result is an iterator that reads on as it
is consumed; dropping it ends the work behind it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from steelyard.sdk import address, frames, outcome, payload, transport
from steelyard.sdk.errors import Error, NotAllowed, NotReachable, ReplicaLost
from steelyard.sdk.frames import CALL_PATH, CONTENT_TYPE, Buffer, Frame
from steelyard.sdk.outcome import Attempts, Failure
from steelyard.sdk.parameters import KEY
from steelyard.sdk.transport import AsyncExchange, Exchange, Lost, Reply

#: when the agent is asked how a replica ended: it may hear of it after its caller
ENDS_WAITS_S = (0.0, 0.05, 0.2)
#: by how much clocks may differ
CLOCKS_US = 100_000


class Target(NamedTuple):
    """What is called."""

    function: str
    method: str = ""
    retries: int = 0
    timeout_s: float | None = None
    #: inputs that all its replicas together work on; 0: not known here
    width: int = 0
    #: it was declared in this `__main__`
    home_is_main: bool = False
    #: of a class's instance
    parameters: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        return f"{self.function}.{self.method}" if self.method else self.function

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Buffer]:
        """PayloadError names the argument."""
        more = {KEY: self.parameters} if self.parameters else {}
        return payload.dumps_call(args, {**kwargs, **more}, self.label, self.home_is_main)

    def request(self, gateway: address.Gateway, body: list[Buffer]) -> list[Buffer]:
        path = f"/{self.function}{CALL_PATH}" + (f"/{self.method}" if self.method else "")
        return transport.make_request(gateway.place, "POST", path, gateway.key, body, CONTENT_TYPE)

    def main_is(self, reply: Reply) -> str:
        return (reply.header(b"x-steelyard-module") or payload.name_of_main()) if self.home_is_main else ""


class _TryAgain(Exception):
    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s


class OneCall:
    """The state of one input's attempts; no I/O."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._attempts = Attempts(target.retries, time.monotonic())
        self._keys_left = 1
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()

    def settle(self, failure: Failure) -> _TryAgain:
        """Raises the failure's error when it is the outcome."""
        if failure.key and self._keys_left:
            self._keys_left -= 1
            address.forget()
            return _TryAgain(0.0)
        wait_s = self._attempts.wait(failure, time.monotonic(), random.random())
        if wait_s is None:
            raise explain_loss(failure.error, self.target, self._began)
        return _TryAgain(wait_s)

    def settle_break(self, err: Exception) -> _TryAgain:
        """The connection failed or ended."""
        if isinstance(err, NotReachable):
            return self.settle(outcome.unreachable(err))
        return self.settle(outcome.lost(self.target.label, time.monotonic() - self._began, self.target.timeout_s))

    def settle_reply(self, reply: Reply) -> _TryAgain:
        """An answer without a result in it."""
        if reply.is_call:
            return self.settle(outcome.lost(self.target.label))
        ran_s = time.monotonic() - self._began
        problem = transport.problem_of(reply)
        return self.settle(outcome.read_problem(reply.status, problem, self.target.label, ran_s, self.target.timeout_s))

    def settle_error(self, frame: Frame, reply: Reply) -> _TryAgain:
        return self.settle(outcome.read_error(frame, self.target.label, self.target.main_is(reply)))

    def read(self, frame: Frame, reply: Reply) -> Any:
        return read_value(frame, self.target, reply)


def read_value(frame: Frame, target: Target, reply: Reply) -> Any:
    """PayloadError when the result can't be read here."""
    try:
        return payload.loads(frame.segments, target.main_is(reply))
    except Exception as err:
        raise payload.PayloadError(
            f"The result of {target.label} can't be read here ({type(err).__name__}: {err}). Can its types be imported?"
        ) from err


# -- for threads


def explain_loss(error: Exception, target: Target, began_s: float) -> Exception:
    """A ReplicaLost with how the replica ended, as far as the agent knows and tells soon; anything else as it is."""
    if not isinstance(error, ReplicaLost):
        return error
    since_us = int((time.time() - (time.monotonic() - began_s)) * 1e6) - CLOCKS_US
    for wait_s in ENDS_WAITS_S:
        time.sleep(wait_s)
        try:
            api = address.api()
            path = f"/v1/functions/{target.function}/ends"
            reply = transport.ask(api.place, transport.make_request(api.place, "GET", path, api.token, (), ""))
            ends = json.loads(reply.body) if reply.status == 200 else []
            told = outcome.tell_end(error, target.label, ends, since_us)
        except (Error, Lost, ValueError, KeyError, TypeError):
            return error  # only the gateway is known here
        if told is not None:
            return told
    return error


def gateway() -> address.Gateway:
    known = address.known_gateway()
    if known is not None:
        return known
    api = address.api()
    reply = transport.ask(api.place, transport.make_request(api.place, "GET", "/v1/call-key", api.token, (), ""))
    return _read_key(reply, api)


def call(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result, or the iterator of what a generator yields."""
    body = frames.encode(frames.CALL, 0, target.encode(args, kwargs))
    one = OneCall(target)
    while True:
        try:
            return _try(one, body)
        except _TryAgain as again:
            time.sleep(again.wait_s)


def _try(one: OneCall, body: list[Buffer]) -> Any:
    exchange: Exchange | None = None
    try:
        there = gateway()
        one.begin()
        exchange = Exchange(there.place, one.target.request(there, body))
        coming = exchange.frames()
        frame = next((frame for frame in coming if frame.kind != frames.STARTED), None)
        if frame is None:
            raise one.settle_reply(exchange.reply)
        if frame.kind == frames.ERROR:
            raise one.settle_error(frame, exchange.reply)
        if frame.kind == frames.RESULT:
            for _ in coming:
                pass
            return one.read(frame, exchange.reply)
        streamed, exchange = exchange, None
        return _stream(one, streamed, frame, coming)
    except (Lost, NotReachable) as err:
        raise one.settle_break(err) from err
    finally:
        if exchange is not None:
            exchange.close()


def _stream(one: OneCall, exchange: Exchange, first: Frame, coming: Iterator[Frame]) -> Iterator[Any]:
    with exchange:
        frame: Frame | None = first
        while frame is not None and frame.kind == frames.YIELD:
            yield one.read(frame, exchange.reply)
            try:
                frame = next(coming, None)
            except Lost as err:
                raise outcome.lost(one.target.label).error from err
        if frame is None:
            raise outcome.lost(one.target.label).error
        if frame.kind == frames.ERROR:
            raise outcome.read_error(frame, one.target.label, one.target.main_is(exchange.reply)).error
        for _ in coming:
            pass


# -- for coroutines


async def gateway_async() -> address.Gateway:
    known = address.known_gateway()
    if known is not None:
        return known
    api = address.api()
    reply = await transport.ask_async(api.place, transport.make_request(api.place, "GET", "/v1/call-key", api.token, (), ""))
    return _read_key(reply, api)


async def call_async(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result, or the asynchronous iterator of what a generator yields."""
    body = frames.encode(frames.CALL, 0, target.encode(args, kwargs))
    one = OneCall(target)
    while True:
        try:
            return await _try_async(one, body)
        except _TryAgain as again:
            import asyncio

            await asyncio.sleep(again.wait_s)


async def _try_async(one: OneCall, body: list[Buffer]) -> Any:
    exchange: AsyncExchange | None = None
    try:
        there = await gateway_async()
        one.begin()
        exchange = await AsyncExchange.open(there.place, one.target.request(there, body))
        coming = _frames(exchange)
        async for frame in coming:
            if frame.kind == frames.STARTED:
                continue
            if frame.kind == frames.ERROR:
                raise one.settle_error(frame, exchange.reply)
            if frame.kind == frames.RESULT:
                async for _ in coming:
                    pass
                return one.read(frame, exchange.reply)
            streamed, exchange = exchange, None
            return _stream_async(one, streamed, frame, coming)
        raise one.settle_reply(exchange.reply)
    except (Lost, NotReachable) as err:
        raise one.settle_break(err) from err
    finally:
        if exchange is not None:
            exchange.close()


async def _frames(exchange: AsyncExchange) -> AsyncIterator[Frame]:
    while not exchange.reply.done:
        for frame in await exchange.read():
            yield frame


async def _stream_async(one: OneCall, exchange: AsyncExchange, first: Frame, coming: AsyncIterator[Frame]) -> AsyncIterator[Any]:
    try:
        frame: Frame | None = first
        while frame is not None and frame.kind == frames.YIELD:
            yield one.read(frame, exchange.reply)
            try:
                frame = await anext(coming, None)
            except Lost as err:
                raise outcome.lost(one.target.label).error from err
        if frame is None:
            raise outcome.lost(one.target.label).error
        if frame.kind == frames.ERROR:
            raise outcome.read_error(frame, one.target.label, one.target.main_is(exchange.reply)).error
        async for _ in coming:
            pass
    finally:
        exchange.close()


def _read_key(reply: Reply, api: address.Api) -> address.Gateway:
    if reply.status == 200:
        return address.read_gateway(reply.body)
    problem = transport.problem_of(reply)
    if reply.status in (401, 403):
        raise NotAllowed(f"Steelyard at {api.place.authority} does not give a key: {problem.get('detail', reply.status)}")
    raise Error(
        f"Steelyard at {api.place.authority} answered {reply.status}: {problem.get('detail', 'nothing that is an answer')}"
    )
