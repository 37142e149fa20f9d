"""A language model's server that needs no GPU: the OpenAI API with streams, /health, and /metrics under vLLM's names, before the
transformer of transformer.py. To try out, and to test, what `steelyard deploy --recipe vllm` deploys where there is a GPU.

    python server.py [serve MODEL] [--port 8000] [--max-num-seqs 8] [--served-model-name NAME]

It takes vLLM's command line; options that it does not know are passed over. Without MODEL (a folder that transformer.py wrote)
the weights are made up at each start. As in vLLM, requests that come together are worked on together, a token of each at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: matrices as small as these gain nothing by threads; read when numpy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
BODY_MAX = 1 << 20


class BadRequest(Exception):
    pass


class Sequence:
    """One request: what it has so far, and where its tokens go."""

    def __init__(self, tokens: list[int], limit: int, temperature: float, seed: int | None) -> None:
        import numpy as np

        self.tokens, self.limit, self.temperature = tokens, limit, temperature
        self.random = np.random.default_rng(seed)
        self.coming: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.gone = False


class Engine:
    """One thread that loads the model and then works on up to `width` sequences, a token of each in turn."""

    def __init__(self, model: str | None, width: int) -> None:
        self._model, self._width = model, width
        self._changed = threading.Condition()
        self.loaded = False
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.prompt_tokens = self.generation_tokens = 0
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, sequence: Sequence) -> None:
        with self._changed:
            self.waiting.append(sequence)
            self._changed.notify()

    def _run(self) -> None:
        import numpy as np
        import transformer

        say(f"Initializing an LLM engine for {self._model or 'made-up weights'}")
        began = time.monotonic()
        model = transformer.read_model(Path(self._model)) if self._model else transformer.Transformer(transformer.make_weights())
        say(f"Loading weights took {time.monotonic() - began:.2f} seconds")
        model.logits([0])
        say(f"init engine (profile, create kv cache, warmup model) took {time.monotonic() - began:.2f} seconds")
        self.loaded = True
        while True:
            with self._changed:
                while not (self.waiting or self.running):
                    self._changed.wait()
                while self.waiting and len(self.running) < self._width:
                    self.running.append(self.waiting.popleft())
                    self.prompt_tokens += len(self.running[-1].tokens)
                running = list(self.running)
            for sequence in running:
                logits = model.logits(sequence.tokens)
                if sequence.temperature > 0:
                    logits = logits / sequence.temperature + sequence.random.gumbel(size=len(logits))
                token = int(np.argmax(logits))
                sequence.tokens.append(token)
                sequence.coming.put(token)
                sequence.limit -= 1
                self.generation_tokens += 1
                if sequence.limit <= 0 or sequence.gone:
                    sequence.coming.put(None)
                    with self._changed:
                        self.running.remove(sequence)


def say(text: str) -> None:
    print(f"INFO {time.strftime('%m-%d %H:%M:%S')} [server.py] {text}", flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine
    name: str

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200 if self.engine.loaded else 503, b"", "text/plain")
        elif self.path == "/metrics":
            self._answer(200, self._metrics().encode(), "text/plain; version=0.0.4")
        elif self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "examples"}]})
        else:
            self._refuse(404, f"There is no {self.path}.")

    def do_POST(self) -> None:
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            self._refuse(404, f"There is no {self.path}.")
            return
        try:
            asked = self._read()
            sequence = self._make_sequence(asked, chat)
        except BadRequest as err:
            self._refuse(400, str(err))
            return
        id_, prompt_tokens = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex[:12]}", len(sequence.tokens)
        kind = "chat.completion" if chat else "text_completion"
        head = {"id": id_, "object": kind, "created": int(time.time()), "model": self.name}
        self.engine.submit(sequence)
        if asked.get("stream"):
            self._stream({**head, "object": "chat.completion.chunk" if chat else kind}, sequence, chat)
            return
        text = "".join(_pieces(sequence))
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(text), "total_tokens": prompt_tokens + len(text)}
        self._json(200, {**head, "choices": [{"index": 0, "finish_reason": "length", **said}], "usage": usage})

    def _read(self) -> dict[str, Any]:
        length = int(self.headers.get("content-length") or 0)
        if length > BODY_MAX:
            self.close_connection = True
            raise BadRequest(f"The body is larger than {BODY_MAX} bytes.")
        try:
            asked = json.loads(self.rfile.read(length))
        except ValueError as err:
            raise BadRequest(f"The body is no JSON: {err}.") from err
        if not isinstance(asked, dict):
            raise BadRequest("The body is no JSON object.")
        return asked

    def _make_sequence(self, asked: dict[str, Any], chat: bool) -> Sequence:
        import transformer

        if asked.get("model") != self.name:
            raise BadRequest(f"There is no model {asked.get('model')!r}; this one is {self.name!r}.")
        if chat:
            messages = asked.get("messages")
            if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
                raise BadRequest("messages is a list of objects with role and content.")
            prompt = "\n".join(f"{each.get('role')}: {each.get('content')}" for each in messages)
        else:
            prompt = str(asked.get("prompt", ""))
        limit = asked.get("max_completion_tokens", asked.get("max_tokens", 16))
        temperature, seed = asked.get("temperature", 1.0), asked.get("seed")
        if not isinstance(limit, int) or not 0 < limit <= 4096:
            raise BadRequest("max_tokens is a number from 1 to 4096.")
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 2 or not isinstance(seed, int | None):
            raise BadRequest("temperature is a number from 0 to 2, seed a whole one.")
        return Sequence(transformer.encode(prompt), limit, float(temperature), seed)

    def _stream(self, head: dict[str, Any], sequence: Sequence, chat: bool) -> None:
        """Server-sent events, as OpenAI's clients read them. A client that leaves ends its sequence."""

        def event(said: dict[str, Any], finish: str | None = None) -> bytes:
            data = json.dumps({**head, "choices": [{"index": 0, "finish_reason": finish, **said}]})
            return f"data: {data}\n\n".encode()

        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for piece in _pieces(sequence):
                self._chunk(event({"delta": {"role": "assistant", "content": piece}} if chat else {"text": piece}))
            self._chunk(event({"delta": {}} if chat else {"text": ""}, "length"))
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            sequence.gone = True
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _metrics(self) -> str:
        engine, label = self.engine, f'{{model_name="{self.name}"}}'
        rows = [
            ("vllm:num_requests_running", "gauge", len(engine.running)),
            ("vllm:num_requests_waiting", "gauge", len(engine.waiting)),
            ("vllm:prompt_tokens_total", "counter", engine.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", engine.generation_tokens),
        ]
        return "".join(f"# TYPE {name} {kind}\n{name}{label} {value}\n" for name, kind, value in rows)

    def _refuse(self, status: int, text: str) -> None:
        self._json(status, {"error": {"message": text, "type": "invalid_request_error", "code": status}})

    def _json(self, status: int, answer: dict[str, Any]) -> None:
        self._answer(status, json.dumps(answer).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """One line per request is more than anybody reads."""


def _pieces(sequence: Sequence) -> Iterator[str]:
    import transformer

    while (token := sequence.coming.get()) is not None:
        yield transformer.decode(token)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*", help="serve MODEL, as vLLM's command line says it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--served-model-name")
    options, _ = parser.parse_known_args()
    model = options.words[1] if options.words[:1] == ["serve"] else None
    Handler.name = options.served_model_name or model or "example"
    Handler.engine = Engine(model, options.max_num_seqs)
    say(f"Starting the API server on http://{options.host}:{options.port}")
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
