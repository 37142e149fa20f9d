"""Where does a process of the runner begin? `main` reads STEELYARD_RUNNER (JSON) and becomes a base template or, on the plain
road, one replica.

Never returns: the process ends with the template's or replica's exit code.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
from typing import Any

from . import page as pages
from . import user
from .at_fork import handlers
from .grow import load_app
from .isolate import import_server
from .join import leave
from .page import Page
from .serve import Machinery, Serving, report_failure


def main() -> None:
    alive_ns = time.monotonic_ns()
    config = json.loads(os.environ.pop("STEELYARD_RUNNER"))
    if sys.path and sys.path[0] == "":  # `python -c` puts the working folder first; the user's code folder comes instead
        del sys.path[0]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what user code prints is in the log at once
    if config["mode"] != "base":
        handlers.stop()
    if config["mode"] == "base":
        from .template import Template

        code = Template(config).run()
    elif config["mode"] == "server":
        from .server import run_server

        code = run_server(config)
    else:
        code = run_plain(config, alive_ns)
    leave(code)


def run_plain(config: dict[str, Any], alive_ns: int) -> int:
    """The plain road: import everything here and now, then serve."""
    page = Page.from_fd(config["page_fd"])
    os.close(config["page_fd"])
    page.alive_ns = alive_ns
    page.state = pages.ALIVE
    try:
        server = import_server(config["lib_dir"], compiled=config.get("compiled", True))
    except Exception as err:
        report_failure(page, f"Steelyard could not load its HTTP server in {sys.executable}: {type(err).__name__}: {err}")
        return 1
    machinery = Machinery(server, config["concurrency"])
    sys.path.append(config["lib_dir"])
    serving = Serving(machinery, page, socket.socket(fileno=config["listen_fd"]), bool(config.get("private")))
    page.joined_ns = time.monotonic_ns()
    page.state = pages.JOINED
    try:
        app = load_app(config)
        page.imported_ns = time.monotonic_ns()
        page.state = pages.IMPORTED
        user.run_hooks(shared=True)
    except user.UserCodeFailed as err:
        report_failure(page, str(err))
        return 1
    return serving.run(app)
