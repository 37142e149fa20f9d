"""What does a module declare? `describe(module)` tells it as plain JSON, for the command line, which deploys it.

    {"app": "shop",
     "functions": [
       {"name": "shop-predict",          deployed name (without a suffix)
        "fn": "predict",                 name within the app
        "file": "/path/models.py",       the file that defines it
        "attr": "predict",               where its handle is found in that file's module
        "interface": "call" | "http" | "web_server",
        "port": null | 8000,             of a web server
        "options": {...},                canonical, as `read_options` gives them, with concurrency and replicas_max filled in
        "image": null | {...},           as `Image.as_json` tells it: the function's own, or the app's
        "schedule": null | {"cron", "timezone"} | {"every_s"},
        "doc": "First line of its docstring",
        "methods": [
          {"name": "" | "predict",       "" for a function
           "doc": "...", "kind": "call" | "endpoint" | "asgi" | "wsgi" | "server",
           "generator": false, "batched": false,
           "parameters": [{"name", "kind", "annotation", "required", "default"}]}]}],
     "entrypoints": [{"name", "attr", "doc", "parameters"}]}

A parameter's `kind` is one of positional, keyword, args, kwargs; `annotation` is its text, "" where there is none; `default` is
JSON, or its repr where it can't be.
"""

from __future__ import annotations

import inspect
import json
import sys
from types import ModuleType
from typing import Any

from steelyard.sdk.app import App
from steelyard.sdk.declare import Marks, Web, read_marks
from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.handle import Cls, Function, methods_of
from steelyard.sdk.lifecycle import check_made

#: where nothing is said: coroutines of a web app share a replica, a function has it to itself
CONCURRENCY_HTTP, CONCURRENCY_CALL = 8, 1
REPLICAS_MAX = 8

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_POSITIONAL: "args",
    inspect.Parameter.VAR_KEYWORD: "kwargs",
}


def find_app(module: ModuleType) -> App | None:
    """The app of a module; None when it has none. DeclarationError when there are several."""
    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if len(apps) > 1:
        raise DeclarationError(
            f"{module.__file__} has several apps: {', '.join(sorted(app.name for app in apps.values()))}. Keep one in a file."
        )
    return next(iter(apps.values()), None)


def describe(module: ModuleType) -> dict[str, Any]:
    """DeclarationError when it has no app, or something of it can't be deployed."""
    app = find_app(module)
    if app is None:
        raise DeclarationError(f"{module.__file__} declares no app. Write app = sy.App('name') and decorate functions with it.")
    return {
        "app": app.name,
        "functions": [_describe_function(short, handle, module) for short, handle in app.functions.items()],
        "entrypoints": [
            {
                "name": name,
                "attr": _find(entrypoint, sys.modules.get(entrypoint.function.__module__, module), name),
                "doc": _first_line(entrypoint.function),
                "parameters": describe_parameters(entrypoint.function),
            }
            for name, entrypoint in app.entrypoints.items()
        ],
    }


def interface_of(handle: Function[..., Any] | Cls) -> tuple[str, int | None]:
    """(interface, port). DeclarationError when a class has two web apps that exclude each other."""
    webs: list[Web] = []
    apps: list[Web] = []
    for marks in _marks(handle).values():  # loops here and below, for a template that asks it: each comprehension is a function
        if marks.web is not None:
            webs.append(marks.web)
            if marks.web.kind != "endpoint":
                apps.append(marks.web)
    if len(apps) > 1 or (apps and len(webs) > 1):
        raise DeclarationError(f"{handle.__qualname__} has several web apps; one function has one address. Split the class.")
    if apps and apps[0].kind == "server":
        return "web_server", apps[0].port
    return ("http" if webs else "call"), None


