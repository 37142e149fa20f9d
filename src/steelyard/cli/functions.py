"""`steelyard functions | delete | keys | coldstarts`: what is deployed, who may call it, and what its wakes cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from steelyard.cli.output import person_looks, print_json, print_table, say
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.model.coldstart import PLATFORM_PHASES
from steelyard.wire.api import KeyCreate, KeyView
from steelyard.wire.function_api import ColdStartView, FunctionView

BAR_WIDTH = 30


class FunctionRow(msgspec.Struct, frozen=True):
    """The shape of `functions --json`."""

    name: str
    revision: int
    state: str
    url: str
    replicas: int
    waking: int
    queued: int
    public: bool
    #: it sleeps, and preemptible jobs may have its cores and devices
    lends: bool = False
    #: "" for a function by itself
    app: str = ""
    #: `call` or `http`
    interface: str = "http"
    #: of `run` and `serve`: deleted then, unless its command lives
    expires_at: str | None = None
    #: "": it is on the home's own machine
    pool: str = ""
    machines: tuple[str, ...] = ()


class ColdStartRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shape of `coldstarts --json`. `user_phases` is there when the function measured some of its own (`with
    sy.phase(...)`)."""

    function: str
    revision: int
    at: str
    road: str
    reason: str
    wall_ms: float
    platform_ms: float
    user_ms: float
    phases: dict[str, float]
    user_phases: dict[str, float] = {}


class KeyRow(msgspec.Struct, frozen=True):
    """The shape of `keys --json`; secrets are shown once, by `keys create`."""

    name: str
    owner: str
    created_at: str


FUNCTIONS_HELP = """List functions, those of an app together.

\b
Examples:
  steelyard functions
  steelyard functions --app shop
  steelyard functions --json | jq -r '.[].url'
"""


