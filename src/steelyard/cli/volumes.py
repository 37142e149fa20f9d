"""`steelyard volumes`: named folders that outlive the jobs and functions that mount them."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from steelyard.cli.job_text import render_span
from steelyard.cli.output import print_json, print_table, say
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import NotFound, Refused
from steelyard.wire.api import VolumeCreate, VolumeView
from steelyard.wire.http import ApiClient

VOLUMES_HELP = """Create, list and delete volumes: named folders that outlive the jobs and functions that mount them.

A volume is its owner's alone. Jobs and functions mount it with --volume NAME:/path, and what one writes the others see at once.
It lies on the machine, or with --path wherever you say, for example on a shared file system.

\b
Examples:
  steelyard volumes create data
  steelyard volumes create weights --path /nfs/models
  steelyard volumes list
  steelyard run --volume data:/data -- python prepare.py
  steelyard deploy --volume weights:/models:ro embed.py
"""


@click.group(help=VOLUMES_HELP, short_help="Create, list and delete volumes.")
def volumes() -> None: ...


CREATE_HELP = """Make a volume.

\b
Examples:
  steelyard volumes create data
  steelyard volumes create weights --path /nfs/models
"""


@volumes.command("create", help=CREATE_HELP, short_help="Make a volume.")
@click.argument("name")
@click.option("--path", type=click.Path(), help="A folder that is there already, and stays when the volume is deleted.")
@home_option
def create_volume(name: str, path: str | None, home: Path | None) -> None:
    with open_client(home) as client:
        body = VolumeCreate(name, None if path is None else os.path.abspath(path))
        view = client.fetch(VolumeView, "POST", "/v1/volumes", body=body, key=new_key())
    click.echo(f"{view.name}: {view.path}")


LIST_HELP = """List volumes, with what is in them and what their file systems have left.

Sizes are measured in the background when somebody asks, large ones not every time; "measured" says how old one is.

\b
Examples:
  steelyard volumes list
  steelyard volumes list --json | jq '.[].size_bytes'
"""


@volumes.command("list", help=LIST_HELP, short_help="List volumes with their sizes.")
@home_option
@json_option
def list_volumes(home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        views = _fetch(client)
    if as_json:
        print_json(views)
        return
    now_s = SystemClock().now_us() / 1e6
    print_table(
        ("volume", "size", "measured", "free", "path", "used by"),
        [
            (
                view.name,
                "being deleted" if view.deleting else render_size(view),
                _render_age(view, now_s),
                "" if view.free_bytes is None else render_bytes(view.free_bytes),
                view.path,
                ", ".join(view.used_by),
            )
            for view in views
        ],
        "No volumes. `steelyard volumes create NAME` makes one.",
        keep=("volume",),
    )
    for view in views:
        if view.error:
            say(f"{view.name}: {view.error}")


DELETE_HELP = """Delete a volume and all that is in it. Says how much that is, and asks.

Of one made with --path only the name goes; the folder stays as it is. It is refused while a job waits or runs that mounts it, or
a function is deployed that does; --force deletes it all the same where all of those sleep.

\b
Examples:
  steelyard volumes delete data
  steelyard volumes delete --yes scratchpad
"""


@volumes.command("delete", help=DELETE_HELP, short_help="Delete a volume and what is in it.")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option("--force", is_flag=True, help="Also while functions that sleep, or schedules, use it.")
@home_option
def delete_volume(name: str, yes: bool, force: bool, home: Path | None) -> None:
    with open_client(home) as client:
        view = next((view for view in _fetch(client) if view.name == name), None)
        if view is None:
            raise NotFound(f"There is no volume {name}. `steelyard volumes list` shows them.")
        if not yes:
            _ask(view)
        client.call("DELETE", f"/v1/volumes/{quote(name)}", params={"force": "true"} if force else None, key=new_key())
    click.echo(f"{name} deleted" + (f"; {view.path} is as it was" if view.external else ""))


def _ask(view: VolumeView) -> None:
    if view.external:
        question = f"Forget the name {view.name}? {view.path} stays as it is."
    else:
        question = f"Delete {view.name} with all that is in it ({render_size(view)} in {view.path})?"
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is there to ask: say --yes. Nothing was deleted.", code="not-confirmed")
    if not click.confirm(question, err=True):
        raise Refused("Nothing was deleted.", code="not-confirmed")


def _fetch(client: ApiClient) -> list[VolumeView]:
    return client.fetch(list[VolumeView], "GET", "/v1/volumes")


def render_size(view: VolumeView) -> str:
    if view.size_bytes is None:
        return "not measured yet"
    return render_bytes(view.size_bytes) if view.complete else f"more than {render_bytes(view.size_bytes)}"


def _render_age(view: VolumeView, now_s: float) -> str:
    if view.measured_at is None:
        return ""
    at_s = datetime.fromisoformat(view.measured_at).astimezone(UTC).timestamp()
    return "now" if now_s - at_s < 1 else f"{render_span(float(int(now_s - at_s)))} ago"
