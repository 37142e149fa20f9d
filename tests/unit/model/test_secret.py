"""Names, keys and sizes of secrets; how work asks for them, and what it is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.secret import SECRET_MAX, SecretUse, check_secret, make_variables, merge_uses, parse_use


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("Data Base", {"A": "x"}, "can't be a secret's name"),
        ("db", {}, "has no keys"),
        ("db", {"1A": "x"}, "can't be a key"),
        ("db", {"STEELYARD_TOKEN": "x"}, "Steelyard's own"),
        ("db", {"A": "hunter\0"}, "NUL"),
        ("db", {"A": "x" * SECRET_MAX}, "larger than"),
        ("db", {f"A{at}": "" for at in range(101)}, "more than 100"),
    ],
)
def test_what_cannot_be_a_secret_is_said_without_its_values(name: str, values: dict[str, str], said: str) -> None:
    wrong = check_secret(name, values)
    assert wrong is not None and said in wrong and "hunter" not in wrong


@given(st.text(max_size=20))
def test_a_use_is_a_name_or_a_name_with_how(text: str) -> None:
    use = parse_use(text)
    if use is not None:
        assert text in (use.name, f"{use.name}:env" if not use.as_files else f"{use.name}:files")


def test_uses_are_read_and_merged_by_name() -> None:
    assert parse_use("db") == SecretUse("db") and parse_use("tls:files") == SecretUse("tls", as_files=True)
    assert parse_use("db:folder") is parse_use("") is parse_use("a b") is None
    assert merge_uses([SecretUse("a"), SecretUse("b")], [SecretUse("a", as_files=True)]) == (
        SecretUse("a", as_files=True),
        SecretUse("b"),
    )


def test_variables_name_what_was_given_and_files_have_a_folder() -> None:
    values = {"db": {"PASSWORD": "x", "USER": "y"}, "tls": {"CERT": "z"}}
    assert make_variables((), {}, "/f") == {}
    assert make_variables((SecretUse("db"), SecretUse("tls", as_files=True)), values, "/f") == {
        "PASSWORD": "x",
        "USER": "y",
        "STEELYARD_SECRET_KEYS": "db.PASSWORD db.USER tls.CERT",
        "STEELYARD_SECRETS": "/f",
    }