@click.command(help=FUNCTIONS_HELP, short_help="List functions.")
@click.option("--app", help="Only those of this app.")
@home_option
@json_option
def functions(app: str | None, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        listed = client.fetch(list[FunctionView], "GET", "/v1/functions")
    found = group_by_app([view for view in listed if app is None or view.app == app])
    if as_json:
        print_json([msgspec.convert(view, FunctionRow, from_attributes=True) for view in found])
        return
    pools = any(f.pool for f in found)
    print_table(
        ("app", "name", "revision", "state", *(["machines"] if pools else []), "replicas", "waking", "queued", "access", "url"),
        [
            (
                f.app,
                f.name,
                str(f.revision),
                f"{f.state}, lends" if f.lends else f.state,
                *([", ".join(f.machines) or (f"none of {f.pool}" if f.pool else "")] if pools else []),
                str(f.replicas),
                str(f.waking),
                str(f.queued),
                "public" if f.public else "key",
                f.url,
            )
            for f in found
        ],
        "No functions. `steelyard deploy FILE.py` makes some.",
        keep=("name",),
    )
    for function in found:
        if function.state == "FAILED" or function.reason == "no-machine":
            say(
                f"{function.name}: {function.reason}: "
                f"{function.detail.strip().splitlines()[-1] if function.detail.strip() else 'no detail'}"
            )


def group_by_app(views: Sequence[FunctionView]) -> list[FunctionView]:
    """Apps by name, in them the order of their first deploy; functions by themselves come last. Pure."""
    return sorted(views, key=lambda view: (not view.app, view.app))


DELETE_HELP = """Delete a function: its address answers 404, and its replicas end when their requests are done.

\b
Examples:
  steelyard delete hello
"""


@click.command(help=DELETE_HELP, short_help="Delete a function.")
@click.argument("name")
@home_option
def delete(name: str, home: Path | None) -> None:
    with open_client(home) as client:
        client.call("DELETE", f"/v1/functions/{quote(name)}", key=new_key())
    click.echo(f"{name} deleted")


KEYS_HELP = """List, create and delete API keys. A key calls every private function, as `Authorization: Bearer KEY`.

\b
Examples:
  steelyard keys
  KEY=$(steelyard keys create laptop)
  steelyard keys delete laptop
"""


@click.group(help=KEYS_HELP, short_help="List, create and delete API keys.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def keys(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    ctx.obj = home
    if ctx.invoked_subcommand is not None:
        return
    with open_client(home) as client:
        found = client.fetch(list[KeyView], "GET", "/v1/keys")
    if as_json:
        print_json([KeyRow(k.name, k.owner, k.created_at) for k in found])
        return
    print_table(
        ("name", "owner", "created"),
        [(k.name, k.owner, k.created_at[:19].replace("T", " ") + "Z") for k in found],
        "No keys. `steelyard keys create NAME` makes one.",
    )


@keys.command(
    "create",
    help="Make a key and print its secret, the only time it is shown.\n\n\b\nExamples:\n  steelyard keys create laptop\n",
)
@click.argument("name")
@home_option
@click.pass_context
def create_key(ctx: click.Context, name: str, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        made = client.fetch(KeyView, "POST", "/v1/keys", body=KeyCreate(name), key=new_key())
    say(f"Key {made.name}; it is not shown again:")
    click.echo(made.secret)


@keys.command(
    "delete", help="Delete a key; calls with it are refused at once.\n\n\b\nExamples:\n  steelyard keys delete laptop\n"
)
@click.argument("name")
@home_option
@click.pass_context
def delete_key(ctx: click.Context, name: str, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        client.call("DELETE", f"/v1/keys/{quote(name)}", key=new_key())
    click.echo(f"{name} deleted")


COLDSTARTS_HELP = """Show what each wake cost, phase by phase, from the request's arrival at the gateway to its first byte.

Platform phases (held, plan, fork, join, serve) are Steelyard's; import, enter and first_byte are the function's own code. Of
vLLM and llama.cpp, enter is told in parts, as their logs tell them: enter.import, enter.cuda_init, enter.weights, ...

\b
Examples:
  steelyard coldstarts hello
  steelyard coldstarts --json --limit 1000
"""


@click.command(help=COLDSTARTS_HELP, short_help="Show what each wake cost, phase by phase.")
@click.argument("name", required=False)
@click.option(
    "--limit", "-n", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most that many, the newest."
)
@home_option
@json_option
def coldstarts(name: str | None, limit: int, home: Path | None, as_json: bool) -> None:
    params: dict[str, str | int | float] = {"limit": limit}
    if name is not None:
        params["function"] = name
    with open_client(home) as client:
        rows = client.fetch(list[ColdStartView], "GET", "/v1/coldstarts", params=params)
    if as_json:
        print_json([msgspec.convert(msgspec.structs.asdict(row), ColdStartRow) for row in rows])
        return
    looks = person_looks()
    # a person has a narrow terminal and wants the picture; a script has no edge and wants every number
    columns = ("function", "rev", "at", "road", "wall ms", "platform", "user", "phases" if looks else "reason")
    print_table(
        columns if looks else (*columns, "phases"),
        [_row(row, looks) for row in rows],
        "No wakes yet. A function wakes when a request finds it asleep.",
    )
    if rows and looks:
        say("█ platform  ░ the function's own code  (--json has every phase)")


def _row(row: ColdStartView, looks: bool) -> tuple[str, ...]:
    cells = (row.function, str(row.revision), row.at[11:19] if looks else row.at, row.road)
    times = (f"{row.wall_ms:.2f}", f"{row.platform_ms:.2f}", f"{row.user_ms:.2f}")
    if looks:
        return (*cells, *times, render_bar(row.phases))
    listed = " ".join(f"{name}={ms:.3f}" for name, ms in (row.phases | row.user_phases).items())
    return (*cells, *times, row.reason, listed)


def render_bar(phases: dict[str, float], width: int = BAR_WIDTH) -> str:
    """How the wall time divides, platform filled, the function's own hollow. Always `width` long when there is any time. Pure."""
    total = sum(phases.values())
    if total <= 0:
        return ""
    bar = ""
    spent = 0.0
    for name, ms in phases.items():
        spent += ms
        # by the running sum, so that rounding never makes the bar longer or shorter
        bar += ("█" if name in PLATFORM_PHASES else "░") * (round(spent / total * width) - len(bar))
    return bar
