"""What must the gateway route where? The desired state, as the agent hands it over; `render.py` turns it into Envoy's files
(pure), `check.py` finds what is wrong with it (pure), `envoy.py` moves files and reads Envoy's answers (edge)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec


class Neighbour(msgspec.Struct, frozen=True):
    """The gateway of another machine. It routes what comes to it by function, as this one does."""

    machine: str
    #: an IP address, and the port
    host: str
    port: int


class Cluster(msgspec.Struct, frozen=True):
    """One revision behind its listening socket. STATIC: nothing changes here when replicas come and go."""

    #: of `name_revision`
    name: str
    #: "" where it is on other machines
    socket_path: str
    #: replicas_max x concurrency, of each machine
    connections_max: int
    #: queue_max, of each machine; more is answered 429
    pending_max: int
    #: Envoy closes idle upstream connections after this: min(5 s, the function's idle_timeout / 2)
    idle_timeout_s: float
    #: 1 for programs behind a relay (their connections can't be asked to close), None for our runner
    requests_per_connection: int | None = None
    #: the other machines that it is on, if it is on others: each passes connections on to its socket there
    members: tuple[Neighbour, ...] = ()


def name_revision(function: str, revision: int) -> str:
    """Of its cluster, on whichever machine: gateways name it so to each other."""
    return f"{function}.{revision}"


class Neighbourhood(msgspec.Struct, frozen=True):
    """One or more of them, that are asked in turns: who has the fewest requests of ours. All functions that are on just
    these, and whose requests find their revision there, are reached over the same connections."""

    members: tuple[Neighbour, ...]

    @property
    def name(self) -> str:
        """Of its cluster; no function's has such a one."""
        return name_neighbourhood(each.machine for each in self.members)


def name_neighbourhood(machines: Iterable[str]) -> str:
    return "@" + "+".join(machines)


class Route(msgspec.Struct, frozen=True):
    """Traffic of one function: by path prefix `/<function>/` and by host `<function>.localhost`; or that of one of its tags, by
    `/<function>@<tag>/` and `<tag>--<function>.localhost`."""

    function: str
    #: (cluster, percent), which sum to 100; of one that is away, none: it is answered 503
    targets: tuple[tuple[str, int], ...]
    public: bool
    tag: str = ""
    #: its target is a neighbourhood, which is handed each request as it came
    away: bool = False

    @property
    def segment(self) -> str:
        """The first segment of its paths."""
        return f"{self.function}@{self.tag}" if self.tag else self.function

    @property
    def label(self) -> str:
        """The first label of its host."""
        return f"{self.tag}--{self.function}" if self.tag else self.function


class GatewayDesired(msgspec.Struct, frozen=True):
    clusters: tuple[Cluster, ...] = ()
    routes: tuple[Route, ...] = ()
    #: secrets accepted as `Authorization: Bearer <secret>` by private functions
    keys: tuple[str, ...] = ()
    neighbourhoods: tuple[Neighbourhood, ...] = ()


class Gateway(Protocol):
    async def apply(self, desired: GatewayDesired) -> None:
        """Bring Envoy to `desired` in the order that loses nothing: CDS with old and new clusters, wait for update_success, RDS,
        wait, CDS without the old. Does nothing when the files already say so. While Envoy is down the files are moved
        in all the same and it reads them when it starts. Raises EdgeFailed (code gateway-rejected) after moving the
        previous files back when Envoy rejects."""
        ...

    async def pending(self) -> dict[str, int]:
        """Requests waiting in Envoy, by cluster name; empty when Envoy does not answer."""
        ...
