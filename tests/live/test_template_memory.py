"""The tree in a real Steelyard: functions share an environment, wakes without a template begin there, and the budget is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from apps import deploy
from steelyard_cluster import Cluster, wait_until

#: msgspec is installed beside Steelyard, so it is an installed package to this code
PACKAGED = """
import msgspec
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = msgspec.json.encode({"name": "NAME"})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture(scope="module")
def pair(shared: Cluster) -> Cluster:
    for name in ("one", "two"):
        deploy(shared, name, PACKAGED.replace("NAME", name), "--idle-timeout", "300ms")
    return shared


def handles(cluster: Cluster, pattern: str) -> list[Path]:
    return sorted((cluster.home / "agent" / "handles").glob(f"{pattern}.json"))


def call(cluster: Cluster, name: str) -> Any:
    answer = cluster.call(f"/{name}/")
    assert answer.status == 200, answer
    return answer.json()


def wake(cluster: Cluster, name: str) -> dict[str, Any]:
    """Wake it and return the row of the ledger."""
    cluster.wait_function(name, "SLEEPING")
    before = len(rows(cluster, name))
    assert call(cluster, name) == {"name": name}
    return wait_until(lambda: found[-1] if len(found := rows(cluster, name)) > before else None, 10, "a row of the ledger")


def rows(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return cluster.api("GET", f"/v1/coldstarts?function={name}&limit=1000").json()


def shown(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return json.loads(cluster.ok("template", name, "--json"))


def test_functions_of_the_same_packages_share_an_environment_and_the_command_shows_it(pair: Cluster) -> None:
    assert wake(pair, "one")["road"] == wake(pair, "two")["road"] == "template"
    assert len(handles(pair, "tmpl-base.*")) == len(handles(pair, "tmpl-environment.*")) == 1
    one, two = shown(pair, "one"), shown(pair, "two")
    assert [each["role"] for each in one] == ["base", "environment", "revision"]
    assert {each["state"] for each in (*one, *two)} == {"ready"}
    assert [each["pid"] for each in one[:2]] == [each["pid"] for each in two[:2]] != one[2]["pid"]
    base, environment, revision = one
    assert (base["children"], environment["children"], revision["children"]) == (1, 2, 0)
    assert [package["name"] for package in environment["packages"]] == ["msgspec"]
    assert revision["top_level"]["msgspec"] >= 1 and revision["forks"] >= 1
    assert 0 < revision["private_bytes"] < environment["private_bytes"] + base["resident_bytes"]
    text = pair.ok("template", "one")
    assert "environment" in text and "ready" in text


def test_what_the_code_imports_in_its_other_files_is_learned(pair: Cluster) -> None:
    learned = pair.home / "agent" / "learned.json"
    wait_until(lambda: learned.exists() and {"one", "two"} <= set(json.loads(learned.read_bytes())), 15, "both to be learned")
    assert json.loads(learned.read_bytes())["one"] == ["msgspec"]


def test_with_no_room_for_templates_wakes_begin_at_the_environment_and_the_budget_is_kept(pair: Cluster) -> None:
    pair.down()
    pair.up("--template-memory", "1KB")
    wait_until(lambda: not handles(pair, "tmpl.*"), 20, "the templates of revisions to be evicted")
    row = wake(pair, "one")
    assert (row["road"], row["reason"]) == ("environment", "template-evicted")
    assert 0 < row["phases"]["import"] < 1000
    assert shown(pair, "one")[-1]["state"] == "template-evicted"
    assert wake(pair, "two")["road"] == "environment"
    pair.down()
    pair.up("--template-memory", "2GB")
    wait_until(lambda: len(handles(pair, "tmpl.*")) == 2, 20, "the templates to be back")
    assert wait_until(lambda: wake(pair, "one")["road"] == "template", 20, "a wake from the template")


def test_a_function_without_a_template_has_none_to_show(pair: Cluster) -> None:
    missing = pair.cli("template", "nothing")
    assert missing.returncode != 0 and b"There is no function nothing" in missing.stderr
