"""`steelyard revisions | traffic | rollback`: what was deployed under a name, who gets its requests, and back."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli.output import print_json, print_table, say, show_time
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.errors import Refused
from steelyard.model.function import FunctionState, Share
from steelyard.wire.function_api import FunctionView, RevisionView, RollbackRequest, TrafficPut

REVISIONS_HELP = """List the revisions of a function: who gets its traffic, what tags lead where, and how each does.

Requests and errors are those that ended; an error is an answer of 5xx, an exception, or a replica that went away. A revision that
was gone back from says why.

\b
Examples:
  steelyard revisions hello
  steelyard revisions hello --json | jq '.[] | select(.percent > 0)'
"""


@click.command(help=REVISIONS_HELP, short_help="List a function's revisions, and how they do.")
@click.argument("name")
@home_option
@json_option
def revisions(name: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        found = client.fetch(list[RevisionView], "GET", f"/v1/functions/{quote(name)}/revisions")
    if as_json:
        print_json(found)
        return
    print_table(
        ("revision", "state", "traffic", "tag", "deployed", "by", "requests", "errors"),
        [
            (
                str(row.revision),
                row.state,
                _traffic(row),
                ", ".join(row.tags),
                show_time(row.deployed_at),
                row.by,
                str(row.requests),
                str(row.errors),
            )
            for row in found
        ],
        f"Nothing is remembered of {name}'s revisions.",
    )
    for row in found:
        if row.detail and row.state in ("FAILED", "ROLLED_BACK"):
            say(f"{row.revision}: {row.reason or row.state}: {row.detail.strip().splitlines()[-1]}")


def _traffic(row: RevisionView) -> str:
    if row.percent == row.percent_wanted:
        return f"{row.percent} %" if row.percent else ""
    return f"{row.percent} %, to be {row.percent_wanted} %"


TRAFFIC_HELP = """Share a function's requests between its revisions. The shares sum to 100; revisions that are not named get none.

A tag is an address of its own: http://GATEWAY/NAME@TAG/ and TAG--NAME.localhost. Every revision that a share or a tag leads to
has its own replicas, template, and cores and GPUs where it asks for some. Connections that are open stay where they are.

\b
Examples:
  steelyard traffic hello 3=90 4=10
  steelyard traffic hello 4=100
  steelyard traffic hello 4=100 --tag last=3
  steelyard traffic hello 4=100 --untag last
"""


@click.command(help=TRAFFIC_HELP, short_help="Share a function's requests between its revisions.")
@click.argument("name")
@click.argument("shares", nargs=-1, required=True, metavar="REV=PERCENT...")
@click.option("--tag", "tags", multiple=True, metavar="TAG=REV", help="Let a tag lead to a revision. May be repeated.")
@click.option("--untag", "untags", multiple=True, metavar="TAG", help="Take a tag away. May be repeated.")
@home_option
def traffic(name: str, shares: tuple[str, ...], tags: tuple[str, ...], untags: tuple[str, ...], home: Path | None) -> None:
    wanted = tuple(Share(*_pair(each, "REV=PERCENT")) for each in shares)
    path = f"/v1/functions/{quote(name)}"
    with open_client(home) as client:
        moved: dict[str, int] | None = None
        if tags or untags:
            rows = client.fetch(list[RevisionView], "GET", f"{path}/revisions")
            moved = {tag: row.revision for row in rows for tag in row.tags if tag not in untags}
            moved |= {tag: int(number) for tag, number in (_split(each, "TAG=REV") for each in tags)}
        view = client.fetch(FunctionView, "PUT", f"{path}/traffic", body=TrafficPut(wanted, moved), key=new_key())
    told = ", ".join(f"{share.percent} % to revision {share.revision}" for share in wanted)
    click.echo(f"{view.name}: {told}, each as soon as it is ready")


def _split(text: str, shape: str) -> tuple[str, str]:
    key, _, number = text.partition("=")
    if not key or not number.isascii() or not number.isdigit():
        raise Refused(f"{text!r} is not {shape}. Nothing was changed.", code="bad-traffic")
    return key, number


def _pair(text: str, shape: str) -> tuple[int, int]:
    key, number = _split(text.removesuffix("%"), shape)
    if not key.isascii() or not key.isdigit():
        raise Refused(f"{text!r} is not {shape}. Nothing was changed.", code="bad-traffic")
    return int(key), int(number)


ROLLBACK_HELP = """Go back to an earlier revision: REVISION, or the newest one before that was ready and was not gone back from.

It gets all of the traffic once it is ready again; until then nothing changes. Requests that have begun end where they are.

\b
Examples:
  steelyard rollback hello
  steelyard rollback hello 3
"""


@click.command(help=ROLLBACK_HELP, short_help="Go back to an earlier revision.")
@click.argument("name")
@click.argument("revision", type=click.IntRange(min=1), required=False)
@home_option
def rollback(name: str, revision: int | None, home: Path | None) -> None:
    from steelyard.cli.app_deploy import explain_failure, is_reached, wait_settled
    from steelyard.cli.output import Progress

    progress = Progress()
    with open_client(home) as client:
        path = f"/v1/functions/{quote(name)}"
        view = client.fetch(FunctionView, "POST", f"{path}/rollback", body=RollbackRequest(revision), key=new_key())
        rows = client.fetch(list[RevisionView], "GET", f"{path}/revisions")
        target = max((row.revision for row in rows if row.percent_wanted), default=view.revision)
        settled = wait_settled(client, view, progress.show)
        progress.clear()
    if is_reached(settled, target):
        click.echo(f"{name} is back at revision {target}")
    elif settled.state == FunctionState.FAILED:
        raise Refused(explain_failure(settled, target), code="function-failed")
    else:
        click.echo(f"{name} goes back to revision {target} as soon as it is ready")
