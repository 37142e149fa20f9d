"""What is declared with the SDK when an environment that has it is rehearsed (declare.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import steelyard as sy

app = sy.App("rehearsal")


@app.function(cpu=1.0, memory="1GB", timeout="60s", max_replicas=8, idle_timeout=60, env={"NAME": "value"}, retries=1)
def function(number: int, numbers: list[float], text: str = "", *, flag: bool | None = None) -> dict[str, Any]:
    """Nobody calls it."""
    return {"number": number, "numbers": numbers, "text": text, "flag": flag}


@app.function()
def generator(number: int) -> Iterator[int]:
    """Nobody calls it."""
    yield number


@app.function(public=True)
@sy.endpoint(method="POST")
async def endpoint(text: str, number: int = 1) -> dict[str, str]:
    """Nobody calls it."""
    return {"text": text * number}


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
