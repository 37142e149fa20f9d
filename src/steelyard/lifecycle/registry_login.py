"""With which login is a registry asked? Pure: the user's own files, or the values of a secret, in; what skopeo is told, out.

Files as `docker login` and `podman login` write them (containers-auth.json(5)). Programs that they name for keeping logins
are not run: whoever fetches has no rights of the user's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence

import msgspec

from steelyard.errors import Refused

#: a file with more is no login
FILE_MAX = 1 << 20
#: Docker Hub's name in files that docker wrote
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


class Login(msgspec.Struct, frozen=True):
    user: str = ""
    password: str = ""
    #: a token in the password's place, of registries that give one
    identity_token: str = ""
    #: a program that the file names instead, which we don't ask; nothing else is known then
    helper: str = ""


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct):
    auths: dict[str, _Entry] = {}
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict[str, str], name="credHelpers")
    creds_store: str = msgspec.field(default="", name="credsStore")


def user_files(uid: int, home: str) -> tuple[str, ...]:
    """Where a user's logins are, the first that has one for a registry counts."""
    return (
        f"/run/user/{uid}/containers/auth.json",
        f"/run/containers/{uid}/auth.json",
        f"{home}/.config/containers/auth.json",
        f"{home}/.docker/config.json",
    )


def choose_login(files: Sequence[tuple[str, bytes]], name: str) -> Login | None:
    """`files`: paths and contents; `name`: `host/path` of an image. None: no file has a login for that. Raises Refused for a file
    that can't be read."""
    helper: Login | None = None
    for path, content in files:
        try:
            file = msgspec.json.decode(content, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError) as err:
            raise Refused(
                f"{path} is not understood: {err}. Nothing was fetched; mend it, or log in anew.", code="bad-login"
            ) from None
        entries = {_normal(key): entry for key, entry in file.auths.items()}
        helpers = {_normal(key): program for key, program in file.cred_helpers.items()}
        for scope in _scopes(name):
            if (entry := entries.get(scope)) is not None and (login := _read(entry, path)) is not None:
                return login
            if program := helpers.get(scope, file.creds_store if scope in entries else ""):
                helper = helper or Login(helper=f"docker-credential-{program}")
    return helper


def login_of_secret(secret: str, values: Mapping[str, str]) -> Login:
    """Raises Refused when it has not the two keys that make one."""
    if not {"USERNAME", "PASSWORD"} <= values.keys():
        raise Refused(
            f"The secret {secret} is no login: it needs the keys USERNAME and PASSWORD. Nothing was started.", code="bad-login"
        )
    return Login(values["USERNAME"], values["PASSWORD"])


def render_login(login: Login, name: str) -> bytes:
    """The file that skopeo reads, with one login in it."""
    entry = {"auth": base64.b64encode(f"{login.user}:{login.password}".encode()).decode()}
    if login.identity_token:
        entry["identitytoken"] = login.identity_token
    return msgspec.json.encode({"auths": {name.partition("/")[0]: entry}})


def _scopes(name: str) -> list[str]:
    """`r.io/a/b` -> itself, `r.io/a`, `r.io`."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _normal(key: str) -> str:
    key = key.removeprefix("https://").removeprefix("http://")
    host, _, path = key.partition("/")
    if path.rstrip("/") in ("v1", "v2"):
        path = ""
    host = _HUB[0] if host in _HUB else host
    return f"{host}/{path}".rstrip("/")


def _read(entry: _Entry, path: str) -> Login | None:
    if not entry.auth:
        known = entry.username or entry.identitytoken
        return Login(entry.username, entry.password, entry.identitytoken) if known else None
    try:
        user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = user = password = ""
    if not colon:
        raise Refused(f"{path} has a login that is not understood. Nothing was fetched; log in anew.", code="bad-login")
    return Login(user, password.rstrip("\0"), entry.identitytoken)
