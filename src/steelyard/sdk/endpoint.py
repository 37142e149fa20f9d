"""How does a function answer plain HTTP with JSON? `@sy.endpoint`, and calls in JSON below `/.steelyard/call`.

Arguments come in the body or in the query (`signature.py`), the result goes back as JSON. A generator is a stream: server-sent
events for a client that accepts them, else one JSON value per line. Inputs run in the replica's executor as those of other calls
do: in threads or on the loop, within the function's timeout and concurrency.

    status   code
    422      bad-argument     `field` names it; nothing was executed
    500      raised           the function raised; its log has the traceback. An exception with a `status_code` from 400 to 599
                              (as FastAPI's HTTPException has) is that status, and its `detail` or text is shown
    500      no-json          the result has no JSON form
    503      not-begun        the replica is being replaced; nothing was executed
    504      timeout
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

from steelyard.sdk import frames, payload
from steelyard.sdk.convert import FieldError
from steelyard.sdk.executor import Executor, Method, Work, release
from steelyard.sdk.frames import Buffer
from steelyard.sdk.problem import Send, make_problem, send_problem
from steelyard.sdk.signature import Arguments, Signature
from steelyard.sdk.to_json import NoJson, dumps

#: a body that is larger is refused unread
BODY_MAX = 64 << 20
BAD_ARGUMENT, NO_JSON = "bad-argument", "no-json"
_STATUS = {frames.TIMEOUT: 504, frames.NOT_BEGUN: 503}
_WITH_BODY = ("POST", "PUT", "PATCH")


class JsonMethod(Method):
    """Of a method that is called with JSON: what travels is read before it runs, and written as JSON. `tells` says whether
    callers are shown what the function raised."""

    def __init__(self, method: Method, signature: Signature, tells: bool) -> None:
        super().__init__(method.name, method.function, method.label, method.timeout_s)
        self.signature = signature
        self.tells = tells

    def read(self, segments: Sequence[Buffer]) -> Arguments:
        return segments[0]

    def answer(self, id: int, value: Any) -> list[Buffer]:
        try:
            return frames.encode(frames.RESULT, id, [dumps(value)])
        except NoJson as err:
            return self.fail(id, NoJson(f"The result of {self.label} can't be sent as JSON: {err}"), NO_JSON)

    def yielded(self, id: int, item: Any) -> list[Buffer]:
        return frames.encode(frames.YIELD, id, [dumps(item)])

    def fail(self, id: int, err: BaseException, code: str = frames.RAISED) -> list[Buffer]:
        if isinstance(err, NoJson):
            code = NO_JSON
        status = getattr(err, "status_code", None)
        if code == frames.RAISED and isinstance(status, int) and 400 <= status <= 599:
            problem = make_problem(status, frames.RAISED, str(getattr(err, "detail", "") or err))
            return frames.encode(frames.ERROR, id, [json.dumps(problem, default=repr).encode()])
        name = f"{type(err).__module__}.{type(err).__qualname__}".removeprefix("builtins.")
        if code != frames.RAISED:
            problem = make_problem(_STATUS.get(code, 500), code, str(err))
        elif self.tells:
            told = {"exception": name, "traceback": payload.user_traceback(err, payload.OURS)}
            problem = make_problem(500, code, f"{name}: {err}" if str(err) else name, **told)
        else:
            problem = make_problem(500, code, "The function raised an exception. Its log has the traceback.")
        if code == frames.RAISED:
            sys.stderr.write(payload.user_traceback(err, payload.OURS))
        return frames.encode(frames.ERROR, id, [json.dumps(problem).encode()])


async def read_body(receive: Any) -> bytes | None:
    """None: the client has gone. OverflowError: more than BODY_MAX."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_MAX:
            raise OverflowError
        if not message.get("more_body"):
            return b"".join(parts)


def get_header(scope: Any, name: bytes) -> bytes:
    return next((value for header, value in scope["headers"] if header == name), b"")


class Calls(Protocol):
    """`begin` has the executor run inputs, and `executor.finish(work)` ends that."""

    executor: Executor

    def begin(self, method: Method, inputs: list[frames.Frame], receive: Any) -> Work: ...


async def answer_json(calls: Calls, method: JsonMethod, scope: Any, receive: Any, send: Send, query: bool = False) -> None:
    try:
        body = await read_body(receive) if scope["method"] in _WITH_BODY else b""
        if body is None:
            return
        arguments = _read_arguments(method.signature, scope["query_string"] if query else b"", body)
    except OverflowError:
        problem = make_problem(413, "body-too-large", f"A body of JSON has at most {BODY_MAX >> 20} MiB.")
        await send_problem(send, problem, (b"connection", b"close"))
        return
    except FieldError as err:
        where = {"field": err.field} if err.field else {}
        await send_problem(send, make_problem(422, BAD_ARGUMENT, str(err), **where))
        return
    work = calls.begin(method, [frames.Frame(frames.CALL, 0, [arguments])], receive)
    try:
        await _send(work, b"text/event-stream" in get_header(scope, b"accept"), send)
    finally:
        calls.executor.finish(work)


