"""`steelyard port-forward`: what listens inside a job or function, on a port of this machine's loopback. Each connection there is
one inside."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import click

from steelyard.cli.inside import check_which, find_inside, inside_options, names_job
from steelyard.cli.output import say
from steelyard.cli.patience import Patience, make_patience
from steelyard.cli.session import home_option, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import NotFound, Refused, SteelyardError, Unreachable
from steelyard.wire.api import JobView
from steelyard.wire.function_api import FunctionView
from steelyard.wire.http import ApiClient
from steelyard.wire.streams import StreamLost, carry, reset

LOOPBACK = "127.0.0.1"
PORT_MAX = 65_535
#: how often it is looked whether it is still there
LOOK_S = 1.0

FORWARD_HELP = """Reach ports inside a running job or a function from this machine.

Connections to 127.0.0.1:LOCAL are carried to REMOTE as the job itself would reach it on its own loopback, in its own network if
it has one. LOCAL is REMOTE unless it is given; 0 takes a free one. It serves many connections at once, until Ctrl-C or the job's
end. Of a function each connection is to the newest replica, which is woken for it, and stays awake as long as it is open.

\b
Examples:
  steelyard port-forward j-000012 8888
  steelyard port-forward j-000012 8080:80 0:6006
  steelyard port-forward hello 5678
"""


class Forward(NamedTuple):
    local: int
    remote: int


def parse_forward(text: str) -> Forward:
    """ "8080:80", "80", "0:80". Raises Refused."""
    local, colon, remote = text.rpartition(":")
    ports = [int(part) if part.isascii() and part.isdigit() and len(part) <= 5 else -1 for part in (local or remote, remote)]
    if (colon and not local) or not 0 <= ports[0] <= PORT_MAX or not 1 <= ports[1] <= PORT_MAX:
        raise Refused(f"{text[:80]!r} names no port. Write REMOTE or LOCAL:REMOTE, for example 8080:80.", code="bad-port")
    return Forward(*ports)


@click.command("port-forward", help=FORWARD_HELP, short_help="Reach ports inside a running job or a function.")
@inside_options
@home_option
@click.argument("name", metavar="JOB|FUNCTION")
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
def port_forward(rank: int | None, replica: str, home: Path | None, name: str, ports: tuple[str, ...]) -> None:
    forwards = [parse_forward(text) for text in ports]
    check_which(name, rank, replica)
    with open_client(home) as client:
        if names_job(name):
            view = client.fetch(JobView, "GET", f"/v1/jobs/{quote(name)}")
            if view.state != "RUNNING":
                raise Refused(f"Job {view.id} is {view.state}: ports are reached while a job runs.", code="not-running")
            name = view.id
        else:
            client.fetch(FunctionView, "GET", f"/v1/functions/{quote(name)}")
        patience = make_patience(home, SystemClock())
        sys.exit(asyncio.run(_Forwarder(client, patience, name, rank, replica).run(forwards)))


class _Forwarder:
    def __init__(self, client: ApiClient, patience: Patience, name: str, rank: int | None, replica: str) -> None:
        self._client, self._patience, self._name, self._replica = client, patience, name, replica
        self._params = {} if rank is None else {"rank": rank}
        self._connections: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self, forwards: list[Forward]) -> int:
        """Until a signal comes or the job has ended. Raises Refused when a port can't be had; nothing is forwarded then."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._over.set)
        servers: list[asyncio.Server] = []
        try:
            for forward in forwards:
                servers.append(await self._listen(forward))
            for forward, server in zip(forwards, servers, strict=True):
                click.echo(f"{LOOPBACK}:{server.sockets[0].getsockname()[1]} -> {self._name}:{forward.remote}")
            sys.stdout.flush()
            await self._wait()
        finally:
            for server in servers:
                server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
        return 0

    async def _wait(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._over.wait()
                return
            # a server that is away says nothing about it
            with contextlib.suppress(Unreachable):
                if (ended := await asyncio.to_thread(self._explain_end)) is not None:
                    say(ended)
                    return

    def _explain_end(self) -> str | None:
        """None: it is still there."""
        if names_job(self._name):
            view = self._client.fetch(JobView, "GET", f"/v1/jobs/{quote(self._name)}")
            return None if view.ended_at is None else f"steelyard: job {self._name} has ended: {view.state}."
        try:
            self._client.fetch(FunctionView, "GET", f"/v1/functions/{quote(self._name)}")
        except NotFound:
            return f"steelyard: the function {self._name} was deleted."
        return None

    async def _listen(self, forward: Forward) -> asyncio.Server:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._carry(reader, writer, forward.remote))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        try:
            return await asyncio.start_server(connected, LOOPBACK, forward.local)
        except OSError as err:
            text = f"Port {forward.local} can't be listened on here: {err.strerror}. Name another one, or 0 for a free one."
            raise Refused(text, code="port-in-use") from err

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        """One connection; when it breaks on either side, it is reset on the other."""
        try:
            path = await asyncio.to_thread(find_inside, self._client, self._patience, self._name, self._replica)
            async with await self._client.dial(f"{path}/ports/{port}", self._params) as stream:
                with contextlib.suppress(StreamLost, OSError):
                    await carry(stream, reader, writer)
        except SteelyardError as err:
            say(f"steelyard: {err.public}")
            reset(writer)
