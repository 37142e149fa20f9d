"""`steelyard accounts | quotas`: whose turn it is by fair share, and what each project may hold at a time."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli.numbers import NumberRange
from steelyard.cli.output import print_json, print_table
from steelyard.cli.quantities import parse_bytes, render_bytes
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.wire.api import AccountPut, AccountView, QuotaPut, QuotaView

ACCOUNTS_HELP = """List accounts: their shares, what they used of late, and who comes first among jobs of equal priority.

An account lab/alice is below lab: shares are compared among siblings, level by level. Usage halves every week. One that nobody
set has one share.

\b
Examples:
  steelyard accounts
  steelyard accounts set lab --shares 3
  steelyard accounts set lab/alice --shares 2
"""


@click.group(help=ACCOUNTS_HELP, short_help="List accounts with shares and usage, and set shares.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def accounts(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    ctx.obj = home
    if ctx.invoked_subcommand is not None:
        return
    with open_client(home) as client:
        rows = client.fetch(list[AccountView], "GET", "/v1/accounts")
    if as_json:
        print_json(rows)
        return
    print_table(
        ("account", "shares", "of siblings", "core-hours", "of siblings", "level fs", "rank"),
        [
            (
                row.name,
                f"{row.shares:g}",
                f"{row.norm_shares:.0%}",
                f"{row.usage / 3600:.2f}",
                f"{row.norm_usage:.0%}",
                "" if row.level_fs is None else f"{row.level_fs:.3g}",
                "" if row.rank is None else str(row.rank),
            )
            for row in rows
        ],
        "No account has run anything yet.",
    )


SET_HELP = """Set an account's shares among its siblings.

\b
Examples:
  steelyard accounts set lab --shares 3
"""


@accounts.command("set", help=SET_HELP)
@click.argument("name")
@click.option("--shares", type=NumberRange(0, min_open=True), required=True, help="More shares, more of the site.")
@home_option
@click.pass_obj
def set_account(outer: Path | None, name: str, shares: float, home: Path | None) -> None:
    with open_client(home or outer) as client:
        view = client.fetch(AccountView, "PUT", "/v1/accounts", body=AccountPut(name, shares), key=new_key())
    click.echo(f"{view.name}: {view.shares:g} shares")


QUOTAS_HELP = """List what each project may hold at a time, and what it holds.

\b
Examples:
  steelyard quotas
  steelyard quotas set default --cores 64 --gpus 8 --memory 500GB --jobs 100
  steelyard quotas delete default
"""


@click.group(help=QUOTAS_HELP, short_help="List, set and delete what projects may hold.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def quotas(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    ctx.obj = home
    if ctx.invoked_subcommand is not None:
        return
    with open_client(home) as client:
        rows = client.fetch(list[QuotaView], "GET", "/v1/quotas")
    if as_json:
        print_json(rows)
        return

    def of(used: str, limit: str | None) -> str:
        return f"{used} of {limit}" if limit is not None else f"{used}, no limit"

    print_table(
        ("project", "cores", "gpus", "memory", "jobs"),
        [
            (
                row.project,
                of(f"{row.used_cores:g}", None if row.cores is None else f"{row.cores:g}"),
                of(f"{row.used_gpus:g}", None if row.gpus is None else f"{row.gpus:g}"),
                of(render_bytes(row.used_memory_bytes), None if row.memory_bytes is None else render_bytes(row.memory_bytes)),
                of(str(row.used_jobs), None if row.running_jobs is None else str(row.running_jobs)),
            )
            for row in rows
        ],
        "No project has a quota. `steelyard quotas set PROJECT --cores N` sets one.",
    )


@quotas.command(
    "set",
    help="Set a project's quota: what is not named has no limit.\n\n\b\nExamples:\n  steelyard quotas set default --gpus 8",
)
@click.argument("project")
@click.option("--cores", type=NumberRange(0), help="Cores of all its running jobs together.")
@click.option("--gpus", type=NumberRange(0), help="GPUs, shares counted as parts.")
@click.option("--memory", help="Memory, for example 500GB.")
@click.option("--jobs", type=click.IntRange(0), help="Running jobs.")
@home_option
@click.pass_obj
def set_quota(
    outer: Path | None,
    project: str,
    cores: float | None,
    gpus: float | None,
    memory: str | None,
    jobs: int | None,
    home: Path | None,
) -> None:
    body = QuotaPut(cores, gpus, parse_bytes(memory) if memory else None, jobs)
    with open_client(home or outer) as client:
        view = client.fetch(QuotaView, "PUT", f"/v1/quotas/{quote(project)}", body=body, key=new_key())
    click.echo(f"{view.project}: set")


@quotas.command("delete", help="Delete a project's quota.\n\n\b\nExamples:\n  steelyard quotas delete default")
@click.argument("project")
@home_option
@click.pass_obj
def delete_quota(outer: Path | None, project: str, home: Path | None) -> None:
    with open_client(home or outer) as client:
        client.call("DELETE", f"/v1/quotas/{quote(project)}", key=new_key())
    click.echo(f"{project}: no quota")
