"""Programs that open their port long before they can answer, through the whole platform: a model that is still loading."""

from __future__ import annotations

import sys

from steelyard_cluster import Cluster, free_ports

#: opens PORT at once; GET /health is answered 503 until LOADS seconds have passed, and everything else 500 until then
LOADING = """
import http.server, os, time
began = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        loaded = time.monotonic() - began > float(os.environ["LOADS"])
        body = b"loaded" if loaded else b"still loading"
        self.send_response(200 if loaded else 503 if self.path == "/health" else 500)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def options(cluster: Cluster, name: str) -> tuple[str, ...]:
    (cluster.folder / "loading.py").write_text(LOADING)
    (port,) = free_ports(1)
    return ("deploy", "--name", name, "--port", str(port), "--readiness", "/health", "--public", "--idle-timeout", "300ms")


def test_a_model_gets_requests_only_once_it_is_loaded_also_when_it_wakes(shared: Cluster) -> None:
    command = ("--", sys.executable, str(shared.folder / "loading.py"))
    shared.ok(*options(shared, "loaded"), "--env", "LOADS=0.4", *command)
    for _ in range(2):
        shared.wait_function("loaded", "SLEEPING")
        answer = shared.call("/loaded/", timeout=30)
        assert (answer.status, answer.body) == (200, b"loaded")
    shared.ok("delete", "loaded")


def test_a_deploy_that_never_gets_ready_tells_what_readiness_was_answered(shared: Cluster) -> None:
    command = ("--", sys.executable, str(shared.folder / "loading.py"))
    done = shared.cli(*options(shared, "stuck"), "--env", "LOADS=3600", "--startup-deadline", "8s", *command)
    said = done.stderr.decode()
    assert done.returncode != 0 and "within its startup deadline of 8 s" in said, said
    assert "GET /health was answered with 503" in said, said
    shared.ok("delete", "stuck")
