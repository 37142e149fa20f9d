"""`run`, `deploy` and what they do with an app, through the whole platform, as a person would type them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

from steelyard_cluster import Cluster, wait_until

APP = """
import os
import steelyard as sy

app = sy.App("shop")

@app.function(env={"STAGE": "test"})
def price(item: str, count: int = 1) -> float:
    print("pricing", item)
    return len(item) * count * 1.5

@app.function(public=True)
@sy.asgi_app
def web():
    async def serve(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"open"})
    return serve

@app.local_entrypoint()
def main(n: int = 1, fail: bool = False):
    if fail:
        raise KeyError("nothing here")
    print("here", n)

@app.local_entrypoint()
def wait():
    import time
    print("waiting", flush=True)
    time.sleep(60)
"""

PLAIN = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        print("asked")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"open"})
"""


def write(cluster: Cluster, text: str, folder: str = "shop") -> Path:
    made = cluster.folder / folder
    made.mkdir(exist_ok=True)
    file = made / "shop.py"
    file.write_text(text)
    return file


def names(cluster: Cluster) -> list[str]:
    return [each["name"] for each in cluster.api("GET", "/v1/functions").json()]


def test_an_entry_point_runs_here_and_its_functions_are_gone_afterwards(shared: Cluster) -> None:
    file = write(shared, APP)
    done = shared.cli("run", f"{file}:main", "--n", "7")
    assert (done.returncode, done.stdout) == (0, b"here 7\n"), done.stderr.decode()
    assert names(shared) == []


def test_a_traceback_is_the_users_own_and_the_exit_code_says_it(shared: Cluster) -> None:
    file = write(shared, APP)
    done = shared.cli("run", f"{file}:main", "--fail")
    assert done.returncode == 1
    assert b"KeyError: 'nothing here'" in done.stderr
    assert b"steelyard/sdk" not in done.stderr
    assert names(shared) == []


def test_wrong_arguments_and_files_are_refused_before_anything_starts(shared: Cluster) -> None:
    file = write(shared, APP)
    for words, said in (
        ((f"{file}:price", "x", "many"), b"--count: 'many' is not INT"),
        ((f"{file}:nothing",), b"There is: main, wait, price, web"),
        ((f"{file}:web",), b"is a web app"),
        ((str(file.with_name("missing.py")),), b"There is no file"),
        (("--python", "/no/such/python", f"{file}:main"), b"/no/such/python"),
    ):
        done = shared.cli("run", *words)
        assert done.returncode == 125, done.stderr
        assert said in done.stderr
    assert shared.api("GET", "/v1/functions").json() == []


def test_ctrl_c_deletes_and_a_killed_command_leaves_it_to_the_lease(shared: Cluster) -> None:
    file = write(shared, APP)
    process = shared.start("run", f"{file}:wait")
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    assert len(names(shared)) == 2
    assert all(name.startswith("shop-") for name in names(shared))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert names(shared) == []
    process = shared.start("run", f"{file}:wait")
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    process.kill()
    process.communicate(timeout=20)
    left = shared.api("GET", "/v1/functions").json()
    assert len(left) == 2
    assert all(each["expires_at"] is not None for each in left)
    shared.api("POST", "/v1/leases", {"names": [each["name"] for each in left], "lease_s": 0})
    assert names(shared) == []


def test_output_is_shown_on_after_a_restart_of_the_server(shared: Cluster) -> None:
    file = write(shared, PLAIN)
    with Served(shared, "--public", f"{file}:app") as served:
        assert shared.call("/shop-dev/").body == b"open"
        served.wait_for("[shop] asked")
        shared.wait_replaced("server", shared.kill("server"))
        shared.wait_ready()
        assert shared.call("/shop-dev/").body == b"open"
        served.wait_for("[shop] asked")


def test_what_nobody_renews_is_deleted(shared: Cluster) -> None:
    spec = {"argv": ["/bin/sleep", "1000"], "cwd": "/tmp", "port": 9}
    made = shared.api("PUT", "/v1/functions/brief", {"spec": spec, "lease_s": 60})
    assert made.status == 200
    assert made.json()["expires_at"] is not None
    assert shared.api("POST", "/v1/leases", {"names": ["brief", "none"], "lease_s": 0.2}).json() == {"names": ["brief"]}
    # the loop was told of the first lease; a shorter one is found when it looks next, or by the next deploy
    assert shared.api("PUT", "/v1/functions/brief2", {"spec": spec, "lease_s": 0.2}).status == 200
    wait_until(lambda: names(shared) == [], 20, "both to be deleted")


