"""What people type as target, name, variable and signal."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.cli.deploy import check_name, read_target
from steelyard.cli.job_options import parse_env
from steelyard.cli.quantities import parse_signal
from steelyard.errors import Refused


@pytest.fixture
def app(tmp_path: Path) -> Path:
    file = tmp_path / "My_App.py"
    file.write_text("app = None\n")
    return file


def test_a_file_and_an_app(app: Path) -> None:
    target = read_target((f"{app}:api.app",), None)
    assert (target.name, target.file, target.attr, target.argv) == ("my-app", app, "api.app", ())


def test_a_program_file_needs_its_port(app: Path) -> None:
    assert read_target((str(app),), 8000).attr is None
    with pytest.raises(Refused, match="--port"):
        read_target((str(app),), None)


def test_a_command_is_taken_as_it_is() -> None:
    assert read_target(("python3", "-m", "http.server"), None).argv == ("python3", "-m", "http.server")
    assert read_target(("/usr/bin/server",), None).argv == ("/usr/bin/server",)


@pytest.mark.parametrize("attr", ["", "1app", "a b", "app()", "a.", "../x"])
def test_an_app_that_can_have_no_such_name_is_refused(app: Path, attr: str) -> None:
    with pytest.raises(Refused):
        read_target((f"{app}:{attr}",), None)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no file"):
        read_target((f"{tmp_path}/none.py:app",), None)


def test_a_file_that_is_not_python_is_refused_with_the_line(app: Path) -> None:
    app.write_text("x = 1\ndef f(:\n")
    with pytest.raises(Refused, match="line 2"):
        read_target((f"{app}:app",), None)
    app.write_bytes(b"\x00")
    with pytest.raises(Refused):
        read_target((f"{app}:app",), None)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "a" * 64, "../a", "a\n"])
def test_a_name_that_can_be_no_host_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "hello", "a-1", "1" * 63])
def test_a_name_that_can_be_a_host_is_taken(name: str) -> None:
    assert check_name(name) == name


def test_variables_are_set_or_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAD", "before")
    monkeypatch.delenv("NONE", raising=False)
    assert parse_env(("A=1", "B=x=y", "C=", "HAD", "NONE")) == {"A": "1", "B": "x=y", "C": "", "HAD": "before"}
    with pytest.raises(Refused):
        parse_env(("=1",))


def test_signals_by_name_and_number() -> None:
    assert [parse_signal(text) for text in ("TERM", "sigint", "9")] == [15, 2, 9]
    for text in ("", "NOPE", "0", "65", "-9"):
        with pytest.raises(Refused):
            parse_signal(text)
