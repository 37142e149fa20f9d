"""A real application as an image, made of Debian's packages: nginx, and behind it a service in Python that it hands `/api` to."""

from __future__ import annotations

import subprocess
from pathlib import Path

PACKAGES = ("nginx-light", "python3")
#: starts both; what it is told by PORT nginx listens on
MAIN = """
import json, os, signal, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

class Service(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "uid": os.getuid(), "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "nginx"

class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

NGINX = '''
pid /tmp/nginx.pid; error_log stderr; daemon off; worker_processes 1;
events {}
http {
    access_log off; root /srv/www;
    client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    server {
        listen 127.0.0.1:PORT;
        location /api { proxy_pass http://unix:/tmp/service; }
    }
}
'''
server = Server("/tmp/service", Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
with open("/tmp/nginx.conf", "w") as file:
    file.write(NGINX.replace("PORT", os.environ.get("PORT", "8080")))
nginx = subprocess.Popen(["/usr/sbin/nginx", "-c", "/tmp/nginx.conf", "-e", "stderr"])
signal.signal(signal.SIGTERM, lambda *_: nginx.send_signal(signal.SIGQUIT))
print("serving", flush=True)
sys.exit(nginx.wait())
"""


def make_application(folder: Path) -> str:
    """The image's reference. Fetches packages (19 MB), of which none is installed on this machine. Raises RuntimeError with the
    words of the program that failed."""
    root, debs, layout = folder / "root", folder / "debs", folder / "application"
    (debs / "partial").mkdir(parents=True)
    options = {"Dir::State::status": "/dev/null", "Dir::Cache::archives": debs, "APT::Sandbox::User": "root"}
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    fetch = ["apt-get", *words, "--no-install-recommends", "--yes", "-qq", "--download-only", "install", *PACKAGES]
    try:
        _run(*fetch)
    except RuntimeError:  # lists that are old, or none yet
        _run("apt-get", "update", "-qq")
        _run(*fetch)
    for deb in debs.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(deb), str(root))
    for name, mode in (("tmp", 0o1777), ("srv/www", 0o755), ("app", 0o755)):
        (root / name).mkdir(parents=True)
        (root / name).chmod(mode)
    (root / "srv/www/index.html").write_text("<h1>from the image</h1>\n")
    (root / "app/main.py").write_text(MAIN)
    _run("umoci", "init", "--layout", str(layout))
    _run("umoci", "new", "--image", f"{layout}:1")
    _run("umoci", "insert", "--image", f"{layout}:1", str(root), "/")
    told = ("--config.cmd=/usr/bin/python3", "--config.cmd=/app/main.py", "--config.user=33", "--config.workingdir=/srv")
    _run("umoci", "config", "--image", f"{layout}:1", *told)
    _run("chmod", "-R", "a+rX", str(layout))
    return f"oci:{layout}:1"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