def test_an_app_is_deployed_changed_and_pruned(shared: Cluster) -> None:
    file = write(shared, APP)
    rows = json.loads(shared.ok("deploy", str(file), "--json"))
    assert [(row["name"], row["state"]) for row in rows] == [("shop-price", "ready"), ("shop-web", "ready")]
    other = write(shared, APP, "copy")
    refused = shared.cli("deploy", str(other))
    assert refused.returncode == 2
    assert f"app shop in {file}".encode() in refused.stderr
    write(shared, APP.replace("def price", "def cost"))
    rows = json.loads(shared.ok("deploy", str(file), "--json"))
    assert ("shop-price", "vanished") in [(row["name"], row["state"]) for row in rows]
    assert "shop-price" in names(shared)
    shared.ok("deploy", str(file), "--prune")
    listed = json.loads(shared.ok("functions", "--app", "shop", "--json"))
    assert {each["name"]: each["interface"] for each in listed} == {"shop-web": "http", "shop-cost": "call"}
    assert json.loads(shared.ok("deploy", f"{file}:cost", "--json", "--env", "STAGE=live"))[0]["revision"] == 3
    assert shared.function("shop-cost")["spec"]["env"] == {"STAGE": "live"}
    for name in names(shared):
        shared.ok("delete", name)


def test_one_function_that_fails_leaves_the_others(shared: Cluster) -> None:
    text = APP + "\n@app.function(memory='1MiB', startup_deadline='5s')\ndef tiny() -> None: ...\n"
    file = write(shared, text.replace("import os\n", "import os\nif os.environ.get('STAGE'): raise OSError('no stage')\n"))
    done = shared.cli("deploy", str(file), "--json")
    assert done.returncode == 1
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)}
    assert states["shop-price"] == "failed"
    assert states["shop-web"] == "ready"
    assert b"OSError: no stage" in done.stderr
    for name in names(shared):
        shared.ok("delete", name)


def test_another_interpreter_loads_and_runs_the_app(shared: Cluster) -> None:
    # a link to this one is another one by its path
    python = shared.folder / "python"
    python.symlink_to(Path(sys.executable).resolve())
    file = write(shared, APP)
    done = shared.cli("run", "--python", str(python), f"{file}:main", "--n", "7")
    assert (done.returncode, done.stdout) == (0, b"here 7\n"), done.stderr.decode()
    done = shared.cli("run", "--python", str(python), f"{file}:main", "--fail")
    assert done.returncode == 1
    assert b"KeyError" in done.stderr
    file.write_text("import torch_of_nobody\n" + APP)
    done = shared.cli("run", "--python", str(python), f"{file}:main")
    assert done.returncode == 125
    assert f"imports 'torch_of_nobody', which {python}".encode() in done.stderr
    assert names(shared) == []


def test_a_functions_result_is_printed_and_what_it_writes_is_shown(shared: Cluster) -> None:
    file = write(shared, APP)
    done = shared.cli("run", "--json", f"{file}:price", "--item", "tea", "--count", "2")
    assert (done.returncode, done.stdout) == (0, b"9.0\n"), done.stderr.decode()
    assert b"[price] pricing tea\n" in done.stderr
    done = shared.cli("run", f"{file}:price", "tea", "--count=-1", "--help")
    assert done.returncode == 0
    assert b"--count INT" in done.stdout
    broken = write(shared, APP.replace("print(", "raise LookupError(item); print("))
    done = shared.cli("run", f"{broken}:price", "tea")
    assert done.returncode == 1
    assert b"LookupError: tea" in done.stderr.splitlines()
    assert done.stderr.count(b"Traceback") == 1, done.stderr.decode()  # that of its log
    assert b"steelyard/sdk" not in done.stderr
    assert names(shared) == []
    wait_until(lambda: not list((shared.home / "workloads").glob("fn.shop-price-*")), 10, "their logs to go too")


