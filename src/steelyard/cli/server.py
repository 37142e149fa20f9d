"""How is the server program put together? Store, loops, API and uvicorn in one process; only here they are built for real.

`run_server` returns when the server was asked to end (SIGTERM, SIGINT), which takes less than two seconds even with long polls
and the agent's connection open. It raises `Refused` (bad address, port in use, no tokens) or `StoreDamaged` before anything is
served, and what ended the loops when they ended by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.config import Paths, Settings, bind_address
from steelyard.errors import Refused

if TYPE_CHECKING:
    from steelyard.api.app import App
    from steelyard.store.sql import SqlStore

#: seconds that requests in flight may still take after SIGTERM
GRACE_S = 1
#: a connection that vanished without a word is noticed after these together
_PING_INTERVAL_S, _PING_TIMEOUT_S = 5.0, 10.0
#: what uvicorn is told of the API and of the door
UVICORN: dict[str, Any] = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "timeout_graceful_shutdown": GRACE_S,
    "timeout_keep_alive": 75,
    "ws_ping_interval": _PING_INTERVAL_S,
    "ws_ping_timeout": _PING_TIMEOUT_S,
    # frames go to the same machine or over a short link: deflating them costs latency and memory
    "ws_per_message_deflate": False,
}


def run_server(paths: Paths, settings: Settings) -> None:
    _check_address(settings)
    admin_token = _read_token(paths.admin_token)
    agent_token = _read_token(paths.agent_token)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen("API", settings.api_host, settings.api_port, "--port"))
        door = None
        if settings.cluster_host is not None:
            host = bind_address(settings.cluster_host)
            door = stack.enter_context(_listen("door for machines of pools", host, settings.cluster_port, "--cluster-address"))
        import uvloop

        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        runner.run(_serve(paths, settings, listening, door, admin_token, agent_token))


async def _serve(
    paths: Paths,
    settings: Settings,
    listening: socket.socket,
    door: socket.socket | None,
    admin_token: str,
    agent_token: str,
) -> None:
    # imported here: `steelyard --help` and the checks above need none of it
    from steelyard.api.app import make_app
    from steelyard.clock import SystemClock
    from steelyard.control.assignment import begin_epoch
    from steelyard.control.certificates import GatewayCertificate
    from steelyard.control.kept_calls import sweep_calls
    from steelyard.engine.slurm.attachment import Attached
    from steelyard.gateway.carrier import GatewayCarrier
    from steelyard.store.authority import Authority
    from steelyard.store.call_files import CallFiles
    from steelyard.store.secret_box import SecretBox
    from steelyard.store.sql import open_store
    from steelyard.wire.landing import remove_parts

    paths.store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.bundles.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.calls.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_parts(paths.bundles)
    store: SqlStore = open_store(paths.store)  # blocks; nothing is served yet
    calls = CallFiles(paths.calls)
    try:
        failures: list[BaseException] = []
        await sweep_calls(store, calls)
        carrier = GatewayCarrier(settings)
        clock, authority = SystemClock(), Authority(paths.authority)
        app = make_app(
            store=store,
            clock=clock,
            settings=settings,
            paths=paths,
            call_files=calls,
            box=SecretBox(paths.secret_key),
            authority=authority,
            carrier=carrier,
            admin_token=admin_token,
            agent_token=agent_token,
            epoch=await begin_epoch(store),
            root=os.geteuid() == 0,
            find_engine=Attached(paths, os.environ, settings.work_uid),
            certify=GatewayCertificate(Authority(paths.authority), paths).renew,
            on_failure=failures.append,
        )
        try:
            async with contextlib.AsyncExitStack() as stack:
                if door is not None:
                    from steelyard.cli.door import Door

                    opened = Door(paths, settings, authority, clock)
                    await stack.enter_async_context(opened.serve(app.peers, door, **UVICORN))
                await _run_uvicorn(app, settings, listening, failures)
        finally:
            carrier.close()
        if failures:
            raise failures[0]
    finally:
        await store.close()


async def _run_uvicorn(app: App, settings: Settings, listening: socket.socket, failures: list[BaseException]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Ends long polls and the agent's connection as soon as the end is asked for, instead of waiting for them."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            # uvicorn's own raises the signal once more at the end, and an orderly end would look like a death
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._end)
            try:
                yield
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)

        def _end(self) -> None:
            self.should_exit = True
            app.stop()

        async def on_tick(self, counter: int) -> bool:
            if failures:
                app.stop()
                return True
            return await super().on_tick(counter)

    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="websockets-sansio",
        lifespan="on",
        **UVICORN,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    await Server(config).serve(sockets=[listening])


def _listen(what: str, host: str, port: int, option: str) -> socket.socket:
    """Bound before anything else is opened, so that a port in use changes nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as err:
        listening.close()
        if err.errno == errno.EADDRINUSE:
            text = f"Port {port} on {host} is in use by another program. Stop that program, or start Steelyard with another "
            raise Refused(f"{text}{option}.", code="port-in-use") from err
        text = f"The {what} can't listen on {host} port {port}: {os.strerror(err.errno or 0)}."
        raise Refused(text, code="bad-address") from err
    listening.setblocking(False)
    return listening


def _check_address(settings: Settings) -> None:
    if settings.tls_cert and settings.tls_key:
        return
    try:
        loopback = settings.api_host == "localhost" or ipaddress.ip_address(settings.api_host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        text = (
            f"The API may not listen on {settings.api_host} without TLS: tokens would cross the network in clear text. "
            "Give a certificate and its key (--tls-cert, --tls-key), or listen on 127.0.0.1."
        )
        raise Refused(text, code="tls-required")


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise Refused(f"The token file {path} can't be read ({err}). `steelyard up` makes it.", code="no-token") from err
    if len(token) < 16:
        raise Refused(
            f"The token in {path} is too short to be safe. Remove the file; `steelyard up` makes a new one.", code="no-token"
        )
    return token
