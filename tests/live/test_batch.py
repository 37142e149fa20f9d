"""`steelyard batch` against real functions behind the real gateway: private ones, killed batches, refusals."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from apps import write_app
from steelyard_cluster import Cluster, wait_until

#: answers {"n": row's number, "twice": 2 n} after a moment; notes each row in $SEEN; 13s are refused
DOUBLES = """
import asyncio, json, os

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    row = json.loads(body)
    with open(os.environ["SEEN"], "ab", buffering=0) as seen:
        seen.write(b"%d\\n" % row["n"])
    await asyncio.sleep(float(os.environ.get("DELAY", "0")))
    status, answer = (422, {"error": "unlucky"}) if row["n"] % 100 == 13 else (200, {"n": row["n"], "twice": 2 * row["n"]})
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer, indent=1).encode()})
"""


def deploy_doubles(cluster: Cluster, name: str, delay: str = "0") -> Path:
    """Private: nobody may call it without a key."""
    seen = cluster.folder / f"{name}.seen"
    seen.touch()
    seen.chmod(0o666)
    app = write_app(cluster, name, DOUBLES)
    env = ("--env", f"SEEN={seen}", "--env", f"DELAY={delay}")
    cluster.ok("deploy", f"{app}:app", "--name", name, "--concurrency", "8", *env)
    return seen


def write_rows(file: Path, count: int) -> None:
    file.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(1, count + 1)))


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def command(cluster: Cluster, name: str, *more: str) -> tuple[str, ...]:
    output = str(cluster.folder / "out.jsonl")
    return ("batch", "--input", str(cluster.folder / "in.jsonl"), "--function", name, "--output", output, *more)


def clean(cluster: Cluster) -> Path:
    for file in cluster.folder.glob("out.*"):
        file.unlink()
    return cluster.folder / "out.jsonl"


def test_a_batch_killed_twice_goes_on_and_has_each_row_once_in_order(shared: Cluster) -> None:
    output = clean(shared)
    seen = deploy_doubles(shared, "doubles", delay="0.05")
    write_rows(shared.folder / "in.jsonl", 300)
    for rows, signum, code in ((40, signal.SIGKILL, -9), (120, signal.SIGINT, 130)):
        running = shared.start(*command(shared, "doubles", "--parallel", "8"))
        wait_until(lambda at=rows: output.exists() and output.read_bytes().count(b"\n") >= at, 30, f"{rows} rows")
        running.send_signal(signum)
        _, words = running.communicate(timeout=30)
        assert running.returncode == code, words
    assert b"The same command goes on" in words
    with output.open("ab") as torn:
        torn.write(b'{"n": 9')
    done = shared.cli(*command(shared, "doubles", "--parallel", "8", "--json"))
    assert done.returncode == 1, done.stderr
    assert b"going on after them" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["state"], summary["rows"], summary["answered"], summary["failed"]) == ("finished", 300, 297, 3)
    assert 0 < summary["asked"] <= 180
    unlucky = {13, 113, 213}
    assert lines_of(output) == [None if n in unlucky else {"n": n, "twice": 2 * n} for n in range(1, 301)]
    errors = lines_of(shared.folder / "out.errors.jsonl")
    assert [(error["row"], error["status"]) for error in errors] == [(n, 422) for n in sorted(unlucky)]
    assert "unlucky" in errors[0]["message"]
    # asked again is only what was under way when it was killed or interrupted
    times = Counter(int(line) for line in seen.read_text().split())
    assert set(times) == set(range(1, 301))
    assert sum(times.values()) - 300 <= 2 * 8 * 4
    assert json.loads(shared.ok("keys", "--json")) == []
    again = shared.cli(*command(shared, "doubles"))
    assert (again.returncode, b"nothing was left to ask" in again.stderr) == (1, True)
    shared.ok("delete", "doubles")


def test_what_cannot_be_is_refused_and_changes_nothing(shared: Cluster) -> None:
    output = clean(shared)
    deploy_doubles(shared, "refuses")
    rows = shared.folder / "in.jsonl"
    write_rows(rows, 3)
    folder = str(shared.folder)
    refused = {
        ("--function", "none"): b"no function none",
        ("--input", f"{folder}/none.jsonl"): b"no file",
        ("--output", str(rows)): b"is the input",
        ("--output", "/proc/out.jsonl"): b"can't be written",
        ("--output", f"{folder}/none/out.jsonl"): b"can't be written",
        ("--path", "embeddings"): b"no path",
        ("--timeout", "0"): b"more than 0",
        ("--parallel", "0"): b"parallel",
    }
    for more, words in refused.items():
        done = shared.cli(*command(shared, "refuses", *more))
        assert (done.returncode, words in done.stderr) == (2, True), (more, done.stderr)
    wrong = shared.cli(*command(shared, "refuses", "--key", "sk-wrong"))
    assert (wrong.returncode, b"key does not fit" in wrong.stderr) == (2, True), wrong.stderr
    assert not output.exists() or output.read_bytes() == b""
    shared.ok(*command(shared, "refuses"))
    assert [line["n"] for line in lines_of(output)] == [1, 2, 3]
    write_rows(rows, 4)
    changed = shared.cli(*command(shared, "refuses"))
    assert (changed.returncode, b"--restart" in changed.stderr) == (2, True), changed.stderr
    assert len(lines_of(output)) == 3
    rows.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    mixed = shared.cli(*command(shared, "refuses", "--restart"))
    assert mixed.returncode == 1
    assert [line and line["n"] for line in lines_of(output)] == [1, None, 3]
    assert lines_of(shared.folder / "out.errors.jsonl")[0]["row"] == 2
    stopped = shared.cli(*command(shared, "refuses", "--restart", "--max-errors", "0"))
    assert (stopped.returncode, b"--max-errors 0" in stopped.stderr) == (1, True), stopped.stderr
    shared.ok("delete", "refuses")


def test_a_key_that_is_given_is_used_and_none_is_made(shared: Cluster) -> None:
    output = clean(shared)
    deploy_doubles(shared, "keyed")
    write_rows(shared.folder / "in.jsonl", 5)
    secret = shared.ok("keys", "create", "mine").strip()
    shared.ok(*command(shared, "keyed"), env={"STEELYARD_KEY": secret})
    assert [line["n"] for line in lines_of(output)] == [1, 2, 3, 4, 5]
    assert [key["name"] for key in json.loads(shared.ok("keys", "--json"))] == ["mine"]
    shared.ok("keys", "delete", "mine")
    shared.ok("delete", "keyed")
