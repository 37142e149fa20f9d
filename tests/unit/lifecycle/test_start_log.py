"""Logs of model servers, as they print them: the phases that are read from them, and that no line breaks the reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.start_log import StartLog

S = 1_000_000_000

#: (second, line)
VLLM = [
    (3, "INFO 06-02 00:51:09 [__init__.py:216] Automatically detected platform cuda."),
    (8, "(APIServer pid=1) INFO 06-02 00:51:14 [api_server.py:1896] vLLM API server version 0.12.0"),
    (10, "(EngineCore pid=9) INFO 06-02 00:51:16 [core.py:77] Initializing a V1 LLM engine (v0.12.0) with config: model='m'"),
    (14, "(Worker_TP0 pid=10) INFO 06-02 00:51:20 [gpu_model_runner.py:2602] Starting to load model m..."),
    (15, "Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:08<00:17,  8.97s/it]"),
    (40, "(Worker_TP1 pid=11) INFO 06-02 00:51:46 [default_loader.py:267] Loading weights took 24.10 seconds"),
    (41, "(Worker_TP0 pid=10) INFO 06-02 00:51:47 [default_loader.py:267] Loading weights took 25.93 seconds"),
    (
        42,
        "(Worker_TP0 pid=10) INFO 06-02 00:51:48 [runner.py:4879] Model loading took 12.66 GiB memory and 28.5 seconds",
    ),
    (52, "(Worker_TP0 pid=10) INFO 06-02 00:51:58 [monitor.py:34] torch.compile takes 7.50 s in total"),
    (69, "(Worker_TP0 pid=10) INFO 06-02 00:52:15 [gpu_model_runner.py:1933] Graph capturing finished in 17 secs, took 0.45 GiB"),
    (
        70,
        "(EngineCore pid=9) INFO 06-02 00:52:16 init engine (profile, create kv cache, warmup model) took 28 seconds",
    ),
]
LLAMA = [
    (0.1, "main: HTTP server is listening, hostname: 127.0.0.1, port: 8080, http threads: 11"),
    (0.2, "srv    load_model: loading model 'm.gguf'"),
    (0.5, "0.00.189.952 I load_tensors: loading model tensors, this can take a while... (mmap = true)"),
    (4.5, "llama_context: constructing llama_context"),
    (5.0, "common_init_from_params: warming up the model with an empty run - please wait ... (--no-warmup to disable)"),
    (6.0, "main: model loaded"),
]


def read(lines: list[tuple[float, str]], ready_s: float) -> dict[str, float]:
    log = StartLog()
    for at_s, line in lines:
        log.feed(round(at_s * S), line)
    return {phase: ms / 1000 for phase, ms in log.phases(0, round(ready_s * S)).items()}


def test_vllm_tells_its_phases() -> None:
    assert read(VLLM, 71.0) == pytest.approx(
        {
            "import": 10, "cuda_init": 4, "weights": 28, "compile": 7.5, "graph_capture": 17, "warmup": 1, "other": 2.5,
            "ready": 1,
        }
    )  # fmt: skip


def test_llama_cpp_tells_its_phases() -> None:
    assert read(LLAMA, 6.1) == pytest.approx(
        {"import": 0.2, "cuda_init": 0.3, "weights": 4.0, "context": 0.5, "warmup": 1.0, "ready": 0.1}
    )


def test_the_phases_are_the_whole_start() -> None:
    for lines, ready_s in ((VLLM, 71.0), (LLAMA, 6.1)):
        assert sum(read(lines, ready_s).values()) == pytest.approx(ready_s)


def test_what_it_says_it_took_counts_where_the_line_before_is_missing() -> None:
    assert read([VLLM[6]], 42.0) == pytest.approx({"weights": 25.93, "other": 15.07, "ready": 1})


def test_a_log_of_something_else_has_no_phases() -> None:
    assert read([(1, "INFO: Uvicorn running on http://127.0.0.1:8000"), (2, "")], 3.0) == {}


def test_a_line_of_the_other_server_is_no_line_of_this_one() -> None:
    assert read([*VLLM[:3], (12, "main: model loaded")], 13.0) == pytest.approx({"import": 10, "ready": 3})


@given(st.lists(st.text(max_size=40) | st.sampled_from([line for _, line in VLLM + LLAMA]), max_size=30))
def test_no_log_breaks_the_reader_and_no_phase_is_negative(lines: list[str]) -> None:
    phases = read([(at, line) for at, line in enumerate(lines)], len(lines) + 1)
    assert all(ms >= 0 for ms in phases.values())
    assert not phases or sum(phases.values()) == pytest.approx(len(lines) + 1)
