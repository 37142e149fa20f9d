"""A small transformer in numpy: its weights are random, so what it writes is nonsense, but it costs what a model costs. Tokens
are the printable characters of ASCII.

    python transformer.py FOLDER [HIDDEN [LAYERS]]      writes a model's files with random weights
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIRST, VOCABULARY = 32, 95
CONTEXT = 64
Array = np.ndarray[Any, np.dtype[np.float32]]


def encode(text: str) -> list[int]:
    return [ord(letter) - FIRST for letter in text if FIRST <= ord(letter) < FIRST + VOCABULARY] or [0]


def decode(token: int) -> str:
    return chr(FIRST + token)


def make_weights(hidden: int = 128, layers: int = 2, seed: int = 0) -> dict[str, Array]:
    shapes = {"embedding": (VOCABULARY, hidden), "position": (CONTEXT, hidden)}
    for layer in range(layers):
        shapes |= {f"{layer}.qkv": (hidden, 3 * hidden), f"{layer}.out": (hidden, hidden)}
        shapes |= {f"{layer}.up": (hidden, 4 * hidden), f"{layer}.down": (4 * hidden, hidden)}
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5 for name, shape in shapes.items()}


class Transformer:
    def __init__(self, weights: dict[str, Array], heads: int = 4) -> None:
        self._weights, self._heads = weights, heads
        self._layers = sum(name.endswith(".qkv") for name in weights)

    def logits(self, tokens: list[int]) -> Array:
        """Of what comes next, by what came last."""
        w, tokens = self._weights, tokens[-CONTEXT:]
        x = w["embedding"][tokens] + w["position"][: len(tokens)]
        future = np.triu(np.full((len(tokens), len(tokens)), -np.inf, np.float32), 1)
        for layer in range(self._layers):
            q, k, v = np.split(_normed(x) @ w[f"{layer}.qkv"], 3, axis=1)
            q, k, v = (each.reshape(len(tokens), self._heads, -1).transpose(1, 0, 2) for each in (q, k, v))
            looks = q @ k.transpose(0, 2, 1) / q.shape[2] ** 0.5 + future
            looks = np.exp(looks - looks.max(axis=2, keepdims=True))
            mixed = (looks / looks.sum(axis=2, keepdims=True)) @ v
            x = x + mixed.transpose(1, 0, 2).reshape(len(tokens), -1) @ w[f"{layer}.out"]
            x = x + np.maximum(_normed(x) @ w[f"{layer}.up"], 0) @ w[f"{layer}.down"]
        return _normed(x[-1:])[0] @ w["embedding"].T


def _normed(x: Array) -> Array:
    return (x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, keepdims=True) + 1e-5)


def write_model(folder: Path, weights: dict[str, Array], heads: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for name, each in weights.items():
        header[name] = {"dtype": "F32", "shape": each.shape, "data_offsets": [at, at + each.nbytes]}
        at += each.nbytes
    told = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for each in weights.values():
            file.write(each.tobytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "example", "num_attention_heads": heads}))


def read_model(folder: Path) -> Transformer:
    heads = json.loads((folder / "config.json").read_bytes())["num_attention_heads"]
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = np.fromfile(file, np.uint8)
    weights = {}
    for name, told in header.items():
        begin, end = told["data_offsets"]
        weights[name] = data[begin:end].view(np.float32).reshape(told["shape"])
    return Transformer(weights, heads)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), make_weights(*map(int, sys.argv[2:4])))
