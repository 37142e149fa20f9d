"""Secrets of a real Steelyard, root's and a user's: given as they were asked for, never in clear at rest, hidden where shown."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, UserCluster, free_ports, started, wait_until

PASSWORD, NEWER = "correct-horse-battery", "newer-staple-password"
CERT = "-----BEGIN CERT-----\nMIIBszCCAVmgAwIBAgIUXs\n-----END CERT-----\n"
CERT_LINE = CERT.splitlines()[1]

#: answers every request with its password
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["PASSWORD"].encode())
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
APP = """
import os, steelyard as sy
app = sy.App("vault")
at_import = os.environ.get("PASSWORD")

@app.function(secrets=[sy.Secret.from_name("db"), sy.Secret.from_name("tls", as_files=True)], max_replicas=2, idle_timeout="1s")
def look(what: str):
    if what == "import":
        return at_import
    if what == "files":
        folder = os.path.join(os.environ["STEELYARD_SECRETS"], "tls")
        return {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}
    if what.startswith("print"):
        print(what, "the password is", os.environ["PASSWORD"], flush=True)
        return None
    if what == "raise":
        raise ValueError(f"can't log in with {at_import}")
    return os.environ["PASSWORD"]
"""
CALLER = """
import sys, traceback, steelyard as sy
look = sy.Function.from_name("vault-look")
try:
    print(look.remote(sys.argv[1]))
except ValueError as err:
    traceback.print_exc()
