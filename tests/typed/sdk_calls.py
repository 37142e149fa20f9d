"""What type checkers see of a declared function: its own signature, wherever it is called. Checked by basedpyright, never run.

An `ignore` marks a mistake that must be found: an unnecessary one is an error here.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error, reportUnusedExpression=false

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import steelyard as sy

app = sy.App("typed")


@app.function(cpu=2, memory="1GB", timeout="5s", max_containers=3, schedule=sy.Every(minutes=5))
def add(x: int, *, scale: float = 1.0) -> float:
    return x * scale


@app.function
async def fetch(url: str) -> bytes:
    return url.encode()


@app.function()
@sy.concurrent(8)
def count(n: int) -> Iterator[int]:
    yield from range(n)


@app.function
async def count_later(n: int) -> AsyncIterator[str]:
    for number in range(n):
        yield str(number)


@app.function
@sy.batched(max_size=8, wait_ms=5)
def embed(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


@app.function
@sy.endpoint(method="GET")
def hello(name: str = "you") -> dict[str, str]:
    return {"hello": name}


@app.function
@sy.asgi_app()
def web() -> object:
    return object()


@app.cls(gpu="H100:2")
class Model:
    @sy.enter(shared=True)
    def load(self) -> None: ...

    @sy.exit
    async def leave(self) -> None: ...

    @sy.method
    def predict(self, x: int) -> str:
        return str(x)

    @sy.method()
    async def stream(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @sy.method
    @sy.batched(max_size=4, wait_ms=1)
    def many(self, xs: list[int]) -> list[float]:
        return [float(x) for x in xs]


@app.cls()
class Sized:
    size: int = sy.parameter()
    name: str = sy.parameter(default="a")
    table: list[int] = sy.parameter(init=False)

    @sy.method
    def get(self) -> int:
        return self.size


@app.local_entrypoint()
def main(n: int = 3) -> None:
    assert_type(add.local(1), float)
    assert_type(add(1, scale=2.0), float)
    assert_type(add.remote(1, scale=2.0), float)
    assert_type(list(add.map(range(n))), list[float])
    assert_type(list(add.starmap([(1,), (2,)], order_outputs=False)), list[float])
    call = add.spawn(3)
    assert_type(call.get(timeout=3.0), float)
    assert_type(fetch.remote("x"), bytes)
    assert_type(count.remote(3), Iterator[int])
    assert_type(count_later.remote(3), Iterator[str])
    assert_type(embed.remote("one"), bytes)
    assert_type(hello.local(name="me"), dict[str, str])
    model = Model()
    assert_type(model.predict.remote(1), str)
    assert_type(model.predict(1), str)
    assert_type(model.stream.remote(3), Iterator[int])
    assert_type(model.many.remote(3), float)

    add.remote("1")  # pyright: ignore[reportArgumentType]
    add.remote(1, size=2)  # pyright: ignore[reportCallIssue]
    add.spawn()  # pyright: ignore[reportCallIssue]
    embed.remote(["one"])  # pyright: ignore[reportArgumentType]
    model.predict.remote("x")  # pyright: ignore[reportArgumentType]
    assert_type(Sized(size=3).get.remote(), int)
    Sized(name="b")  # pyright: ignore[reportCallIssue]
    Sized(size="3")  # pyright: ignore[reportArgumentType]
    app.function(memory=1.5)  # pyright: ignore[reportArgumentType]


async def twins() -> None:
    assert_type(await add.remote.aio(1), float)
    assert_type(await fetch.remote.aio("x"), bytes)
    assert_type([item async for item in count.remote.aio(3)], list[int])
    assert_type([item async for item in fetch.map.aio(["a"])], list[bytes])
    call = await Model().predict.spawn.aio(1)
    assert_type(await call.get.aio(), str)