async def _send(work: Work, events: bool, send: Send) -> None:
    reader = frames.FrameReader()
    began = False
    while True:
        await work.wakeup.wait()
        done = work.complete
        buffers, waiting = work.drain()
        if done:  # between the two looks
            late, more = work.drain()
            buffers, waiting = buffers + late, waiting + more
        answers = reader.feed(b"".join(buffers))
        if answers and not began and answers[0].kind in (frames.RESULT, frames.ERROR):
            release(waiting)
            await _send_whole(send, answers[0])
            return
        if answers and not began:
            began = True
            await _begin_stream(send, events)
        text = b"".join(_render(frame, events) for frame in answers)
        if text:
            await send({"type": "http.response.body", "body": text, "more_body": True})
        release(waiting)
        if done:
            break
    if began:
        await send({"type": "http.response.body", "body": b""})
    elif not work.gone:
        detail = "The replica is being replaced. Nothing was executed; try again."
        await send_problem(send, make_problem(503, frames.NOT_BEGUN, detail))


def _read_arguments(signature: Signature, query: bytes, body: bytes) -> Arguments:
    if not query:
        return signature.read_body(body)
    if body.strip():
        raise FieldError("", "Arguments come in the query or in the body, not in both.")
    return signature.read_query(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


async def _send_whole(send: Send, frame: frames.Frame) -> None:
    body = bytes(frame.segments[0])
    if frame.kind == frames.ERROR:
        await send_problem(send, json.loads(body))
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _begin_stream(send: Send, events: bool) -> None:
    kind = b"text/event-stream" if events else b"application/x-ndjson"
    headers = [(b"content-type", kind), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _render(frame: frames.Frame, events: bool) -> bytes:
    """An error in the middle is an event of its own, or a line {"error": problem}."""
    if frame.kind == frames.YIELD:
        return b"data: %b\n\n" % frame.segments[0] if events else b"%b\n" % frame.segments[0]
    if frame.kind == frames.ERROR:
        return b"event: error\ndata: %b\n\n" % frame.segments[0] if events else b'{"error": %b}\n' % frame.segments[0]
    return b""


class Endpoints:
    """The web app of a function's or class's endpoints. `methods`: (HTTP method, its function) by path; one alone is at / too."""

    def __init__(self, name: str, methods: dict[str, tuple[str, JsonMethod]], calls: Calls) -> None:
        self._calls = calls
        self._name = name
        self._methods: dict[str, tuple[str, JsonMethod]] = {}
        for path, found in methods.items():
            self._methods[f"/{path}"] = found
        if len(methods) == 1:
            self._methods["/"] = next(iter(methods.values()))

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") or "/"
        if path == "/openapi.json":
            body = json.dumps(self.describe(scope.get("root_path", ""))).encode()
            await _send_whole(send, frames.Frame(frames.RESULT, 0, [body]))
            return
        found = self._methods.get(path)
        if found is None:
            offered = ", ".join(self._methods)
            await send_problem(send, make_problem(404, "not-found", f"There is nothing at {path}. Served are: {offered}."))
            return
        verb, method = found
        if scope["method"] != verb:
            problem = make_problem(405, "method-not-allowed", f"{path} takes {verb}.")
            await send_problem(send, problem, (b"allow", verb.encode()))
            return
        await answer_json(self._calls, method, scope, receive, send, query=True)

    def describe(self, root: str) -> dict[str, Any]:
        """OpenAPI 3.1."""
        paths: dict[str, Any] = {}
        components: dict[str, Any] = {}
        for path, (verb, method) in self._methods.items():
            components |= method.signature.shapes.components
            paths.setdefault(path, {})[verb.lower()] = _describe_operation(verb, method)
        return {
            "openapi": "3.1.0",
            "info": {"title": self._name, "version": "1"},
            "servers": [{"url": root or "/"}],
            "paths": paths,
            "components": {"schemas": components},
        }


def _describe_operation(verb: str, method: JsonMethod) -> dict[str, Any]:
    signature = method.signature
    answer = {"description": "The result", "content": {"application/json": {"schema": signature.result.schema}}}
    refusal = {"description": "An argument does not fit", "content": {"application/problem+json": {}}}
    operation: dict[str, Any] = {
        "summary": (inspect.getdoc(method.function) or "").partition("\n")[0],
        "responses": {"200": answer, "422": refusal},
    }
    if verb in _WITH_BODY:
        whole = signature.whole_body
        schema = {
            "type": "object",
            "properties": {parameter.name: parameter.shape.schema for parameter in signature.parameters},
            "required": [parameter.name for parameter in signature.parameters if parameter.required],
        }
        operation["requestBody"] = {"content": {"application/json": {"schema": whole.shape.schema if whole else schema}}}
    else:
        operation["parameters"] = [
            {"name": one.name, "in": "query", "required": one.required, "schema": one.shape.schema}
            for one in signature.parameters
        ]
    return operation
