"""What a running Steelyard says of its machine: nodes, devices, wiring and whose each core is."""

from __future__ import annotations

import json
import os

import pytest
from steelyard_cluster import Cluster


def test_the_node_is_listed_with_its_wiring(shared: Cluster) -> None:
    (node,) = json.loads(shared.ok("nodes", "--json"))
    assert (node["cores"], node["threads"]) == (node["cores"], len(os.sched_getaffinity(0)))
    assert node["state"] in ("READY", "DEGRADED")
    shown = json.loads(shared.ok("topo", node["name"], "--json"))
    assert (shown["cores"], shown["threads"]) == (node["cores"], node["threads"])
    devices = json.loads(shared.ok("devices", "--json"))
    assert [row["id"] for row in devices if row["kind"] == "nic"] == [nic["id"] for nic in shown["nics"]]
    assert shared.cli("topo", "no-such-node").returncode == 2


def test_a_card_that_a_job_asked_for_is_in_its_proof(shared: Cluster) -> None:
    cards = [row["id"] for row in json.loads(shared.ok("devices", "--json")) if row["kind"] == "nic" and row["state"] == "free"]
    if not cards:
        pytest.skip("this machine has no network card on PCI")
    job = shared.ok("run", "--detach", "--nics", "1", "--", "sleep", "60").strip()
    shared.wait_job(job, "RUNNING")
    proof = json.loads(shared.ok("proof", job, "--json"))
    assert proof["asked"]["nics"] == proof["got"]["nics"] and len(proof["got"]["nics"]) == 1
    shared.ok("stop", job)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core always stays shared")
def test_the_cores_of_an_exclusive_job_are_shown_as_its_own(shared: Cluster) -> None:
    job = shared.ok("run", "--detach", "--exclusive", "--name", "mine", "--", "sleep", "60").strip()
    seen = shared.wait_job(job, "RUNNING")
    (node,) = json.loads(shared.ok("nodes", "--json"))
    used = json.loads(shared.ok("topo", node["name"], "--json"))["used"]
    assert {key: user for key, user in used.items() if key.startswith("cpu:")} == {
        f"cpu:{cpu}": f"job {job} mine" for cpu in seen["cpus"]
    }
    most = node["cores"] - 1
    refused = shared.cli("place", "--cores", str(most), "--timing", "dedicated", "--json")
    assert refused.returncode == 1 and json.loads(refused.stdout)["refused"] == ["no-cores-left"]
    shared.ok("stop", job)
    planned = json.loads(shared.ok("place", "--cores", str(most), "--timing", "dedicated", "--json"))
    assert len(planned["cores"]) >= most
