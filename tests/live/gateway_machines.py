"""The Envoys of a home and of a machine in a network of its own, which know each other by certificates. Shared by the live tests
of the roads between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from gateway_world import Answer, Backend, Request, World
from network import Elsewhere

from steelyard.clock import SystemClock
from steelyard.config import Paths, Settings
from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Neighbourhood, Route
from steelyard.gateway.envoy import Envoy
from steelyard.gateway.mutual_tls import write_certificate
from steelyard.model.certificate import Certificate, Role
from steelyard.store.authority import Authority

PORT = 7443
HANDED, LED = "handed over", "led"
both_roads = pytest.mark.parametrize("road", [HANDED, LED])


def make_endless() -> tuple[Answer, asyncio.Event]:
    """An answer that has no end, and what is set once nobody hears it any more."""
    left = asyncio.Event()

    async def stream(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1\r\na\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.set()
            raise

    return stream, left


class NodeWorld(World):
    """Envoy of another machine, with no door but the home's gateway's."""

    def __init__(self, folder: Path, there: Elsewhere, port: int = PORT) -> None:
        folder.mkdir()
        self.host, self.argv, self.port = there.address, tuple(there.command()), port
        self.paths = Paths(home=folder / "h", run=folder / "r")
        self.settings = Settings(1, "127.0.0.1", 0, there.address, port, 0, 0, "tester", 0, node_gateway=True)
        self.envoy = Envoy(self.paths, self.settings, SystemClock())
        self.folder = folder
        self.process = None


@dataclass
class Machines:
    authority: Authority
    home: World
    node: NodeWorld
    neighbour: Neighbour

    @property
    def around(self) -> Neighbourhood:
        return Neighbourhood((self.neighbour,))

    def issue(self, role: Role, name: str) -> Certificate:
        return self.authority.issue(role, name, (), time.time_ns() // 1000, 3600.0)

    def give(self, world: World, role: Role, name: str) -> Certificate:
        certificate = self.issue(role, name)
        write_certificate(world.paths, certificate, self.authority.certificate_pem(time.time_ns() // 1000))
        return certificate

    async def route(self, *clusters: Cluster, public: bool = True, keys: tuple[str, ...] = (), road: str = HANDED) -> None:
        """Every function is on the node alone."""
        names = [cluster.name.partition(".")[0] for cluster in clusters]
        here = tuple(Route(name, ((cluster.name, 100),), public) for name, cluster in zip(names, clusters, strict=True))
        await self.node.envoy.apply(GatewayDesired(clusters, here))
        await self.home.envoy.apply(
            lead(clusters, here, keys, self.around) if road == LED else hand_over(here, keys, self.around)
        )


def hand_over(here: tuple[Route, ...], keys: tuple[str, ...], around: Neighbourhood) -> GatewayDesired:
    away = tuple(Route(each.function, ((around.name, 100),), each.public, each.tag, away=True) for each in here)
    return GatewayDesired((), away, keys, (around,))


def lead(clusters: tuple[Cluster, ...], here: tuple[Route, ...], keys: tuple[str, ...], around: Neighbourhood) -> GatewayDesired:
    led = tuple(msgspec.structs.replace(each, socket_path="", members=around.members) for each in clusters)
    return GatewayDesired(led, here, keys)


@asynccontextmanager
async def machines(
    folder: Path, there: Elsewhere, *backends: tuple[str, Answer]
) -> AsyncIterator[tuple[Machines, list[Backend]]]:
    folder.mkdir(exist_ok=True)
    home, node = World(folder), NodeWorld(folder / "n", there)
    made = Machines(Authority(home.paths.authority), home, node, Neighbour("n1", there.address, PORT))
    servers = [node.backend(name, answer) for name, answer in backends]
    try:
        made.give(home, Role.GATEWAY, "home")
        made.give(node, Role.NODE_GATEWAY, "n1")
        for server in servers:
            await server.start()
        await asyncio.gather(home.start(), node.start())
        yield made, servers
    finally:
        await asyncio.gather(home.kill(), node.kill())
        for server in servers:
            await server.stop()
