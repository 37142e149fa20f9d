"""`steelyard secrets`: create, list and delete what work is given and nobody is shown. Values go to the server and nowhere else;
no message holds one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from steelyard.cli.dotenv import parse_dotenv
from steelyard.cli.output import print_json, print_table, show_time
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.errors import NotFound, Refused
from steelyard.model.secret import SECRET_MAX, check_secret
from steelyard.wire.api import SecretPut, SecretView

SECRETS_HELP = """List, create and delete secrets: passwords, tokens and keys that functions and jobs are given.

They lie encrypted in the home, under a key of its own (secrets.key: keep a backup apart from the rest). Work that names one gets
its keys as variables, or as files: `--secret NAME` or `--secret NAME:files` of run, submit and deploy, `secrets=[...]` in a
decorator. In what Steelyard shows of logs and errors, values of 6 characters and more are replaced by [secret NAME.KEY].

\b
Examples:
  steelyard secrets
  steelyard secrets create db PASSWORD
  steelyard run --secret db -- ./migrate
  steelyard secrets delete db
"""


@click.group(help=SECRETS_HELP, short_help="List, create and delete secrets.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def secrets(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    ctx.obj = home
    if ctx.invoked_subcommand is None:
        _list(home, as_json)


@secrets.command(
    "list",
    help="List secrets: their keys, when they were set, and what uses them. Values are never shown.\n\n\b\nExamples:\n"
    "  steelyard secrets list\n  steelyard secrets list --json | jq '.[].name'\n",
)
@home_option
@json_option
@click.pass_context
def list_secrets(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    _list(home or ctx.obj, as_json)


CREATE_HELP = """Create a secret of one or more keys.

\b
KEY         asked for without echo; read from standard input where that is no
            terminal (one key then, and its last line break is left out)
KEY=@FILE   the text of a file, as it is
KEY=VALUE   other users see it in `ps` while the command runs, and your shell
            remembers it: prefer the others

With --replace all of an existing secret is replaced. Work that starts afterwards gets the new values; what runs keeps those that
it has.

\b
Examples:
  steelyard secrets create db PASSWORD
  pass show db | steelyard secrets create db PASSWORD --replace
  steelyard secrets create tls CERT=@cert.pem KEY=@key.pem
  steelyard secrets create app --from-dotenv .env
"""


@secrets.command("create", help=CREATE_HELP, short_help="Create a secret, or replace one.")
@click.argument("name")
@click.argument("keys", nargs=-1, metavar="[KEY | KEY=@FILE | KEY=VALUE]...")
@click.option("--from-dotenv", "dotenv", type=click.Path(), metavar="FILE", help="Keys and values of a .env file.")
@click.option("--replace", is_flag=True, help="Replace all of the secret of that name.")
@home_option
@click.pass_context
def create_secret(
    ctx: click.Context, name: str, keys: tuple[str, ...], dotenv: str | None, replace: bool, home: Path | None
) -> None:
    values = parse_dotenv(_read_file(dotenv), dotenv) if dotenv is not None else {}
    asked = [key for key in keys if "=" not in key]
    if len(asked) > 1 and not sys.stdin.isatty():
        text = f"standard input gives one value, and {', '.join(asked)} are asked for. Give the others as KEY=@FILE."
        raise Refused(f"{text} Nothing was stored.", code="one-from-stdin")
    for each in keys:
        key, equals, value = each.partition("=")
        # what is wrong with the name is said before anybody types a password
        if (wrong := check_secret(name, {key: ""})) is not None:
            raise Refused(f"{wrong}. Nothing was stored.", code="bad-secret")
        if not equals:
            values[key] = _ask(key)
        else:
            values[key] = _read_file(value[1:]) if value.startswith("@") else value
    if (wrong := check_secret(name, values)) is not None:
        raise Refused(f"{wrong}. Nothing was stored.", code="bad-secret")
    with open_client(home or ctx.obj) as client:
        made = client.fetch(SecretView, "POST", "/v1/secrets", body=SecretPut(name, values, replace), key=new_key())
    click.echo(f"{made.name} {'created' if made.generation == 1 else 'replaced'}: {', '.join(made.keys)}")


@secrets.command(
    "delete",
    help="Delete a secret. Refused while a function, a schedule or a job that has not ended uses it.\n\n\b\nExamples:\n"
    "  steelyard secrets delete db\n  steelyard secrets delete db --force\n",
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also while something uses it: what runs goes on, what starts afterwards fails.")
@home_option
@click.pass_context
def delete_secret(ctx: click.Context, name: str, force: bool, home: Path | None) -> None:
    with open_client(home or ctx.obj) as client:
        client.call("DELETE", f"/v1/secrets/{quote(name)}", params={"force": "true"} if force else None, key=new_key())
    click.echo(f"{name} deleted")


def _list(home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        found = client.fetch(list[SecretView], "GET", "/v1/secrets")
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "keys", "set", "used by"),
        [(row.name, " ".join(row.keys), show_time(row.changed_at), ", ".join(row.used_by)) for row in found],
        "No secrets. `steelyard secrets create NAME KEY` makes one.",
        keep=("name",),
    )


def _ask(key: str) -> str:
    if sys.stdin.isatty():
        return click.prompt(key, hide_input=True, err=True, default="", show_default=False)
    raw = sys.stdin.buffer.read(SECRET_MAX + 2)
    return _decode(raw, "standard input").removesuffix("\n").removesuffix("\r")


def _read_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(SECRET_MAX * 4)
    except FileNotFoundError as err:
        raise NotFound(f"There is no file {path}. Nothing was stored.", code="no-such-file") from err
    except OSError as err:
        raise Refused(f"{path} can't be read ({err.strerror}). Nothing was stored.", code="file-unreadable") from err
    return _decode(raw, path)


def _decode(raw: bytes, source: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        text = f"{source} is no text (UTF-8). Encode it, for example with base64, and give that. Nothing was stored."
        raise Refused(text, code="bad-secret") from None
