"""Container images of the machine, for the commands of `steelyard image`: fetched ahead of need, listed, found by what was
typed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import click

from steelyard.cli.job_options import name_image
from steelyard.cli.output import Progress, show_time
from steelyard.cli.patience import Patience
from steelyard.cli.quantities import render_bytes
from steelyard.clock import Clock
from steelyard.errors import NotFound, Refused, SteelyardError, Unauthorized
from steelyard.lifecycle.image import PREFIX_MIN
from steelyard.model.image import ImageSource, is_reference
from steelyard.model.secret import SecretUse, parse_use
from steelyard.wire.http import ApiClient
from steelyard.wire.images import ContainerImageView, Pull, PullState, PullView

#: an agent that started anew has forgotten the pull; what came whole it has
_STARTS_MAX = 5


def pull_image(client: ApiClient, text: str, progress: Progress, patience: Patience, secret: str = "") -> PullView:
    """There when this returns. `secret`: the login at its registry. Raises Refused with what went wrong. Each answer is waited
    for by the agent for a moment."""
    if not is_reference(text):
        raise Refused(
            f"{text!r} does not say from where it comes; Docker Hub's is docker://{text}. Nothing was fetched.", code="bad-image"
        )
    wanted = Pull(name_image(text, os.getcwd()), secret)
    for _ in range(_STARTS_MAX):
        view = patience.call(partial(client.fetch, PullView, "POST", "/v1/pulls", body=wanted), "asking for the image")
        try:
            while view.state in (PullState.FETCHING, PullState.UNPACKING):
                progress.show(_tell(view))
                view = patience.call(partial(client.fetch, PullView, "GET", f"/v1/pulls/{view.id}"), "the image")
        except NotFound:
            continue
        progress.clear()
        if view.state is PullState.FAILED:
            raise Refused(view.detail, code=view.code)
        return view
    raise Refused("The machine's agent starts anew again and again; `steelyard status` tells why.", code="pull-lost")


def login_among(uses: Sequence[SecretUse]) -> str:
    """The secret that is the login at the registry; "" without one."""
    return next((use.name for use in uses if use.for_registry), "")


def fetch_ahead(client: ApiClient, image: str, login: str, clock: Clock, pool: str = "") -> None:
    """The image of work that is about to be submitted, by somebody who waits for it and is shown how far it is. Raises Refused
    when it can't be had; anything else the work tells itself. Does nothing for what needs no fetching, and for other machines."""
    if pool or not is_reference(image) or image.startswith(f"{ImageSource.BUILT.value}:"):
        return
    try:
        pull_image(client, image, Progress(), Patience(clock, lambda: False), login)
    except SteelyardError as err:
        if isinstance(err, Refused) and not isinstance(err, Unauthorized):  # jobs may submit, and not pull
            raise


def name_login(text: str) -> str:
    """The secret that `--secret` means: as other commands have it, `NAME:registry`, or NAME alone. Raises Refused."""
    use = parse_use(text) if text else None
    if text and (use is None or use.as_files):
        raise Refused(
            f"{text[:80]!r} names no login: write --secret NAME, of a secret with USERNAME and PASSWORD.", code="bad-secret"
        )
    return "" if use is None else use.name


def _tell(view: PullView) -> str:
    if view.state is PullState.UNPACKING:
        return f"{view.image}: unpacking"
    return f"{view.image}: fetching" + (f", {render_bytes(view.fetched_bytes)}" if view.fetched_bytes else "")


def list_containers(client: ApiClient) -> list[ContainerImageView]:
    return client.fetch(list[ContainerImageView], "GET", "/v1/container-images")


def find_container(client: ApiClient, text: str) -> ContainerImageView:
    """By a reference, its digest, or the beginning of one that only one has. Raises NotFound."""
    name = name_image(text, os.getcwd()) if is_reference(text) and not text.startswith("sha256:") else ""
    digest = text.removeprefix("sha256:")
    found = [
        view
        for view in list_containers(client)
        if name in view.references or (not name and len(digest) >= PREFIX_MIN and view.id.startswith(digest))
    ]
    if len(found) != 1:
        raise NotFound(f"There is no image {text} on this machine. `steelyard image ls` lists them, `pull` fetches one.")
    return found[0]


def show_container(view: ContainerImageView) -> None:
    facts = {
        "image": ", ".join(view.references),
        "digest": f"sha256:{view.id}",
        "size": f"{render_bytes(view.size_bytes)}, {view.files} files",
        "last used": show_time(view.used_at),
        "used by": ", ".join(view.used_by),
        "entry point": " ".join(view.entrypoint),
        "command": " ".join(view.command),
        "folder": view.cwd,
        "user": view.user,
        "ports": ", ".join(map(str, view.ports)),
    }
    for key, value in facts.items():
        if value:
            click.echo(f"{key + ':':<12} {value}")
    for name, value in sorted(view.env.items()):
        click.echo(f"{'variable:':<12} {name}={value}")


def containers_if_any(client: ApiClient) -> tuple[list[ContainerImageView], str]:
    """With why they can't be told: environments are the server's to list, whether the machine answers or not."""
    try:
        return list_containers(client), ""
    except SteelyardError as err:
        return [], f"Container images are not shown: {err.public}"
