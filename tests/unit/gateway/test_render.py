"""What every rendered configuration must say, however many functions there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.config import Settings
from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Neighbourhood, Route
from steelyard.gateway.check import check_gateway
from steelyard.gateway.render import (
    is_whole,
    render_bootstrap,
    render_clusters,
    render_routes,
    render_static,
    resources_of,
    shape_of,
    version_of,
)

SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 18080, 0, 0, "tester", 0)
FOLDER = Path("/home/gateway")
names = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)


def cluster(name: str, *, connections: int = 8, pending: int = 100, per_connection: int | None = None) -> Cluster:
    return Cluster(name, f"/run/{name}.sock", connections, pending, 2.5, per_connection)


@st.composite
def desires(draw: st.DrawFn) -> GatewayDesired:
    functions = draw(st.lists(names, unique=True, max_size=6))
    return GatewayDesired(
        tuple(cluster(f"{name}.1") for name in functions),
        tuple(Route(name, ((f"{name}.1", 100),), draw(st.booleans())) for name in functions),
        tuple(draw(st.lists(st.from_regex(r"sk-[a-z0-9]{4}", fullmatch=True), unique=True, max_size=3))),
    )


def static(desired: GatewayDesired) -> tuple[dict[str, Any], dict[str, Any]]:
    """The connection manager and its routes."""
    listener = json.loads(render_static(SETTINGS, desired, FOLDER, "x"))["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager, manager["route_config"]


def find(document: object, name: str) -> Iterator[Any]:
    """Every value under that name, however deep."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == name:
                yield value
            yield from find(value, name)
    elif isinstance(document, list):
        for value in document:
            yield from find(value, name)


@given(desires())
def test_no_hidden_deadline_and_no_retry_but_on_connect_failure(desired: GatewayDesired) -> None:
    manager, routes = static(desired)
    assert (manager["stream_idle_timeout"], manager["request_timeout"]) == ("0s", "0s")
    actions = list(find(routes, "route"))
    assert len(actions) == 3 * len(desired.routes)
    for action in actions:
        assert (action["timeout"], action["idle_timeout"]) == ("0s", "0s")
    assert {policy["retry_on"] for policy in find(routes, "retry_policy")} <= {"connect-failure"}
    assert all("per_try_timeout" not in policy for policy in find(routes, "retry_policy"))


@given(desires())
def test_only_public_routes_are_open(desired: GatewayDesired) -> None:
    manager, routes = static(desired)
    public = {route.targets[0][0] for route in desired.routes if route.public}
    for route in [*find(routes, "routes")]:
        for entry in route:
            open_ = "typed_per_filter_config" in entry
            assert open_ == ("direct_response" in entry or entry["route"]["cluster"] in public)
    names = [item["name"] for item in manager["http_filters"]]
    # lies are removed before anything is decided, the key is asked for before anything is passed on
    assert names == ["envoy.filters.http.header_mutation", "envoy.filters.http.rbac", "envoy.filters.http.router"]
    assert manager["http_filters"][1]["typed_config"]["rules"] == {"action": "ALLOW"}  # and no policy: nobody
    assert ("typed_per_filter_config" in routes) == bool(desired.keys)


def test_limits_are_as_the_cluster_says() -> None:
    desired = GatewayDesired((cluster("a.1", connections=24, pending=300, per_connection=1),))
    document = json.loads(render_static(SETTINGS, desired, FOLDER, "x"))
    rendered = document["static_resources"]["clusters"][0]
    limits = rendered["circuit_breakers"]["thresholds"][0]
    assert (limits["max_connections"], limits["max_pending_requests"]) == (24, 300)
    assert limits["max_requests"] == limits["max_retries"] >= 1_000_000
    (common,) = find(rendered, "common_http_protocol_options")
    assert common == {"idle_timeout": "2.500s", "max_requests_per_connection": 1}
    assert rendered["type"] == "STATIC" and [*find(rendered, "path")] == ["/run/a.1.sock"]


