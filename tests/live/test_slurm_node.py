"""What `steelyard node` does for Slurm's daemons, with a scontrol that notes what it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from steelyard.cli import node
from steelyard.engine.bringup import slurm_conf
from steelyard.host.health import observe
from steelyard.lifecycle import health as judging
from steelyard.model.health import Finding, Health, Severity
from steelyard.model.health_facts import HealthFacts

LOST = Finding("xid", "0000:0f:00.0", Severity.CRITICAL, "The GPU fell off the bus.", blocks=("0000:0f:00.0",))


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What scontrol was told, a line each. Verdicts are kept in the test's folder."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/told\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(slurm_conf, "VERDICT", str(tmp_path / "run/critical"))
    monkeypatch.setattr(slurm_conf, "FORGIVEN", str(tmp_path / "run/forgiven"))
    monkeypatch.setattr(observe, "observe_health", lambda: HealthFacts())
    return tmp_path / "told"


def look(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(judging, "judge_health", lambda facts: Health(findings))
    done = CliRunner().invoke(node.node, ["health"], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_what_is_critical_drains_once_and_stops_jobs_until_it_is_gone(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(monkeypatch, LOST)
    look(monkeypatch, LOST)
    reason = "xid: The GPU fell off the bus."
    assert told.read_text() == f"update NodeName=n7 State=DRAIN Reason=steelyard: {reason}\n"
    prolog = CliRunner().invoke(node.node, ["prolog"])
    assert prolog.exit_code == 1 and reason in prolog.output
    look(monkeypatch)
    assert CliRunner().invoke(node.node, ["prolog"]).exit_code == 0
    # taken back by hand: the same counts no more, something else does
    look(monkeypatch, LOST)
    Path(slurm_conf.VERDICT).rename(slurm_conf.FORGIVEN)
    told.unlink()
    look(monkeypatch, LOST)
    assert not told.exists() and CliRunner().invoke(node.node, ["prolog"]).exit_code == 0
    look(monkeypatch, Finding("disk", "sda", Severity.CRITICAL, "It is read-only.", blocks=("node",)))
    assert "It is read-only." in told.read_text()


def test_gpus_are_given_back_when_the_jobs_user_holds_none(tmp_path: Path) -> None:
    file = tmp_path / "nvidia0"
    file.touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import sys; open({str(file)!r}); held = open({str(file)!r}); print(); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    assert f"(pid {holder.pid}) still holds" in node.wait_released((str(file),), os.getuid(), 0.01)
    # a daemon of somebody else may hold it for ever
    assert node.wait_released((str(file),), os.getuid() + 1, 60.0) == ""
    holder.stdin.close()
    assert node.wait_released((str(file),), os.getuid(), 60.0) == ""
    holder.wait()
    holder.stdout.close()
