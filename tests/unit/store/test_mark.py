"""Is a store older than its mark?"""

from __future__ import annotations

from steelyard.store.mark import Mark, check_rollback


def test_only_a_counter_that_went_back_is_a_rollback() -> None:
    mark = Mark({"commit": 9, "job": 4})
    assert check_rollback(None, {}) is None
    assert check_rollback(mark, {"commit": 9, "job": 4}) is None
    assert check_rollback(mark, {"commit": 12, "job": 5, "epoch": 1}) is None
    lost = check_rollback(mark, {"commit": 12, "job": 3})
    assert lost is not None and "job 3 (was 4)" in lost and "commit" not in lost
    lost = check_rollback(mark, {})
    assert lost is not None and "commit 0 (was 9)" in lost and "job 0 (was 4)" in lost
