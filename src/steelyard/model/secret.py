"""What is a secret, and how does a workload ask for it? A name with keys and values, the values only ever sealed at rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from steelyard.model.ids import NAME, ProjectName
from steelyard.model.owner import Owner

#: a key becomes a variable's and a file's name
KEY = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
#: bytes of all values and keys of one secret: they travel among the variables of a workload, and those have one packet
SECRET_MAX = 64 << 10
KEYS_MAX = 100
#: secrets that one workload may name
USES_MAX = 20
#: variables that a workload is told by: folder of its files, and which keys it was given, as `name.KEY` divided by blanks
FOLDER_VARIABLE = "STEELYARD_SECRETS"
KEYS_VARIABLE = "STEELYARD_SECRET_KEYS"
#: earlier values of a secret that are still hidden in logs: what runs when it is replaced has them
PAST_MAX = 5


class SecretUse(msgspec.Struct, frozen=True):
    """What a workload asks for: all keys of a secret."""

    name: str
    #: as files of its own below $STEELYARD_SECRETS/NAME, rather than as variables
    as_files: bool = False
    #: it is the login at the registry of the workload's image, and not told to the workload
    for_registry: bool = False


class Sealed(msgspec.Struct, frozen=True):
    """Values as they lie at rest. Says nothing without the key file."""

    #: names the key that it was sealed with, without telling it
    key_id: str
    nonce: bytes
    text: bytes


class Secret(msgspec.Struct, frozen=True):
    name: str
    project: ProjectName
    owner: Owner
    #: goes up when it is replaced
    generation: int
    #: names of its values, sorted
    keys: tuple[str, ...]
    #: of names and values together
    size_bytes: int
    created_at: int
    changed_at: int
    sealed: Sealed
    #: what it was before it was replaced, the newest first; nothing gets these any more
    past: tuple[Sealed, ...] = ()


def check_secret(name: str, values: Mapping[str, str]) -> str | None:
    """What is wrong with it, without any of its values; None when nothing is."""
    if not NAME.fullmatch(name):
        return f"{name[:80]!r} can't be a secret's name: up to 63 of a-z, 0-9 and -, with no - at the ends"
    if not values:
        return f"the secret {name} has no keys: give at least one, such as PASSWORD"
    if len(values) > KEYS_MAX:
        return f"the secret {name} has more than {KEYS_MAX} keys: make several secrets of it"
    for key, value in values.items():
        if not KEY.fullmatch(key):
            return f"{key[:80]!r} can't be a key: it becomes a variable's name, so letters, digits and _, and no digit first"
        if key.startswith("STEELYARD_"):
            return f"{key} can't be a key: variables that begin with STEELYARD_ are Steelyard's own"
        if "\0" in value:
            return f"the value of {key} holds a NUL character, which no variable can: encode it, for example with base64"
    if measure(values) > SECRET_MAX:
        return f"the secret {name} is larger than {SECRET_MAX >> 10} KiB: what is so large goes into a file"
    return None


def measure(values: Mapping[str, str]) -> int:
    """Bytes of names and values together."""
    return sum(len(key) + len(value.encode(errors="surrogatepass")) for key, value in values.items())


def parse_use(text: str) -> SecretUse | None:
    """`db`, `tls:files` or `ghcr:registry`; None when it is none of them."""
    name, colon, how = text.partition(":")
    if not NAME.fullmatch(name) or (colon and how not in ("files", "env", "registry")):
        return None
    return SecretUse(name, how == "files", how == "registry")


def merge_uses(first: Sequence[SecretUse], then: Sequence[SecretUse]) -> tuple[SecretUse, ...]:
    """Each name once; what is said later wins."""
    return tuple({use.name: use for use in (*first, *then)}.values())


def make_variables(uses: Sequence[SecretUse], values: Mapping[str, Mapping[str, str]], folder: str) -> dict[str, str]:
    """What a workload is told by its environment; `folder` is where its files are. Of two secrets with the same key the one
    that it names later wins."""
    uses = [use for use in uses if not use.for_registry]
    if not uses:
        return {}
    env = {key: value for use in uses if not use.as_files for key, value in values[use.name].items()}
    keys = " ".join(f"{use.name}.{key}" for use in uses for key in sorted(values[use.name]))
    return env | {KEYS_VARIABLE: keys} | ({FOLDER_VARIABLE: folder} if any(use.as_files for use in uses) else {})
