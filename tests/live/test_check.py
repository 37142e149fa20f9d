"""`steelyard check` on this machine, and a whole Steelyard whose agent holds, reports and puts back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


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
