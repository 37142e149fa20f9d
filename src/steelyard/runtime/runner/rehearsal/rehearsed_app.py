"""What is declared with the SDK when an environment that has it is rehearsed (rehearse.py)."""

import steelyard as sy

app = sy.App("rehearsal")


@app.function(cpu=1.0, memory="1GB", timeout="60s", max_replicas=8, idle_timeout=60, env={"NAME": "value"}, retries=1)
def function(number: int, numbers: list[float], text: str = "", *, flag: bool | None = None) -> dict[str, str]:
    """Nobody calls it."""
    return {text: text}


@app.function(public=True)
@sy.endpoint(method="POST")
def endpoint(text: str, number: int = 1) -> dict[str, str]:
    """Nobody calls it."""
    return {"text": text * number}
