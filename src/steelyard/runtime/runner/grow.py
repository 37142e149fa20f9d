"""What does a template hold, by its place in the tree?

    base          an interpreter with the HTTP server imported and warmed up; started by exec
    environment   forked from the base: installed packages imported, nothing of the user's
    revision      forked from an environment (from the base, where there is no package to import): the user's module imported,
                  shared hooks run

Each function takes the JSON of one order and returns what the template's status says of it; `Failed` when it can't be had.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from typing import Any

from . import user
from .apart import code_apart
from .at_fork import handlers
from .imports import Unfit, import_packages
from .isolate import Server, import_server
from .join import join, reseed_numpy
from .packets import Packet
from .serve import Machinery, flush, warm_up


class Failed(Exception):
    """It can't be had. `status` is the rest of what the agent is told beside the text, which is for the user."""

    def __init__(self, text: str, **status: Any) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class Seed:
    """What one grow packet asks for: a template. ValueError when the descriptors are not those announced."""

    def __init__(self, packet: Packet) -> None:
        self.asked = packet.asked
        if self.asked.get("role") not in ("environment", "revision"):
            raise ValueError(f"role {self.asked.get('role')!r}")
        announced = 3 + int(self.asked.get("cgroups", 0))
        if len(packet.fds) != announced:
            raise ValueError(f"{len(packet.fds)} descriptors came, {announced} were announced")
        self.control, self.stdout, self.stderr = packet.fds[:3]
        self.cgroups = packet.fds[3:]

    @property
    def role(self) -> str:
        return str(self.asked["role"])


def make_base(config: dict[str, Any]) -> tuple[Machinery, list[str]]:
    """The machinery of every replica to come, and the parts of the server that loaded."""
    _given.update(os.environ)
    _given.pop("LC_CTYPE", None)
    try:
        server: Server = import_server(config["lib_dir"], compiled=config.get("compiled", True))
        machinery = Machinery(server, 1)
        warm_up(machinery)
        handlers.stop()
    except Exception as err:  # nothing the user can mend, but they should see it
        raise Failed(f"Steelyard could not prepare its HTTP server in {sys.executable}: {type(err).__name__}: {err}") from err
    sys.path.append(config["lib_dir"])
    return machinery, server.names


def become(seed: Seed, fork: Callable[[], int]) -> dict[str, Any]:
    """In the fresh child of a template: what the order says."""
    try:
        join(seed.cgroups, (), seed.stdout, seed.stderr)
    except OSError as err:
        raise Failed(f"The template could not join its control group: {err}.") from err
    reseed_numpy()
    take_environment(seed.asked["env"])
    return make_environment(seed.asked) if seed.role == "environment" else make_revision(seed.asked, fork)


def make_environment(asked: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic_ns()
    try:
        costs = import_packages(asked["packages"])
    except Unfit as err:
        raise Failed(f"{err.package}: {err.why}", culprit=err.package, why=err.why) from err
    return {"packages": costs, "import_ms": (time.monotonic_ns() - began) / 1e6}


def make_revision(asked: dict[str, Any], fork: Callable[[], int]) -> dict[str, Any]:
    began = time.monotonic_ns()
    try:
        enter_folder(asked["code_dir"])
    except OSError as err:
        raise Failed(str(err), step="chdir") from err
    try:
        app = load_app(asked, code_apart(fork))
        imported = time.monotonic_ns()
        user.run_hooks(shared=True)
    except user.UserCodeFailed as err:
        raise Failed(str(err)) from err
    entered = time.monotonic_ns()
    return {"app": app, "import_ms": (imported - began) / 1e6, "enter_ms": (entered - imported) / 1e6}


def load_app(asked: dict[str, Any], get_code: user.GetCode = SourceFileLoader.get_code) -> Any:
    """The app of the revision that an order names."""
    return user.load_app(asked["code_dir"], asked["file"], asked["attr"], asked["function"], asked["concurrency"], get_code)


def enter_folder(folder: str) -> None:
    """OSError in the words that a start by exec has for it."""
    try:
        os.chdir(folder)
    except OSError as err:
        raise OSError(f"chdir: {folder}: {err.strerror} (as uid {os.geteuid()})") from err


#: the variables that this process was given last
_given: dict[str, str] = {}


def given_environment() -> dict[str, str]:
    """What `take_environment` was called with last."""
    return dict(_given)


def take_environment(env: dict[str, str]) -> None:
    """These variables and none of those that were given before, for Python and for the C library. What an installed package set
    itself while it was imported stays, as in a plain start; so does what Python sets when it starts in the C locale. Only the
    difference is written: a revision differs from its environment in a few, and each costs copied pages."""
    flush()
    for name in _given.keys() - env.keys():
        os.environ.pop(name, None)
    for name, value in env.items():
        if _given.get(name) != value:
            os.environ[name] = value
    if _given.get("TZ") != env.get("TZ"):
        time.tzset()
    _given.clear()
    _given.update(env)
