"""What a replica answers to JSON: endpoints, calls, web apps. The app is asked as the HTTP server asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import steelyard as sy
import steelyard.sdk as sdk
from steelyard.sdk.serving import make_app

app = sy.App("web")


@dataclass
class User:
    name: str
    age: int = 0


class Teapot(Exception):
    status_code = 418


@app.function()
@sy.endpoint(method="POST")
def greet(user: User, loud: bool = False) -> str:
    return user.name.upper() if loud else user.name


@app.function()
@sy.endpoint(method="GET")
def add(x: int, y: int = 1) -> int:
    return x + y


@app.function()
@sy.endpoint(method="GET")
def count(n: int) -> Iterator[int]:
    yield from range(n)
    if n > 2:
        raise RuntimeError("too far")


@app.function()
@sy.endpoint()
async def fails(how: str) -> Any:
    if how == "teapot":
        raise Teapot("short and stout")
    if how == "nan":
        return float("nan")
    raise ValueError("a secret")


@app.function()
def plain(x: int) -> Any:
    if x < 0:
        raise ValueError("negative")
    return {"x": x}


@app.function()
@sy.batched(max_size=4, wait_ms=5)
def lengths(texts: list[str]) -> list[int]:
    return [len(texts) * 100 + len(text) for text in texts]


@app.cls()
class Box:
    def __init__(self) -> None:
        self.value = 0

    @sy.enter(shared=True)
    def load(self) -> None:
        self.value = 40

    @sy.endpoint(method="GET")
    def get(self, more: int = 0) -> int:
        return self.value + more

    @sy.endpoint()
    def put(self, value: int) -> None:
        self.value = value


@app.function()
@sy.wsgi_app
def old() -> Any:
    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        return [environ["PATH_INFO"].encode(), b" ", environ["wsgi.input"].read()]

    return wsgi


@app.function()
@sy.asgi_app
def wrong() -> Any:
    return lambda environ, start_response: []


class Answer:
    def __init__(self, messages: list[Any]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(autouse=True)
def hooks_of_its_own() -> Iterator[None]:
    hooks, exits = list(sdk.hooks), list(sdk.exits)
    yield
    sdk.hooks[:], sdk.exits[:] = hooks, exits


def make(handle: Any) -> Any:
    before = len(sdk.hooks)
    made = make_app(handle, "")
    for shared, hook in sdk.hooks[before:]:
        assert shared
        hook()
    return made


async def request(made: Any, verb: str, target: str, body: bytes = b"", **headers: str) -> Answer:
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "method": verb,
        "path": path,
        "root_path": "",
        "query_string": query.encode(),
        "http_version": "1.1",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asked = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        if asked:
            return asked.pop()
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(made(scope, receive, send), 10)
    return Answer(sent)


def ask(handle: Any, verb: str, target: str, body: Any = b"", **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(request(make(handle), verb, target, data, **headers))


def test_an_endpoint_reads_json_and_answers_json() -> None:
    answer = ask(greet, "POST", "/", {"user": {"name": "Ada"}, "loud": True})
    assert (answer.status, answer.json) == (200, "ADA")
    assert answer.headers["content-type"] == "application/json"


def test_an_endpoint_reads_the_query() -> None:
    assert ask(add, "GET", "/?x=2&y=3").json == 5
    assert ask(greet, "POST", '/?user={"name":"Ada"}').json == "Ada"


@pytest.mark.parametrize(
    ("handle", "verb", "target", "body", "field", "detail"),
    [
        (greet, "POST", "/", {"user": {"name": 5}}, "user.name", "must be a text, not 5"),
        (greet, "POST", "/", {}, "user", "user: is missing"),
        (add, "GET", "/?x=two", b"", "x", 'must be a whole number, not "two"'),
        (add, "GET", "/?x=2&z=1", b"", "z", "is unknown"),
        (greet, "POST", "/?loud=1", {"user": {}}, None, "in the query or in the body, not in both"),
        (greet, "POST", "/", b"{", None, "The body is no JSON"),
    ],
)
def test_a_wrong_argument_is_422_and_names_its_field(
    handle: Any, verb: str, target: str, body: Any, field: str | None, detail: str
) -> None:
    answer = ask(handle, verb, target, body)
    assert answer.status == 422 and answer.headers["content-type"] == "application/problem+json"
    assert answer.json["code"] == "bad-argument" and answer.json.get("field") == field
    assert detail in answer.json["detail"]
    assert answer.json["type"] == "urn:steelyard:problem:bad-argument"


def test_other_paths_and_methods_are_refused() -> None:
    assert ask(add, "POST", "/").status == 405
    assert ask(add, "GET", "/other").status == 404
    assert ask(plain, "GET", "/").status == 404


def test_a_generator_streams_lines_or_events() -> None:
    lines = ask(count, "GET", "/?n=2")
    assert (lines.body, lines.headers["content-type"]) == (b"0\n1\n", "application/x-ndjson")
    events = ask(count, "GET", "/?n=2", accept="text/event-stream")
    assert (events.body, events.headers["content-type"]) == (b"data: 0\n\ndata: 1\n\n", "text/event-stream")


def test_an_error_in_the_middle_of_a_stream_is_told() -> None:
    last = ask(count, "GET", "/?n=3").body.splitlines()[-1]
    assert json.loads(last)["error"]["code"] == "raised"
    assert b"event: error\ndata: {" in ask(count, "GET", "/?n=3", accept="text/event-stream").body


def test_an_endpoint_does_not_tell_what_was_raised_but_a_call_does() -> None:
    hidden = ask(fails, "POST", "/", {"how": "x"})
    assert hidden.status == 500 and b"secret" not in hidden.body
    told = ask(plain, "POST", "/.steelyard/call", {"x": -1}, content_type="application/json")
    assert told.status == 500 and told.json["detail"] == "ValueError: negative"
    assert told.json["exception"] == "ValueError" and "in plain" in told.json["traceback"]
    assert "executor.py" not in told.json["traceback"]


def test_an_exception_with_a_status_is_the_answer() -> None:
    answer = ask(fails, "POST", "/", {"how": "teapot"})
    assert (answer.status, answer.json["detail"]) == (418, "short and stout")


def test_a_result_without_json_is_an_error() -> None:
    answer = ask(fails, "POST", "/", {"how": "nan"})
    assert answer.status == 500 and answer.json["code"] == "no-json" and "NaN" in answer.json["detail"]


def test_every_function_can_be_called_with_json() -> None:
    answer = ask(plain, "POST", "/.steelyard/call", {"args": [3]}, content_type="application/json; charset=utf-8")
    assert answer.json == {"x": 3}
    assert ask(plain, "POST", "/.steelyard/call/nope", {}, content_type="application/json").json["code"] == "no-method"
    assert ask(plain, "POST", "/.steelyard/call", {}, content_type="text/plain").status == 415


def test_inputs_of_a_batched_function_meet() -> None:
    async def run() -> list[Any]:
        made = make(lengths)
        texts = ["a", "bb", "ccc", "dddd"]
        asked = [
            request(made, "POST", "/.steelyard/call", json.dumps({"texts": text}).encode(), content_type="application/json")
            for text in texts
        ]
        return [answer.json for answer in await asyncio.gather(*asked)]

    assert asyncio.run(run()) == [401, 402, 403, 404]


def test_a_batched_function_takes_one_input_here_too() -> None:
    assert lengths.local("abc") == 103


def test_a_class_has_an_endpoint_for_each_method() -> None:
    assert ask(Box, "GET", "/get?more=2").json == 42
    assert ask(Box, "GET", "/").status == 404
    assert ask(Box, "POST", "/.steelyard/call/get", {"more": 1}, content_type="application/json").json == 41


def test_the_description_is_openapi() -> None:
    described = ask(greet, "GET", "/openapi.json").json
    body = described["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["user"] == {"$ref": "#/components/schemas/User"}
    assert described["components"]["schemas"]["User"]["required"] == ["name"]
    assert ask(add, "GET", "/openapi.json").json["paths"]["/"]["get"]["parameters"][0]["name"] == "x"


def test_a_wsgi_app_is_served() -> None:
    assert ask(old, "POST", "/a/b", b"hi").body == b"/a/b hi"


def test_the_wrong_kind_of_app_is_refused_with_the_right_decorator() -> None:
    with pytest.raises(sy.DeclarationError, match=r"Decorate it with @sy\.wsgi_app"):
        make(wrong)


def test_an_endpoint_whose_parameter_json_cannot_give_is_refused() -> None:
    @sy.endpoint
    def bad(x: complex) -> None: ...

    with pytest.raises(sy.DeclarationError, match="parameter 'x' of an endpoint can't come as JSON: complex has no JSON form"):
        make(sy.App("other").function(bad))
