"""How does the runner get its HTTP server without touching what the user imports under the same names?

`import_server(lib_dir)` imports uvicorn's protocol classes, their parser and their WebSocket library with a `sys.path` of the
lib folder and the standard library alone, then takes those names out of `sys.modules` again. The objects live on in the
returned `Server`; the user's `import uvicorn`, `import h11`, ... find the user's own versions, also when those are ancient or
broken. Compiled parts (httptools, uvloop) are used where they load in this interpreter; else h11 and asyncio.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

#: top-level names that the lib folder brings
LIB_NAMES = ("uvicorn", "h11", "httptools", "uvloop", "websockets", "typing_extensions")


class Server:
    """The imported pieces. `http` and `websocket` are asyncio protocol classes of uvicorn, `config` and `state` make theirs."""

    def __init__(self, http: type[Any], websocket: type[Any] | None, config: type[Any], state: type[Any]) -> None:
        self.http = http
        self.websocket = websocket
        self.config = config
        self.state = state
        self.new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        #: which implementations were loaded, for status and logs
        self.names: list[str] = []


def import_server(lib_dir: str, compiled: bool = True) -> Server:
    """Import everything that serving needs. ImportError when the lib folder is incomplete."""
    with _isolated(lib_dir):
        _stub_package("uvicorn", lib_dir)
        config = importlib.import_module("uvicorn.config").Config
        state = importlib.import_module("uvicorn.server").ServerState
        http = _first(
            ["uvicorn.protocols.http.httptools_impl:HttpToolsProtocol"] * compiled
            + ["uvicorn.protocols.http.h11_impl:H11Protocol"]
        )
        try:
            websocket = _first(["uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol"])
        except ImportError:
            websocket = None
        server = Server(http, websocket, config, state)
        server.names = [http.__name__] + ([websocket.__name__] if websocket else [])
        if compiled:
            try:
                server.new_event_loop = importlib.import_module("uvloop").new_event_loop
                server.names.append("uvloop")
            except ImportError:
                pass
    return server


def _first(places: list[str]) -> type[Any]:
    """The first of `module:attribute` that imports."""
    for place in places[:-1]:
        module, _, attribute = place.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError:
            continue
    module, _, attribute = places[-1].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _stub_package(name: str, lib_dir: str) -> None:
    """Stand in for a package's `__init__`: uvicorn's imports its command line (click) and more, of which serving needs
    nothing."""
    package = ModuleType(name)
    package.__path__ = [os.path.join(lib_dir, name)]
    package.__spec__ = importlib.util.spec_from_loader(name, None, is_package=True)
    sys.modules[name] = package


@contextmanager
def _isolated(lib_dir: str) -> Iterator[None]:
    """Only the lib folder and the standard library can be imported inside; afterwards `sys.modules` holds the names it held
    before."""
    path = sys.path[:]
    users = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)}
    sys.path[:] = [lib_dir, *_standard_library(path)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]
        sys.modules.update(users)
        sys.path[:] = path


def _ours(name: str) -> bool:
    return name.partition(".")[0] in LIB_NAMES


def _standard_library(path: list[str]) -> list[str]:
    home = os.path.dirname(os.path.realpath(os.__file__))
    found = [entry for entry in path if entry and os.path.realpath(entry).startswith(home) and "-packages" not in entry]
    zipped = [entry for entry in path if os.path.basename(entry).startswith("python") and entry.endswith(".zip")]
    dynload = [entry for entry in path if os.path.basename(entry) == "lib-dynload"]
    return list(dict.fromkeys([*zipped, *found, *dynload]))
