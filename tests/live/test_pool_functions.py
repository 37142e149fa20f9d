"""Functions on machines of a pool, on a real Slurm: they come with the first machine, are handed on when one drains, and come
back when one is lost."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from person import person
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until
from test_port_forward import ask as ask_port
from test_port_forward import forwarding

POOL = "far"
PORT = 43_210
#: says what it was told, once it was told everything
ECHO = (
    "import socket\n"
    "s = socket.create_server(('127.0.0.1', PORT))\n"
    "print('listening', flush=True)\n"
    "while True:\n"
    "    c, said = s.accept()[0], b''\n"
    "    while data := c.recv(65536): said += data\n"
    "    c.sendall(b'<' + said + b'>'); c.close()\n"
)
APP = """
import asyncio, os, socket

print("awake on", socket.gethostname(), flush=True)


async def app(scope, receive, send):
    host = socket.gethostname().encode()
    if scope["path"].endswith("/revision"):
        host = os.environ["REVISION"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": host, "more_body": True})
    if scope["path"].endswith("/slow"):
        while not os.path.exists(os.environ["GATE"]):
            await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b" done"})
"""

CALLS = f"""
import socket
import steelyard as sy

app = sy.App("talk")


@app.function(max_replicas=1, idle_timeout="30s")
def near(text):
    return f"{{text}} at {{socket.gethostname()}}"


@app.function(max_replicas=1, idle_timeout="30s", pool="{POOL}")
def far(text):
    return near.remote(f"{{text}} by {{socket.gethostname()}}")
"""
CALLER = """
import steelyard as sy

print(sy.Function.from_name("talk-far").remote("hello"), sy.Function.from_name("talk-far").spawn("hello").get(timeout=60))
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        made.create(POOL, "--nodes", "1..2", "--idle", "1s")
        yield made


def write_app(shared: PoolCluster) -> str:
    folder: Path = shared.folder / "app"
    folder.mkdir(exist_ok=True)
    (folder / "hi.py").write_text(APP)
    return f"{folder / 'hi.py'}:app"


def list_pilots(shared: PoolCluster) -> dict[str, dict[str, Any]]:
    """Those that live."""
    pilots = shared.api("GET", f"/v1/pools/{POOL}").json()["pilots"]
    return {each["id"]: each for each in pilots if each["state"] != "ENDED"}


