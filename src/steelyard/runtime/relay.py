"""How does a program that knows nothing of Steelyard become a replica? This relay stands before it: accepts from the
function's socket at most `concurrency` connections, copies bytes both ways, keeps the page, and retires.

Run by our own interpreter as the replica's first process, `python -m steelyard.runtime.relay`, with STEELYARD_RELAY (JSON,
see `relay_command`). The user's program is its child and listens either on a private Unix socket (fd 3, LISTEN_FDS=1) or on
127.0.0.1:PORT. The gateway sends one request per connection to these, so a connection is a request. Ends with the program's
exit code, or 0 after retiring. Never reads a request beyond the first header it looks for, and never opens a port itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path

import msgspec

from steelyard.clock import Clock, SystemClock
from steelyard.runtime.ask import Address, accepts, ask, port_accepts, program_accepts
from steelyard.runtime.metrics import PAGE_MAX, Meter
from steelyard.runtime.program import Program, choose_port, name_port
from steelyard.runtime.relay_container import become, bind_as, enter_network
from steelyard.runtime.runner import page as pages
from steelyard.runtime.runner.accept import SHORTAGE_S, accept_living
from steelyard.runtime.runner.gate import microseconds
from steelyard.runtime.runner.page import Page
from steelyard.runtime.start_watch import StartWatch

#: between two questions of readiness, or looks at its log, and how long an answer to one may take
READINESS_S, READINESS_TIMEOUT_S = 0.05, 5.0
#: between two looks at the program's metrics, while it has requests, and how long one may take
METRICS_S, METRICS_TIMEOUT_S = 0.25, 1.0
#: after SIGTERM the program has this long
GRACE_S = 10.0
HEAD_MAX = 65536


class Contained(msgspec.Struct, frozen=True):
    """The program runs in a container: the relay begins as root, and goes on as this user."""

    #: what the program is called in messages
    name: str
    uid: int
    gid: int
    own_network: bool = False


class RelayConfig(msgspec.Struct, frozen=True):
    argv: tuple[str, ...]
    concurrency: int
    #: the program opens this port on 127.0.0.1 itself, 0: a free one; None: it gets a socket as fd 3
    port: int | None = None
    #: it serves once a GET of this path is answered 2xx; empty: once it accepts
    readiness: str = ""
    #: numbers of the program's page /metrics that the agent wants to know
    metrics: tuple[str, ...] = ()
    #: where the private socket may be made; None: a temporary folder
    folder: str | None = None
    #: of a program in a container, whose runtime `argv` starts
    container: Contained | None = None
    listen_fd: int = 3
    page_fd: int = 4

    @property
    def name(self) -> str:
        """Of the program, for people."""
        return self.container.name if self.container else self.argv[0]


def relay_command(
    python: str,
    argv: Sequence[str],
    *,
    port: int | None,
    concurrency: int,
    readiness: str = "",
    metrics: Sequence[str] = (),
    folder: str | None = None,
    container: Contained | None = None,
    listen_fd: int = 3,
    page_fd: int = 4,
) -> tuple[list[str], dict[str, str]]:
    """(argv, env) of the relay under our interpreter `python`, isolated (-I) from PYTHON* variables meant for the program."""
    config = RelayConfig(tuple(argv), concurrency, port, readiness, tuple(metrics), folder, container, listen_fd, page_fd)
    return [python, "-I", "-m", "steelyard.runtime.relay"], {"STEELYARD_RELAY": msgspec.json.encode(config).decode()}


class Pipe(asyncio.Protocol):
    """One end of a relayed connection; what it reads, the other end writes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.other: Pipe
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.other.lost:  # the program ended while its client was being joined
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.connection.saw(self, data)
        if self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """A client that has said everything may still wait for its answer (half-close); a program that has is done."""
        if self is self.connection.program:
            return False  # closes this end, and by connection_lost the other one
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        other = self.other
        if other.transport is not None and not other.lost:
            other.transport.close()  # after what is buffered has been written
        self.connection.ended()

    def pause_writing(self) -> None:
        if self.other.transport is not None and not self.other.lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.lost:
            self.other.transport.resume_reading()


