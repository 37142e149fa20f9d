"""`steelyard check` on this machine, and a whole Steelyard whose agent holds, reports and puts back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until


def test_check_runs_here_without_any_steelyard_and_says_whether_this_is_bare_metal() -> None:
    environ = {**os.environ, "STEELYARD_HOME": "/nonexistent"}
    command = [sys.executable, "-P", "-m", "steelyard", "check", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=60)
    assert done.returncode in (0, 1, 2), done.stderr
    document = json.loads(done.stdout)
    checks = {each["check"]: each for each in document["findings"]}
    assert {"kernel", "cgroups", "clocksource", "clock", "numa", "hugepages", "iommu", "swap", "packages"} <= set(checks)
    verdict = checks["bare-metal"]
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flagged = any(" hypervisor" in line for line in cpuinfo.splitlines() if line.startswith("flags"))
    if flagged:
        assert verdict["sentence"].startswith("A guest") and "hypervisor bit" in verdict["sentence"]
    assert {each["severity"] for each in document["findings"]} <= {"PASS", "INFO", "UNKNOWN", "WARNING", "CRITICAL"}
    unread = [each for each in document["findings"] if each["severity"] == "UNKNOWN"]
    assert all(each["sentence"] for each in unread)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and mounts of its own")
def test_check_names_specifications_of_devices_that_are_not_used() -> None:
    files = "mkdir -m 755 /run/cdi; echo '{' > /run/cdi/bad.json; echo 'a: [' > /run/cdi/bad.yaml"
    good = "printf 'cdiVersion: 0.5.0\\nkind: a.com/gpu\\ndevices:\\n- name: x\\n' > /run/cdi/good.yaml"
    check = f"mount -t tmpfs none /run; {files}; {good}; exec '{sys.executable}' -P -m steelyard check --json"
    environ = {**os.environ, "STEELYARD_HOME": "/nonexistent"}
    done = subprocess.run(["unshare", "-m", "sh", "-c", check], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode in (1, 2), done.stderr
    said = [each["sentence"] for each in json.loads(done.stdout)["findings"] if each["check"] == "containers"]
    assert len(said) == 2, said
    assert any("/var/run/cdi/bad.json is not used" in each for each in said)
    assert any("/var/run/cdi/bad.yaml is not used: this is no YAML at line" in each for each in said)


def test_a_machine_out_of_use_takes_no_work_until_an_active_check_has_passed(cluster: Cluster) -> None:
    # A record that can't be trusted is the one fault that can be made on every machine: nothing is used until a check has passed.
    record = cluster.home / "agent/health.json"
    wait_until(lambda: record.exists() or None, 30, "the agent's first look")
    # Stopped first: the agent writes the whole file whenever something changes.
    agent = cluster.kill("agent", signal.SIGSTOP)
    record.write_bytes(b"{")
    os.kill(agent, signal.SIGKILL)
    cluster.wait_replaced("agent", agent)
    wait_until(lambda: read_health(cluster).get("state") == "DRAINED" or None, 30, "the machine to be drained")
    wait_until(lambda: cluster.api("GET", "/v1/machine").json().get("blocked") == ["node"] or None, 30, "the server to know")
    spec = {"name": "true", "argv": ["true"], "cwd": "/", "env": {"PATH": os.environ["PATH"]}, "resources": {"cpus": 0.01}}
    job = cluster.api("POST", "/v1/jobs", {"spec": spec}).json()["id"]
    waiting = wait_until(lambda: seen if (seen := cluster.job(job))["reason"] else None, 30, "the job to say why it waits")
    assert (waiting["state"], waiting["reason"]) == ("QUEUED", "node-drained")
    kept = json.loads(record.read_bytes())
    assert [hold["state"] for hold in kept["node"]["holds"]] == ["DRAINED"]

    shown = cluster.cli("check", "--json")
    held = [each for each in json.loads(shown.stdout)["findings"] if each["check"] == "held"]
    assert shown.returncode == 2 and [each["subject"] for each in held] == ["node"]

    refused = cluster.cli("check", "--readmit", "0000:ff:00.0")
    assert refused.returncode == 2 and b"nothing holds it" in refused.stderr
    passed = cluster.cli("check", "--readmit", "node")
    assert passed.returncode == 0 and b"passed" in passed.stdout, (passed.stdout, passed.stderr)
    assert read_health(cluster)["state"] == "READY"
    cluster.wait_job(job, "SUCCEEDED")
    assert json.loads(record.read_bytes())["node"]["holds"] == []


def read_health(cluster: Cluster) -> dict[str, Any]:
    """{} while the agent is not connected yet."""
    answer = cluster.api("GET", "/v1/machine/health")
    return answer.json() if answer.status == 200 else {}