"""


@pytest.fixture(scope="module", params=[Cluster, UserCluster] if os.geteuid() == 0 else [Cluster], ids=lambda kind: kind.__name__)
def shared(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with started(request.param) as made:
        yield made
    left = list(Path("/dev/shm").glob(f"steelyard-{made.tag}*"))
    assert not left, "files of secrets outlive Steelyard"


@pytest.fixture
def vault(shared: Cluster) -> Iterator[Cluster]:
    """With the secrets db (PASSWORD) and tls (CERT)."""
    shared.ok("secrets", "create", "db", "PASSWORD", input=PASSWORD.encode() + b"\n")
    shared.ok("secrets", "create", "tls", f"CERT=@{write(shared, 'cert.pem', CERT)}")
    yield shared
    for row in json.loads(shared.ok("functions", "--json")):
        shared.ok("delete", row["name"])
    for row in json.loads(shared.ok("secrets", "list", "--json")):
        shared.ok("secrets", "delete", row["name"], "--force")


def write(made: Cluster, name: str, text: str) -> Path:
    path = made.folder / name
    path.write_text(text)
    path.chmod(0o644)
    return path


def run_folder(made: Cluster) -> Path:
    places = [Path("/run/steelyard"), Path(f"/tmp/steelyard-{os.geteuid()}"), made.folder / "run" / "steelyard"]
    if os.environ.get("XDG_RUNTIME_DIR"):
        places.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "steelyard")
    return next(place / made.tag for place in places if (place / made.tag).is_dir())


def find_in_clear(made: Cluster, *values: str) -> list[str]:
    """Files of the home and of the run folder, and command lines, that hold one; but for what the work itself wrote, and the
    files that it was given."""
    given = run_folder(made) / "secrets"
    files = [path for root in (made.home, run_folder(made)) for path in root.rglob("*") if not path.is_symlink()]
    files = [path for path in files if not path.is_relative_to(made.home / "workloads") and not path.is_relative_to(given)]
    found: list[str] = []
    for path in (*files, *Path("/proc").glob("[0-9]*/cmdline")):
        with contextlib.suppress(OSError):
            if path.is_file() and any(value.encode() in path.read_bytes() for value in values):
                found.append(str(path))
    return found


def call(made: Cluster, what: str) -> str:
    """What `look` answers, or the traceback with which it raises."""
    command = [sys.executable, str(write(made, "caller.py", CALLER)), what]
    ran = subprocess.run(command, env=made.environ(), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip() + ran.stderr


def deploy(made: Cluster) -> None:
    (made.folder / "app").mkdir(exist_ok=True)
    made.ok("deploy", str(write(made, "app/vault.py", APP)))


def replace(made: Cluster, name: str, key: str, value: str) -> None:
    made.ok("secrets", "create", name, key, "--replace", input=value.encode())


def test_a_job_is_given_variables_and_files_of_its_own_and_they_go_with_it(vault: Cluster) -> None:
    script = (
        'echo "$PASSWORD"; echo "$STEELYARD_SECRETS"; stat -c "%a %u" "$STEELYARD_SECRETS/tls/CERT"; id -u; '
        '{ touch "$STEELYARD_SECRETS/x" && echo writable || echo read-only; } 2>/dev/null; echo; read line <"$0"'
    )
    pipe = vault.folder / "go"
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    try:
        job = vault.ok("run", "-d", "--secret", "db", "--secret", "tls:files", "--", "sh", "-c", script, str(pipe)).strip()
        lines = wait_until(
            lambda: seen if len(seen := vault.ok("logs", job).splitlines()) > 5 else None, 30, "the job to look at its secrets"
        )
        shown, folder, mode, uid, writable = lines[0], Path(lines[1]), lines[2], lines[3], lines[4]
        log = vault.home / "workloads" / f"{job}.1" / "stdout"
        assert shown == "[secret db.PASSWORD]" and PASSWORD in log.read_text(), "shown hidden; the file is as the job wrote it"
        assert mode == f"400 {uid}" and (folder / "tls" / "CERT").read_text() == CERT
        assert (writable == "read-only") is (os.geteuid() == 0 and not isinstance(vault, UserCluster)), "of root's, not to write"
        assert PASSWORD not in vault.ok("exec", job, "--", "sh", "-c", 'echo "$PASSWORD"')
        assert not find_in_clear(vault, PASSWORD, CERT_LINE)
        assert f"job {job}" in vault.ok("secrets", "list")
        refused = vault.cli("secrets", "delete", "db")
        assert refused.returncode == 2 and f"used by job {job}".encode() in refused.stderr
        with pipe.open("w") as go:
            go.write("\n")
    finally:
        pipe.unlink()
    vault.wait_job(job, "SUCCEEDED")
    wait_until(lambda: not folder.exists(), 10, "the files to go with the job")
    vault.ok("secrets", "delete", "db")


def test_a_function_is_given_them_and_what_it_says_of_them_is_hidden(vault: Cluster) -> None:
    deploy(vault)
    assert (call(vault, "import"), call(vault, "env")) == (PASSWORD, PASSWORD)
    assert call(vault, "files") == repr({"CERT": CERT})
    assert call(vault, "print") == "None"
    raised = call(vault, "raise")
    assert raised.rstrip().endswith("ValueError: can't log in with [secret db.PASSWORD]") and PASSWORD not in raised
    called = vault.cli("call", "vault-look", "--json", '{"what": "raise"}')
    assert b"[secret db.PASSWORD]" in called.stdout + called.stderr and PASSWORD.encode() not in called.stdout + called.stderr
    log = vault.ok("logs", "vault-look")
    assert "the password is [secret db.PASSWORD]" in log and PASSWORD not in log
    assert not find_in_clear(vault, PASSWORD, CERT_LINE)


def test_an_import_that_fails_tells_no_value(vault: Cluster) -> None:
    (vault.folder / "broken").mkdir(exist_ok=True)
    code = 'import os\nif "PASSWORD" in os.environ: raise OSError("no login with " + os.environ["PASSWORD"])\n'
    file = write(vault, "broken/web.py", code + "async def app(scope, receive, send): ...\n")
    done = vault.cli("deploy", f"{file}:app", "--name", "broken", "--secret", "db")
    assert done.returncode == 2 and b"OSError: no login with [secret db.PASSWORD]" in done.stderr, done.stderr
    assert PASSWORD not in done.stderr.decode()
    assert not [path for path in find_in_clear(vault, PASSWORD) if not path.startswith(str(run_folder(vault) / "pages"))]


def test_a_replaced_secret_reaches_what_starts_afterwards_and_the_old_value_stays_hidden(vault: Cluster) -> None:
    deploy(vault)
    assert call(vault, "print-old") == "None"
    replace(vault, "db", "PASSWORD", NEWER)
    replace(vault, "tls", "CERT", "another one")
    vault.wait_function("vault-look", "SLEEPING")  # what runs keeps what it has
    assert call(vault, "import") == NEWER
    assert call(vault, "files") == repr({"CERT": "another one"})
    assert call(vault, "print-new") == "None"
    log = vault.ok("logs", "vault-look")
    for line in ("print-old the password is [secret db.PASSWORD]\n", "print-new the password is [secret db.PASSWORD]\n"):
        assert line in log, log
    assert PASSWORD not in log and NEWER not in log
    assert not find_in_clear(vault, PASSWORD, NEWER)


def test_what_is_not_there_is_refused_at_the_door_with_what_to_do(vault: Cluster) -> None:
    for words, said in (
        (("run", "--secret", "nothing", "--", "true"), "has no secret nothing: make it with `steelyard secrets create nothing`"),
        (("run", "--secret", "No Name", "--", "true"), "names no secret"),
        (("secrets", "create", "db", "PASSWORD=x"), "There is a secret db already"),
        (("secrets", "create", "x", "KEY=@nowhere"), "There is no file nowhere"),
        (("secrets", "create", "x", "1KEY"), "can't be a key"),
        (("secrets", "create", "x"), "has no keys"),
        (("secrets", "create", "x", "STEELYARD_TOKEN=x"), "Steelyard's own"),
        (("secrets", "delete", "x"), "There is no secret x"),
    ):
        done = vault.cli(*words, input=b"")
        assert done.returncode in (2, 125) and said in done.stderr.decode(), (words, done.stderr)
    vault.ok("secrets", "create", "other", "PASSWORD=hunter22-other")
    done = vault.cli("run", "--secret", "db", "--secret", "other", "--", "true")
    assert b"the secrets db and other both have PASSWORD" in done.stderr


def test_replicas_wake_without_the_server_and_wait_for_it_after_a_restart_of_the_agent(vault: Cluster) -> None:
    port = str(free_ports(1)[0])
    vault.ok(
        *("deploy", "--name", "plain", "--public", "--port", port, "--secret", "db", "--idle-timeout", "500ms"),
        *("--startup-deadline", "5s", "--", sys.executable, "-c", SERVER, port),
    )
    assert vault.call("/plain/").body.decode() == PASSWORD
    os.kill(vault.pid("up"), signal.SIGSTOP)  # nobody restarts what is killed
    try:
        wait_until(lambda: not replicas(vault), 20, "it to sleep")
        vault.kill("server")
        assert vault.call("/plain/").body.decode() == PASSWORD, "the agent has the values"
        wait_until(lambda: not replicas(vault), 20, "it to sleep again")
        vault.kill("agent")
        agent = vault.start("agent", "--home", str(vault.home))
        try:
            answer = vault.call("/plain/", timeout=30)
            assert answer.status == 503 and b"It waits for the secret db" in answer.body, answer
        finally:
            agent.terminate()
            agent.communicate()
    finally:
        os.kill(vault.pid("up"), signal.SIGCONT)
    vault.wait_ready()
    wait_until(lambda: vault.call("/plain/").body.decode() == PASSWORD, 60, "it to be answered once the server is back")


def replicas(made: Cluster) -> list[Path]:
    return list((made.home / "agent" / "handles").glob("plain.*"))


def test_a_lost_key_says_what_happened_and_what_is_safe(vault: Cluster) -> None:
    key, kept = vault.home / "secrets.key", (vault.home / "secrets.key").read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.rename(vault.home / "elsewhere.key")
    done = vault.cli("secrets", "create", "x", "KEY=hunter22")
    assert b"is gone, so no secret can be read or made" in done.stderr and b"what runs goes on" in done.stderr
    ran = vault.cli("run", "--secret", "db", "--", "true")
    assert b"Bring the file back from a backup" in ran.stderr, ran
    assert not key.exists(), "a new one would be no help"
    (vault.home / "elsewhere.key").rename(key)
    assert key.read_bytes() == kept
    vault.ok("run", "--secret", "db", "--", "sh", "-c", f'[ "$PASSWORD" = {PASSWORD} ]')


def test_values_are_given_to_nobody_but_the_agent(vault: Cluster) -> None:
    deploy(vault)
    owner = json.loads(vault.ok("secrets", "list", "--json"))[0]["owner"]
    assert vault.api("GET", f"/v1/secret-values/{owner}/db").status == 401
    assert vault.api("GET", f"/v1/secret-values/{owner}/db", token=vault.agent_token).json()["values"] == {"PASSWORD": PASSWORD}
    vault.ok("secrets", "create", "unused", "KEY=hunter22")
    for path in (f"{owner}/unused", "somebody/db", f"{owner}/nothing"):
        assert vault.api("GET", f"/v1/secret-values/{path}", token=vault.agent_token).status == 404, "no work names it"
    assert PASSWORD.encode() not in vault.api("GET", "/v1/secrets").body
    for values in ({"PASSWORD": 7}, {"PASSWORD": [PASSWORD]}, PASSWORD):
        answer = vault.api("POST", "/v1/secrets", {"name": "db", "values": values})
        assert answer.status == 400 and PASSWORD.encode() not in answer.body
