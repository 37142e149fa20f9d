"""An OpenAI-compatible embeddings endpoint on all-MiniLM-L6-v2. The weights are loaded once, before replicas are forked.

    steelyard deploy examples/embeddings/app.py:app --name embeddings
    curl -H "Authorization: Bearer $KEY" $URL/v1/embeddings -d '{"model": "all-MiniLM-L6-v2", "input": "Hello"}'

No web framework: the whole of ASGI that this needs fits in a page.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
from encoder import WIDTH, Encoder, find_model

import steelyard as sy

MODEL = "all-MiniLM-L6-v2"
MODELS = (MODEL, f"sentence-transformers/{MODEL}")
#: as OpenAI's endpoint
INPUTS_MAX = 2048
BODY_MAX = 16 * 1024 * 1024

encoder: Encoder


@sy.enter(shared=True)
def load() -> None:
    """Runs in the template; replicas share the memory."""
    global encoder
    with sy.phase("weights"):
        encoder = Encoder(find_model())
        encoder.encode(["warm up"])


class Refusal(Exception):
    """The request can't be answered; becomes an error object as OpenAI's clients know it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    try:
        status, answer = 200, await route(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")), receive)
    except Refusal as refusal:
        status, answer = refusal.status, {"error": refusal.error}
    body = json.dumps(answer, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def route(method: str, path: str, receive: Any) -> dict[str, Any]:
    if path == "/v1/embeddings":
        if method != "POST":
            raise Refusal(f"{method} is not allowed here; send a POST.", status=405)
        return await embed(parse(await read_body(receive)))
    if path == "/v1/models" and method == "GET":
        return {
            "object": "list",
            "data": [{"id": MODEL, "object": "model", "created": 1630000000, "owned_by": "sentence-transformers"}],
        }
    raise Refusal(f"There is nothing at {path}. Try POST /v1/embeddings or GET /v1/models.", status=404)


async def read_body(receive: Any) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_MAX:
            raise Refusal(f"The request is larger than {BODY_MAX} bytes.", status=413)
        if not message.get("more_body"):
            return bytes(body)


def parse(body: bytes) -> tuple[list[str], str]:
    """(texts, encoding_format), or a Refusal that says what is wrong."""
    try:
        asked = json.loads(body)
    except ValueError as err:
        raise Refusal(f"The body is not JSON: {err}") from err
    if not isinstance(asked, dict):
        raise Refusal("The body must be a JSON object.")
    model = asked.get("model")
    if model not in MODELS:
        raise Refusal(f"The model {model!r} does not exist; this endpoint serves '{MODEL}'.", "model", 404, "model_not_found")
    if asked.get("dimensions") not in (None, WIDTH):
        raise Refusal(f"This model has {WIDTH} dimensions and can't be shortened.", "dimensions")
    encoding = asked.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise Refusal("encoding_format must be 'float' or 'base64'.", "encoding_format")
    texts = asked.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts:
        raise Refusal("input must be a string or a list of strings that is not empty.", "input")
    if any(isinstance(text, (int, list)) for text in texts):
        raise Refusal("Arrays of tokens are not supported; send the text itself.", "input")
    if not all(isinstance(text, str) and text for text in texts):
        raise Refusal("Every input must be a string that is not empty.", "input")
    if len(texts) > INPUTS_MAX:
        raise Refusal(f"{len(texts)} inputs are more than the {INPUTS_MAX} that one request may hold.", "input")
    return texts, encoding


async def embed(asked: tuple[list[str], str]) -> dict[str, Any]:
    texts, encoding = asked
    tokens = encoder.tokenize(texts)
    vectors = np.empty((len(texts), WIDTH), np.float32)
    for indices, rows in encoder.encode_batches(tokens):
        vectors[indices] = rows
        await asyncio.sleep(0)  # between batches others get their turn
    used = sum(map(len, tokens))
    data = [
        {"object": "embedding", "index": index, "embedding": written(vector, encoding)} for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": used, "total_tokens": used}}


def written(vector: Any, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
