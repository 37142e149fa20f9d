"""An embedding service: loaded once before the fork, asked over HTTP or from Python, in batches either way.

    steelyard deploy examples/functions/embed.py --public
    curl $URL -H 'content-type: application/json' -d '{"text": "steel yard"}'

Hashed letter triples stand in for a model, so that it runs without a download: `load` is where yours goes.
"""

import math

import steelyard as sy

WIDTH = 64

app = sy.App("embed")


@app.cls(max_replicas=2)
class Embedder:
    @sy.enter(shared=True)
    def load(self):
        """Runs in the template. All replicas share what it makes."""
        with sy.phase("weights"):
            self.rows = [[math.sin(row * (column + 1)) for column in range(WIDTH)] for row in range(1024)]

    @sy.endpoint
    @sy.batched(max_size=32, wait_ms=5)
    def embed(self, text: list[str]) -> list[list[float]]:
        return [self.encode(one) for one in text]

    def encode(self, text: str) -> list[float]:
        padded = f"  {text.lower()} "
        numbers = [sum(padded[at : at + 3].encode()) % len(self.rows) for at in range(len(padded) - 2)]
        total = [sum(self.rows[number][column] for number in numbers) for column in range(WIDTH)]
        norm = math.hypot(*total) or 1.0
        return [value / norm for value in total]
