"""How do values of secrets lie at rest? Sealed with AES-256-GCM under a key of the home, which is a file of its own: a copy of
the store alone tells nothing.

The name of the secret is authenticated with its values, so that rows can't be exchanged. The key file is made with the first
secret and read anew each time; nothing is ever guessed about one that is gone or that is not the one a secret was sealed with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.errors import EdgeFailed, StoreDamaged
from steelyard.model.secret import Sealed, Secret

KEY_BYTES, NONCE_BYTES = 32, 12
#: codes: the key file is gone, is not readable or no key, or is another one than a secret was sealed with
KEY_LOST, KEY_DAMAGED, KEY_WRONG = "secret-key-lost", "secret-key-damaged", "secret-key-wrong"

_encode = msgspec.json.Encoder().encode
_decode_values = msgspec.json.Decoder(dict[str, str]).decode


class SecretBox:
    """`path`: the key file, mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def seal(self, name: str, values: Mapping[str, str], stored: Iterable[Secret]) -> Sealed:
        """`stored`: all secrets that there are. While there are none the key is made. Raises StoreDamaged or EdgeFailed: with a
        key that does not open those, some would be sealed with one and some with another."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 12 MB, for servers that have secrets

        known = {secret.sealed.key_id: secret for secret in stored}
        key = self._obtain_key(bool(known))
        for key_id, secret in known.items():
            if key_id != _name_key(key):
                raise self._wrong(secret.name)
        nonce = os.urandom(NONCE_BYTES)
        return Sealed(_name_key(key), nonce, AESGCM(key).encrypt(nonce, _encode(dict(values)), name.encode()))

    def open(self, name: str, sealed: Sealed) -> dict[str, str]:
        """Raises StoreDamaged, with what is safe and what to do."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = self._load_key()
        if sealed.key_id != _name_key(key):
            raise self._wrong(name)
        try:
            return _decode_values(AESGCM(key).decrypt(sealed.nonce, sealed.text, name.encode()))
        except (InvalidTag, msgspec.MsgspecError, ValueError) as err:
            raise StoreDamaged(
                f"The stored values of the secret {name} are damaged. Other secrets are not touched. Create it anew: "
                f"`steelyard secrets create {name} --replace`.",
                code="secret-damaged",
            ) from err

    def digest(self, data: bytes, any_stored: bool) -> bytes:
        """Names a request with values in it: nobody without the key can try values against it. Errors as of `seal`."""
        return hashlib.blake2b(data, key=self._obtain_key(any_stored), digest_size=32).digest()

    def _obtain_key(self, any_stored: bool) -> bytes:
        """Never a new one where there are secrets that it could not open."""
        return self._load_key() if any_stored or self._path.exists() else self._make_key()

    def _make_key(self) -> bytes:
        key = os.urandom(KEY_BYTES)
        try:
            write_file(self._path, key.hex().encode() + b"\n")
        except OSError as err:
            text = f"The key file {self._path} could not be written ({err.strerror}). No secret was stored."
            raise EdgeFailed(text, code="secret-key-failed") from err
        return key

    def _load_key(self) -> bytes:
        try:
            key = bytes.fromhex(self._path.read_bytes().decode("ascii").strip())
        except FileNotFoundError as err:
            raise StoreDamaged(
                f"The key file {self._path} is gone, so no secret can be read or made. They lie in the store as they were, and "
                "what runs goes on. Bring the file back from a backup; or delete all secrets (`steelyard secrets delete NAME "
                "--force`) and create them anew.",
                code=KEY_LOST,
            ) from err
        except OSError as err:
            text = f"The key file {self._path} can't be read ({err.strerror}). Nothing was changed, and what runs goes on."
            raise EdgeFailed(text, code=KEY_DAMAGED) from err
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise StoreDamaged(
                f"The key file {self._path} holds no key (64 hex digits). Nothing was changed, and what runs goes on. Bring it "
                "back from a backup.",
                code=KEY_DAMAGED,
            )
        return key

    def _wrong(self, name: str) -> StoreDamaged:
        return StoreDamaged(
            f"The key file {self._path} is another one than the secret {name} was sealed with, so that can't be read. Nothing "
            f"was changed, and what runs goes on. Bring the right file back from a backup; or delete {name} "
            f"(`steelyard secrets delete {name} --force`) and create it anew.",
            code=KEY_WRONG,
        )


def _name_key(key: bytes) -> str:
    return hashlib.blake2b(key, person=b"steelyard key id", digest_size=8).hexdigest()
