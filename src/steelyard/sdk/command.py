"""What happens in the user's interpreter when a command line means FILE.py? It imports the file as a replica would, tells what is
declared in it, and calls what was asked for.

`Program` does it in the process of the command where that runs in the same interpreter. Otherwise `main` is started in the
user's, with two pipes: it writes one line of JSON, {"description"} or {"code", "error"}; a line {"suffix", "environ", "json"}
makes it go on and call; its exit code is the result's. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from steelyard.sdk.app import Entrypoint
from steelyard.sdk.arguments import ArgumentError, parse, render_help
from steelyard.sdk.describe import describe, find_app
from steelyard.sdk.errors import (
    DeclarationError,
    Error,
    NotAllowed,
    NotDeployed,
    NotReachable,
    Overloaded,
    PayloadError,
    RemoteError,
    RemoteTraceback,
    StartFailed,
)
from steelyard.sdk.handle import Function, methods_of

_SDK = os.path.dirname(os.path.abspath(__file__))
#: not the user's code's doing
_REFUSALS = (NotReachable, NotAllowed, NotDeployed, StartFailed, Overloaded, PayloadError, DeclarationError)
REFUSED = 125


class LoadFailed(Error):
    """The file can't be used. `code`: bad-syntax, missing-package, import-failed, no-app, bad-target, bad-argument, help."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def split_root(file: str) -> tuple[str, str]:
    """The folder that is captured, and the file's path in it: a package is captured whole, so that it keeps its name. Looks for
    `__init__.py` on the disk."""
    root, relative = os.path.split(os.path.abspath(file))
    while os.path.isfile(os.path.join(root, "__init__.py")):
        root, name = os.path.split(root)
        relative = os.path.join(name, relative)
    return root, relative


class Program:
    """The module of a file. Raises LoadFailed when it can't be imported; what it prints meanwhile goes to stderr."""

    def __init__(self, file: str) -> None:
        self.file = file
        root, relative = split_root(file)
        with contextlib.redirect_stdout(sys.stderr):
            self.module = _import(root, relative, file)

    def describe(self) -> dict[str, Any]:
        """As `sdk.describe`. LoadFailed when nothing is declared, or it can't be deployed so."""
        try:
            if find_app(self.module) is None:
                raise LoadFailed(
                    "no-app",
                    f"{self.file} declares no app: write app = sy.App('name') and decorate functions with @app.function.",
                )
            return describe(self.module)
        except DeclarationError as err:
            raise LoadFailed("bad-declaration", str(err)) from err

    def describe_images(self) -> dict[str, dict[str, Any]]:
        """The images that the module names, by those names."""
        from steelyard.sdk.image import Image

        return {name: value.as_json() for name, value in vars(self.module).items() if isinstance(value, Image)}

    def prepare(self, target: str, words: Sequence[str]) -> Prepared:
        """`target`: the name of an entry point, a function or Class.method; "": the only one there is."""
        chosen, label, function, skip = self._choose(target)
        if any(word in ("--help", "-h") for word in words[: words.index("--") if "--" in words else None]):
            raise LoadFailed("help", render_help(function, f"{os.path.basename(self.file)}:{label}", skip=skip))
        try:
            args, kwargs = parse(function, words, skip=skip)
        except ArgumentError as err:
            raise LoadFailed("bad-argument", f"{label}: {err}") from err
        return Prepared(self.module, chosen, function, args, kwargs)

    def _choose(self, target: str) -> tuple[Any, str, Callable[..., Any], int]:
        """(what is called, its name, the function whose signature counts, how many parameters are not the caller's)."""
        app = find_app(self.module)
        if app is None:
            self.describe()
        assert app is not None
        names = [*app.entrypoints, *app.functions]
        if not target:
            if len(app.entrypoints) != 1 and "main" not in app.entrypoints and len(names) != 1:
                raise LoadFailed("bad-target", f"{self.file} has several: say which, as FILE.py:NAME. {_list(names)}")
            target = "main" if "main" in app.entrypoints else names[0]
        if target in app.entrypoints:
            return app.entrypoints[target], target, app.entrypoints[target].function, 0
        name, _, method = target.partition(".")
        handle = app.functions.get(name)
        if handle is None:
            raise LoadFailed("bad-target", f"{self.file} has no function or entry point {name!r}. {_list(names)}")
        if isinstance(handle, Function):
            if method:
                raise LoadFailed("bad-target", f"{name} is a function: it has no method {method!r}.")
            return _callable(handle, name), name, handle.target, 0
        methods = methods_of(handle.target)
        if not method and len(methods) == 1:
            method = next(iter(methods))
        if method not in methods:
            wrong = f"{name} has no method {method!r} for callers." if method else f"{name} has several methods."
            raise LoadFailed("bad-target", f"{wrong} {_list([f'{name}.{one}' for one in methods])}")
        try:
            instance = handle()
        except DeclarationError as err:
            raise LoadFailed("bad-target", f"{err} A @app.local_entrypoint can give it.") from None
        return _callable(getattr(instance, method), f"{name}.{method}"), f"{name}.{method}", methods[method], 1


