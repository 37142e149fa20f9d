"""`steelyard exec`: run a command inside a running job or a function, stream what it writes, answer with its exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

from steelyard.cli.attend import END, POLL_S, Cursor, Interrupts, stream
from steelyard.cli.inside import check_which, find_inside, inside_options
from steelyard.cli.output import say
from steelyard.cli.patience import Patience, make_patience
from steelyard.cli.session import home_option, new_key, open_client
from steelyard.clock import Clock, SystemClock
from steelyard.errors import Refused, SteelyardError
from steelyard.wire.api import ExecSignal, ExecSubmit, ExecView, LogChunk
from steelyard.wire.http import ApiClient

#: as a shell says of what SIGHUP ended
HUNG_UP = 128 + signal.SIGHUP

EXEC_HELP = """Run a command inside a running job, or inside a replica of a function.

It joins the job's control group and cores, and runs as the job's user, in its folder and with its variables; what it uses counts
as the job's, and it ends with the job at the latest. The exit code is the command's own; 125 means that it was not started.
Its input is empty, and Ctrl-C is forwarded to it (twice: it is killed), never to the job.

With -t it runs in a terminal, which is yours: every key goes there, Ctrl-C too. `~.` at the beginning of a line hangs up.

A function that sleeps is woken, and its replica does not fall asleep again while anything runs inside. It ends with its replica
when the revision goes. A name that could be a job's id means the job.

\b
Examples:
  steelyard exec j-000012 -- nvidia-smi
  steelyard exec -t j-000012 -- bash
  steelyard exec --rank 1 j-000012 -- sh -c 'ls -l $STEELYARD_SCRATCH'
  steelyard exec hello -- env
"""


@click.command("exec", help=EXEC_HELP, short_help="Run a command inside a running job or a function.")
@inside_options
@click.option("-t", "--tty", is_flag=True, help="In a terminal: for shells, editors, and whatever draws on the screen.")
@home_option
@click.argument("name", metavar="JOB|FUNCTION")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def run_inside(rank: int | None, replica: str, tty: bool, home: Path | None, name: str, command: tuple[str, ...]) -> None:
    check_which(name, rank, replica)
    with open_client(home) as client:
        sys.exit(execute(client, home, name, command, rank=rank, replica=replica, tty=tty))


def execute(
    client: ApiClient,
    home: Path | None,
    name: str,
    command: tuple[str, ...],
    *,
    rank: int | None = None,
    replica: str = "",
    tty: bool = False,
) -> int:
    """A command inside the job or function of that name; its exit code."""
    clock, terminal = SystemClock(), None
    if tty:
        from steelyard.cli.terminal import observe_terminal

        terminal = observe_terminal()
    patience = make_patience(home, clock)
    path = find_inside(client, patience, name, replica)
    key, body = new_key(), ExecSubmit(command, rank, terminal)
    started = patience.call(lambda: client.fetch(ExecView, "POST", f"{path}/exec", body=body, key=key), "starting the command")
    if terminal is not None:
        return _attend_terminal(client, patience, f"{path}/exec/{started.exec}", clock)
    return _attend(client, patience, f"{path}/exec/{started.exec}")


def _attend_terminal(client: ApiClient, patience: Patience, path: str, clock: Clock) -> int:
    from steelyard.cli.terminal import attend_terminal

    if not attend_terminal(lambda offset: client.dial(f"{path}/terminal", {"offset": offset}), patience, clock):
        say("steelyard: hung up; the command is told so (SIGHUP).")
        return HUNG_UP
    return read_end(lambda wait_s: _poll(client, path, END, wait_s), patience)


def read_end(poll: Callable[[float], LogChunk], patience: Patience) -> int:
    """How a command ended that has just ended, or is about to."""
    while not (chunk := patience.call(lambda: poll(POLL_S), "its exit code")).ended:
        pass
    return code_of(chunk)


def code_of(chunk: LogChunk) -> int:
    if chunk.exit_code is None:
        raise SteelyardError(chunk.detail or "The command ended, and how is not known.")
    return chunk.exit_code


def _poll(client: ApiClient, path: str, cursor: Cursor, wait_s: float) -> LogChunk:
    params = {"stdout_offset": cursor.stdout, "stderr_offset": cursor.stderr, "wait_s": wait_s}
    return client.fetch(LogChunk, "GET", f"{path}/logs", params=params, wait_s=wait_s)


def _attend(client: ApiClient, patience: Patience, path: str) -> int:
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
        chunk = stream(patience, lambda cursor: _poll(client, path, cursor, POLL_S), interrupts)
    finally:
        interrupts.restore()
    return code_of(chunk)