def ask(view: dict[str, Any], path: str = "", key: str = "") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(view["url"] + path, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, json.loads(err.read())["code"]


def test_a_function_comes_with_a_machine_of_its_pool_and_is_asked_there(shared: PoolCluster) -> None:
    target = write_app(shared)
    refused = shared.cli("deploy", target, "--pool", "none", "--name", "lone")
    assert refused.returncode == 2 and b"there is no pool none" in refused.stderr
    shared.ok("deploy", target, "--pool", POOL, "--name", "lone")
    view = shared.function("lone")
    (pilot,) = list_pilots(shared).values()
    assert (view["state"], view["pool"], view["machines"]) == ("SLEEPING", POOL, [pilot["id"]])
    assert ask(view) == (401, "key-required")
    key = shared.ok("keys", "create", "k").strip()
    assert ask(view, key=key) == (200, f"{pilot['node']} done")
    assert f"on {pilot['id']}" in shared.ok("why", "lone")
    assert "revision" in shared.ok("template", "lone")
    wait_until(lambda: f"awake on {pilot['node']}" in shared.ok("logs", "lone"), 30, "its log")
    moved = shared.cli("deploy", target, "--name", "lone")
    assert moved.returncode == 2 and b"lone is in the pool" in moved.stderr
    kept = shared.cli("pool", "delete", POOL)
    assert kept.returncode == 2 and b"used by function lone" in kept.stderr
    assert shared.wait_pilot(POOL, "READY")["id"] == pilot["id"], "longer than its idle time: what sleeps there keeps its machine"
    shared.ok("delete", "lone")


def test_whoever_wants_to_be_inside_a_replica_is_led_to_its_machine(shared: PoolCluster) -> None:
    shared.ok("deploy", write_app(shared), "--pool", POOL, "--name", "inner", "--env", "COLOUR=blue", "--idle-timeout", "1s")
    view = shared.function("inner")
    node = list_pilots(shared)[view["machines"][0]]["node"]
    assert view["state"] == "SLEEPING"
    # longer than its idle time, and in its folder
    done = shared.cli("exec", "inner", "--", "sh", "-c", "hostname; echo $COLOUR; ls hi.py; sleep 3; echo no >&2; exit 7")
    assert (done.returncode, done.stdout.decode(), b"no\n" in done.stderr) == (7, f"{node}\nblue\nhi.py\n", True), done
    with person(shared, "shell", "inner") as typist:
        typist.see(b"$ ")  # what is typed before is read by nobody
        typist.type(b"echo $(hostname)-$(tty | cut -c1-8); exit 5\r")
        typist.see(f"{node}-/dev/pts".encode())
        assert typist.wait() == 5
    (shared.folder / "in.txt").write_text("there\n")
    script = ECHO.replace("PORT", str(PORT))
    server = shared.start("exec", "inner", "--", sys.executable, "-c", script)
    try:
        assert server.stdout is not None and server.stdout.readline() == b"listening\n"
        (proof,) = json.loads(shared.ok("proof", "inner", "--json"))
        assert proof["machine"] == view["machines"][0]
        end = proof["replica"].rpartition(".")[2]
        place = shared.ok("exec", "--replica", end, "inner", "--", "mktemp", "-d").strip()
        shared.ok("cp", "--replica", end, str(shared.folder / "in.txt"), f"inner:{place}/")
        shared.ok("cp", f"inner:{place}/in.txt", str(shared.folder / "out.txt"))
        assert (shared.folder / "out.txt").read_text() == "there\n"
        with forwarding(shared, "inner", PORT) as (_, port):
            assert ask_port(port, b"hello") == b"<hello>"
        absent = shared.cli("exec", "--replica", "abc", "inner", "--", "true")
        assert absent.returncode == 125 and b"There is no replica abc. Those that are there: inner.1." in absent.stderr
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert server.returncode == 130, "a signal reaches it"
    shared.wait_function("inner", "SLEEPING")
    shared.ok("delete", "inner")


def test_work_on_a_pools_machine_calls_functions_at_home_and_there(shared: PoolCluster) -> None:
    file = shared.folder / "app" / "talk.py"
    write_app(shared)
    file.write_text(CALLS)
    shared.ok("deploy", str(file))
    pilot = list_pilots(shared)[shared.function("talk-far")["machines"][0]]
    # a job there asks a function there, whose replica asks one at home; all of them are private
    said = shared.ok("run", "--pool", POOL, "--cpus", "0.1", "--", sys.executable, "-c", CALLER)
    assert said.split() == f"hello by {pilot['node']} at {socket.gethostname()}".split() * 2
    # nobody but gateways of machines comes in by that door, and they don't without a key
    address = (f"{shared.bed.network}.1", shared.cluster_port + 1)
    assert hear_stranger(address) == b""
    inside = (
        "import json, os, urllib.request\n"
        "headers = {'Authorization': 'Bearer ' + os.environ['STEELYARD_TOKEN']}\n"
        "asked = urllib.request.Request(os.environ['STEELYARD_API_URL'] + '/v1/call-key', headers=headers)\n"
        "url = json.load(urllib.request.urlopen(asked))['gateway']\n"
        "try: urllib.request.urlopen(url + '/talk-near/')\n"
        "except urllib.error.HTTPError as err: print(json.load(err)['code'])\n"
    )
    refused = shared.ok("run", "--pool", POOL, "--cpus", "0.1", "--", sys.executable, "-c", inside)
    assert refused.strip() == "key-required"
    for name in ("talk-far", "talk-near"):
        shared.ok("delete", name)


def test_a_machine_has_certificates_of_its_own_soon_after_it_began(shared: PoolCluster) -> None:
    shared.ok("deploy", write_app(shared), "--pool", POOL, "--name", "holds")  # its machine is not given back meanwhile
    node = shared.bed[list_pilots(shared)[shared.function("holds")["machines"][0]]["node"]]

    def days(served: str) -> int:
        found = x509.load_pem_x509_certificate(served.encode())
        return (found.not_valid_after_utc - found.not_valid_before_utc).days

    def look() -> bool:
        settings = json.loads(node.ok("sh", "-c", "cat /tmp/steelyard-*/settings.json"))
        served = ssl.get_server_certificate((settings["gateway_host"], settings["gateway_port"]), timeout=10)
        held = node.ok("sh", "-c", "cat /tmp/steelyard-*/pilot/agent.pem")
        return {days(served), days(held[held.index("-----BEGIN CERT") :])} == {30}

    wait_until(look, 60, "both to be what it asked for itself")
    shared.ok("delete", "holds")


def test_a_function_that_is_spread_is_asked_on_the_machine_that_has_less_to_do(shared: PoolCluster) -> None:
    jobs = [shared.ok("run", "--detach", "--pool", POOL, "--cpus", "0.6", "--", "sleep", "1000").strip() for _ in range(2)]
    for job in jobs:
        shared.wait_job(job, "RUNNING", 60)
    gate = shared.folder / "wide"
    options = ("--pool", POOL, "--spread", "--cpus", "0.1", "--max-replicas", "1", "--public", "--env", f"GATE={gate}")
    shared.ok("deploy", write_app(shared), "--name", "wide", *options)
    view = shared.function("wide")
    nodes = {list_pilots(shared)[machine]["node"] for machine in view["machines"]}
    seen: set[tuple[int, str]] = set()
    wait_until(lambda: seen.add(ask(view)) or len(seen) == 2, 60, "both to be asked")
    assert seen == {(200, f"{node} done") for node in nodes}
    with urllib.request.urlopen(f"{view['url']}slow", timeout=60) as slow:
        busy = slow.read(2).decode()
        (other,) = nodes - {busy}
        assert {ask(view) for _ in range(8)} == {(200, f"{other} done")}
        gate.touch()
        assert slow.read() == b" done"
    shared.ok("delete", "wide")
    shared.ok("stop", *jobs)


def hear_stranger(address: tuple[str, int]) -> bytes:
    """What is answered to somebody without a certificate."""
    with contextlib.suppress(OSError), socket.create_connection(address, 10) as plain:
        tls = ssl._create_unverified_context().wrap_socket(plain)
        tls.sendall(b"GET /talk-near/ HTTP/1.1\r\nhost: x\r\n\r\n")
        return tls.recv(100)
    return b""


def under_load(view: dict[str, Any], work: Callable[[], None]) -> list[tuple[int, str]]:
    """What four clients are answered who ask without a pause while `work` runs."""
    answers: list[tuple[int, str]] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            answers.append(ask(view))

    clients = [threading.Thread(target=client, daemon=True) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        work()
    finally:
        over.set()
        for each in clients:
            each.join()
    return answers


def test_a_new_revision_takes_over_there_without_a_failed_request(shared: PoolCluster) -> None:
    gate = shared.folder / "turned"

    def put(revision: int, *more: str) -> None:
        env = ("--env", f"REVISION={revision}", "--env", f"GATE={gate}")
        shared.ok("deploy", write_app(shared), "--pool", POOL, "--name", "turns", "--public", *env, *more)

    def tell(address: str = "") -> str:
        status, said = ask(view | ({"url": view["url"].replace("/turns/", address)} if address else {}), "revision")
        assert status == 200
        return said.removesuffix(" done")

    put(1)
    view = shared.function("turns")
    slow: list[tuple[int, str]] = []
    stream = threading.Thread(target=lambda: slow.append(ask(view, "slow")), daemon=True)

    def turn() -> None:
        stream.start()
        wait_until(lambda: shared.function("turns")["replicas"], 30, "a replica")
        put(2)
        assert {tell() for _ in range(20)} == {"2"}, "whoever deployed it reads no other"
        put(3, "--traffic", "40", "--tag", "next")
        assert tell("/turns@next/") == "3"
        seen: set[str] = set()
        wait_until(lambda: seen.add(tell()) or seen == {"2", "3"}, 30, "both to answer")
        shared.ok("traffic", "turns", "2=100")
        alone = [{"revision": 2, "percent": 100}]
        wait_until(lambda: shared.function("turns")["routes"]["shares"] == alone, 30, "it to be moved")
        assert {tell() for _ in range(20)} == {"2"}
        assert tell("/turns@next/") == "3"
        assert not slow, "it is not over yet"
        gate.touch()  # what revision 1 began it answers
        stream.join()

    answers = under_load(view, turn)
    assert {status for status, _ in [*answers, *slow]} == {200}
    told = {(each["revision"], each["state"]) for each in json.loads(shared.ok("revisions", "turns", "--json"))}
    assert (2, "READY") in told and (1, "RETIRED") in told

    def is_left() -> bool:
        live = {each["replica"].split(".")[1] for each in json.loads(shared.ok("proof", "turns", "--json"))}
        return live <= {"2", "3"}

    wait_until(is_left, 30, "the first revision to end")
    shared.ok("delete", "turns")


def number_of(cluster: PoolCluster, pilot: dict[str, Any]) -> str:
    """In Slurm's queue: known after the next look, which may be later than its first work."""
    return wait_until(lambda: list_pilots(cluster)[pilot["id"]]["slurm_job"], 30, "its number")


class Slow:
    """A function on a machine of the pool, and a request to it that is answered to its end once there is a gate."""

    def __init__(self, shared: PoolCluster, name: str) -> None:
        self.gate = shared.folder / f"gate-{name}"
        shared.ok("deploy", write_app(shared), "--pool", POOL, "--name", name, "--public", "--env", f"GATE={self.gate}")
        self.view = shared.function(name)
        self.pilot = list_pilots(shared)[self.view["machines"][0]]
        self.answers: list[tuple[int, str]] = []
        self.request = threading.Thread(target=lambda: self.answers.append(ask(self.view, "slow")), daemon=True)


def test_what_a_deleted_function_began_is_answered_though_its_machine_drains(shared: PoolCluster) -> None:
    slow = Slow(shared, "goes")
    pilot = slow.pilot
    slow.request.start()
    wait_until(lambda: shared.function("goes")["replicas"], 30, "a replica")
    # it is to go, and has nothing to do any more
    shared.bed.ok("scancel", "--signal=USR1", "--batch", number_of(shared, pilot))
    shared.ok("delete", "goes")
    wait_until(lambda: ask(slow.view)[0] == 404, 30, "nothing to lead there any more")
    assert not slow.answers and pilot["id"] in list_pilots(shared)
    slow.gate.touch()
    slow.request.join()
    assert slow.answers == [(200, f"{pilot['node']} done")]
    wait_until(lambda: pilot["id"] not in list_pilots(shared), 60, "it to be given back")


def test_a_machine_that_drains_hands_its_functions_on_and_one_that_is_lost_is_replaced(shared: PoolCluster) -> None:
    slow = Slow(shared, "moves")
    view, first = slow.view, slow.pilot

    def drain() -> None:
        slow.request.start()
        wait_until(lambda: shared.function("moves")["replicas"], 30, "a replica")
        shared.bed.ok("scancel", "--signal=USR1", "--batch", number_of(shared, first))
        wait_until(lambda: shared.function("moves")["machines"] not in ([], [first["id"]]), 60, "another machine to take over")
        wait_until(lambda: ask(view)[1] == f"{second()['node']} done", 60, "requests to be sent there")
        assert not slow.answers, "it is not over yet"
        slow.gate.touch()  # not before: what was begun on the first is answered by it
        slow.request.join()
        wait_until(lambda: first["id"] not in list_pilots(shared), 60, "the first to be given back")

    def second() -> dict[str, Any]:
        return next(each for key, each in list_pilots(shared).items() if key != first["id"])

    answers = under_load(view, drain)
    after = second()
    assert {status for status, _ in answers} == {200}
    assert {text for _, text in answers} == {f"{first['node']} done", f"{after['node']} done"}
    assert slow.answers == [(200, f"{first['node']} done")]
    shared.bed.ok("scancel", "--signal=KILL", "--full", number_of(shared, after))
    seen: set[tuple[int, str]] = set()

    def is_back() -> bool:
        seen.add(ask(view))
        third = shared.function("moves")["machines"]
        return third not in ([], [after["id"]]) and ask(view)[0] == 200

    wait_until(is_back, 90, "the function to be on another machine")
    refusals = {answer for answer in seen if answer[0] != 200}
    assert refusals <= {(503, "function-unreachable"), (503, "gateway-unavailable"), (502, "replica-lost")}, seen
    shared.ok("delete", "moves")
