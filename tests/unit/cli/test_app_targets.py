"""Which words of `run` mean a function, and what an app's deploy may touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from steelyard.cli import run as run_command
from steelyard.cli.app_deploy import make_app_spec, make_override
from steelyard.cli.app_file import AppFile, Declared, Description, check_python, declares_app, load_app
from steelyard.cli.deploy_app import choose_function, find_taken, find_vanished
from steelyard.cli.functions import group_by_app
from steelyard.errors import Refused
from steelyard.sdk.command import split_root
from steelyard.wire.function_api import FunctionView

APP = """
import steelyard as sy
app = sy.App("shop")

@app.function(cpu=0.5, memory="200MB", env={"A": "1", "B": "2"})
def price(item: str) -> float: ...
"""


def parse_run(*words: str) -> tuple[tuple[str, tuple[str, ...]] | None, dict[str, Any]]:
    context = run_command.run.make_context("run", list(words))
    return context.meta.get("steelyard.cli.run"), context.params


@pytest.mark.parametrize(
    ("words", "target", "arguments"),
    [
        (["app.py"], "app.py", ()),
        (["app.py:fn", "--name", "x", "-v", "--help"], "app.py:fn", ("--name", "x", "-v", "--help")),
        (["--cpus", "2", "dir/app.py:C.m", "--", "y"], "dir/app.py:C.m", ("--", "y")),
        (["--json", "--home", "/h", "app.py:fn", "--cpus", "3"], "app.py:fn", ("--cpus", "3")),
    ],
)
def test_a_python_file_without_dashes_before_it_is_a_function(words: list[str], target: str, arguments: tuple[str, ...]) -> None:
    assert parse_run(*words)[0] == (target, arguments)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--", "app.py", "x"], ("app.py", "x")),
        (["--cpus", "2", "--", "python", "app.py"], ("python", "app.py")),
        (["true"], ("true",)),
        (["--name", "app.py", "true"], ("true",)),
        (["python", "app.py:x"], ("python", "app.py:x")),
        (["make", "--cpus", "2", "all"], ("make", "all")),
    ],
)
def test_everything_else_is_a_job(words: list[str], command: tuple[str, ...]) -> None:
    meant, params = parse_run(*words)
    assert meant is None
    assert params["command"] == command


def test_options_of_jobs_are_refused_for_functions_by_name(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(APP)
    for words, name in ((["--retry", "error:3"], "--retry"), (["-d"], "--detach"), (["--error", "x"], "--error")):
        with pytest.raises(Refused, match=name):
            run_command.run.main([*words, str(file)], standalone_mode=False)
    with pytest.raises(Refused, match="--json"):
        run_command.run.main(["--json", "--", "true"], standalone_mode=False)
    with pytest.raises(click.UsageError):
        run_command.run.main([], standalone_mode=False)


def test_only_files_with_an_apps_decorators_are_taken_for_apps(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    for text, is_app in ((APP, True), ("app = object()", False), ("@x.local_entrypoint()\ndef f(): ...", True)):
        file.write_text(text)
        assert declares_app(file) is is_app
    file.write_text("def (")
    with pytest.raises(Refused, match="line 1"):
        declares_app(file)


def test_a_package_is_captured_whole(tmp_path: Path) -> None:
    package = tmp_path / "shop" / "api"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    assert split_root(str(package / "app.py")) == (str(tmp_path), "shop/api/app.py")
    assert split_root(str(tmp_path / "app.py")) == (str(tmp_path), "app.py")


def make_app(**options: Any) -> AppFile:
    declared = Declared("shop-price", "price", "/src/shop.py", "price", "call", None, options, None, ())
    return AppFile(Path("/src/shop.py"), Path("/src"), "/bin/sh", Description("shop", (declared,)))


def test_options_of_the_command_line_win_over_the_decorators() -> None:
    app = make_app(cpus=0.5, memory_bytes=1 << 28, env={"A": "1", "B": "2"}, concurrency=4, idle_timeout_s=9.0)
    override = make_override({"cpus": 2.0, "memory": "1GB", "env": ("B=3",), "max_replicas": 5, "idle_timeout": "2m"})
    spec = make_app_spec(app, app.description.functions[0], "ab", override)
    assert (spec.file, spec.attr, spec.app, spec.origin, spec.interface) == ("shop.py", "price", "shop", "/src/shop.py", "call")
    assert (spec.resources.cpus, spec.resources.memory_bytes) == (2.0, 10**9)
    assert spec.env == {"A": "1", "B": "3"}
    assert (spec.concurrency, spec.replicas_max, spec.idle_timeout_s) == (4, 5, 120.0)


def test_what_no_spec_has_is_refused_by_name() -> None:
    app = make_app(warp=9)
    with pytest.raises(Refused, match="'warp'"):
        make_app_spec(app, app.description.functions[0], "ab", {})


def test_a_function_from_another_folder_is_refused() -> None:
    app = make_app()
    with pytest.raises(Refused, match="outside of /elsewhere"):
        make_app_spec(AppFile(app.file, Path("/elsewhere"), app.python, app.description), app.description.functions[0], "ab", {})


def view(name: str, app: str = "", origin: str = "", expires_at: str | None = None) -> FunctionView:
    return FunctionView(
        name, "default", "ann", 1, 1, 1, "SLEEPING", None, "", "", 0, 0, 0, True, "", False, app, origin, "call", expires_at
    )


def test_what_another_file_deployed_is_not_overwritten_unasked() -> None:
    app = make_app()
    ours, foreign = view("shop-price", "shop", "/src/shop.py"), view("shop-old", "shop", "/other/shop.py")
    by_itself, other, dev = view("shop-price"), view("x", "y", "/y.py"), view("shop-price-dev", "shop", "/o", "2030")
    assert find_taken(app, [ours, other, dev]) == []
    assert find_taken(app, [ours, foreign, other]) == [foreign]
    assert find_taken(app, [by_itself]) == [by_itself]


def test_what_the_file_no_longer_declares_has_vanished() -> None:
    views = [view("shop-price", "shop"), view("shop-gone", "shop"), view("shop-x-dev", "shop", "", "2030"), view("other")]
    assert find_vanished(make_app(), views) == ["shop-gone"]
    assert choose_function(make_app(), "price").description.functions
    assert not choose_function(make_app(), "nothing").description.functions


def test_functions_of_an_app_stand_together() -> None:
    views = [view("a"), view("b", "y"), view("c", "x"), view("d", "y")]
    assert [each.name for each in group_by_app(views)] == ["c", "b", "d", "a"]


def test_what_a_file_does_wrong_is_said_in_one_place(tmp_path: Path) -> None:
    file = tmp_path / "wrong_app_of_a_test.py"
    for text, said in (
        ("import steelyard as sy\nx = 1", "declares no app"),
        ("import no_such_package_at_all", "line 1, imports 'no_such_package_at_all'"),
        ("import steelyard as sy\napp = sy.App('A b')", "line 2: 'A b'"),
        ("def (", "SyntaxError"),
    ):
        file.write_text(text)
        with pytest.raises(Refused) as caught:
            load_app(file, __import__("sys").executable)
        assert said in caught.value.public


def test_an_interpreter_is_a_path_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "python3.99"
    place.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_python("python3.99") == str(place)
    monkeypatch.chdir(tmp_path)
    assert check_python("./python3.99") == str(place)
    for wrong in ("3.99", str(tmp_path), "none/python"):
        with pytest.raises(Refused, match=r"is no program\. Nothing was deployed\. .* take a path or a command"):
            check_python(wrong)
