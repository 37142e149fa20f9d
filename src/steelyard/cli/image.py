"""`steelyard image`: Python environments, built once and kept, for functions and jobs; and container images."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

from steelyard.cli.output import Progress, person_looks, print_json, print_table, say, show_time
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.errors import NotFound, Refused, SteelyardError
from steelyard.wire.http import ApiClient
from steelyard.wire.images import ContainerImageView, ImageView

_DIGEST = re.compile("([0-9a-f]{12})[0-9a-f]{52}")
IMAGE_HELP = """Build, fetch, list and remove images: Python environments, and images of containers.

An environment is a Python and steps upon it, each kept by what is in it: one more package costs that package. Functions name
theirs in the file (`image=`), and `deploy`, `run` and `serve` build what is missing. Builds are jobs of yours: `steelyard ps`
lists them. Container images are fetched by what runs in them, or ahead of need by `pull`.

\b
Examples:
  steelyard image build -r requirements.txt --python 3.11 --name train
  steelyard run --image train -- python train.py
  steelyard image pull docker://python:3.12-slim
  steelyard image ls
"""

_SECRET_HELP = "Fetch a container image with the USERNAME and PASSWORD of that secret."

BUILD_HELP = """Build an image, or find it built.

\b
FILE.py[:NAME] is an image that the file declares (NAME = sy.Image.python("3.11")...), -r a requirements file, --uv-lock a uv.lock
with the pyproject.toml beside it, PACKAGE... what pip installs.

The id is printed. The name moves to it from the image that had it.

\b
Examples:
  steelyard image build app.py:image
  steelyard image build -r requirements.txt --python 3.11 --name train
  steelyard image build --uv-lock uv.lock
  steelyard image build numpy 'scipy>=1.13' --name numbers
"""


@click.group(help=IMAGE_HELP, short_help="Build, fetch, list and remove images.")
def image() -> None: ...


@image.command("build", help=BUILD_HELP, short_help="Build an image, or find it built.")
@click.argument("targets", nargs=-1, metavar="[FILE.py[:NAME] | PACKAGE...]")
@click.option("--requirements", "-r", type=click.Path(path_type=Path), help="A requirements file.")
@click.option("--uv-lock", type=click.Path(path_type=Path), help="A uv.lock, or the folder that it is in.")
@click.option("--python", help="Version of its Python [default: that of this command].")
@click.option("--name", default="", help="A name for it: small letters, digits, dashes.")
@click.option("--env", "env", multiple=True, metavar="K=V", help="A variable of what runs in it. May be repeated.")
@click.option("--secret", default="", metavar="NAME", help=_SECRET_HELP)
@home_option
@json_option
def build(
    targets: tuple[str, ...],
    requirements: Path | None,
    uv_lock: Path | None,
    python: str | None,
    name: str,
    env: tuple[str, ...],
    secret: str,
    home: Path | None,
    as_json: bool,
) -> None:
    from steelyard.cli.app_deploy import find_login
    from steelyard.cli.container_image import name_login
    from steelyard.cli.image_ask import ensure_container, ensure_image, is_container, make_image_spec
    from steelyard.cli.patience import make_patience
    from steelyard.clock import SystemClock

    folder = Path(os.getcwd())
    if len(targets) == 1 and (targets[0].endswith(".py") or ".py:" in targets[0]):
        if requirements or uv_lock or python or env:
            raise Refused("What FILE.py declares is all of an image: write the rest of it there.", code="unfit-option")
        asked, folder = _read_file(targets[0], home)
    else:
        asked = _compose(targets, requirements, uv_lock, python, env)
    progress, patience = Progress(), make_patience(home, SystemClock())
    with open_client(home) as client:
        if is_container(asked):
            if name:
                raise Refused("A container image has no name of yours: what is printed names it.", code="unfit-option")
            reference = ensure_container(client, asked, folder, progress, patience, name_login(secret) or find_login(asked))
            print_json({"reference": reference}) if as_json else click.echo(reference)
            return
        if secret:
            raise Refused("A login at a registry is for container images: leave out --secret.", code="unfit-option")
        view = ensure_image(client, make_image_spec(client, asked, folder, progress), progress, patience, name)
    if as_json:
        print_json(view)
        return
    click.echo(view.id)
    say(f"Python {view.python}, {render_bytes(view.size_bytes)}. `--image {view.name or view.id[:12]}` runs things in it.")


def _read_file(target: str, home: Path | None) -> tuple[dict[str, object], Path]:
    """The image that is meant, as its file describes it, and the file's folder."""
    from steelyard.cli.app_file import load_images

    file_name, _, name = target.rpartition(":") if ".py:" in target else (target, "", "")
    file = Path(os.path.abspath(file_name))
    if not file.is_file():
        raise Refused(f"There is no file {file_name}. Nothing was built.", code="no-such-file")
    images = load_images(file)
    if name and name not in images:
        raise Refused(f"{file_name} has no image {name!r}. There is: {', '.join(images) or 'none'}.", code="bad-target")
    if not name and len(images) != 1:
        there = f"several images: name one of {', '.join(images)}" if images else "no image: write image = sy.Image.python(...)"
        raise Refused(f"{file_name} has {there}. Nothing was built.", code="bad-target")
    return images[name] if name else next(iter(images.values())), file.parent