def concurrency_of(handle: Function[..., Any] | Cls) -> int:
    """Inputs or requests that one replica works on at a time."""
    said, batch = 0, 0
    for one in (read_marks(handle), *_marks(handle).values()):
        said = max(said, one.concurrency or 0)
        if one.batched is not None:  # a batch can only be gathered from inputs that are let in together
            batch = max(batch, one.batched.max_size)
    return (
        handle.options.get("concurrency")
        or said
        or max(batch, CONCURRENCY_CALL if interface_of(handle)[0] == "call" else CONCURRENCY_HTTP)
    )


def replicas_max_of(handle: Function[..., Any] | Cls) -> int:
    """Of a web server one, since only one can open its port."""
    if interface_of(handle)[0] == "web_server":
        return handle.options.get("replicas_max") or 1
    return handle.options.get("replicas_max") or max(REPLICAS_MAX, handle.options.get("replicas_min", 0))


def width_of(handle: Function[..., Any] | Cls) -> int:
    """Inputs that all its replicas together work on."""
    return concurrency_of(handle) * replicas_max_of(handle)


def describe_parameters(function: Any, skip: int = 0) -> list[dict[str, Any]]:
    """Of a function, without its first `skip`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return []
    return [
        {
            "name": parameter.name,
            "kind": _KINDS[parameter.kind],
            "annotation": _annotation(parameter.annotation),
            "required": parameter.default is parameter.empty and _KINDS[parameter.kind] in ("positional", "keyword"),
            "default": None if parameter.default is parameter.empty else _as_json(parameter.default),
        }
        for parameter in parameters
    ]


def _describe_function(short: str, handle: Function[..., Any] | Cls, module: ModuleType) -> dict[str, Any]:
    home = module if handle.__module__ == module.__name__ else sys.modules.get(handle.__module__, module)
    if isinstance(handle, Cls):
        check_made(handle.target)
    interface, port = interface_of(handle)
    options = dict(handle.options)
    schedule = options.pop("schedule", None)
    image = options.pop("image", None)
    if image is None and "python" not in options and handle.app is not None and handle.app.image is not None:
        image = handle.app.image.as_json()
    marks = _marks(handle)
    options["concurrency"] = concurrency_of(handle)
    options["replicas_max"] = replicas_max_of(handle)
    for mark in marks.values():
        if mark.web is not None and mark.web.startup_timeout is not None:
            options.setdefault("startup_deadline_s", mark.web.startup_timeout)
        if mark.web is not None and mark.web.readiness:
            options["readiness"] = mark.web.readiness
    skip = 1 if isinstance(handle, Cls) else 0
    targets = methods_of(handle.target) if isinstance(handle, Cls) else {"": handle.target}
    return {
        "name": handle.base_name,
        "fn": short,
        "file": getattr(home, "__file__", None),
        "attr": _find(handle, home, handle.__qualname__),
        "interface": interface,
        "port": port,
        "options": options,
        "image": image,
        "schedule": schedule,
        "doc": _first_line(handle.target),
        "methods": [
            {
                "name": name,
                "doc": _first_line(target),
                "kind": web.kind if (web := marks[name].web) is not None else "call",
                "generator": inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target),
                "batched": marks[name].batched is not None,
                "parameters": describe_parameters(target, skip),
            }
            for name, target in targets.items()
        ],
    }


def _marks(handle: Function[..., Any] | Cls) -> dict[str, Marks]:
    if isinstance(handle, Cls):
        return {name: read_marks(method) for name, method in methods_of(handle.target).items()}
    return {"": read_marks(handle)}


def _find(handle: Any, home: ModuleType, name: str) -> str:
    """The module's name for it, which a replica will look up."""
    for attr, value in vars(home).items():
        if value is handle:
            return attr
    raise DeclarationError(
        f"{name} can't be found in {getattr(home, '__file__', home.__name__)} by a name: declare it at the top level of the file."
    )


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _as_json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _first_line(target: Any) -> str:
    lines = (inspect.getdoc(target) or "").splitlines() if target.__doc__ else []
    return lines[0] if lines else ""
