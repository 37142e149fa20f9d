"""What the agent hands to an interpreter it knows nothing about."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import msgspec

from steelyard.runtime.relay import RelayConfig, find_arrival, relay_command
from steelyard.runtime.template import SINGLE_THREAD_ENV, Load, base_command, replica_command

LOAD = Load("fn", {"A": "b"}, "/code", "app.py", "app", 8)


def test_a_base_template_is_told_nothing_of_any_function() -> None:
    argv, env = base_command("/env/bin/python", lib_dir=Path("/lib's"), control_fd=3)
    assert argv[:2] == ["/env/bin/python", "-c"]
    compile(argv[2], "boot", "exec")
    assert "/lib's/steelyard/runtime/runner" in argv[2]
    assert {name: json.loads(value) for name, value in env.items()} == {
        "STEELYARD_RUNNER": {"mode": "base", "control_fd": 3, "lib_dir": "/lib's"}
    }


def test_a_plain_replica_is_told_everything_and_may_use_threads() -> None:
    _, env = replica_command("python", LOAD, lib_dir=Path("/lib"), listen_fd=3, page_fd=4)
    assert set(env) == {"STEELYARD_RUNNER"}
    config = json.loads(env["STEELYARD_RUNNER"])
    assert (config["mode"], config["code_dir"], config["concurrency"], config["listen_fd"]) == ("replica", "/code", 8, 3)
    assert "env" not in config


def test_libraries_in_templates_keep_to_one_thread() -> None:
    assert SINGLE_THREAD_ENV["OPENBLAS_NUM_THREADS"] == SINGLE_THREAD_ENV["OMP_NUM_THREADS"] == "1"
    assert SINGLE_THREAD_ENV["TOKENIZERS_PARALLELISM"] == "false"


def test_the_relays_command_round_trips() -> None:
    argv, env = relay_command("/ours/python", ["./serve", "--port", "8000"], port=8000, concurrency=4)
    assert argv == ["/ours/python", "-I", "-m", "steelyard.runtime.relay"]
    assert msgspec.json.decode(env["STEELYARD_RELAY"], type=RelayConfig) == RelayConfig(
        ("./serve", "--port", "8000"), 4, port=8000
    )


def test_arrival_is_found_in_a_whole_head_only() -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Steelyard-Start: 12.5\r\n\r\nbody"
    assert find_arrival(head) == 12_500_000
    assert find_arrival(head[: head.index(b"12.5") + 2]) == 0
    assert find_arrival(b"GET / HTTP/1.1\r\n\r\nx-steelyard-start: 1\r\n\r\n") == 0


def test_the_runner_imports_nothing_of_ours_and_nothing_beyond_the_standard_library() -> None:
    folder = Path(__file__).parents[3] / "src/steelyard/runtime/runner"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            for name in names:
                assert name.partition(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"
