"""Which of two allocations for the same pilots begins, and where do their programs write?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.cli.pilot import claim
from steelyard.errors import Refused


def test_all_tasks_of_the_first_allocation_begin_and_none_of_another(tmp_path: Path) -> None:
    for task in ("0", "1"):
        claim(tmp_path, "12", task)
    for task in ("0", "1"):
        with pytest.raises(Refused) as refused:
            claim(tmp_path, "13", task)
        assert refused.value.code == "taken"
    claim(tmp_path, "12", "2")
    assert [file.name for file in tmp_path.iterdir()] == ["claim"]


def test_a_folder_that_the_node_does_not_see_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        claim(tmp_path / "absent", "12", "0")
    assert refused.value.code == "folder-not-shared"


def test_each_of_several_programs_has_a_log_of_its_own(tmp_path: Path) -> None:
    text = f"from pathlib import Path; from steelyard.cli.pilot import write_to; write_to(Path({str(tmp_path / 'log')!r}))"
    done = subprocess.run([sys.executable, "-c", f"{text}; print('said', flush=True)"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "log").read_text() == "said\n"
