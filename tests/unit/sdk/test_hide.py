"""Does an error of a replica tell a value of a secret?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steelyard.sdk.frames import RAISED
from steelyard.sdk.hide import hide
from steelyard.sdk.payload import dumps_error, loads_error


class LoginFailed(Exception):
    def __init__(self, text: str, password: str) -> None:
        super().__init__(text)
        self.password = password

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return LoginFailed, (self.args[0], self.password)


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "KEY").write_text("private-key-text\n")
    for name, value in {
        "STEELYARD_SECRET_KEYS": "db.PASSWORD db.PIN tls.KEY tls.GONE", "STEELYARD_SECRETS": str(tmp_path),
        "PASSWORD": "hunter22", "PIN": "1234",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_variables_and_files_are_hidden_short_ones_are_left() -> None:
    assert hide("hunter22 1234 private-key-text") == "[secret db.PASSWORD] 1234 [secret tls.KEY]"


def test_without_secrets_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEELYARD_SECRET_KEYS")
    assert hide("hunter22") == "hunter22"


def raised(err: Exception) -> tuple[str, Exception]:
    try:
        raise err
    except Exception as caught:
        told, pickled = dumps_error(caught, RAISED)
    assert b"hunter22" not in bytes(told) + bytes(pickled)
    return json.loads(bytes(told))["traceback"], loads_error(json.loads(bytes(told)), pickled)


def test_an_exception_comes_as_itself_with_its_text_cleaned() -> None:
    shown, err = raised(ValueError("no login with hunter22", 7))
    assert isinstance(err, ValueError) and err.args == ("no login with [secret db.PASSWORD]", 7)
    assert "[secret db.PASSWORD]" in shown


def test_one_that_holds_a_value_elsewhere_comes_as_what_was_printed_of_it() -> None:
    _, err = raised(LoginFailed("no login", "hunter22"))
    assert type(err).__name__ == "RemoteError" and "no login" in str(err)
