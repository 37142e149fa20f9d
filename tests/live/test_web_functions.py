"""Endpoints, web apps, servers and batches of declared functions, asked over HTTP on a real Steelyard."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, free_ports, wait_until

WEB = """
import http.server, os, subprocess, sys, threading
from dataclasses import dataclass
import steelyard as sy

app = sy.App("web")

@dataclass
class Order:
    item: str
    count: int = 1

@app.function(public=True)
@sy.endpoint
def order(order: Order, express: bool = False) -> dict:
    return {"item": order.item, "count": order.count, "express": express, "pid": os.getpid()}

@app.function(public=True)
@sy.endpoint(method="GET")
def words(text: str):
    yield from text.split()

@app.function(public=True, max_replicas=1)
@sy.batched(max_size=8, wait_ms=200)
def together(xs: list[int]) -> list[list[int]]:
    return [[x, len(xs)] for x in xs]

@app.function(public=True)
@sy.asgi_app
def modern():
    made_by = os.getpid()
    async def asgi(scope, receive, send):
        body = f"{scope['root_path']} {made_by != os.getpid()}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
    return asgi

@app.function(public=True)
@sy.wsgi_app
def classic():
    def wsgi(environ, start_response):
        start_response("200 OK", [("content-type", "text/plain")])
        return [environ["SCRIPT_NAME"].encode(), b" ", environ["PATH_INFO"].encode(), b" ", environ["wsgi.input"].read()]
    return wsgi

@app.function(public=True, idle_timeout="500ms")
@sy.web_server(PORT)
def threaded():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"hello from " + os.environ["STEELYARD_FUNCTION"].encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

@app.function(public=True)
@sy.web_server(OTHER)
def program():
    subprocess.Popen([sys.executable, "-m", "http.server", str(OTHER), "--bind", "127.0.0.1"])

@app.cls(public=True, idle_timeout="300ms")
class Life:
    @sy.enter(shared=True)
    def load(self): self.loaded = os.getpid()
    @sy.enter
    def connect(self): self.connected = os.getpid()
    @sy.exit
    def leave(self): print(f"left as {self.connected}", flush=True)
    @sy.endpoint(method="GET")
    def who(self) -> list[int]: return [self.loaded, self.connected, os.getpid()]
"""


@pytest.fixture(scope="module")
def web(shared: Cluster) -> Iterator[Cluster]:
    folder = shared.folder / "web"
    folder.mkdir()
    port, other = free_ports(2)
    (folder / "web_sdk.py").write_text(WEB.replace("PORT", str(port)).replace("OTHER", str(other)))
    shared.ok("deploy", str(folder / "web_sdk.py"), "--python", sys.executable)
    yield shared
    for name in ("order", "words", "together", "modern", "classic", "threaded", "program", "life"):
        shared.cli("delete", f"web-{name}", "--yes")


def post(cluster: Cluster, path: str, body: Any, **headers: str) -> Any:
    return cluster.call(path, method="POST", body=json.dumps(body).encode(), headers={"content-type": "application/json"})


def test_an_endpoint_takes_typed_json(web: Cluster) -> None:
    answer = post(web, "/web-order/", {"order": {"item": "tea", "count": 2}})
    assert answer.status == 200, answer
    assert answer.json() | {"pid": 0} == {"item": "tea", "count": 2, "express": False, "pid": 0}


def test_a_wrong_type_is_422_with_the_field(web: Cluster) -> None:
    answer = post(web, "/web-order/", {"order": {"item": "tea", "count": "two"}})
    assert answer.status == 422
    assert answer.json()["field"] == "order.count" and answer.json()["code"] == "bad-argument"


def test_a_function_is_called_with_json_too(web: Cluster) -> None:
    answer = post(web, "/web-order/.steelyard/call", {"kwargs": {"order": {"item": "tea"}, "express": True}})
    assert answer.json()["express"] is True


def test_a_generator_streams(web: Cluster) -> None:
    answer = web.call("/web-words/?text=a+b", headers={"accept": "text/event-stream"})
    assert answer.body == b'data: "a"\n\ndata: "b"\n\n'


def test_requests_of_several_clients_are_one_batch(web: Cluster) -> None:
    post(web, "/web-together/.steelyard/call", {"xs": 0})  # it is awake now
    answers: list[Any] = []
    clients = [
        threading.Thread(target=lambda x=x: answers.append(post(web, "/web-together/.steelyard/call", {"xs": x}).json()))
        for x in range(8)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert sorted(x for x, _ in answers) == list(range(8))
    assert max(size for _, size in answers) >= 4


def test_an_asgi_app_is_made_in_the_template(web: Cluster) -> None:
    assert web.call("/web-modern/x").body == b"/web-modern True"


def test_a_wsgi_app_is_served(web: Cluster) -> None:
    assert web.call("/web-classic/a/b", method="POST", body=b"hi").body == b"/web-classic /a/b hi"


def test_a_server_in_a_thread_is_served_and_sleeps_again(web: Cluster) -> None:
    assert web.call("/web-threaded/").body == b"hello from web-threaded"
    web.wait_function("web-threaded", "SLEEPING")
    assert web.call("/web-threaded/").body == b"hello from web-threaded"


def test_a_server_that_is_a_process_is_served(web: Cluster) -> None:
    assert b"web_sdk.py" in web.call("/web-program/").body


def test_a_class_is_loaded_once_entered_in_each_replica_and_left(web: Cluster) -> None:
    loaded, connected, pid = web.call("/web-life/").json()
    assert loaded != pid and connected == pid
    wait_until(lambda: f"left as {pid}" in web.ok("logs", "web-life"), 20, "the exit hook's words")


def test_the_file_of_a_server_is_where_it_runs(web: Cluster, tmp_path: Path) -> None:
    assert web.call("/web-program/web_sdk.py").status == 200