class Prepared:
    """A call whose arguments were read. Nothing is sent before `call`."""

    def __init__(self, module: ModuleType, chosen: Any, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]):
        self._module = module
        self._chosen = chosen
        self._function = function
        self._args, self._kwargs = args, kwargs

    def get_ready(self) -> None:
        """Import what a call needs, and know the gateway. Never raises: the call itself says what is wrong."""
        from steelyard.sdk import caller, transport

        with contextlib.suppress(Error, transport.Lost):
            caller.gateway()

    def call(self, suffix: str, as_json: bool) -> int:
        """`suffix` of the names that the app is deployed under. Prints the result, or the traceback; the exit code."""
        app = find_app(self._module)
        assert app is not None
        app.suffix = suffix
        try:
            if isinstance(self._chosen, Entrypoint):
                result = self._chosen.function(*self._args, **self._kwargs)
                if inspect.iscoroutine(result):
                    import asyncio

                    result = asyncio.run(result)
                _print(result, as_json)
            elif inspect.isgeneratorfunction(self._function) or inspect.isasyncgenfunction(self._function):
                for item in self._chosen.remote_gen(*self._args, **self._kwargs):
                    _print(item, as_json, indent=None)
            else:
                _print(self._chosen.remote(*self._args, **self._kwargs), as_json)
        except _REFUSALS as err:
            sys.stderr.write(f"steelyard: {err}\n")
            return REFUSED
        except Exception as err:
            sys.stderr.write(render_error(err, isinstance(self._chosen, Entrypoint)))
            return 1
        return 0


def render_error(err: BaseException, entrypoint: bool) -> str:
    """What the user should see of it: the traceback where it was raised, without frames of ours around it. That of a replica is
    in its log, which is shown beside."""
    if isinstance(err.__cause__, RemoteTraceback) and not entrypoint:
        told = str(err) if isinstance(err, RemoteError) else "".join(traceback.format_exception_only(type(err), err))
        return told.rstrip() + "\n"
    if isinstance(err, Error) and not entrypoint:
        return f"steelyard: {err}\n"
    frames = err.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_SDK):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(err), err, frames))


def _import(root: str, relative: str, file: str) -> ModuleType:
    user = _runner_user()
    try:
        return user.import_file(root, relative)
    except user.UserCodeFailed as failed:
        err = failed.__cause__
        if isinstance(err, SyntaxError):
            raise LoadFailed("bad-syntax", _render_syntax(err)) from None
        if isinstance(err, ModuleNotFoundError) and err.name:
            raise LoadFailed(
                "missing-package",
                f"{_where(err, root)}, imports {err.name!r}, which {sys.executable} does not have. Install it there, or name "
                "another interpreter with --python.",
            ) from None
        if isinstance(err, DeclarationError):
            raise LoadFailed("bad-declaration", f"{_where(err, root)}: {err}") from None
        raise LoadFailed("import-failed", f"{file} can't be imported:\n{failed}") from None


def _runner_user() -> Any:
    """The runner's own way to import a user's file, so that modules have the names here that they have in replicas (pickles go
    by them). Loaded by path: as a part of `steelyard.runtime` it would bring along what users' interpreters lack."""
    name = "steelyard_runner"
    if name not in sys.modules:
        folder = os.path.join(os.path.dirname(_SDK), "runtime", "runner")
        spec = importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.user")


def _where(err: BaseException, root: str) -> str:
    """The user's line that raised it: "app.py, line 3"."""
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if frame.filename.startswith(root + os.sep)]
    return f"{os.path.relpath(frames[-1].filename, root)}, line {frames[-1].lineno}" if frames else "The code"


def _render_syntax(err: SyntaxError) -> str:
    return "".join(traceback.format_exception_only(type(err), err)).rstrip()


def _callable(handle: Any, label: str) -> Any:
    web = handle.__steelyard__.web
    if web is not None and web.kind != "endpoint":
        raise LoadFailed(
            "bad-target", f"{label} is a web app, which has an address and no result: `steelyard serve` or `steelyard deploy` it."
        )
    return handle


def _list(names: list[str]) -> str:
    return f"There is: {', '.join(names)}." if names else "It declares none."


def _print(value: Any, as_json: bool, indent: int | None = 2) -> None:
    if as_json:
        from steelyard.sdk.to_json import NoJson, dumps, loads

        try:
            text = json.dumps(loads(dumps(value)), indent=indent, ensure_ascii=False)
        except (NoJson, ValueError) as err:
            raise PayloadError(f"The result is no JSON ({err}). It ran; leave out --json to see it as Python shows it.") from None
        sys.stdout.write(text + "\n")
    elif value is not None:
        sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """`describe FILE OUT` or `run FILE TARGET WORDS OUT IN`: WORDS as JSON, OUT and IN the numbers of descriptors."""
    mode, file, *more = argv
    prepared: Prepared | None = None
    answer: dict[str, Any]
    try:
        program = Program(file)
        answer = {"description": program.describe()}
        if mode == "run":
            prepared = program.prepare(more[0], json.loads(more[1]))
    except LoadFailed as err:
        answer = {"code": err.code, "error": str(err)}
    with os.fdopen(int(more[2 if mode == "run" else 0]), "w") as out:
        out.write(json.dumps(answer) + "\n")
    if prepared is None:
        return 0
    with os.fdopen(int(more[3])) as orders:
        line = orders.readline()
    if not line:
        return 0  # the command went another way
    order = json.loads(line)
    os.environ.update(order["environ"])
    return prepared.call(order["suffix"], order["json"])
