"""How does a template learn its way before anybody asks? It goes the way of a revision from the packet that asks for it to its
first replicas, in this process, and again and again (practice.py): forks are answered instead of made, and what the way changes
in the process is put back.

A base goes it with an app of three parameters. An environment that has the SDK goes it with what people declare by it, since a
base has nothing of that yet; with models too where it has pydantic. The files are in `rehearsal`, a folder that is no package, as
a user's is none.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from . import user
from .grow import Seed, given_environment, take_environment
from .practice import practise

if TYPE_CHECKING:
    from .template import Template

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rehearsal")
_GROW = {"op": "grow", "role": "revision", "cgroups": 0, "function": "", "code_dir": _FOLDER, "concurrency": 1}
_ORDER = {"op": "fork", "replica": "", "cpus": [0], "cgroups": 0, "private": False, "sent_ns": 0}
#: file and attribute
_PLAIN = (("app.py", "app"),)
_DECLARED = (("rehearsed_app.py", "function"), ("rehearsed_app.py", "endpoint"))
_CLASS = (("rehearsed_class.py", "generator"), ("rehearsed_class.py", "Model"))
_MODELS = (("rehearsed_models.py", "endpoint"),)


def rehearse(template: Template, role: str) -> None:
    """`template` is a base or an environment that has imported all it will. OSError when the kernel refuses a part of the way."""
    ways = [_PLAIN] if role == "base" else []
    if role != "base" and "steelyard.sdk.serving" in sys.modules:
        ways = [_DECLARED, _CLASS, *([_MODELS] if "pydantic" in sys.modules else ())]
    folder, env = os.getcwd(), given_environment()

    def go(apps: tuple[tuple[str, str], ...], at: int) -> None:
        for file, attr in apps:
            _go_once(template, {"file": file, "attr": attr, "env": env | {"STEELYARD_REHEARSAL": str(at)}})

    try:
        practise([partial(go, apps) for apps in ways], everything=role == "base")
    finally:
        template._forking.answer = None
        os.chdir(folder)
        take_environment(env)
        os.environ.pop("STEELYARD_FUNCTION", None)


def _go_once(template: Template, load: dict[str, Any]) -> None:
    path, sdk, payload = sys.path[:], sys.modules.get("steelyard.sdk"), sys.modules.get("steelyard.sdk.payload")
    noted: list[list[Any]] = [sdk.hooks, sdk.exits] if sdk is not None else []
    kept, home = [each[:] for each in noted], getattr(payload, "home", None)
    user.make_module_ahead()
    try:
        _order(_grow(template, load))
    finally:
        for each, before in zip(noted, kept, strict=True):
            each[:] = before
        if payload is not None:
            payload.home = home  # type: ignore[attr-defined]
        sys.modules.pop(load["file"].removesuffix(".py"), None)
        sys.path[:] = path


def _grow(template: Template, load: dict[str, Any]) -> Template:
    """A revision that this process becomes."""
    parent = template.child("environment", _listen().detach())
    parent._status["state"] = "ready"
    with _connect(parent) as agent, _listen() as control:
        socket.send_fds(agent, [json.dumps(_GROW | load).encode()], [control.fileno(), 1, 2])
        template._forking.answer = 0
        seed = parent._serve()
        template._forking.answer = os.getpid()
    assert isinstance(seed, Seed)
    revision = parent.child(seed.role, seed.control)
    revision._prepare(seed)
    return revision


def _order(template: Template) -> None:
    """It is asked how it is, for two replicas, with a spare between them, and for what it has imported."""
    asked = [{"op": "status"}, _ORDER, _ORDER, {"op": "learn"}]
    with _connect(template) as agent:
        template._turn()
        for each in asked:
            socket.send_fds(agent, [json.dumps(each).encode()], [agent.fileno()] * (4 * (each is _ORDER)))
            template._turn()
            template._look_after_spare()
    template._turn()
    template._rest()


def _listen() -> socket.socket:
    """Where a template is asked in a rehearsal: no path leads there."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind("")
    listening.listen(2)
    return listening


def _connect(template: Template) -> socket.socket:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.connect(template._control.getsockname())
    return agent
