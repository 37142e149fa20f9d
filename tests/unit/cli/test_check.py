"""`steelyard check`: words, order, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steelyard.cli.check import check, render_findings
from steelyard.model.health import Finding, Severity

PASSING = "[1.0] usb 1-1: new device\n"
WARNING = "NVRM: Xid (PCI:0000:1a:00): 94, pid=1\n"
CRITICAL = "NVRM: Xid (PCI:0000:1a:00): 79, pid=1\n"


def run(tmp_path: Path, text: str, *options: str) -> Result:
    file = tmp_path / "dmesg"
    file.write_text(text)
    return CliRunner().invoke(check, ["--from", str(file), *options])


@pytest.mark.parametrize(("text", "code"), [(PASSING, 0), (PASSING + WARNING, 1), (WARNING + CRITICAL, 2)])
def test_the_exit_code_says_the_worst(tmp_path: Path, text: str, code: int) -> None:
    assert run(tmp_path, text).exit_code == code


def test_json_has_the_worst_first_and_what_is_taken_out_of_use(tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, WARNING + CRITICAL, "--json").stdout)
    assert document["worst"] == "CRITICAL"
    assert [(each["severity"], each["blocks"]) for each in document["findings"]] == [
        ("CRITICAL", ["0000:1a:00.0"]),
        ("WARNING", []),
    ]
    assert all(
        set(each) >= {"check", "subject", "severity", "sentence", "action", "remedy", "evidence"} for each in document["findings"]
    )


def test_several_files_are_one_machine(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(CRITICAL)
    assert run(tmp_path, PASSING, "--from", str(other)).exit_code == 2


def test_text_says_word_subject_sentence_and_what_to_do(tmp_path: Path) -> None:
    first, second, *_ = run(tmp_path, CRITICAL).stdout.splitlines()
    assert first.startswith("CRITICAL  xid 0000:1a:00.0: Xid 79 GPU_HAS_FALLEN_OFF_THE_BUS")
    assert second.strip().startswith("-> Power the machine off and on")


def test_subjects_that_share_a_sentence_share_a_line() -> None:
    findings = tuple(Finding("ib-rate", f"mlx5_{n}/1", Severity.WARNING, "Slow.", "Look.") for n in range(2))
    assert render_findings(findings, 80) == ["WARNING   ib-rate mlx5_0/1, mlx5_1/1: Slow.", "          -> Look."]
    assert render_findings((), 80) == ["UNKNOWN   Nothing was looked at."]


def test_an_expectation_that_expects_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "want.json").write_text("{}")
    assert "expects nothing" in str(run(tmp_path, PASSING, "--expect", str(tmp_path / "want.json")).exception)
