"""What may a user's own program import? `import steelyard as sy`: apps, functions, calls (see `steelyard.sdk`), nothing heavier.

Everything is loaded on first use: programs of ours import their own parts and never pay for the SDK. Works on Python 3.10 and
later, because it is also put at the end of `sys.path` of users' interpreters.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from steelyard.sdk import enter, exit, phase  # noqa: A004
    from steelyard.sdk.app import App
    from steelyard.sdk.call import FunctionCall
    from steelyard.sdk.declare import asgi_app, batched, concurrent, endpoint, method, web_server, wsgi_app
    from steelyard.sdk.declare import endpoint as fastapi_endpoint
    from steelyard.sdk.declare import endpoint as web_endpoint
    from steelyard.sdk.errors import (
        CallCancelled,
        CallTimeout,
        DeclarationError,
        Error,
        NotAllowed,
        NotDeployed,
        NotReachable,
        OutOfMemory,
        Overloaded,
        PayloadError,
        RemoteError,
        ReplicaLost,
        ResultPending,
        StartFailed,
    )
    from steelyard.sdk.handle import Cls, Function
    from steelyard.sdk.image import Image
    from steelyard.sdk.nouns import Cron, Every, Secret, Volume
    from steelyard.sdk.nouns import Every as Period
    from steelyard.sdk.parameters import parameter

__version__ = "0.1.0"

#: name -> (module, name there)
_HOMES = {
    **{name: ("", name) for name in ("enter", "exit", "phase")},
    "App": ("app", "App"),
    **{name: ("declare", name) for name in ("asgi_app", "batched", "concurrent", "endpoint", "method", "web_server", "wsgi_app")},
    **{name: ("handle", name) for name in ("Cls", "Function")},
    "Image": ("image", "Image"),
    "parameter": ("parameters", "parameter"),
    "FunctionCall": ("call", "FunctionCall"),
    **{name: ("nouns", name) for name in ("Cron", "Every", "Secret", "Volume")},
    **{
        name: ("errors", name)
        for name in (
            "Error",
            "DeclarationError",
            "PayloadError",
            "NotReachable",
            "NotAllowed",
            "NotDeployed",
            "StartFailed",
            "Overloaded",
            "CallTimeout",
            "ReplicaLost",
            "OutOfMemory",
            "CallCancelled",
            "ResultPending",
            "RemoteError",
        )
    },
    # Modal's spellings
    "fastapi_endpoint": ("declare", "endpoint"),
    "web_endpoint": ("declare", "endpoint"),
    "Period": ("nouns", "Every"),
}

#: what Modal has and this has not, and what to write instead
_ELSEWHERE = {
    "Retries": "write how often: `retries=3`",
    "gpu": "write a text: `gpu='H100:2'`",
    "Dict": "keep what is shared in a volume or a database",
    "Queue": "`.spawn()` and `.map()` queue inputs; keep what is shared in a volume or a database",
    "Sandbox": "`steelyard run -- COMMAND` starts a program as a job",
    "NetworkFileSystem": "`steelyard volumes create NAME --path DIR` makes a folder on one a volume, for volumes=",
    "CloudBucketMount": "mount it on the machine, and `steelyard volumes create NAME --path DIR` makes it a volume, for volumes=",
}

__all__ = [
    "__version__", "App", "Cls", "Cron", "Every", "Function", "FunctionCall", "Image", "Period", "Secret",
    "Volume",
    "asgi_app", "batched", "concurrent", "endpoint", "enter", "exit", "fastapi_endpoint", "method", "parameter", "phase",
    "web_endpoint", "web_server", "wsgi_app",
    "CallCancelled", "CallTimeout", "DeclarationError", "Error", "NotAllowed", "NotDeployed", "NotReachable", "OutOfMemory",
    "Overloaded", "PayloadError", "RemoteError", "ReplicaLost", "ResultPending", "StartFailed",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        hint = f": {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"module 'steelyard' has no attribute {name!r}{hint}")
    from importlib import import_module

    module, there = _HOMES[name]
    value = getattr(import_module(f"steelyard.sdk.{module}".rstrip(".")), there)
    globals()[name] = value
    return value
