"""What Slurm's daemons are told about a machine, and about GPUs that a job had."""

from __future__ import annotations

from steelyard.cli.node import find_gpu_files, find_reason
from steelyard.model.health import Finding, Health, Severity

GRES = """# Which file is which GPU.
NodeName=n1 Name=gpu Type=h100 File=/dev/nvidia0 Links=-1,18 Cores=0-3
NodeName=n1 Name=gpu Type=h100 File=/dev/nvidia1 Links=18,-1
NodeName=n10 Name=gpu Type=h100 File=/dev/nvidia1
NodeName=a1 Name=gpu Type=mi300x File=/dev/dri/renderD129
"""


def test_the_files_of_a_jobs_gpus_are_found_by_their_numbers() -> None:
    assert find_gpu_files(GRES, "n1", "1") == ("/dev/nvidia1",)
    assert find_gpu_files(GRES, "n1", "0,1,7") == ("/dev/nvidia0", "/dev/nvidia1")
    assert find_gpu_files(GRES, "a1", "129") == ("/dev/dri/renderD129",)
    assert find_gpu_files(GRES, "n1", "") == find_gpu_files(GRES, "n2", "1") == find_gpu_files("", "n1", "1") == ()


def test_only_what_is_critical_drains_and_the_first_is_named() -> None:
    worn = Finding("clock", "node", Severity.WARNING, "No time service holds the clock.")
    lost = Finding("xid", "0000:0f:00.0", Severity.CRITICAL, "The GPU fell\noff the bus.", blocks=("0000:0f:00.0",))
    assert find_reason(Health((worn,))) == ""
    assert find_reason(Health((worn, lost))) == "xid: The GPU fell off the bus."
    assert find_reason(Health((lost, lost, lost))).endswith("(and 2 more)")
