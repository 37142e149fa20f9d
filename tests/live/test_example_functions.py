"""The examples of functions do what they say."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from steelyard_cluster import Answer, Cluster

EXAMPLES = Path(__file__).parents[2] / "examples" / "functions"


def deploy(cluster: Cluster, name: str) -> None:
    cluster.ok("deploy", str(EXAMPLES / name), "--python", sys.executable, "--public")


def post(cluster: Cluster, path: str, **arguments: object) -> Answer:
    headers = {"content-type": "application/json"}
    return cluster.call(path, method="POST", body=json.dumps(arguments).encode(), headers=headers)


def test_hello_is_run_by_its_program_and_by_its_function(shared: Cluster) -> None:
    assert "hello, Ada" in shared.ok("run", str(EXAMPLES / "hello.py"), "--name", "Ada")
    assert "hello, Bob" in shared.ok("run", f"{EXAMPLES / 'hello.py'}:greet", "Bob")


def test_the_embedder_answers_with_unit_vectors(shared: Cluster) -> None:
    deploy(shared, "embed.py")
    one, same, other = (post(shared, "/embed-embedder/", text=text).json() for text in ("steel yard", "Steel Yard", "tea"))
    assert one == same != other and math.isclose(math.hypot(*one), 1.0)


def test_the_shop_reads_orders_and_refuses_by_field(shared: Cluster) -> None:
    deploy(shared, "shop.py")
    assert post(shared, "/shop-price/", item="tea", count=2).json() == {"total": 6.0}
    wrong = post(shared, "/shop-price/", item="milk")
    assert wrong.status == 422 and wrong.json()["field"] == "item" and '"tea", "coffee"' in wrong.json()["detail"]
    assert post(shared, "/shop-price/", item="tea", count=1000).status == 409


def test_primes_are_counted_in_parts(shared: Cluster) -> None:
    assert "1229 primes below 10000" in shared.ok("run", str(EXAMPLES / "primes.py"), "--below", "10000")


def test_the_clock_has_two_schedules(shared: Cluster) -> None:
    deploy(shared, "clock.py")
    listed = shared.ok("schedules")
    assert "clock-sweep" in listed and "clock-report" in listed
