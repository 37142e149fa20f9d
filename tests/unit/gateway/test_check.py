"""What `check_gateway` finds, one case for each finding, and that it finds nothing where there is nothing."""

from __future__ import annotations

import msgspec
import pytest

from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Route
from steelyard.gateway.check import check_gateway

CLUSTER = Cluster("hello.3", "/run/s/fn/hello.3.sock", 8, 100, 5.0)
ROUTE = Route("hello", (("hello.3", 100),), False)


def test_good_configuration_has_no_finding() -> None:
    relay = msgspec.structs.replace(CLUSTER, name="hello.4", requests_per_connection=1)
    assert check_gateway(GatewayDesired()) == []
    assert check_gateway(GatewayDesired((CLUSTER, relay), (ROUTE,), ("sk-AZaz09_-",))) == []
    assert check_gateway(GatewayDesired((msgspec.structs.replace(CLUSTER, socket_path="/" + "x" * 106),))) == []


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("name-unsafe", {"name": "hello"}),
        ("name-unsafe", {"name": "Hello.3"}),
        ("name-unsafe", {"name": "hello.three"}),
        ("name-unsafe", {"name": "../x.3"}),
        ("name-unsafe", {"name": "hello.3\n"}),
        ("socket-path", {"socket_path": "/" + "x" * 107}),
        ("socket-path", {"socket_path": "/" + "ü" * 54}),
        ("socket-path", {"socket_path": "relative"}),
        ("socket-path", {"socket_path": "/a\0b"}),
        ("address", {"socket_path": "", "members": (Neighbour("n1", "node-1", 7000),)}),
        ("socket-path", {"socket_path": ""}),
        ("limit", {"connections_max": 0}),
        ("limit", {"pending_max": 2**32}),
        ("limit", {"requests_per_connection": 0}),
        ("limit", {"idle_timeout_s": 0.0}),
        ("limit", {"idle_timeout_s": float("nan")}),
    ],
)
def test_bad_cluster(code: str, changes: dict[str, object]) -> None:
    cluster = msgspec.structs.replace(CLUSTER, **changes)
    assert [finding.code for finding in check_gateway(GatewayDesired((cluster,)))] == [code]


@pytest.mark.parametrize(
    ("code", "desired"),
    [
        ("cluster-twice", GatewayDesired((CLUSTER, CLUSTER))),
        ("route-twice", GatewayDesired((CLUSTER,), (ROUTE, ROUTE))),
        ("route-nowhere", GatewayDesired((CLUSTER,), (Route("hello", (("hello.4", 100),), True),))),
        ("name-unsafe", GatewayDesired((CLUSTER,), (Route("a/b", (("hello.3", 100),), True),))),
        ("name-unsafe", GatewayDesired((CLUSTER,), (Route("hello\n", (("hello.3", 100),), True),))),
        ("name-unsafe", GatewayDesired((CLUSTER,), (Route("hello", (("hello.3", 100),), True, "x" * 60),))),
        ("share", GatewayDesired((CLUSTER,), (Route("hello", (("hello.3", 99),), True),))),
        ("route-twice", GatewayDesired((CLUSTER,), (Route("a--b", ROUTE.targets, True), Route("b", ROUTE.targets, True, "a")))),
        ("key-unsafe", GatewayDesired(keys=("",))),
        ("key-unsafe", GatewayDesired(keys=("sk one",))),
        ("key-unsafe", GatewayDesired(keys=("sk\r\n",))),
    ],
)
def test_bad_whole(code: str, desired: GatewayDesired) -> None:
    assert [finding.code for finding in check_gateway(desired)] == [code]


def test_finding_does_not_tell_the_key() -> None:
    assert "secret" not in repr(check_gateway(GatewayDesired(keys=("my secret",))))
