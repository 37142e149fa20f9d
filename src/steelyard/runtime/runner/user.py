"""What is the user's app, and what did the user ask to run before the first request?

Imports the user's file the way `python FILE` would find its neighbours (its folder first on `sys.path`), takes the attribute,
checks that it can be an ASGI app, and runs `@sy.enter` hooks. Everything raised by user code leaves as `UserCodeFailed` with
the traceback that the user should see, without frames of ours.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

#: of the module by this name
GetCode = Callable[[SourceFileLoader, str], Any]

RUNNER_FOLDER = os.path.dirname(os.path.abspath(__file__))


_TAG = f".{sys.implementation.cache_tag}.pyc"

#: what all `@sy.exit` hooks of a replica may take together
EXITS_S = 30.0


class UserCodeFailed(Exception):
    """The user's code can't be served. The text is for the user: a sentence or a traceback."""


def load_app(
    code_dir: str,
    file: str,
    attr: str,
    function: str = "",
    concurrency: int | None = None,
    get_code: GetCode = SourceFileLoader.get_code,
) -> Any:
    """The ASGI app named by `attr` (dots allowed) in `file`, which is relative to `code_dir`. What is declared with the SDK is no
    app itself and makes one (`__steelyard_app__`). `function` is the name that it is deployed under, `concurrency` as there."""
    os.environ["STEELYARD_FUNCTION"] = function
    module = import_file(code_dir, file, get_code)
    found: Any = module
    for part in attr.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UserCodeFailed(f"{file} has no attribute '{attr}'.{_candidates(module)}") from None
    make = getattr(found, "__steelyard_app__", None)
    if make is not None:
        try:
            return make(function, concurrency)
        except BaseException as err:
            raise UserCodeFailed(f"{file}: {err}" if _is_declaration(err) else user_traceback(err)) from err
    _check_app(found, f"{file}:{attr}")
    return found


def _is_declaration(err: BaseException) -> bool:
    """Of the SDK, which says what is declared wrongly; no line of the user's leads there."""
    kind = getattr(sys.modules.get("steelyard.sdk.errors"), "DeclarationError", None)
    return kind is not None and isinstance(err, kind)


def run_hooks(shared: bool) -> list[Any]:
    """Run the registered hooks of one kind in order. Awaitables returned by per-replica hooks are handed back to be awaited."""
    sdk = sys.modules.get("steelyard.sdk")
    pending: list[Any] = []
    hooks: list[tuple[bool, Any]] = list(getattr(sdk, "hooks", ()))
    for is_shared, hook in hooks:
        if is_shared is not shared:
            continue
        try:
            result = hook()
        except BaseException as err:
            raise UserCodeFailed(user_traceback(err)) from err
        if not inspect.isawaitable(result):
            continue
        if shared:
            if inspect.iscoroutine(result):
                result.close()
            raise UserCodeFailed(
                f"@sy.enter(shared=True) on '{getattr(hook, '__qualname__', hook)}': it is a coroutine function, and what "
                "runs before the fork must not depend on an event loop. Make it a plain function, or use @sy.enter."
            )
        pending.append(result)
    return pending


async def run_exits(grace_s: float = EXITS_S) -> None:
    """Run `@sy.exit` hooks, the last registered first. What one raises is logged and keeps none of the others from running; one
    that does not end in time is left to itself: the process ends."""
    hooks: list[Any] = list(getattr(sys.modules.get("steelyard.sdk"), "exits", ()))
    if not hooks:
        return
    watch = threading.Timer(grace_s, _end_unfinished, (grace_s,))
    watch.daemon = True
    watch.start()
    for hook in reversed(hooks):
        try:
            result: Any = hook()
            if inspect.isawaitable(result):
                await result
        except BaseException as err:
            sys.stderr.write(f"@sy.exit on '{getattr(hook, '__qualname__', hook)}' failed:\n{user_traceback(err)}")
    watch.cancel()


def _end_unfinished(grace_s: float) -> None:
    sys.stderr.write(f"@sy.exit did not end within {grace_s:g} s; the replica ends without it\n")
    sys.stderr.flush()
    os._exit(0)


def recorded_phases() -> dict[str, float]:
    """What `with sy.phase(name)` measured so far, in ms."""
    return dict(getattr(sys.modules.get("steelyard.sdk"), "recorded", {}))


def forget_phases() -> None:
    """Phases of the template's own start are no part of a replica's wake: begin anew."""
    sdk = sys.modules.get("steelyard.sdk")
    if sdk is not None:
        sdk.recorded.clear()  # type: ignore[attr-defined]
        sdk.recording = True  # type: ignore[attr-defined]


