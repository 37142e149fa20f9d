"""Why a replica ended, as its agent tells callers and the function's own log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from steelyard.agent.replica_end import explain_replica_end, say_in_log
from steelyard.clock import VirtualClock
from steelyard.errors import EdgeFailed
from steelyard.host import CgroupReading
from steelyard.model.function import FunctionSpec
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Resources
from steelyard.model.reason import Reason
from steelyard.wire.spawn import Exited

SPEC = FunctionSpec(resources=Resources(cpus=1.0, memory_bytes=200_000_000))
EXITED = Exited("f.1.a", 77, 7, 5, None, 9, 0.0, 0.0, 150_000_000, None, None)


def explain(exited: Exited, reading: CgroupReading | Exception) -> Any:
    def read(workload: WorkloadId) -> CgroupReading:
        if isinstance(reading, Exception):
            raise reading
        return reading

    edges = SimpleNamespace(clock=VirtualClock(), cgroups=SimpleNamespace(read=read))
    return explain_replica_end(cast(Any, edges), WorkloadId("f.1.a"), exited, SPEC)


@pytest.mark.parametrize(
    ("exited", "reading", "reason", "words"),
    [
        (EXITED, CgroupReading(oom_kills=1, memory_peak_bytes=199_000_000), Reason.OOM_KILLED, "memory limit of 200000000"),
        (EXITED, CgroupReading(oom_kills=0), Reason.KILLED_BY_SIGNAL, "signal"),
        (EXITED, EdgeFailed("the group is gone"), Reason.KILLED_BY_SIGNAL, "signal"),
        (msgspec.structs.replace(EXITED, signal=None, exit_code=3), CgroupReading(), Reason.EXITED_NONZERO, "exit code 3"),
    ],
)
def test_ends_have_a_reason_and_a_sentence(
    exited: Exited, reading: CgroupReading | Exception, reason: Reason, words: str
) -> None:
    end = explain(exited, reading)
    assert (end.reason, end.ended_at) == (reason, 5)
    assert words in end.detail


def test_the_functions_own_log_says_it(tmp_path: Path) -> None:
    end = explain(EXITED, CgroupReading(oom_kills=1, memory_peak_bytes=199_000_000))
    say_in_log(tmp_path, end)  # it never wrote anything there
    assert not list(tmp_path.iterdir())
    (tmp_path / "stderr").write_text("its own words\n")
    say_in_log(tmp_path, end)
    own, ours = (tmp_path / "stderr").read_text().splitlines()
    assert own == "its own words"
    assert ours.startswith("[steelyard: replica f.1.a is gone: oom-killed.") and ours.endswith("It had 199 MB at most.]")
    (tmp_path / "stderr").unlink()
    (tmp_path / "stderr").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("")
    say_in_log(tmp_path, end)
    assert (tmp_path / "elsewhere").read_text() == ""
