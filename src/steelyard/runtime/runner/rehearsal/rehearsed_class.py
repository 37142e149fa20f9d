"""A class, and what else is rarer than functions, when an environment that has the SDK is rehearsed (rehearse.py)."""

from __future__ import annotations

from collections.abc import Iterator

import steelyard as sy

app = sy.App("rehearsal")


@app.function()
def generator(number: int) -> Iterator[int]:
    """Nobody calls it."""
    yield number


@app.cls(concurrency=4, idle_timeout="5m")
class Model:
    @sy.enter(shared=True)
    def load(self) -> None:
        self.numbers = [1.0]

    @sy.enter
    def connect(self) -> None:
        pass

    @sy.exit
    def disconnect(self) -> None:
        pass

    @sy.method
    def method(self, number: float) -> float:
        return number

    @sy.endpoint()
    def second(self, number: float = 1.0) -> float:
        return number


@app.local_entrypoint()
def main(number: int = 1) -> None:
    pass