class Connection:
    """Client and program, joined."""

    def __init__(self, relay: Relay, first: bool) -> None:
        self._relay = relay
        self._first = first
        self._answered = False
        self.began_ns = relay.now_ns()
        self._head = b""
        self.client = Pipe(self)
        self.program = Pipe(self)
        self.client.other = self.program
        self.program.other = self.client
        self._ended = False

    def saw(self, end: Pipe, data: bytes) -> None:
        """An answer's first bytes tell whether it failed. The first connection's request tells its arrival, and its answer the
        end of the wake."""
        if end is self.program and not self._answered:
            self._answered = True
            # a connection is a request here, and nobody writes a status line in pieces
            self._relay.page.errors += data[:5] == b"HTTP/" and data[9:10] == b"5"
        if not self._first:
            return
        page = self._relay.page
        if end is self.program:
            page.first_byte_ns = self._relay.now_ns()
            self._first = False
            self._head = b""
        elif not page.arrival_us and len(self._head) < HEAD_MAX:
            self._head += data
            page.arrival_us = find_arrival(self._head)

    def ended(self) -> None:
        """Both ends are lost, or one is and the other never came."""
        if not self._ended and self.client.lost and (self.program.lost or self.program.transport is None):
            self._ended = True
            self._relay.connection_ended(self)


def find_arrival(head: bytes) -> int:
    """Microseconds from the header x-steelyard-start of a request's head, 0 when it is not there (yet)."""
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"x-steelyard-start" and (b"\r\n\r\n" in head):
            return microseconds(value.strip())
    return 0


class Relay:
    """Accepts, joins, counts, retires. `address` is what the program listens on."""

    def __init__(self, config: RelayConfig, page: Page, program: Program, listener: socket.socket, clock: Clock) -> None:
        self.page = page
        self._config = config
        self._program = program
        self._listener = listener
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._joining: set[asyncio.Task[None]] = set()
        self._watching = False
        self._retiring = False
        self._serving = False
        self.address: Address = ""
        self.ended: asyncio.Future[int] = self._loop.create_future()

    def now_ns(self) -> int:
        return self._clock.mono_ns()

    def watch_program(self) -> None:
        self._loop.add_reader(self._program.pidfd, self._program_ended)

    async def until_ready(self, accepting: Awaitable[None]) -> None:
        """The program accepts, and answers readiness where that is asked for."""
        await accepting
        target = self._config.readiness
        while target:
            answer = await ask(self.address, target, timeout_s=READINESS_TIMEOUT_S)
            if answer is not None and answer.ok:
                return
            self.page.say(f"GET {target} was answered with {answer.status}" if answer else f"GET {target} was not answered")
            await asyncio.sleep(READINESS_S)

    async def watch_start(self, watch: StartWatch) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(READINESS_S)
            watch.look(self.now_ns())

    async def read_metrics(self) -> None:
        """Until the relay ends. Without requests nobody wants to know."""
        meter = Meter(self._config.metrics)
        while True:
            await asyncio.sleep(METRICS_S)
            if not self._open:
                continue
            answer = await ask(self.address, "/metrics", timeout_s=METRICS_TIMEOUT_S, body_max=PAGE_MAX)
            if answer is not None and answer.ok and not answer.too_large:
                self.page.write_metrics(self.now_ns(), meter.read(self.now_ns(), answer.body))

    def serve(self) -> None:
        page = self.page
        page.entered_ns = page.serving_ns = self.now_ns()
        page.state = pages.SERVING
        self._serving = True
        self._take()

    def retire(self) -> None:
        """Take nothing new; when the last connection has ended, ask the program to end."""
        if self._retiring:
            return
        self._retiring = True
        self.page.state = pages.RETIRING
        self._watch(False)
        self._listener.close()
        if not self._open:
            self._end_program()

    def connection_ended(self, connection: Connection) -> None:
        self._open.discard(connection)
        page = self.page
        page.connections = page.busy = len(self._open)
        page.finished += 1
        page.last_active_ns = self.now_ns()
        page.service_ns += page.last_active_ns - connection.began_ns
        if not self._retiring:
            self._take()
        elif not self._open:
            self._end_program()

    def _end_program(self) -> None:
        self._program.signal(signal.SIGTERM)
        self._loop.call_later(GRACE_S, self._program.signal, signal.SIGKILL)

    def _program_ended(self) -> None:
        self._loop.remove_reader(self._program.pidfd)
        code = self._program.reap()
        if self._retiring:
            code = 0
        elif not self._serving:
            self.page.fail(f"{self._config.name} ended with exit code {code} before it accepted connections")
            code = code or 1
        if not self.ended.done():
            self.ended.set_result(code)

    def _watch(self, on: bool) -> None:
        if on is not self._watching:
            self._watching = on
            if on:
                self._loop.add_reader(self._listener.fileno(), self._take)
            else:
                self._loop.remove_reader(self._listener.fileno())

    def _take(self) -> None:
        while not self._retiring and len(self._open) < self._config.concurrency:
            if not self._accept():
                break
        self._watch(not self._retiring and len(self._open) < self._config.concurrency)

    def _accept(self) -> bool:
        try:
            found, client = accept_living(self._listener)
        except OSError:
            self._watch(False)
            self._loop.call_later(SHORTAGE_S, self._take)
            return False
        if client is None:
            return found
        page = self.page
        connection = Connection(self, first=page.accepted == 0)
        self._open.add(connection)
        page.connections = page.busy = len(self._open)
        page.accepted += 1
        page.last_active_ns = self.now_ns()
        if page.accepted == 1:
            page.accepted_ns = page.last_active_ns
        joining = self._loop.create_task(self._join(connection, client))
        self._joining.add(joining)
        joining.add_done_callback(self._joining.discard)
        return True

    async def _join(self, connection: Connection, client: socket.socket) -> None:
        """The program first, so that no byte of the client is read before there is somewhere to put it."""
        try:
            if isinstance(self.address, str):
                await self._loop.create_unix_connection(lambda: connection.program, self.address)
            else:
                await self._loop.create_connection(lambda: connection.program, *self.address)
        except OSError:
            client.close()  # the gateway answers 503; the program is ending or overrun
            connection.client.lost = True
            connection.ended()
            return
        await self._loop.connect_accepted_socket(lambda: connection.client, client)


