"""A language model's server, deployed as the recipe writes it, asked with OpenAI's own client through gateway and relay. The
server is the example's, which takes vLLM's command line and needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.cli.model_files import find_model
from steelyard.cli.recipe import VLLM, Program, render_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "llm"
NAME = "chat"


@pytest.fixture(scope="module")
def chat(shared: Cluster) -> Iterator[openai.OpenAI]:
    """The recipe's file but for the GPUs, which this server does without."""
    folder = shared.folder / "llm"
    folder.mkdir(mode=0o755)
    program, model = folder / "vllm", folder / "model"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {EXAMPLE / "server.py"} "$@"\n')
    program.chmod(0o755)
    subprocess.run([sys.executable, str(EXAMPLE / "transformer.py"), str(model)], check=True)
    given = {"gpus": "1", "max_replicas": 2, "concurrency": 2, "idle_timeout": "1s", "public": True, "cpus": 1}
    text = render_recipe(Program(VLLM, str(program)), NAME, str(model), find_model(str(model), folder), given, folder)
    text = text.replace('gpu: "1"', "", 1).replace("concurrency: 2 ", "concurrency: 64 ").replace("target: 8", "target: 2")
    (folder / "chat.yaml").write_text(text)
    planned = shared.ok("apply", "-y", "-f", str(folder / "chat.yaml"))
    assert "readiness: /health" in planned and "is ready" in planned
    yield openai.OpenAI(base_url=f"{shared.gateway_url}/{NAME}/v1", api_key="none", max_retries=0, timeout=60)
    shared.ok("delete", NAME)


def stream(chat: openai.OpenAI, tokens: int) -> list[tuple[float, str]]:
    """When each piece came, and what it was."""
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    pieces = chat.chat.completions.create(model=NAME, messages=asked, stream=True, max_tokens=tokens)
    return [(time.monotonic(), text) for piece in pieces if (text := piece.choices[0].delta.content)]


def test_a_stream_wakes_the_model_and_comes_piece_by_piece(shared: Cluster, chat: openai.OpenAI) -> None:
    shared.wait_function(NAME, "SLEEPING")
    pieces = stream(chat, 40)
    assert len(pieces) == 40
    # on a busy machine a client may come to read when all of it is there
    spread = max(each[-1][0] - each[0][0] for each in (pieces, *(stream(chat, 40) for _ in range(4))))
    assert spread > 0.01, "all at once is no stream"
    [row] = json.loads(shared.ok("coldstarts", NAME, "--limit", "1", "--json"))
    told = row["user_phases"]
    assert row["road"] == "plain" and {"enter.import", "enter.weights", "enter.warmup", "enter.ready"} <= told.keys()
    assert sum(told.values()) == pytest.approx(row["phases"]["enter"], abs=5), "all of the start is told"


def test_models_are_listed_and_mistakes_are_told_by_the_server_itself(chat: openai.OpenAI) -> None:
    assert [model.id for model in chat.models.list()] == [NAME]
    answer = chat.completions.create(model=NAME, prompt="once", max_tokens=5, seed=1, temperature=0)
    assert answer.usage is not None and answer.usage.completion_tokens == 5 == len(answer.choices[0].text)
    with pytest.raises(openai.BadRequestError, match="no model"):
        chat.completions.create(model="another", prompt="once")


def running(shared: Cluster) -> str:
    page = shared.call(f"/{NAME}/metrics").body.decode()
    return next(line for line in page.splitlines() if line.startswith("vllm:num_requests_running"))


def test_two_streams_are_worked_on_together(shared: Cluster, chat: openai.OpenAI) -> None:
    with chat.completions.create(model=NAME, prompt="x", max_tokens=4096, stream=True) as first:
        next(iter(first))
        assert len(stream(chat, 60)) == 60
        assert running(shared).endswith(" 1"), "the first has not ended yet"


def test_a_client_that_leaves_ends_its_sequence(shared: Cluster, chat: openai.OpenAI) -> None:
    with chat.completions.create(model=NAME, prompt="x", max_tokens=4096, stream=True) as left:
        next(iter(left))

    wait_until(lambda: running(shared).endswith(" 0"), 20, "the sequence to end")


def test_a_queue_inside_the_model_adds_a_replica(shared: Cluster, chat: openai.OpenAI) -> None:
    def why() -> dict[str, Any]:
        (found,) = shared.api("GET", f"/v1/functions/{NAME}/why").json()["revisions"]
        return found

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, chat, 400) for _ in range(8)]
        seen = wait_until(lambda: seen if (seen := why())["serving"] == 2 else None, 40, "a second replica")
        assert {len(job.result()) for job in streams} == {400}
    assert any("vllm:num_requests_waiting is" in step["text"] and step["after"] == 2 for step in seen["changes"])
    shared.wait_function(NAME, "SLEEPING", 40)


def test_one_command_writes_the_file_and_deploys_what_it_says(shared: Cluster) -> None:
    """`llama-server` is stood in for by the example's server, which passes over options that it does not know."""
    folder = shared.folder / "recipe"
    folder.mkdir(mode=0o755)
    (folder / "llama-server").write_text(f'#!/bin/sh\nexec {sys.executable} {EXAMPLE / "server.py"} "$@"\n')
    (folder / "llama-server").chmod(0o755)
    (folder / "small.gguf").write_bytes(b"GGUF" + bytes(1000))
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    words = ("deploy", "--recipe", "llama-cpp", "small.gguf", "--public", "--idle-timeout", "1s")
    unasked = shared.cli(*words, env=env, cwd=folder)
    assert unasked.returncode != 0 and b"apply it with -y" in unasked.stderr, "nobody is there to ask"
    shown = shared.ok(*words, "-y", env=env, cwd=folder)
    assert "+ function small: new" in shown and "small revision 1 is ready" in shown
    assert shared.call("/small/v1/models").status == 200
    again = shared.ok("apply", "-y", "-f", str(folder / "small.yaml"))
    assert "= function small: as it is" in again
    shared.ok("delete", "small")