def test_bootstrap_shares_no_port_and_hides_its_admin() -> None:
    bootstrap = json.loads(render_bootstrap(SETTINGS, Path("/run/admin.sock"), Path("/home/gateway"), "node"))
    assert bootstrap["admin"] == {"address": {"pipe": {"path": "/run/admin.sock", "mode": 0o600}}}
    listener = bootstrap["static_resources"]["listeners"][0]
    assert listener["enable_reuse_port"] is False
    assert listener["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 18080}
    assert "inclusion_list" in bootstrap["stats_config"]["stats_matcher"]
    paths = [source["path"] for source in find(bootstrap, "path_config_source")]
    assert sorted(paths) == ["/home/gateway/cds.pb", "/home/gateway/rds.pb"]


@given(desires())
def test_version_names_the_content_and_a_cut_file_is_known(desired: GatewayDesired) -> None:
    for file in (render_clusters(desired, FOLDER), render_routes(desired)):
        assert is_whole(file) and len(version_of(file)) == 16
        for end in range(0, len(file), 1 + len(file) // 40):
            assert not is_whole(file[:end])
    assert resources_of(render_clusters(desired, FOLDER)).keys() == {item.name for item in desired.clusters}
    # the order in which somebody lists them is not a change
    assert render_clusters(GatewayDesired(desired.clusters[::-1]), FOLDER) == render_clusters(desired, FOLDER)


def test_any_change_is_another_version() -> None:
    base = GatewayDesired((cluster("a.1"),), (Route("a", (("a.1", 100),), False),), ("sk-1",))
    others = [
        GatewayDesired(base.clusters, (Route("a", (("a.1", 100),), True),), base.keys),
        GatewayDesired(base.clusters, base.routes),
        GatewayDesired(base.clusters, base.routes, ("sk-2",)),
        GatewayDesired(base.clusters, (Route("a", (("a.2", 100),), False),), base.keys),
    ]
    assert len({version_of(render_routes(desired)) for desired in (base, *others)}) == 5
    assert version_of(render_clusters(GatewayDesired((cluster("a.1"),)), FOLDER)) != version_of(
        render_clusters(GatewayDesired((cluster("a.1", pending=101),)), FOLDER)
    )


def test_earlier_clusters_stay_beside_new_ones_and_new_ones_win() -> None:
    before = render_clusters(
        GatewayDesired(
            (
                cluster("a.1"),
                cluster("b.1", pending=1),
            )
        ),
        FOLDER,
    )
    both = render_clusters(GatewayDesired((cluster("b.1", pending=2), cluster("c.1"))), FOLDER, resources_of(before))
    assert both == render_clusters(
        GatewayDesired(
            (
                cluster("a.1"),
                cluster("b.1", pending=2),
                cluster("c.1"),
            )
        ),
        FOLDER,
    )


def test_damaged_file_keeps_nothing() -> None:
    whole = render_clusters(GatewayDesired((cluster("a.1"),)), FOLDER)
    for damaged in (b"", b"{}", whole[:-1], whole + b"\x12\x00", whole.replace(b"/run/", b"/ran/")):
        assert resources_of(damaged) == {}


def test_shape_is_about_kinds_not_about_numbers() -> None:
    one = GatewayDesired((cluster("a.1"),), (Route("a", (("a.1", 100),), False),), ("sk-1",))
    two = GatewayDesired((cluster("b.9", pending=7), cluster("c.1")), (Route("b", (("b.9", 100),), False),), ("sk-1", "sk-2"))
    assert shape_of(one) == shape_of(two)
    others = (
        GatewayDesired(),
        GatewayDesired(one.clusters, one.routes),
        GatewayDesired(one.clusters, (Route("a", (("a.1", 100),), True),), one.keys),
        GatewayDesired((cluster("a.1", per_connection=1),), one.routes, one.keys),
    )
    assert len({shape_of(desired) for desired in (one, *others)}) == 5


def test_shares_are_weights_and_a_tag_has_an_address_of_its_own() -> None:
    routes = (Route("a", (("a.1", 90), ("a.2", 10)), True), Route("a", (("a.2", 100),), True, "next"))
    desired = GatewayDesired((cluster("a.1"), cluster("a.2")), routes)
    _, rendered = static(desired)
    shared = {"clusters": [{"name": "a.1", "weight": 90}, {"name": "a.2", "weight": 10}]}
    actions = [*find(rendered, "route")]
    assert [action["weighted_clusters"] for action in actions if "weighted_clusters" in action] == [shared] * 3
    assert {action["cluster"] for action in actions if "cluster" in action} == {"a.2"}
    hosts = {host["name"]: host["domains"] for host in rendered["virtual_hosts"]}
    assert hosts == {"paths": ["*"], "host-a": ["a.localhost"], "host-next--a": ["next--a.localhost"]}
    (paths,) = find(rendered, "prefix_match_map")
    assert paths["map"].keys() == {"/a", "/a@next"}
    assert is_whole(render_routes(desired))


NODE = Settings(1, "127.0.0.1", 1, "10.0.0.3", 7000, 0, 0, "tester", 0, node_gateway=True)


def test_what_is_elsewhere_is_handed_on_as_it_came() -> None:
    away = (Route("one", (("@n1", 100),), False, away=True), Route("both", (("@n1+n2", 100),), False, away=True))
    n1, n2 = Neighbour("n1", "10.0.0.3", 7000), Neighbour("n2", "10.0.0.4", 7000)
    around = (Neighbourhood((n1,)), Neighbourhood((n1, n2)))
    desired = GatewayDesired((cluster("near.1"),), (Route("near", (("near.1", 100),), False), *away), ("sk-x",), around)
    assert check_gateway(desired) == []
    _, routes = static(desired)
    assert list(find(routes, "prefix_rewrite")) == ["/", "/"] and str(routes).count("x-steelyard-prefix") == 2  # of the near one
    clusters = json.loads(render_static(SETTINGS, desired, FOLDER, "x"))["static_resources"]["clusters"]
    assert [each["name"] for each in clusters] == ["near.1", "@n1", "@n1+n2"]
    assert list(find(clusters[1], "exact")) == ["steelyard://node-gateway/n1"]
    assert "transport_socket" not in clusters[0]
    assert list(find(clusters[2], "exact")) == ["steelyard://node-gateway/n1", "steelyard://node-gateway/n2"]
    assert list(find(clusters[2], "port_value")) == [7000, 7000] and list(find(clusters[2], "selection_method")) == ["FULL_SCAN"]
    shapes = [shape_of(msgspec.structs.replace(desired, neighbourhoods=each)) for each in ((), around[:1], around)]
    assert len({*shapes}) == 3


def test_gateway_of_another_machine_hears_the_homes_alone_and_believes_it() -> None:
    listener = json.loads(render_bootstrap(NODE, Path("/run/a.sock"), FOLDER, "x"))["static_resources"]["listeners"]
    passed_on, chain = listener[0]["filter_chains"]
    for each in (passed_on, chain):
        tls = each["transport_socket"]["typed_config"]
        assert tls["require_client_certificate"] is True and list(find(tls, "exact")) == ["steelyard://gateway/home"]
    assert passed_on["filter_chain_match"] == {"application_protocols": next(find(passed_on, "alpn_protocols"))}
    # whoever connects to a function wakes it: not before it is known who that is
    assert list(find(passed_on, "upstream_connect_mode")) == ["ON_DOWNSTREAM_TLS_HANDSHAKE"]
    assert list(find(passed_on, "idle_timeout")) == ["0s"]
    manager = chain["filters"][0]["typed_config"]
    assert manager["use_remote_address"] is False
    assert [each["prefix"] for each in find(manager["http_filters"], "key_matcher")] == ["x-envoy-"]
    (home,) = json.loads(render_bootstrap(SETTINGS, Path("/run/a.sock"), FOLDER, "x"))["static_resources"]["listeners"]
    assert "transport_socket" not in home["filter_chains"][0]


@pytest.mark.parametrize(
    ("neighbour", "code"),
    [
        (Neighbour("n1", "node-1", 7000), "address"),
        (Neighbour("n1", "10.0.0.3", 0), "address"),
        (Neighbour("n2", "10.0.0.3", 7000), "route-nowhere"),
    ],
)
def test_neighbours_that_could_not_be_reached_are_found(neighbour: Neighbour, code: str) -> None:
    route = Route("far", (("@n1", 100),), True, away=True)
    assert [each.code for each in check_gateway(GatewayDesired((), (route,), (), (Neighbourhood((neighbour,)),)))] == [code]
    # nor does a route here lead to a neighbour
    around = (Neighbourhood((Neighbour("n1", "10.0.0.3", 7000),)),)
    near = GatewayDesired((), (Route("near", (("@n1", 100),), True),), (), around)
    assert [each.code for each in check_gateway(near)] == ["route-nowhere"]


def test_a_revision_elsewhere_is_bounded_for_each_of_its_machines() -> None:
    members = (Neighbour("n1", "10.0.0.3", 7000), Neighbour("n2", "10.0.0.4", 7000))
    one, two = (Cluster(f"{name}.1", "", 8, 100, 2.5, members=members[:count]) for name, count in (("a", 1), ("b", 2)))
    desired = GatewayDesired((one, two), tuple(Route(name, ((f"{name}.1", 100),), True) for name in "ab"))
    assert check_gateway(desired) == []
    single, both = json.loads(render_static(SETTINGS, desired, FOLDER, "x"))["static_resources"]["clusters"]
    for rendered, count in ((single, 1), (both, 2)):
        (limits,) = rendered["circuit_breakers"]["thresholds"]
        assert (limits["max_connections"], limits["max_pending_requests"]) == (8 * count, 100 * count)
        tls = rendered["transport_socket"]["typed_config"]
        assert tls["sni"] == rendered["name"] and tls["common_tls_context"]["alpn_protocols"] != ["h2"]
        assert list(find(tls, "exact")) == [f"steelyard://node-gateway/n{number + 1}" for number in range(count)]
        assert list(find(rendered, "common_http_protocol_options")) == [{"idle_timeout": "2.500s"}]
        assert "tcp_keepalive" in rendered["upstream_connection_options"]
    assert "per_host_thresholds" not in single["circuit_breakers"]
    assert both["circuit_breakers"]["per_host_thresholds"] == [{"max_connections": 8}]
    assert list(find(both, "selection_method")) == ["FULL_SCAN"] and "outlier_detection" in both
    # what a request of it looks like is decided here
    _, routes = static(desired)
    assert list(find(routes, "prefix_rewrite")) == ["/"] * 4
    assert is_whole(render_clusters(desired, FOLDER))
    assert len({shape_of(GatewayDesired(clusters)) for clusters in ((one,), (two,), (one, two), (cluster("a.1"),))}) == 4
