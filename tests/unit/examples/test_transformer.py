"""The example's transformer: what is written is read back, it looks only at what came before, and numbers stay finite."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def transformer() -> Any:
    path = Path(__file__).parents[3] / "examples" / "llm" / "transformer.py"
    spec = importlib.util.spec_from_file_location("transformer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_that_was_written_computes_the_same(transformer: Any, tmp_path: Path) -> None:
    weights = transformer.make_weights(16, 1)
    transformer.write_model(tmp_path, weights)
    tokens = transformer.encode("steel")
    again = transformer.read_model(tmp_path).logits(tokens)
    assert np.allclose(again, transformer.Transformer(weights).logits(tokens)) and np.isfinite(again).all()
    assert json.loads((tmp_path / "config.json").read_text())["num_attention_heads"] == 4


def test_only_the_last_of_a_long_text_counts(transformer: Any) -> None:
    model = transformer.Transformer(transformer.make_weights(16, 1))
    tokens = list(range(90))
    assert np.allclose(model.logits(tokens), model.logits(tokens[-transformer.CONTEXT :]))
    assert not np.allclose(model.logits([1, 2, 3]), model.logits([2, 1, 3]))


def test_what_can_not_be_said_is_left_out(transformer: Any) -> None:
    assert "".join(map(transformer.decode, transformer.encode("äa\nb"))) == "ab"
    assert transformer.encode("") == [0]
