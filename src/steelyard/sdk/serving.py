"""How does a replica answer calls? The ASGI app that is made of a declared function or class.

Made in the template, so that replicas share it: the class's instance, what `@sy.enter(shared=True)` loaded. Requests to
`/.steelyard/call[/<method>]` carry inputs (`frames.py`), which the executor runs; everything else goes to the web app, if there
is one.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import steelyard.sdk as sdk
from steelyard.sdk import frames, payload
from steelyard.sdk.batching import Batcher
from steelyard.sdk.declare import Marks, read_marks
from steelyard.sdk.describe import concurrency_of, width_of
from steelyard.sdk.endpoint import Endpoints, JsonMethod, answer_json, get_header
from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.executor import Executor, Method, Work, release
from steelyard.sdk.frames import CALL_PATH, CONTENT_TYPE, Buffer
from steelyard.sdk.handle import Cls, Function, bound_method, methods_of
from steelyard.sdk.lifecycle import enters_of, exits_of, make_instance
from steelyard.sdk.mounted import Mounted, Server
from steelyard.sdk.problem import Send, make_problem, send_problem
from steelyard.sdk.signature import Signature

#: in a request's scope: the runner's ear for work that failed although its answer says 200
FAILED = "steelyard.failed"
#: a request that takes longer is watched for a caller that goes away
WATCH_S = 0.05
#: larger segments are sent in pieces, so that flow control has a say
PIECE_BYTES = 1 << 18


def make_app(handle: Function[..., Any] | Cls, function: str, concurrency: int | None = None) -> CallApp:
    """What the replica serves. `function` is the name it is deployed under, which also tells its siblings' names."""
    if function and handle.app is not None:
        handle.app.adopt_suffix(handle.base_name, function)
    payload.home = sys.modules.get(handle.__module__)
    timeout_s = handle.options.get("timeout_s")
    executor = Executor(concurrency or concurrency_of(handle))
    if isinstance(handle, Cls):
        if handle.parameters:
            from steelyard.sdk.instances import Instances

            instances = Instances(handle, lambda: executor.loop)
            instance, targets = instances.default, instances.runners()
        else:
            instance = make_instance(handle.target)
            targets = {name: bound_method(instance, name) for name in methods_of(handle.target)}
        if instance is not None:
            for shared, name in enters_of(handle.target):
                sdk.hooks.append((shared, bound_method(instance, name)))
            sdk.exits.extend(bound_method(instance, name) for name in exits_of(handle.target))
    else:
        targets = {"": handle.target}
    methods: dict[str, Method] = {}
    signatures: dict[str, Signature] = {}
    for name, target in targets.items():
        label = f"{handle.__qualname__}.{name}()" if name else f"{handle.__qualname__}()"
        batched = _marks(target).batched
        signatures[name] = Signature(target, batched is not None)
        runs = target if batched is None else Batcher(target, batched, label).call
        methods[name] = Method(name, runs, label, timeout_s)
    app = CallApp(executor, methods, signatures, handle.__module__, width_of(handle))
    app.web = _make_web(handle, app, targets)
    return app


def _marks(target: Any) -> Marks:
    return read_marks(getattr(target, "__func__", target))


def _make_web(handle: Function[..., Any] | Cls, app: CallApp, targets: dict[str, Any]) -> Any:
    """The ASGI app of what is no call; None where nothing of the web is declared. DeclarationError for an endpoint with a
    parameter that JSON can't give."""
    endpoints: dict[str, tuple[str, JsonMethod]] = {}
    for name, target in targets.items():
        web = _marks(target).web
        if web is None:
            continue
        method, signature = app.methods[name], app.signatures[name]
        if web.kind == "server":
            return Server(target)
        if web.kind in ("asgi", "wsgi"):
            mounted = Mounted(target, method.label, web.kind, concurrency_of(handle))
            in_template = all(shared for shared, _ in sdk.hooks)
            sdk.hooks.append((in_template, mounted.make if in_template else mounted.make_here))
            return mounted
        for one in signature.parameters:
            if one.never:
                raise DeclarationError(f"{method.label}: parameter '{one.name}' of an endpoint can't come as JSON: {one.never}.")
        endpoints[name] = (web.method, JsonMethod(method, signature, tells=False))
    return Endpoints(handle.name, endpoints, app) if endpoints else None


