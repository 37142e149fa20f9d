"""`steelyard call`: ask a deployed function once, with JSON in and JSON out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click
import msgspec

from steelyard.cli.session import home_option, new_key, open_client, quote
from steelyard.errors import Refused
from steelyard.wire.call_frames import CALL_PATH
from steelyard.wire.function_api import CallKey, CallView
from steelyard.wire.http import ApiClient

#: a function may take as long as it likes; its own `timeout` ends it
WAIT_S = 30 * 86400.0

CALL_HELP = """Call a function, or a method of a class, and print its result as JSON.

Arguments are words, each read as JSON where it is JSON and as text elsewhere, or an object of arguments by name in --json
(`@FILE` reads a file, `-` stdin). An argument of the wrong type is refused with its name. With --spawn the call is durable: its
id is printed, and it is carried out at least once, whatever is restarted meanwhile.

The exit code is 0 when there is a result, 1 when the function raised or failed, 2 when the call was refused, 3 when Steelyard
does not answer.

\b
Examples:
  steelyard call hello-greet Ada 3
  steelyard call shop-model.predict --json '{"x": 7}'
  steelyard call report --json @query.json | jq .total
  steelyard calls result $(steelyard call --spawn train --json '{"epochs": 3}') --wait
"""


@click.command(help=CALL_HELP, short_help="Call a function, with JSON in and out.")
@click.option("--json", "text", metavar="JSON", help="Arguments by name, as an object; a list is arguments in order.")
@click.option("--spawn", is_flag=True, help="Print the call's id and return; `steelyard calls` shows what becomes of it.")
@home_option
@click.argument("name", metavar="NAME[.METHOD]")
@click.argument("words", nargs=-1, metavar="[ARGS]...")
def call(text: str | None, spawn: bool, home: Path | None, name: str, words: tuple[str, ...]) -> None:
    function, _, method = name.partition(".")
    body = msgspec.Raw(msgspec.json.encode(read_arguments(text, words)))
    with open_client(home) as client:
        if spawn:
            params = {"method": method} if method else None
            path = f"/v1/functions/{quote(function)}/calls"
            click.echo(client.fetch(CallView, "POST", path, body=body, params=params, key=new_key()).id)
            return
        # who is no function is told so by its name; the gateway would only say that there is nothing
        client.call("GET", f"/v1/functions/{quote(function)}")
        way = client.fetch(CallKey, "GET", "/v1/call-key")
    path = f"/{quote(function)}{CALL_PATH}" + (f"/{quote(method)}" if method else "")
    with ApiClient(way.gateway, way.key) as gateway:
        write_result(gateway.call("POST", path, body=body, wait_s=WAIT_S))


def read_arguments(text: str | None, words: tuple[str, ...]) -> object:
    """What is sent: an object of arguments by name, or {"args": [...], "kwargs": {...}}. Raises Refused."""
    if text is None:
        return {"args": [_read_word(word) for word in words], "kwargs": {}}
    if words:
        raise Refused("Give arguments as words or in --json, not both. Nothing was called.", code="bad-arguments")
    try:
        raw = sys.stdin.read() if text == "-" else Path(text[1:]).read_text() if text.startswith("@") else text
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError as err:
        raise Refused(f"--json is no JSON: {err}. Nothing was called.", code="bad-json") from None
    except OSError as err:
        raise Refused(f"{text[1:]} can't be read: {err.strerror}. Nothing was called.", code="no-such-file") from None
    except UnicodeDecodeError:
        raise Refused("--json is no text (UTF-8). Nothing was called.", code="bad-json") from None
    if isinstance(value, list):
        return {"args": value, "kwargs": {}}
    if not isinstance(value, dict):
        raise Refused("--json is an object of arguments by name, such as '{\"x\": 1}'. Nothing was called.", code="bad-json")
    return {"args": [], "kwargs": value} if set(value) != {"args", "kwargs"} else value


def write_result(body: bytes) -> None:
    """JSON indented, everything else as it came."""
    with contextlib.suppress(msgspec.DecodeError):
        body = msgspec.json.format(body, indent=2) + b"\n"
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()


def _read_word(word: str) -> object:
    try:
        return msgspec.json.decode(word)
    except msgspec.DecodeError:
        return word
