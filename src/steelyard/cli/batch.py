"""`steelyard batch`: ask a function once per line of a file, and write the answers in the same order.

The batch is this process: what it needs to go on after Ctrl-C, a crash or kill -9 is in its files (`batch_files.py`). A private
function gets a key that is made for this batch and deleted with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from steelyard.cli.batch_files import STATE_VERSION, Answer, Files, Input, Output, State, make_files
from steelyard.cli.batch_progress import Meter, render_duration
from steelyard.cli.output import Progress, print_json, say
from steelyard.cli.quantities import parse_seconds
from steelyard.cli.session import find_settings, home_option, json_option, new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import Conflict, NotFound, Refused, SteelyardError, Unauthorized
from steelyard.wire.api import KeyCreate, KeyView
from steelyard.wire.function_api import FunctionView
from steelyard.wire.http import ApiClient

#: how often a line of progress is written where nobody looks
LINE_S = 10.0
REDRAW_S = 0.2
INTERRUPTED = 130
#: a socket each, and 1024 files is what a process may have open by default
PARALLEL_MAX = 512

BATCH_HELP = """Ask a function once per line of a file, and write the answers in the same order.

Every line of the input is a JSON value that is POSTed to the function; line N of the output is its answer. Rows without an
answer are `null` there, and stand with their number, status and message in OUT.errors.jsonl.

The same command goes on where it stopped: after Ctrl-C, after a crash, after kill -9. What was in flight then is asked again.
A private function is called with a key that is made for this batch, unless --key names one.

The exit code is 0 when every row was answered and 1 when some were not.

\b
Examples:
  steelyard batch --input prompts.jsonl --function llm --path /v1/completions --output answers.jsonl --parallel 16
  steelyard batch --input rows.jsonl --function embed --output out.jsonl --max-errors 100 --json | jq .failed
  steelyard batch --input rows.jsonl --function embed --output out.jsonl --restart
"""


class Summary(msgspec.Struct, frozen=True):
    """The shape of `batch --json`. `answered` and `failed` count earlier runs too, the rest is this run's."""

    #: finished, interrupted (Ctrl-C) or stopped (an error; the command says which)
    state: str
    rows: int
    answered: int
    failed: int
    asked: int
    retried: int
    seconds: float
    rows_per_s: float
    output: str
    errors: str | None


class Ask(msgspec.Struct, frozen=True):
    """What the command line asked for."""

    function: str
    path: str
    parallel: int
    retries: int
    timeout_s: float
    errors_max: int | None
    restart: bool