class CallApp:
    def __init__(
        self, executor: Executor, methods: dict[str, Method], signatures: dict[str, Signature], module: str, width: int
    ) -> None:
        self.executor = executor
        self.methods = methods
        self.signatures = signatures
        #: ASGI app of what is no call
        self.web: Any = None
        #: inputs that all replicas together can work on, and the module that the function is in: for callers
        self._headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"x-steelyard-width", str(width).encode()),
            (b"x-steelyard-module", module.encode()),
        ]

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path == CALL_PATH or path.startswith(f"{CALL_PATH}/"):
                await self._answer(scope, receive, send, path[len(CALL_PATH) + 1 :])
                return
        if self.web is not None:
            await self.web(scope, receive, send)
        elif scope["type"] == "http":
            problem = make_problem(404, "not-found", f"This function takes calls, at {CALL_PATH}, and has no endpoint.")
            await send_problem(send, problem)

    async def _answer(self, scope: Any, receive: Any, send: Send, name: str) -> None:
        kind = get_header(scope, b"content-type").partition(b";")[0].strip()
        if scope["method"] != "POST" or kind not in (CONTENT_TYPE.encode(), b"application/json"):
            detail = f"A call is a POST of application/json, or of {CONTENT_TYPE}."
            await send_problem(send, make_problem(415, "not-a-call", detail))
            return
        method = self.methods.get(name)
        if method is None:
            offered = ", ".join(self.methods) or "none"
            detail = f"There is no method '{name}'. Methods: {offered}."
            await send_problem(send, make_problem(404, "no-method", detail))
            return
        if kind != CONTENT_TYPE.encode():
            await answer_json(self, JsonMethod(method, self.signatures[name], tells=True), scope, receive, send)
            return
        inputs = await _read_inputs(receive)
        if inputs is None:
            return  # the caller has gone
        if not inputs:
            detail = "The body is no sequence of frames with an input in it."
            await send_problem(send, make_problem(422, "not-a-call", detail))
            return
        work = self.begin(method, inputs, receive)
        try:
            await self._send(work, send)
        finally:
            if work.failed and FAILED in scope:
                scope[FAILED]()
            self.executor.finish(work)

    def begin(self, method: Method, inputs: list[frames.Frame], receive: Any) -> Work:
        work = self.executor.start(method, inputs)
        asyncio.get_running_loop().call_later(WATCH_S, self._watch, work, receive)
        return work

    def _watch(self, work: Work, receive: Any) -> None:
        if not work.closed:
            work.watcher = asyncio.ensure_future(self._await_end(work, receive))

    async def _await_end(self, work: Work, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not work.closed:
            work.gone = True
            self.executor.finish(work)

    async def _send(self, work: Work, send: Send) -> None:
        """One body when everything is there at once, else a stream."""
        await work.wakeup.wait()
        buffers, waiting = work.drain()
        if work.total == 1 and work.complete:
            late, more = work.drain()  # between the two looks
            buffers += late
            release(waiting + more)
            if not buffers:
                if not work.gone:
                    detail = "The replica is being replaced. Nothing was executed; try again."
                    await send_problem(send, make_problem(503, frames.NOT_BEGUN, detail))
                return
            buffers += _ending(work)
            length = sum(map(len, buffers))
            await _begin(send, [*self._headers, (b"content-length", str(length).encode())])
            await _send_buffers(send, buffers, last=True)
            return
        await _begin(send, self._headers)
        while True:
            done = work.complete
            late, more = work.drain()
            if buffers or late:
                await _send_buffers(send, buffers + late)
            release(waiting + more)
            if done:
                break
            await work.wakeup.wait()
            buffers, waiting = work.drain()
        if not work.gone:
            await _send_buffers(send, _ending(work), last=True)


async def _read_inputs(receive: Any) -> list[frames.Frame] | None:
    """None: the caller has gone. Empty: what came makes no sense."""
    reader = frames.FrameReader()
    inputs: list[frames.Frame] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        try:
            inputs += reader.feed(message.get("body", b""))
        except frames.FramingError:
            return []
        if not message.get("more_body"):
            break
    sound = reader.empty and all(frame.kind == frames.CALL and frame.segments for frame in inputs)
    return inputs if sound and [frame.id for frame in inputs] == list(range(len(inputs))) else []


def _ending(work: Work) -> list[Buffer]:
    return frames.encode(frames.DONE, work.total, [work.ran_ns.to_bytes(8, "little")])


async def _begin(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send_buffers(send: Send, buffers: list[Buffer], last: bool = False) -> None:
    pieces = frames.join(buffers)
    for number, piece in enumerate(pieces):
        final = last and number == len(pieces) - 1
        if len(piece) <= PIECE_BYTES:
            await send({"type": "http.response.body", "body": piece, "more_body": not final})
            continue
        view = memoryview(piece)
        for at in range(0, len(view), PIECE_BYTES):
            more = not final or at + PIECE_BYTES < len(view)
            await send({"type": "http.response.body", "body": bytes(view[at : at + PIECE_BYTES]), "more_body": more})
