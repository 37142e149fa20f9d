"""The embeddings example's arithmetic, without its weights."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def encoder() -> ModuleType:
    path = Path(__file__).parents[3] / "examples" / "embeddings" / "encoder.py"
    spec = importlib.util.spec_from_file_location("embeddings_encoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_erf_is_exact_to_a_millionth(encoder: ModuleType) -> None:
    points = np.concatenate([np.linspace(-6, 6, 4001), [0.0, -0.0, 30.0, -30.0]]).astype(np.float32)
    found = encoder.erf(points.copy())
    assert max(abs(float(y) - math.erf(float(x))) for x, y in zip(points, found, strict=True)) < 1e-6


def test_layer_norm_has_mean_zero_and_variance_one(encoder: ModuleType) -> None:
    x = np.random.default_rng(1).normal(3, 5, (7, 384)).astype(np.float32)
    found = encoder._layer_norm(x, np.ones(384, np.float32), np.zeros(384, np.float32))
    assert np.abs(found.mean(axis=1)).max() < 1e-5
    assert np.abs(found.var(axis=1) - 1).max() < 1e-4


def test_softmax_rows_sum_to_one_and_masked_places_get_nothing(encoder: ModuleType) -> None:
    scores = np.array([[1.0, 2.0, -1e9], [500.0, 499.0, 0.0]], np.float32)
    found = encoder._softmax(scores)
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-6
    assert found[0, 2] == 0
