"""Do values come back under the key they were sealed with, and under no other?"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.errors import SteelyardError, StoreDamaged
from steelyard.model.secret import Sealed
from steelyard.store.secret_box import KEY_DAMAGED, KEY_LOST, KEY_WRONG, SecretBox
from stores import make_secret

VALUES = {"PASSWORD": "correct horse", "EMPTY": "", "ÜMLAUT": "ü\n"}


@pytest.fixture
def box(tmp_path: Path) -> SecretBox:
    return SecretBox(tmp_path / "secrets.key")


def test_values_come_back_and_the_key_is_a_private_file(box: SecretBox, tmp_path: Path) -> None:
    sealed = box.seal("db", VALUES, [])
    assert box.open("db", sealed) == VALUES
    assert stat.S_IMODE((tmp_path / "secrets.key").stat().st_mode) == 0o600
    assert SecretBox(tmp_path / "secrets.key").open("db", sealed) == VALUES
    assert b"correct" not in sealed.text
    assert box.seal("db", VALUES, []).text != sealed.text


def test_a_row_that_was_exchanged_or_changed_is_damaged(box: SecretBox) -> None:
    sealed = box.seal("db", VALUES, [])
    with pytest.raises(StoreDamaged, match="values of the secret other are damaged"):
        box.open("other", sealed)
    for broken in (replace(sealed, text=sealed.text[:-1] + b"\0"), replace(sealed, nonce=bytes(12)), replace(sealed, text=b"")):
        with pytest.raises(StoreDamaged, match="damaged"):
            box.open("db", broken)


def test_a_lost_key_is_never_replaced_while_there_are_secrets(box: SecretBox, tmp_path: Path) -> None:
    stored = [replace(make_secret("db"), sealed=box.seal("db", VALUES, []))]
    kept = (tmp_path / "secrets.key").read_bytes()
    (tmp_path / "secrets.key").unlink()
    for use in (
        lambda: box.open("db", stored[0].sealed),
        lambda: box.seal("x", VALUES, stored),
        lambda: box.digest(b"x", any_stored=True),
    ):
        with pytest.raises(StoreDamaged, match=r"gone.*as they were.*Bring the file back") as caught:
            use()
        assert caught.value.code == KEY_LOST
    assert not (tmp_path / "secrets.key").exists()
    (tmp_path / "secrets.key").write_bytes(kept)
    assert box.open("db", stored[0].sealed) == VALUES


def test_another_key_opens_nothing_and_seals_nothing_beside(box: SecretBox, tmp_path: Path) -> None:
    stored = [replace(make_secret("db"), sealed=box.seal("db", VALUES, []))]
    (tmp_path / "secrets.key").write_text("ab" * 32)
    for use in (lambda: box.open("db", stored[0].sealed), lambda: box.seal("x", VALUES, stored)):
        with pytest.raises(StoreDamaged, match="another one than the secret db") as caught:
            use()
        assert caught.value.code == KEY_WRONG


@pytest.mark.parametrize("content", [b"", b"ab", b"\xff\xfe", b"zz" * 32, b"ab" * 33])
def test_what_is_no_key_is_said_to_be_none(box: SecretBox, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secrets.key").write_bytes(content)
    for use in (
        lambda: box.seal("db", VALUES, []),
        lambda: box.digest(b"x", any_stored=True),
        lambda: box.open("db", Sealed("k", b"", b"")),
    ):
        with pytest.raises(SteelyardError, match="holds no key") as caught:
            use()
        assert caught.value.code == KEY_DAMAGED


def test_a_request_is_named_by_the_key_and_its_content(box: SecretBox, tmp_path: Path) -> None:
    assert box.digest(b"a", False) == box.digest(b"a", True) != box.digest(b"b", True)
    assert box.digest(b"a", True) != SecretBox(tmp_path / "other.key").digest(b"a", False)


@given(values=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=4))
def test_any_text_comes_back(values: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    box = SecretBox(tmp_path_factory.getbasetemp() / "any.key")
    assert box.open("db", box.seal("db", values, [])) == values
