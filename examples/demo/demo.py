"""What does Steelyard do, on this machine, in three acts? `make demo`. Leaves Steelyard running; `make down` ends it.

Everything is done by the same commands that a person types.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent
STEELYARD = (sys.executable, "-P", "-m", "steelyard")
FUNCTION = "embeddings"
KEY_NAME = "demo"
ROUNDS = 60
WAKES = 5
SENTENCES = ("The cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell today.")
#: numpy's library would start a thread per core; one core is what is compared
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    title("Steelyard: this machine as a serverless platform, with no hypervisor in the path")
    show("up", "--detach")
    as_root = () if work_reaches_examples() else ("--as-root",)
    if as_root:
        say("Note: this checkout lies in a folder that only root may enter, so the demo's work runs as root.")
        say("      Elsewhere it would run as an unprivileged user.\n")
    title("Act 1. Your machine")
    show("machine")
    act_job(as_root)
    act_function(as_root)
    status = json.loads(steelyard("status", "--json"))
    title("Steelyard goes on running")
    say(f"API      {status['api_url']}\nGateway  {status['gateway_url']}\n")
    say("steelyard is .venv/bin/steelyard; try `steelyard --help`. `make down` ends everything.")


def act_job(as_root: tuple[str, ...]) -> None:
    title("Act 2. A job: the same program in a shell, as a job, and as a job with a core of its own")
    program = (sys.executable, str(EXAMPLES / "demo" / "work.py"), str(ROUNDS))
    env = [word for key, value in ONE_THREAD.items() for word in ("--env", f"{key}={value}")]
    # a job gets a small environment of its own; the shell's must be the same, or a variable would decide the comparison
    shell_env = {"PATH": os.environ.get("PATH", os.defpath), **ONE_THREAD}
    ways = {
        "in a shell": program,
        "steelyard run": (*STEELYARD, "run", *as_root, *env, "--", *program),
        "... run --exclusive": (*STEELYARD, "run", *as_root, *env, "--exclusive", "--", *program),
    }
    if (os.cpu_count() or 1) < 2:
        say("(one core only: it stays shared, so there is none to give away)")
        del ways["... run --exclusive"]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    # in turns, so that a slow moment of the machine hits all alike
    for _ in range(3):
        for name, command in ways.items():
            results[name].append(json.loads(call(command, env=shell_env if command is program else None)))
    say(f"{'':22}{'matrix products':>17}{'memory':>14}   (medians of 3, in turns)")
    for name, seen in results.items():
        products_s = statistics.median(each["products_s"] for each in seen)
        memory_gb_s = statistics.median(each["memory_gb_s"] for each in seen)
        say(f"{name:22}{products_s:15.3f} s{memory_gb_s:9.1f} GB/s")
    wish = ("--exclusive",) if len(ways) == 3 else ()
    job = steelyard("run", "--detach", *as_root, *wish, "--memory", "512MB", "--name", "proof", "--", "sleep", "30").strip()
    wait_until(lambda: job_state(job) == "RUNNING", "the job to run")
    say("\nWhat such a job asked for, and what the kernel says it has:\n")
    show("proof", job)
    steelyard("stop", job)


def act_function(as_root: tuple[str, ...]) -> None:
    title("Act 3. A function: sentence embeddings that sleep when nobody asks, and wake when somebody does")
    app = f"{EXAMPLES / 'embeddings' / 'app.py'}:app"
    show("deploy", app, "--name", FUNCTION, "--idle-timeout", "1s", "--memory", "1GB", *as_root)
    if KEY_NAME in [key["name"] for key in json.loads(steelyard("keys", "--json"))]:
        steelyard("keys", "delete", KEY_NAME)
    key = steelyard("keys", "create", KEY_NAME).strip()
    url = next(row["url"] for row in json.loads(steelyard("functions", "--json")) if row["name"] == FUNCTION)
    # the gateway learns of a new key within moments
    wait_until(lambda: embed(url, key, SENTENCES) is not None, "the first answer")
    vectors, _ = embed(url, key, SENTENCES) or ([], 0.0)
    for other in (1, 2):
        likeness = sum(a * b for a, b in zip(vectors[0], vectors[other], strict=True))
        say(f"  {likeness:6.3f}  {SENTENCES[0]!r} and {SENTENCES[other]!r}")
    warm_ms, cold_ms = [], []
    for _ in range(WAKES):
        warm_ms.append(embed_ms(url, key))
        wait_until(lambda: function_state() == "SLEEPING", "it to fall asleep")
        cold_ms.append(embed_ms(url, key))
    say(f"\nawake:              {statistics.median(warm_ms):7.1f} ms an answer (median of {WAKES})")
    say(f"asleep, no process: {statistics.median(cold_ms):7.1f} ms an answer, waking included\n")
    say("The cold-start ledger of its last wakes (platform is ours, user is the model's own work), in ms:\n")
    show("coldstarts", FUNCTION, "--limit", str(WAKES))


def embed_ms(url: str, key: str) -> float:
    answer = embed(url, key, SENTENCES[:1])
    if answer is None:
        sys.exit("demo: the function refused its key")
    return answer[1]


def embed(url: str, key: str, sentences: tuple[str, ...]) -> tuple[list[list[float]], float] | None:
    """The vectors and the milliseconds it took; None while the key is not known yet."""
    body = json.dumps({"model": "all-MiniLM-L6-v2", "input": list(sentences)}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}v1/embeddings", body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    begun = time.perf_counter()
    try:
        with opener.open(request, timeout=60) as answer:
            content = answer.read()
    except urllib.error.HTTPError as err:
        with err:
            if err.code in (401, 403):
                return None
            raise
    return [each["embedding"] for each in json.loads(content)["data"]], (time.perf_counter() - begun) * 1000


def job_state(job: str) -> str:
    return next(row["state"] for row in json.loads(steelyard("ps", "--json")) if row["id"] == job)


def function_state() -> str:
    return next(row["state"] for row in json.loads(steelyard("functions", "--json")) if row["name"] == FUNCTION)


def wait_until(seen: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        if time.monotonic() > deadline:
            sys.exit(f"demo: waited a minute for {what}")
        time.sleep(0.05)


def work_reaches_examples() -> bool:
    """May the uid that work runs as execute our interpreter and read the examples?"""
    if os.getuid() != 0:
        return True
    probe = [sys.executable, "-I", "-c", f"import steelyard; open({str(EXAMPLES / 'embeddings' / 'app.py')!r})"]
    try:
        return (
            subprocess.run(probe, user=64000, group=64000, extra_groups=(), cwd="/", capture_output=True, check=False).returncode
            == 0
        )
    except OSError:
        return False


def steelyard(*words: str) -> str:
    return call((*STEELYARD, *words))


def show(*words: str) -> None:
    """Run a command as a person would and let it speak for itself."""
    say(f"$ steelyard {' '.join(words)}")
    sys.stdout.flush()
    code = subprocess.run((*STEELYARD, *words), check=False).returncode
    if code:
        sys.exit(code)
    say("")


def call(command: tuple[str, ...], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", check=False)
    if done.returncode:
        sys.exit(f"demo: `{' '.join(command[-6:])}` answered {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def title(text: str) -> None:
    bar = "─" * min(len(text), 100)
    say(f"\n{text}\n{bar}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
