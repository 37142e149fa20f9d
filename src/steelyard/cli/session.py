"""Which Steelyard is meant, and how is it called? `--home`, its settings and its admin token, joined to an API client.

Never starts anything and never writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from steelyard.errors import Unauthorized, Unreachable

if TYPE_CHECKING:
    from steelyard.config import Paths, Settings
    from steelyard.wire.http import ApiClient

F = TypeVar("F", bound=Callable[..., Any])


def home_option(command: F) -> F:
    """`--home DIR`, on every command that means one Steelyard."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        envvar="STEELYARD_HOME",
        help="State folder of the Steelyard that is meant [env: STEELYARD_HOME; default: /var/lib/steelyard for root, "
        "else ~/.local/share/steelyard].",
    )(command)


def json_option(command: F) -> F:
    """`--json`, on every listing."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON; the shape is stable.")(command)


def find_paths(home: Path | None) -> Paths:
    from steelyard.config import default_home, make_paths

    environ = dict(os.environ)
    return make_paths(home or default_home(environ, os.getuid()), environ, os.getuid())


def find_settings(home: Path | None) -> tuple[Paths, Settings]:
    """Raises Unreachable where no `up` has ever been."""
    from steelyard.config import load_settings

    paths = find_paths(home)
    try:
        settings = load_settings(paths)
    except PermissionError as err:
        raise Unauthorized(f"{paths.home} can't be read by this user. Ask as the user who started Steelyard.") from err
    if settings is None:
        raise Unreachable(f"There is no Steelyard at {paths.home}. `steelyard up` makes and starts one; `--home` names another.")
    return paths, settings


def read_token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except PermissionError as err:
        raise Unauthorized(f"{file} can't be read by this user. Ask as the user who started Steelyard.") from err
    except FileNotFoundError:
        token = ""
    except UnicodeDecodeError:
        token = ""
    if not token:
        raise Unauthorized(f"{file} is missing or empty. Restore it, or run `steelyard down`, delete it, and `steelyard up`.")
    return token


def open_client(home: Path | None) -> ApiClient:
    """A client with the admin's token. Nothing is asked yet."""
    from steelyard.wire.http import ApiClient

    paths, settings = find_settings(home)
    ca_file = Path(settings.tls_cert) if settings.tls_cert else None
    return ApiClient(settings.api_url, read_token(paths.admin_token), ca_file=ca_file)


def new_key() -> str:
    """A fresh Idempotency-Key."""
    return os.urandom(16).hex()


def quote(name: str) -> str:
    """What a person typed, as one segment of a path."""
    from urllib.parse import quote as percent

    return percent(name, safe="")
