"""What is a call that outlives its caller? `f.spawn(...)` gives a `FunctionCall`; the server carries it out at least once, also
when it is restarted meanwhile, and keeps its result for seven days.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from steelyard.sdk import address, frames, outcome, transport
from steelyard.sdk.caller import Target, read_value
from steelyard.sdk.errors import CallCancelled, Error, NotAllowed, NotDeployed, NotReachable, ReplicaLost, ResultPending
from steelyard.sdk.frames import CONTENT_TYPE, Buffer
from steelyard.sdk.transport import Lost, Reply

R = TypeVar("R")

#: one long poll
POLL_S = 20.0
#: how long a server that does not answer is asked again
PATIENCE_S = 30.0


class FunctionCall(Generic[R]):
    """`object_id` names it anywhere: `FunctionCall.from_id(object_id)`."""

    def __init__(self, object_id: str, target: Target | None = None) -> None:
        self.object_id = object_id
        self._target = target or Target("")

    @classmethod
    def from_id(cls, object_id: str) -> FunctionCall[Any]:
        """Nothing is asked yet."""
        return FunctionCall(object_id)

    def __repr__(self) -> str:
        return f"<steelyard.FunctionCall {self.object_id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return FunctionCall.from_id, (self.object_id,)

    @property
    def get(self) -> Get[R]:
        """`get(timeout=None)`: its result once it is there, or its exception. ResultPending when the time is over first."""
        return Get(self)

    def cancel(self) -> None:
        """Waiting, it is not carried out any more; running, it is broken off. One that has ended is left as it is."""
        _check(_ask("POST", f"/v1/calls/{quote(self.object_id)}/cancel", key=uuid.uuid4().hex), self.object_id)

    @property
    def state(self) -> str:
        """QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED or EXPIRED, asked for now."""
        return str(_check(_ask("GET", f"/v1/calls/{quote(self.object_id)}"), self.object_id)["state"])


class Get(Generic[R]):
    def __init__(self, call: FunctionCall[R]) -> None:
        self._call = call

    def __call__(self, timeout: float | None = None) -> R:
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while True:
            wait_s = POLL_S if deadline_s is None else max(0.0, min(POLL_S, deadline_s - time.monotonic()))
            reply = _ask("GET", f"/v1/calls/{quote(self._call.object_id)}/result?wait_s={wait_s:.3f}")
            if not _pending(reply):
                return _read(self._call, reply)
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise ResultPending(f"{self._call.object_id} has not ended within {timeout:g} s; it goes on.")

    async def aio(self, timeout: float | None = None) -> R:
        import asyncio

        return await asyncio.to_thread(self, timeout)


def spawn(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FunctionCall[Any]:
    """The call, once the server has it on disk."""
    body = frames.encode(frames.CALL, 0, target.encode(args, kwargs))
    path = f"/v1/functions/{target.function}/calls" + (f"?method={quote(target.method)}" if target.method else "")
    reply = _ask("POST", path, body, key=uuid.uuid4().hex)
    return FunctionCall(str(_check(reply, target.function)["id"]), target)


def _ask(method: str, path: str, body: Sequence[Buffer] = (), key: str = "") -> Reply:
    """Asked again for a while where nobody answers: reading changes nothing, and `key` makes a change happen once."""
    until_s = time.monotonic() + PATIENCE_S
    wait_s = 0.05
    while True:
        try:
            api = address.api()
            headers = [("idempotency-key", key)] if key else []
            reply = transport.ask(
                api.place, transport.make_request(api.place, method, path, api.token, body, CONTENT_TYPE, headers)
            )
            if reply.status != 503:
                return reply
            failure: Exception = Error(
                f"Steelyard at {api.place.authority} answered 503: {transport.problem_of(reply).get('detail')}"
            )
        except Lost as err:
            failure = NotReachable(f"The connection to Steelyard's server ended before it answered ({err}).")
        except NotReachable as err:
            failure = err
        if time.monotonic() > until_s:
            raise failure
        time.sleep(wait_s)
        wait_s = min(1.0, 2 * wait_s)


def _check(reply: Reply, subject: str) -> dict[str, Any]:
    if 200 <= reply.status < 300:
        return json.loads(reply.body)
    told = transport.problem_of(reply)
    detail = str(told.get("detail", "")) or f"the server answered {reply.status}"
    if reply.status in (401, 403):
        raise NotAllowed(f"{subject}: {detail}")
    if reply.status == 404:
        raise NotDeployed(f"{subject}: {detail}")
    raise Error(f"{subject}: {detail}")


def _pending(reply: Reply) -> bool:
    return reply.status == 409 and transport.problem_of(reply).get("code") == "not-ended"


def _read(call: FunctionCall[Any], reply: Reply) -> Any:
    if reply.status == 409:
        detail = str(transport.problem_of(reply).get("detail", ""))
        if "CANCELLED" in detail:
            raise CallCancelled(detail)
        raise ReplicaLost(detail)
    if reply.status != 200:
        _check(reply, call.object_id)
    if not reply.is_call:
        return json.loads(reply.body)  # it was made with JSON
    items: list[Any] = []
    for frame in reply.frames:
        if frame.kind == frames.ERROR:
            raise outcome.read_error(frame, call.object_id, "").error
        if frame.kind == frames.RESULT:
            return read_value(frame, call._target, reply)
        if frame.kind == frames.YIELD:
            items.append(read_value(frame, call._target, reply))
        if frame.kind == frames.END:
            return items
    raise ReplicaLost(f"{call.object_id}: what the function answered is not complete.")