@click.command(help=BATCH_HELP, short_help="Ask a function once per line of a file, in order.")
@click.option("--input", "input_", type=click.Path(path_type=Path), required=True, help="One JSON value per line.")
@click.option("--function", required=True, metavar="NAME", help="The function that is asked.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Gets one line per row, in the same order.")
@click.option("--path", default="/", show_default=True, help="Path within the function, for example /v1/embeddings.")
@click.option(
    "--parallel", "-p", type=click.IntRange(1, PARALLEL_MAX), default=8, show_default=True, help="Rows in flight at a time."
)
@click.option(
    "--retries",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    help="Further tries of a row after 429, 503 or a lost connection, each later than the one before.",
)
@click.option("--timeout", default="10m", show_default=True, help="A row without an answer by then has failed.")
@click.option("--max-errors", type=click.IntRange(0), metavar="N", help="Stop when more rows than that have failed in this run.")
@click.option("--key", envvar="STEELYARD_KEY", metavar="KEY", help="API key to call with [env: STEELYARD_KEY].")
@click.option("--restart", is_flag=True, help="Begin anew: forget what an earlier run wrote to the output.")
@home_option
@json_option
def batch(
    input_: Path,
    function: str,
    output: Path,
    path: str,
    parallel: int,
    retries: int,
    timeout: str,
    max_errors: int | None,
    key: str | None,
    restart: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    timeout_s = parse_seconds(timeout)
    if timeout_s <= 0:
        raise Refused("--timeout must be more than 0. Nothing was asked.", code="bad-timeout")
    if not path.startswith("/") or not path.isascii() or any(char <= " " or char in "#\x7f" for char in path):
        raise Refused(f"{path!r} is no path. Write for example --path /v1/embeddings.", code="bad-path")
    ask = Ask(function, path, parallel, retries, timeout_s, max_errors, restart)
    source = Input(input_)
    files = make_files(output)
    with contextlib.closing(source):
        _check_apart(input_, files)
        url, client = _find_function(home, function, key)
        with contextlib.ExitStack() as stack:
            if client is not None:
                stack.enter_context(client)
            written = stack.enter_context(contextlib.closing(Output(files)))
            run = _Run(ask, source, written, as_json)
            if run.begin():
                secret = key or (stack.enter_context(_borrowed_key(client, files)) if client is not None else "")
                run.ask_all(url, secret)
            code = run.conclude()
    sys.exit(code)


def _check_apart(input_: Path, files: Files) -> None:
    for file in files:
        if file.exists() and os.path.samefile(file, input_):
            raise Refused(f"{file} is the input. Nothing was changed. Name another --output.", code="output-is-input")


def _find_function(home: Path | None, name: str, key: str | None) -> tuple[str, ApiClient | None]:
    """Its address, and a client of the API where a key has to be made. Who brings a key needs no admin token."""
    try:
        client = open_client(home)
    except Unauthorized:
        if not key:
            raise
        _, settings = find_settings(home)
        return f"{settings.gateway_url}/{quote(name)}/", None
    try:
        view = client.fetch(FunctionView, "GET", f"/v1/functions/{quote(name)}")
    except NotFound:
        client.close()
        raise NotFound(f"There is no function {name}. Nothing was asked. `steelyard functions` lists them.") from None
    if key or view.public:
        client.close()
        return view.url, None
    return view.url, client


@contextlib.contextmanager
def _borrowed_key(client: ApiClient, files: Files) -> Iterator[str]:
    """A key for as long as the batch runs. Named after the output, which one batch at a time holds: what a killed batch left
    behind is replaced by the next."""
    place = f"{socket.gethostname()}:{os.path.realpath(files.output)}"
    name = f"batch-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    try:
        made = client.fetch(KeyView, "POST", "/v1/keys", body=KeyCreate(name), key=new_key())
    except Conflict:
        client.call("DELETE", f"/v1/keys/{name}", key=new_key())
        made = client.fetch(KeyView, "POST", "/v1/keys", body=KeyCreate(name), key=new_key())
    try:
        yield made.secret or ""
    finally:
        try:
            client.call("DELETE", f"/v1/keys/{name}", key=new_key())
        except SteelyardError as err:
            say(f"The key {name} that was made for this batch is still there (`steelyard keys delete {name}`): {err.public}")


class _Run:
    """One run of a batch: where it goes on, what it shows, how it ends."""

    def __init__(self, ask: Ask, source: Input, output: Output, as_json: bool) -> None:
        self._ask = ask
        self._input = source
        self._output = output
        self._as_json = as_json
        self._clock = SystemClock()
        self._progress = Progress()
        self._rows = self._before = self._retried = 0
        self._state = "finished"
        self._error: SteelyardError | None = None
        self._started_ns = self._ended_ns = self._clock.mono_ns()

    def begin(self) -> bool:
        """Find where an earlier run stopped. False when nothing is left to ask."""
        known = None if self._ask.restart else self._output.load_state()
        source = self._input.identify(None if known is None else known.source)
        state = State(STATE_VERSION, self._ask.function, self._ask.path, source)
        if known is not None:
            _refuse_other(known, state, self._output.files)
        self._output.begin(state, anew=known is None)
        self._source, self._rows, self._before = source, source.rows, self._output.done
        if self._before and self._before < self._rows:
            say(f"{self._output.files.output} has {self._before:,} of {self._rows:,} rows already; going on after them.")
        return self._before < self._rows

    def ask_all(self, url: str, secret: str) -> None:
        self._started_ns = self._clock.mono_ns()
        try:
            asyncio.run(self._ask_until_done(url, secret))
        except asyncio.CancelledError:
            self._state = "interrupted"
        except SteelyardError as err:
            self._state, self._error = "stopped", err
        finally:
            self._progress.clear()
            self._ended_ns = self._clock.mono_ns()
            self._output.sync()

    async def _ask_until_done(self, url: str, secret: str) -> None:
        import httpx2

        from steelyard.cli.batch_engine import Asker, Pipeline

        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, task.cancel)
        limits = httpx2.Limits(max_connections=self._ask.parallel, max_keepalive_connections=self._ask.parallel)
        # the row's own deadline is around each call; here only what must not take long
        timeout = httpx2.Timeout(None, connect=10.0)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        shown = asyncio.create_task(self._show())
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=False) as client:
            target = url.rstrip("/") + self._ask.path
            name, retries, timeout_s = self._ask.function, self._ask.retries, self._ask.timeout_s
            asker = Asker(client, target, name, self._clock, retries=retries, timeout_s=timeout_s)
            rows = self._input.rows(self._source, self._before)
            pipeline = Pipeline(
                rows, asker.ask, self._emit, done=self._before, parallel=self._ask.parallel, errors_max=self._ask.errors_max
            )
            try:
                await pipeline.run()
            finally:
                shown.cancel()
                self._retried = asker.retried

    def _emit(self, answers: Sequence[Answer]) -> None:
        self._output.append(answers)

    async def _show(self) -> None:
        meter = Meter(self._rows, self._before, self._clock.mono_ns())
        live = sys.stderr.isatty()
        while True:
            await asyncio.sleep(REDRAW_S if live else LINE_S)
            meter.note(self._output.done, self._output.failed, self._clock.mono_ns())
            self._progress.show(meter.render(bar=live))

    def conclude(self) -> int:
        """Tell how it went; the exit code. Raises what stopped it."""
        output = self._output
        seconds = (self._ended_ns - self._started_ns) / 1e9
        asked = output.done - self._before
        rate = asked / seconds if asked and seconds > 0 else 0.0
        errors = str(output.files.errors) if output.failed else None
        if self._as_json:
            answered = output.done - output.failed
            print_json(
                Summary(
                    self._state, self._rows, answered, output.failed, asked, self._retried, round(seconds, 3), round(rate, 3),
                    str(output.files.output), errors,
                )
            )  # fmt: skip
        failed = f", {output.failed:,} failed (see {errors})" if errors else ""
        done = f"{output.done:,} of {self._rows:,} rows"
        if self._state != "finished":
            say(f"{done} are in {output.files.output}{failed}. The same command goes on from there.")
        else:
            speed = f" in {render_duration(seconds)}, {rate:,.1f} rows/s" if asked else ": nothing was left to ask"
            say(f"{done} are in {output.files.output}{failed}{speed}.")
        if self._error is not None:
            raise self._error
        if self._state == "interrupted":
            return INTERRUPTED
        return 1 if output.failed else 0


def _refuse_other(known: State, asked: State, files: Files) -> None:
    if (known.function, known.path) != (asked.function, asked.path):
        raise Refused(
            f"{files.output} holds answers of {known.function} ({known.path}), not of {asked.function} ({asked.path}). "
            "Nothing was changed. Name another --output, or let `--restart` overwrite it.",
            code="batch-other",
        )
    if known.source.sha256 != asked.source.sha256:
        raise Refused(
            f"{files.output} holds answers to another input, or to what this one was before it was changed. "
            "Nothing was changed. Name another --output, or let `--restart` overwrite it.",
            code="input-changed",
        )
