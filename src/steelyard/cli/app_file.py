"""What does FILE.py declare, and how is something in it called? Loads a user's app in this process where the code's interpreter
is this one's, else in a process of that interpreter (`sdk/command.py` does the work in both).

Nothing is deployed here. What the user's code does wrong leaves as Refused, with the traceback in its text where there is one.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click
import msgspec

import steelyard
from steelyard.cli.session import find_settings
from steelyard.errors import Refused, SteelyardError
from steelyard.sdk.command import LoadFailed, Prepared, Program, split_root

#: handed to another interpreter's `-c`: the folder of what we bring along comes last, as in replicas
_CHILD = (
    "import sys\nif sys.path and sys.path[0] == '': del sys.path[0]\nsys.path.append(sys.argv[1])\n"
    "from steelyard.sdk.command import main\nsys.exit(main(sys.argv[2:]))"
)


class Method(msgspec.Struct, frozen=True):
    name: str
    kind: str
    doc: str = ""


class Declared(msgspec.Struct, frozen=True):
    """A function of an app; `sdk/describe.py` says what the fields mean."""

    name: str
    fn: str
    file: str
    attr: str
    interface: str
    port: int | None
    options: dict[str, Any]
    schedule: dict[str, Any] | None
    methods: tuple[Method, ...]
    doc: str = ""
    #: as `sdk/image.py` tells it
    image: dict[str, Any] | None = None


class Description(msgspec.Struct, frozen=True):
    app: str
    functions: tuple[Declared, ...]


class AppFile(msgspec.Struct, frozen=True):
    """A file that declares an app."""

    file: Path
    #: the folder that is captured
    root: Path
    python: str
    description: Description

    def with_functions(self, functions: tuple[Declared, ...]) -> AppFile:
        return msgspec.structs.replace(self, description=Description(self.description.app, functions))


class UserCodeFailed(SteelyardError):
    """The user's file raised something while it was imported: its traceback is the text, and the exit code that of a program that
    failed."""

    code = "import-failed"


def declares_app(file: Path) -> bool:
    """Does a Python file look like one with an app of ours? By its text alone: an ASGI app is not imported here, and a program
    would run. It decorates functions, or takes an `app` from another file. Refused when it is no Python."""
    for node in ast.walk(parse_file(file)):
        if isinstance(node, ast.ImportFrom) and any((name.asname or name.name) == "app" for name in node.names):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(called, ast.Attribute) and called.attr in ("function", "cls", "local_entrypoint"):
                return True
    return False


def parse_file(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as err:
        where = f", line {err.lineno}" if isinstance(err, SyntaxError) and err.lineno else ""
        raise Refused(
            f"{file}{where} is not Python: {err.msg if isinstance(err, SyntaxError) else err}. Nothing was deployed.",
            code="bad-syntax",
        ) from err
    except OSError as err:
        raise Refused(f"{file} can't be read ({err.strerror}). Nothing was deployed.", code="code-unreadable") from err


def load_app(file: Path, python: str, lib_dir: Path | None = None) -> AppFile:
    """What it declares. `lib_dir` must be given where `python` is not this interpreter. Raises Refused or UserCodeFailed."""
    if same_interpreter(python):
        with _told():
            description = Program(str(file)).describe()
        return _make(file, python, description)
    with contextlib.closing(_Child(python, lib_dir, "describe", str(file))) as child:
        return _make(file, python, child.description)


def load_app_apart(file: Path, python: str, home: Path | None) -> AppFile:
    """Like `load_app`, always in a process of its own: what the file was before has left no trace in it."""
    lib_dir = lib_dir_for(home, python) or Path(steelyard.__file__).parents[1]
    with contextlib.closing(_Child(python, lib_dir, "describe", str(file))) as child:
        return _make(file, python, child.description)


def load_images(file: Path) -> dict[str, dict[str, Any]]:
    """The images that a file names, by those names, as `sdk/image.py` tells them. Raises Refused or UserCodeFailed."""
    with _told():
        return Program(str(file)).describe_images()


class Call:
    """A function or entry point of a file, with the words of the command line read as its arguments. Raises Refused or
    UserCodeFailed; after `--help` it prints the help and exits. `close` it in any case."""

    def __init__(self, file: Path, python: str, target: str, words: tuple[str, ...], lib_dir: Path | None = None) -> None:
        self._child: _Child | None = None
        self._prepared: Prepared | None = None
        self._environ: dict[str, str] = {}
        if same_interpreter(python):
            with _told():
                program = Program(str(file))
                description = program.describe()
                self._prepared = program.prepare(target, words)
        else:
            self._child = _Child(python, lib_dir, "run", str(file), target, json.dumps(words))
            description = self._child.description
        self.app = _make(file, python, description)

    def get_ready(self, environ: Mapping[str, str]) -> None:
        """What calling needs, so that nothing of it is left to do when the functions are ready. `environ`: by which the SDK finds
        this Steelyard."""
        self._environ = dict(environ)
        if self._prepared is not None:
            os.environ.update(environ)
            self._prepared.get_ready()

    def run(self, suffix: str, as_json: bool) -> int:
        """Call it, with the app deployed under names with this suffix; the exit code."""
        if self._child is not None:
            return self._child.call({"suffix": suffix, "environ": self._environ, "json": as_json})
        assert self._prepared is not None
        return self._prepared.call(suffix, as_json)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()


class _Child:
    """`sdk/command.py` in another interpreter."""

    def __init__(self, python: str, lib_dir: Path | None, mode: str, *words: str) -> None:
        import subprocess  # imported here: where the interpreter is this one, nothing needs it

        assert lib_dir is not None
        answer_fd, out_fd = os.pipe()
        in_fd, order_fd = os.pipe()
        self._orders: IO[str] = os.fdopen(order_fd, "w")
        numbers = (str(out_fd), str(in_fd)) if mode == "run" else (str(out_fd),)
        argv = [python, "-c", _CHILD, str(lib_dir), mode, *words, *numbers]
        try:
            self._process = subprocess.Popen(argv, pass_fds=(out_fd, in_fd), stdout=None if mode == "run" else 2)
        except OSError as err:
            raise Refused(f"{python} can't be started ({err.strerror}). Nothing was started.", code="no-such-python") from err
        finally:
            os.close(out_fd)
            os.close(in_fd)
        with os.fdopen(answer_fd) as answers:
            line = answers.readline()
        if not line:
            code = self._process.wait()
            raise UserCodeFailed(f"{python} ended with exit code {code} while it imported the file. Nothing was started.")
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if "error" in answer:
            self.close()
            _raise(answer["code"], answer["error"])
        self.description: Any = answer["description"]

    def call(self, order: dict[str, Any]) -> int:
        self._orders.write(json.dumps(order) + "\n")
        self._orders.close()
        try:
            code = self._process.wait()
        except KeyboardInterrupt:
            # the terminal told both of us
            self._process.wait()
            raise
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """An order that never comes ends it."""
        self._orders.close()
        self._process.wait()


def check_python(python: str | None) -> str:
    """Absolute, but not with links followed: an environment's interpreter is a link, and following it loses the environment. A
    bare name is looked for as a shell does."""
    if python and os.sep not in python:
        import shutil

        python = shutil.which(python) or python
    interpreter = os.path.abspath(python or sys.executable)
    if not os.path.isfile(interpreter) or not os.access(interpreter, os.X_OK):
        raise Refused(
            f"The interpreter {interpreter} is no program. Nothing was deployed. --python and python= take a path or a command: "
            ".venv/bin/python, python3.12.",
            code="no-such-python",
        )
    return interpreter


def lib_dir_for(home: Path | None, interpreter: str) -> Path | None:
    """What another interpreter needs of us; None for this one."""
    if same_interpreter(interpreter):
        return None
    from steelyard.runtime.lib_dir import make_lib_dir

    return make_lib_dir(find_settings(home)[0].home / "runner")


def same_interpreter(python: str) -> bool:
    return os.path.abspath(python) == os.path.abspath(sys.executable)


def _make(file: Path, python: str, description: Any) -> AppFile:
    return AppFile(file, Path(split_root(str(file))[0]), python, msgspec.convert(description, Description))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except LoadFailed as err:
        _raise(err.code, str(err))


def _raise(code: str, text: str) -> None:
    if code == "help":
        click.echo(text)
        raise click.exceptions.Exit(0)
    if code == "import-failed":
        raise UserCodeFailed(text)
    raise Refused(f"{text}\nNothing was started." if "\n" in text else f"{text} Nothing was started.", code=code)