async def run(
    config: RelayConfig, page: Page, program: Program, private: socket.socket | None, clock: Clock, watch: StartWatch
) -> int:
    listener = socket.socket(fileno=config.listen_fd)
    listener.setblocking(False)
    relay = Relay(config, page, program, listener, clock)
    loop = asyncio.get_running_loop()
    relay.watch_program()
    loop.add_signal_handler(signal.SIGTERM, relay.retire)
    if private is not None:
        relay.address = private.getsockname()
        accepting = program_accepts(private, private.getsockname())
    else:
        assert config.port is not None
        relay.address = ("127.0.0.1", config.port)
        accepting = port_accepts(config.port)
    starting = loop.create_task(relay.until_ready(accepting))
    watching = loop.create_task(relay.watch_start(watch))
    await asyncio.wait([starting, relay.ended], return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    if phases := watch.end(page.imported_ns, clock.mono_ns()):
        page.write_phases({f"enter.{name}": ms for name, ms in phases.items()})
    if relay.ended.done():
        starting.cancel()
    elif relay.page.state != pages.RETIRING:
        starting.result()
        relay.serve()
        if config.metrics:
            reading = loop.create_task(relay.read_metrics())
            relay.ended.add_done_callback(lambda _: reading.cancel())
    return await relay.ended


def main() -> int:
    clock = SystemClock()
    env = dict(os.environ)
    config = msgspec.json.decode(env.pop("STEELYARD_RELAY"), type=RelayConfig)
    page = Page.from_fd(config.page_fd)
    os.set_inheritable(config.page_fd, False)
    os.set_inheritable(config.listen_fd, False)
    page.alive_ns = clock.mono_ns()
    folder: str | None = None
    private: socket.socket | None = None
    container = config.container
    try:
        if container is not None and container.own_network:
            enter_network()
        if config.port is not None:
            port = config.port or choose_port(os.getpid())
            if accepts(port):
                page.fail(f"port {port} is taken by another program on this machine")
                return 1
            config = msgspec.structs.replace(config, port=port, argv=tuple(name_port(config.argv, port)))
            env["PORT"] = str(port)
        else:
            private = socket.socket(socket.AF_UNIX)
            if container is not None and config.folder is not None:
                bind_as(private, f"{config.folder}/socket", (container.uid, container.gid))
            else:
                folder = tempfile.mkdtemp(prefix="steelyard-", dir=config.folder)
                private.bind(str(Path(folder) / "socket"))
            private.listen(4096)
        page.joined_ns = clock.mono_ns()
        watch = StartWatch()
        page.state = pages.JOINED
        program = Program(config.argv, env, private, contained=container is not None)
        if container is not None:
            become((container.uid, container.gid))
        page.imported_ns = clock.mono_ns()
        page.state = pages.IMPORTED
        return asyncio.run(run(config, page, program, private, clock, watch))
    except OSError as err:
        page.fail(f"the relay could not start {config.name}: {err}")
        return 1
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