def stop_recording() -> None:
    """After the first answer phases are not kept any more."""
    sdk = sys.modules.get("steelyard.sdk")
    if sdk is not None:
        sdk.recording = False  # type: ignore[attr-defined]


def user_traceback(err: BaseException) -> str:
    """The traceback from the user's first frame on."""
    frames = err.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(err), err, frames))


def _is_ours(filename: str) -> bool:
    return filename.startswith((RUNNER_FOLDER, "<frozen importlib"))


def import_file(code_dir: str, file: str, get_code: GetCode = SourceFileLoader.get_code) -> ModuleType:
    path = f"{code_dir}/{file}"
    if not os.access(path, os.F_OK):
        raise UserCodeFailed(f"There is no file {file} in the deployed code.")
    folder, parts = package_of(path)
    for entry in dict.fromkeys([code_dir, folder]):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    try:
        if len(parts) > 1:
            return importlib.import_module(".".join(parts))
        return _import_path(parts[0], path, get_code)
    except BaseException as err:
        raise UserCodeFailed(user_traceback(err)) from err


def _import_path(stem: str, path: str, get_code: GetCode) -> ModuleType:
    name = stem if stem.isidentifier() else re.sub(r"\W", "_", stem)
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"{name}_app"  # a file called like a loaded module must not replace it
    if not path.endswith(".py"):
        raise UserCodeFailed(f"{path.rpartition('/')[2]} is not a Python file.")
    module, spec, loader = _ahead.pop() if _ahead else _make_module()
    cached = _cached(path)
    vars(loader).update(name=name, path=path)
    vars(spec).update(name=name, origin=path, _cached=cached)
    vars(module).update(__name__=name, __file__=path, __cached__=cached)
    sys.modules[name] = module
    exec(get_code(loader, name), vars(module))
    return module


_Module = tuple[ModuleType, ModuleSpec, SourceFileLoader]
#: the one that is imported next, where it was made before the fork
_ahead: list[_Module] = []


def make_module_ahead() -> None:
    """Of the file that will be imported, by whatever is forked from this process."""
    _ahead[:] = [_make_module()]


def _make_module() -> _Module:
    """By hand what importlib would make of a file, whichever: going through its general ways costs each revision half a megabyte
    of copied pages."""
    loader = SourceFileLoader("", "")
    spec = ModuleSpec("", loader, origin="")
    spec.has_location = True
    spec.cached = ""
    module = ModuleType("")
    vars(module).update(__spec__=spec, __loader__=loader, __package__="", __file__="", __cached__="")
    assert vars(loader) and vars(spec)  # the dicts are made by looking at them
    return module, spec, loader


def _cached(path: str) -> str:
    if sys.pycache_prefix or sys.flags.optimize:
        return importlib.util.cache_from_source(path)
    cut = path.rindex("/") + 1
    return f"{path[:cut]}__pycache__/{path[cut:-3]}{_TAG}"


def package_of(path: str) -> tuple[str, list[str]]:
    """The folder to put on sys.path and the dotted name: folders with an `__init__.py` belong to the name."""
    folder, _, name = path.rpartition("/")
    parts = [name.rpartition(".")[0] or name]
    while os.access(f"{folder}/__init__.py", os.F_OK):
        folder, _, name = folder.rpartition("/")
        parts.insert(0, name)
    return folder, parts


def _candidates(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not isinstance(value, type)
        and getattr(value, "__module__", None) == module.__name__
    ]
    return f" Callables in it: {', '.join(sorted(names)[:10])}." if names else ""


def _check_app(app: Any, where: str) -> None:
    if not callable(app):
        raise UserCodeFailed(
            f"{where} is not callable: it is of type {type(app).__name__}, and an ASGI app is called with (scope, receive, send)."
        )
    if _plainly_takes_three(app):
        return
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return  # compiled code that doesn't tell
    if _takes(signature, 3):
        return
    hint = (
        " It takes two arguments, like a WSGI app: wrap it, for example with a2wsgi's WSGIMiddleware."
        if _takes(signature, 2)
        else ""
    )
    raise UserCodeFailed(
        f"{where} can't be called as an ASGI app, app(scope, receive, send): its signature is {signature}.{hint}"
    )


def _plainly_takes_three(app: Any) -> bool:
    """As nearly every app does; asking for a signature costs ten times the memory."""
    call, given = (app, 3) if type(app) is FunctionType else (type(app).__call__, 4)
    if type(call) is not FunctionType or hasattr(call, "__wrapped__"):
        return False
    code, defaults = call.__code__, call.__defaults__ or ()
    return code.co_argcount - len(defaults) <= given <= code.co_argcount and not code.co_kwonlyargcount


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
