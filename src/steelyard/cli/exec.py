"""`steelyard exec`: run a command inside a running job, stream what it writes, answer with its exit code."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from steelyard.cli.attend import POLL_S, Cursor, Interrupts, Patience, stream
from steelyard.cli.output import say
from steelyard.cli.programs import SUPERVISOR, lives, load_record
from steelyard.cli.session import find_paths, home_option, new_key, open_client
from steelyard.clock import SystemClock
from steelyard.errors import Refused, SteelyardError
from steelyard.wire.api import ExecSignal, ExecSubmit, ExecView, LogChunk
from steelyard.wire.http import ApiClient

EXEC_HELP = """Run a command inside a running job.

It joins the job's control group and cores, and runs as the job's user, in its folder and with its variables; what it uses counts
as the job's, and it ends with the job at the latest. Its input is empty and it has no terminal: programs that ask
questions or draw on the screen do not work here. The exit code is the command's own; 125 means that it was not started. Ctrl-C is
forwarded to it (twice: it is killed), never to the job.

\b
Examples:
  steelyard exec j-000012 -- nvidia-smi
  steelyard exec --rank 1 j-000012 -- sh -c 'ls -l $STEELYARD_SCRATCH'
"""


@click.command("exec", help=EXEC_HELP, short_help="Run a command inside a running job.")
@click.option("--rank", type=click.IntRange(0), help="Inside which rank of a gang [default: the first].")
@home_option
@click.argument("job")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def run_inside(rank: int | None, home: Path | None, job: str, command: tuple[str, ...]) -> None:
    paths, clock = find_paths(home), SystemClock()
    with open_client(home) as client:
        patience = Patience(clock, lambda: lives(load_record(paths, SUPERVISOR)))
        key, body = new_key(), ExecSubmit(command, rank)
        name = patience.call(
            lambda: client.fetch(ExecView, "POST", f"/v1/jobs/{job}/exec", body=body, key=key), "starting the command"
        ).exec
        sys.exit(_attend(client, patience, f"/v1/jobs/{job}/exec/{name}"))


def _attend(client: ApiClient, patience: Patience, path: str) -> int:
    def poll(cursor: Cursor) -> LogChunk:
        params = {"stdout_offset": cursor.stdout, "stderr_offset": cursor.stderr, "wait_s": POLL_S}
        return client.fetch(LogChunk, "GET", f"{path}/logs", params=params, wait_s=POLL_S)

    def stop(signum: int, told: int) -> None:
        if told == 1:
            say(f"\nsteelyard: {signal.Signals(signum).name} is forwarded to the command; once more kills it")
        try:
            patience.call(lambda: client.call("POST", f"{path}/stop", body=ExecSignal(signum)), "the signal")
        except Refused as err:
            # it ended in the meantime; the stream will say how
            say(f"steelyard: {err.public}")

    interrupts = Interrupts(stop)
    try:
        chunk = stream(patience, poll, interrupts)
    finally:
        interrupts.restore()
    if chunk.exit_code is None:
        raise SteelyardError(chunk.detail or "The command ended, and how is not known.")
    return chunk.exit_code