def _compose(
    packages: tuple[str, ...], requirements: Path | None, uv_lock: Path | None, python: str | None, env: tuple[str, ...]
) -> dict[str, object]:
    from steelyard.cli.job_options import parse_env
    from steelyard.sdk.errors import DeclarationError
    from steelyard.sdk.image import Image

    if not packages and requirements is None and uv_lock is None:
        raise Refused(
            "Say what is in the image: FILE.py, packages, -r FILE or --uv-lock FILE. Nothing was built.", code="no-steps"
        )
    try:
        made = Image.python(python)
        if uv_lock is not None:
            made = made.uv_sync(uv_lock)
        if packages or requirements is not None:
            made = made.pip_install(*packages, requirements=requirements)
        if env:
            made = made.env(parse_env(env))
    except DeclarationError as err:
        raise Refused(f"{err} Nothing was built.", code="bad-image") from err
    return made.as_json()


@image.command(
    "pull",
    help="Fetch a container image, so that what runs in it need not wait.\n\nIt is fetched and unpacked once per machine, shared "
    "by all that name it, and kept until nothing uses it and others need its room. Its digest is printed.\n\n\b\nExamples:\n"
    "  steelyard image pull ghcr.io/org/app:1.2\n  steelyard image pull docker://nginx:1.27\n"
    "  steelyard image pull oci:./layout\n  steelyard image pull ghcr.io/org/private:1 --secret ghcr\n",
    short_help="Fetch a container image ahead of need.",
)
@click.argument("reference", metavar="IMAGE")
@click.option("--secret", default="", metavar="NAME", help=_SECRET_HELP)
@home_option
@json_option
def pull(reference: str, secret: str, home: Path | None, as_json: bool) -> None:
    from steelyard.cli.container_image import name_login, pull_image
    from steelyard.cli.patience import make_patience
    from steelyard.clock import SystemClock

    with open_client(home) as client:
        view = pull_image(client, reference, Progress(), make_patience(home, SystemClock()), name_login(secret))
    if as_json:
        print_json(view)
        return
    click.echo(f"sha256:{view.digest}")
    say(f"{view.image}, {render_bytes(view.size_bytes)}.")


