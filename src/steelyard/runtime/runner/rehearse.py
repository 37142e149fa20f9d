"""How does a base learn its way before anybody asks? CPython (since 3.11) writes into the code that it runs until it has seen
often enough what happens there, and until then looks up names, which writes to them: each template would do that in copied pages.
And what it runs lies all over, among what it does not.

`rehearse` goes the way of a revision from the packet that asks for it to its first replicas, in this process: forks are answered
instead of made, and what the way changes in the process is put back. What ran is then put side by side. What is imported is
`rehearsal/app.py`, in a folder that is no package, as a user's file is.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

from .grow import Seed, given_environment, take_environment
from .holes import fill_holes

if TYPE_CHECKING:
    from .template import Template

#: CPython rewrites code after some eight runs, and then once more by what it meets there
ROUNDS = 16
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rehearsal")
_GROW = {"op": "grow", "role": "revision", "cgroups": 0, "function": "", "code_dir": _FOLDER, "file": "app.py", "attr": "app"}
_ORDER = {"op": "fork", "replica": "", "cpus": [0], "cgroups": 0, "private": False, "sent_ns": 0}


def listen() -> socket.socket:
    """Where a template is asked in a rehearsal: no path leads there."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind("")
    listening.listen(2)
    return listening


def rehearse(template: Template) -> None:
    """`template` was made for it and is asked at `listen`. OSError when the kernel refuses a part of the way."""
    folder, env = os.getcwd(), given_environment()
    try:
        _gather(_watch(lambda: _go_once(template, env)))
        for at in range(ROUNDS):
            _go_once(template, env | {"STEELYARD_REHEARSAL": str(at)})
    finally:
        os.chdir(folder)
        take_environment(env)
        os.environ.pop("STEELYARD_FUNCTION", None)
        template._control.close()


def _watch(way: Callable[[], None]) -> set[CodeType]:
    """The code that runs on it."""
    found: set[CodeType] = set()
    sys.setprofile(lambda frame, event, _: found.add(frame.f_code) if event == "call" else None)
    try:
        way()
    finally:
        sys.setprofile(None)
    return found


def _gather(ran: set[CodeType]) -> None:
    """Give the functions copies that lie together."""
    gc.unfreeze()  # only what is not frozen is listed
    gc.collect()
    fill_holes()
    for each in [each for each in gc.get_objects() if type(each) is FunctionType and each.__code__ in ran]:
        each.__code__ = each.__code__.replace()


def _go_once(template: Template, env: dict[str, str]) -> None:
    path = sys.path[:]
    _grow(template, env)
    _order(template)
    sys.modules.pop("app", None)
    sys.path[:] = path


def _grow(template: Template, env: dict[str, str]) -> None:
    """It becomes a revision."""
    template._status["state"] = "ready"
    with _connect(template) as agent, listen() as control:
        socket.send_fds(agent, [json.dumps({**_GROW, "env": env, "concurrency": 1}).encode()], [control.fileno(), 1, 2])
        template._forking.answer = 0
        seed = template._serve()
        template._forking.answer = os.getpid()
    assert isinstance(seed, Seed)
    template._begin(seed.role, socket.socket(fileno=seed.control))
    template._prepare(seed)


def _order(template: Template) -> None:
    """It is asked how it is, for two replicas, with a spare between them, and for what it has imported."""
    with _connect(template) as agent:
        template._turn()
        for asked in ({"op": "status"}, _ORDER, _ORDER, {"op": "learn"}):
            socket.send_fds(agent, [json.dumps(asked).encode()], [agent.fileno()] * (4 * (asked is _ORDER)))
            template._turn()
            template._look_after_spare()
    template._turn()
    template._rest()


def _connect(template: Template) -> socket.socket:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.connect(template._control.getsockname())
    return agent
