"""The user's file is imported by hand, and is told from one that importlib imported by nothing."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.runtime.runner import user
from steelyard.runtime.runner.user import UserCodeFailed, import_file, load_app


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    modules, path, env = dict(sys.modules), sys.path[:], dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(env)
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]
    sys.path[:] = path


@pytest.mark.parametrize("ahead", [False, True])
def test_the_module_says_of_itself_what_importlib_would_have_it_say(tmp_path: Path, ahead: bool) -> None:
    file = tmp_path / "some-app.py"
    file.write_text("VALUE = __name__\n")
    if ahead:
        user.make_module_ahead()
    ours = import_file(str(tmp_path), "some-app.py")
    spec = importlib.util.spec_from_file_location("some_app", file)
    assert spec is not None and spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    for name in ("__name__", "__file__", "__cached__", "__package__", "VALUE"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.__spec__ == spec and ours.__spec__ is not None
    assert (ours.__spec__.has_location, ours.__spec__.parent) == (spec.has_location, spec.parent)
    assert sys.modules["some_app"] is ours


def test_what_is_no_python_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "app.txt").write_text("")
    with pytest.raises(UserCodeFailed, match=r"app\.txt is not a Python file"):
        import_file(str(tmp_path), "app.txt")


def test_what_is_declared_wrongly_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text(
        "import steelyard as sy\napp = sy.App('needy')\n@app.cls()\nclass Model:\n    def __init__(self, size): ...\n"
        "    @sy.method\n    def one(self): ...\n"
    )
    with pytest.raises(UserCodeFailed) as failed:
        load_app(str(tmp_path), "needy.py", "Model")
    assert str(failed.value).startswith("needy.py: needy.Model can't be made without arguments"), failed.value


async def _three(scope: Any, receive: Any, send: Any) -> None: ...
async def _four(scope: Any, receive: Any, send: Any, more: Any = None) -> None: ...
async def _any(*args: Any) -> None: ...
async def _two(environ: Any, start_response: Any) -> None: ...
async def _named(scope: Any, receive: Any, *, send: Any) -> None: ...


@functools.wraps(_two)
async def _wrapped(*args: Any) -> None: ...


class _App:
    def __init__(self, takes: Any) -> None:
        self.takes = takes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...
    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...
    async def short(self, scope: Any, receive: Any) -> None: ...


APP = _App(None)


@pytest.mark.parametrize("app", [_three, _four, _any, APP, APP.method, functools.partial(_four, more=1)])
def test_what_takes_three_arguments_is_an_app(app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_app.py").write_text("app = None\n")
    monkeypatch.setattr(user, "import_file", lambda *_: type("module", (), {"app": staticmethod(app)}))
    assert load_app(str(tmp_path), "an_app.py", "app") is app


@pytest.mark.parametrize("app", [_two, _named, _wrapped, APP.short, _App, functools.partial(_three, 1)])
def test_what_does_not_is_refused_with_its_signature(app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user, "import_file", lambda *_: type("module", (), {"app": staticmethod(app)}))
    with pytest.raises(UserCodeFailed, match="can't be called as an ASGI app"):
        load_app(str(tmp_path), "an_app.py", "app")