@image.command(
    "ls",
    help="List images: what they take, when they were used, and what needs them.\n\nSteps that several environments share are "
    "counted for each; on the disk they are there once.\n\n\b\nExamples:\n  steelyard image ls\n  steelyard image ls --json\n",
    short_help="List images.",
)
@home_option
@json_option
def list_images(home: Path | None, as_json: bool) -> None:
    from steelyard.cli.container_image import containers_if_any

    with open_client(home) as client:
        views = client.fetch(list[ImageView], "GET", "/v1/images")
        containers, untold = containers_if_any(client)
    if untold:
        say(f"steelyard: {untold}")
    if as_json:
        print_json([*views, *containers])
        return
    rows = [
        (
            view.name,
            view.id[:12],
            view.state,
            f"python {view.python}" if view.python else "",
            render_bytes(view.size_bytes) if view.size_bytes else "",
            show_time(view.built_at),
            show_time(view.used_at),
            _few(view.used_by),
        )
        for view in views
    ]
    rows += [
        (
            _few(tuple(map(_shorten, view.references)) if person_looks() else view.references),
            view.id[:12],
            "READY",
            "container",
            render_bytes(view.size_bytes),
            "",
            show_time(view.used_at),
            _few(view.used_by),
        )
        for view in containers
    ]
    columns = ("name", "id", "state", "kind", "size", "built", "last used", "used by")
    print_table(columns, rows, "No images. `steelyard image build` makes one, `pull` fetches one.", keep=("name", "id"))


@image.command(
    "inspect",
    help="Show an image: its steps, what is installed, and what needs it.\n\n\b\nExamples:\n  steelyard image inspect train\n",
    short_help="Show an image.",
)
@click.argument("name", metavar="NAME|IMAGE|ID")
@home_option
@json_option
def inspect(name: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        view = _find(client, name)
    if as_json:
        print_json(view)
    elif isinstance(view, ContainerImageView):
        from steelyard.cli.container_image import show_container

        show_container(view)
    else:
        _show(view)


def _find(client: ApiClient, name: str) -> ImageView | ContainerImageView:
    """Of what was built here, or of the machine's container images. Raises NotFound."""
    from steelyard.cli.container_image import find_container
    from steelyard.model.image import is_reference

    if is_reference(name):
        return find_container(client, name)
    try:
        return client.fetch(ImageView, "GET", f"/v1/images/{quote(name)}")
    except NotFound as err:
        try:
            return find_container(client, name)
        except SteelyardError:
            raise err from None


def _show(view: ImageView) -> None:
    facts = {
        "id": view.id,
        "name": view.name,
        "state": view.state,
        "why": view.detail,
        "python": view.python,
        "size": render_bytes(view.size_bytes) if view.size_bytes else "",
        "built": f"{show_time(view.built_at)} by {view.job}" if view.built_at else f"by {view.job}",
        "last used": show_time(view.used_at),
        "used by": ", ".join(view.used_by),
        "variables": " ".join(
            f"{key}={value}" for step in (view.spec.steps if view.spec else ()) for key, value in getattr(step, "env", {}).items()
        ),
    }
    for key, value in facts.items():
        if value:
            click.echo(f"{key + ':':<11} {value}")
    for number, layer in enumerate(view.layers, 1):
        click.echo(f"step {number:<6} {layer.id[:12]}  {layer.text}")
    if view.packages is not None:
        click.echo(f"packages:   {', '.join(view.packages) or 'none'}")


@image.command(
    "rm",
    help="Remove images. One that a function, a schedule or a living job needs is kept.\n\nSteps that other images begin with "
    "stay, too.\n\n\b\nExamples:\n  steelyard image rm train\n",
    short_help="Remove images.",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME|IMAGE|ID...")
@home_option
def remove(names: tuple[str, ...], home: Path | None) -> None:
    failed = False
    with open_client(home) as client:
        for name in names:
            try:
                found = _find(client, name)
                kind, key = ("images", new_key()) if isinstance(found, ImageView) else ("container-images", None)
                client.call("DELETE", f"/v1/{kind}/{found.id}", key=key)
            except Refused as err:
                say(f"steelyard: {err.public}")
                failed = True
            else:
                click.echo(f"{name} removed")
    if failed:
        sys.exit(2)


def _shorten(reference: str) -> str:
    """For a table: as much of a digest as `inspect` and `rm` need. All of it is what `--image` needs."""
    return _DIGEST.sub(lambda match: f"{match[1]}...", reference)


def _few(words: tuple[str, ...]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
