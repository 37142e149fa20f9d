"""`steelyard port-forward`: what listens inside a job, on a port of this machine's loopback. A connection there is one inside."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import click

from steelyard.cli.output import say
from steelyard.cli.session import home_option, open_client, quote
from steelyard.errors import Refused, SteelyardError, Unreachable
from steelyard.wire.api import JobView
from steelyard.wire.http import ApiClient
from steelyard.wire.streams import StreamLost, carry, reset

LOOPBACK = "127.0.0.1"
PORT_MAX = 65_535
#: how often it is looked whether the job still runs
LOOK_S = 1.0

FORWARD_HELP = """Reach ports inside a running job from this machine.

Connections to 127.0.0.1:LOCAL are carried to REMOTE as the job itself would reach it on its own loopback, in its own network if
it has one. LOCAL is REMOTE unless it is given; 0 takes a free one. It serves many connections at once, until Ctrl-C or the job's
end.

\b
Examples:
  steelyard port-forward j-000012 8888
  steelyard port-forward j-000012 8080:80 0:6006
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


@click.command("port-forward", help=FORWARD_HELP, short_help="Reach ports inside a running job.")
@click.option("--rank", type=click.IntRange(0), help="Inside which rank of a gang [default: the first].")
@home_option
@click.argument("job")
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
def port_forward(rank: int | None, home: Path | None, job: str, ports: tuple[str, ...]) -> None:
    forwards = [parse_forward(text) for text in ports]
    with open_client(home) as client:
        view = client.fetch(JobView, "GET", f"/v1/jobs/{quote(job)}")
        if view.state != "RUNNING":
            raise Refused(f"Job {view.id} is {view.state}: ports are reached while a job runs.", code="not-running")
        sys.exit(asyncio.run(_Forwarder(client, view.id, rank).run(forwards)))


class _Forwarder:
    def __init__(self, client: ApiClient, job: str, rank: int | None) -> None:
        self._client, self._job = client, job
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
                click.echo(f"{LOOPBACK}:{server.sockets[0].getsockname()[1]} -> {self._job}:{forward.remote}")
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
            # a server that is away says nothing about the job
            with contextlib.suppress(Unreachable):
                view = await asyncio.to_thread(self._client.fetch, JobView, "GET", f"/v1/jobs/{quote(self._job)}")
                if view.ended_at is not None:
                    say(f"steelyard: job {self._job} has ended: {view.state}.")
                    return

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
            async with await self._client.dial(f"/v1/jobs/{quote(self._job)}/ports/{port}", self._params) as stream:
                with contextlib.suppress(StreamLost, OSError):
                    await carry(stream, reader, writer)
        except SteelyardError as err:
            say(f"steelyard: {err.public}")
            reset(writer)
