"""`sbatch` inside a job: hands a script to Steelyard, which reads it as `steelyard submit` would."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from .client import ENDED, Api, Failed, show_id
from .sbatch_table import read_sbatch

HELP = """sbatch [OPTIONS] SCRIPT [ARGS...]: submit SCRIPT (or what comes on standard input) to Steelyard.

`steelyard submit --test-only SCRIPT` says what becomes of each option.
"""
#: how often --wait looks whether the job has ended
LOOK_S = 1.0


def main(words: list[str]) -> int:
    given, at = read_sbatch(words)
    asked = {each.option.name: each.value for each in given}
    if "help" in asked or "usage" in asked:
        print(HELP, end="")
        return 0
    script, name = ("", "wrap") if "wrap" in asked else _read(words[at:])
    if "wrap" in asked and words[at:]:
        raise Failed("Script arguments not permitted with --wrap option")
    if "test-only" in asked:
        raise Failed("--test-only: use `steelyard submit --test-only`, which can say more")
    body = {
        "script": script,
        "arguments": words[at + 1 :],
        "options": [each.text for each in given if each.option.does != "client"],
        "cwd": os.getcwd(),
        "env": clean(os.environ),
        "name": name,
    }
    api = Api()
    answer = api.post("/v1/scripts", body)
    job = str(answer["id"])
    if "quiet" not in asked:
        for sentence in answer.get("ignored", ()):
            print(f"sbatch: {sentence}", file=sys.stderr)
    print(show_id(job) if "parsable" in asked else f"Submitted batch job {show_id(job)}", flush=True)
    return wait_for(api, job, bool(answer.get("array"))) if "wait" in asked else 0


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """Without what is no UTF-8, which no JSON can carry."""
    return {name: value for name, value in env.items() if (name + value).isascii() or _is_text(name + value)}


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _read(words: list[str]) -> tuple[str, str]:
    """The script and its name."""
    try:
        if not words:
            return sys.stdin.buffer.read().decode(), "sbatch"
        with open(words[0], "rb") as file:
            return file.read(1 << 20).decode(), os.path.basename(words[0])
    except OSError as err:
        raise Failed(f"Unable to open file {words[0] if words else ''}: {err.strerror}") from None
    except UnicodeDecodeError:
        raise Failed("the script is no text") from None


def wait_for(api: Api, job: str, array: bool) -> int:
    """Until it, or every element of the array, has ended; the highest exit code, 1 for what has none and did not succeed."""
    pause = threading.Event()
    while True:
        seen = [each for each in api.jobs() if each["id"].startswith(f"{job}_")] if array else [api.job(job)]
        if all(each["state"] in ENDED for each in seen):
            return max((_code(each) for each in seen), default=0)
        pause.wait(LOOK_S)


def _code(job: dict[str, Any]) -> int:
    code = job.get("exit_code")
    return int(code) if code is not None else int(job["state"] != "SUCCEEDED")
