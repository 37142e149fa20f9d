"""Small apps that the live tests deploy. Each is a whole ASGI file; nothing of ours is imported."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from steelyard_cluster import Cluster, wait_until

_HEAD = """
import asyncio, json, os, sys

async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return

async def body_of(receive):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body

async def answer(send, status, text):
    body = text.encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})

"""

#: does what its path says: /pid, /sleep/S, /effect (body appended to $EFFECTS), /crash (the same, then the process ends),
#: /stream/S (two parts S seconds apart), WebSocket: echoes
MANY = (
    _HEAD
    + """
def effect(body):
    fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, body + b"\\n")
    os.close(fd)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": "echo " + message["text"]})
        return
    path = scope["path"][len(scope["root_path"]):]
    if path.startswith("/sleep/"):
        await asyncio.sleep(float(path.split("/")[2]))
    elif path == "/effect":
        effect(await body_of(receive))
    elif path == "/crash":
        effect(await body_of(receive))
        os._exit(9)
    elif path.startswith("/stream/"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        await asyncio.sleep(float(path.split("/")[2]))
        await send({"type": "http.response.body", "body": b"second"})
        return
    await answer(send, 200, f"VERSION {os.getpid()}")
"""
)

FAILING = (
    _HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if os.path.exists(os.environ["FAIL_WHEN"]):
            raise RuntimeError("the weights are gone")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    await answer(send, 200, "fine")
"""
)

#: with the file there, ends by itself shortly after it began to serve
DYING = (
    _HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if os.path.exists(os.environ["DIE_WHEN"]):
            asyncio.get_running_loop().call_later(0.1, os._exit, 5)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    await answer(send, 200, "alive")
"""
)

THREADED = (
    _HEAD
    + """
import threading
threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    await answer(send, 200, "threaded")
"""
)

PHASED = (
    _HEAD
    + """
import time
import steelyard as sy

@sy.enter(shared=True)
def load():
    global loaded_in
    loaded_in = os.getpid()

@sy.enter
def fresh():
    with sy.phase("weights"):
        time.sleep(0.02)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    await answer(send, 200, "shared" if loaded_in != os.getpid() else "own")
"""
)


def write_app(cluster: Cluster, name: str, text: str) -> Path:
    """A folder of its own, which is what gets captured."""
    folder = cluster.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(text)
    return folder / "app.py"


def deploy(cluster: Cluster, name: str, text: str, *options: str) -> None:
    cluster.ok("deploy", f"{write_app(cluster, name, text)}:app", "--name", name, "--public", *options)


def free_cores(cluster: Cluster) -> None:
    """Until no deleted function holds a core: its replicas answer what they have before they end."""
    name = json.loads(cluster.ok("nodes", "--json"))[0]["name"]
    wait_until(lambda: not json.loads(cluster.ok("topo", name, "--json"))["used"], 20, "all cores to be free")


class Load:
    """Requests one after the other from a few threads until `stop`; counts what came back. Bounded by `limit` in all."""

    def __init__(self, request: Callable[[], object], threads: int = 2, limit: int = 20_000) -> None:
        self.seen: Counter[object] = Counter()
        self._request, self._limit = request, limit
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Counter[object]:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        return self.seen

    def _run(self) -> None:
        while not self._end.is_set() and self.seen.total() < self._limit:
            try:
                result = self._request()
            except OSError as err:
                result = type(err).__name__
            self.seen[result] += 1
            self._end.wait(0.002)