def test_a_deployed_function_is_called_by_name(shared: Cluster) -> None:
    file = write(shared, APP)
    shared.ok("deploy", f"{file}:price")
    assert shared.ok("call", "shop-price", "tea", "2") == "9.0\n"
    assert shared.ok("call", "shop-price", "--json", '{"item": "tea"}') == "4.5\n"
    wrong = shared.cli("call", "shop-price", "--json", '{"item": "tea", "count": "two"}')
    assert wrong.returncode == 2
    assert b"count" in wrong.stderr
    missing = shared.cli("call", "shop-nothing")
    assert missing.returncode == 2
    assert b"There is no function shop-nothing" in missing.stderr
    spawned = shared.ok("call", "--spawn", "shop-price", "tea").strip()
    assert json.loads(shared.ok("calls", "result", spawned, "--wait")) == 4.5
    shared.ok("delete", "shop-price")


def test_a_functions_log_can_be_read(shared: Cluster) -> None:
    shared.ok("deploy", f"{write(shared, PLAIN)}:app", "--name", "plain", "--public")
    assert shared.call("/plain/").body == b"open"
    wait_until(lambda: "asked" in shared.ok("logs", "plain"), 10, "its line")
    shared.ok("delete", "plain")


def test_every_save_is_served_and_a_wrong_one_changes_nothing(shared: Cluster) -> None:
    file = write(shared, PLAIN)

    def answers(body: bytes) -> bool:
        return shared.call("/shop-dev/").body == body

    with Served(shared, "--public", f"{file}:app") as served:
        assert answers(b"open")
        served.wait_for("[shop] asked")
        file.write_text(PLAIN.replace("open", "closed"))
        wait_until(lambda: answers(b"closed"), 10, "the new code")
        served.wait_for("Reloaded in")
        file.write_text(PLAIN + "\ndef (")
        served.wait_for("is not Python")
        assert answers(b"closed")
        file.write_text(PLAIN + "\nraise ValueError('no good')\n")
        served.wait_for("ValueError: no good")
        assert answers(b"closed")
        file.write_text(PLAIN)
        served.wait_for("Reloaded in")
        assert answers(b"open")
    assert names(shared) == []


def test_functions_that_a_save_adds_and_takes_out_follow(shared: Cluster) -> None:
    file = write(shared, APP)
    with Served(shared, str(file)) as served:
        assert sorted(names(shared)) == ["shop-price-dev", "shop-web-dev"]
        file.write_text(APP.replace("def price", "def cost"))
        served.wait_for("deleted: shop-price-dev")
        served.wait_for("Reloaded in")
        assert sorted(names(shared)) == ["shop-cost-dev", "shop-web-dev"]
        # what failed only because it was taken out is no failure
        assert "FAILED" not in served.text
        file.write_text(APP.replace("def price", "def cost").replace('"test"', '"dev"'))
        served.wait_for("Reloaded in")
        wait_until(lambda: shared.function("shop-cost-dev")["spec"]["env"] == {"STAGE": "dev"}, 10, "its variable")
    assert names(shared) == []


class Served:
    """`steelyard serve`, and what it says on stderr, read as it comes."""

    def __init__(self, cluster: Cluster, *words: str) -> None:
        self._process = cluster.start("serve", *words)
        self.text = ""
        self._told = 0
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Served:
        self._thread.start()
        self.wait_for("Serving")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(20)
        self._thread.join(10)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        assert code == 130, self.text

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.text += line.decode()
                self._news.notify()

    def wait_for(self, words: str) -> None:
        """Until it said so since the last time."""
        with self._news:
            assert self._news.wait_for(lambda: words in self.text[self._told :], 20), self.text
            self._told = self.text.index(words, self._told) + len(words)


HEAVY = {
    "asyncio", "concurrent.futures", "difflib", "email", "http.client", "httpx2", "importlib.metadata", "logging", "pydantic",
    "multiprocessing", "rich", "secrets", "sqlalchemy", "ssl", "subprocess", "yaml",
}  # fmt: skip
#: modules in all, the interpreter's own among them: each takes its share of a millisecond from whoever waits
MODULES_MAX = {"ps": 180, "functions": 180, "run": 250}


def test_commands_import_nothing_heavy_on_their_way(shared: Cluster) -> None:
    file = write(shared, APP)
    look = (
        "import atexit, sys\n"
        "from steelyard.cli.main import main\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "main(sys.argv[1:])"
    )
    for words in (("ps",), ("functions",), ("run", f"{file}:price", "tea")):
        command = [sys.executable, "-P", "-c", look, *words]
        done = subprocess.run(command, env=shared.environ(), cwd=shared.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        modules = set(done.stderr.splitlines()[-1].split())
        assert not HEAVY & modules, words
        assert len(modules) <= MODULES_MAX[words[0]], (words, len(modules))
