"""The adoption table: every combination of what may be left behind, and what is then true."""

from __future__ import annotations

import itertools

import pytest

from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.process import AdoptedState, Evidence, decide_adoption
from steelyard.runtime.records import Handle, Intent
from steelyard.wire.spawn import Exited

W = WorkloadId("job-1.1")
NOW_US = 5_000_000
BOOT, OLD_BOOT = "boot-2", "boot-1"
SPAWNER, OLD_SPAWNER = "10:100", "9:90"


def intent(boot: str = BOOT, spawner: str = SPAWNER) -> Intent:
    return Intent(W, boot, "job", 1, Plan(), spawner)


def handle(boot: str = BOOT, pid: int = 50) -> Handle:
    return Handle(W, boot, pid, 500, 2)


def exited(code: int | None = 0, signum: int | None = None) -> Exited:
    return Exited(W, 50, 500, 3, code, signum, 0.0, 0.0, 0)


def evidence(**seen: object) -> Evidence:
    nothing: dict[str, object] = dict.fromkeys(("intent", "handle", "exited", "child"))
    nothing |= {"handle_runs": False, "has_cgroup": False, "in_cgroup": ()}
    return Evidence(workload=W, **{**nothing, **seen})  # type: ignore[arg-type]


RUNNING, ENDED, NOT_STARTED, UNKNOWN = AdoptedState.RUNNING, AdoptedState.ENDED, AdoptedState.NOT_STARTED, AdoptedState.UNKNOWN
INSIDE = ((50, 500),)
TABLE = {
    # an exit record settles everything
    "ended": (evidence(intent=intent(), handle=handle(), exited=exited(3)), ENDED, None),
    "ended, remains in its cgroup": (evidence(intent=intent(), exited=exited(), has_cgroup=True, in_cgroup=INSIDE), ENDED, None),
    "ended before the machine went down": (
        evidence(intent=intent(OLD_BOOT), handle=handle(OLD_BOOT), exited=exited()),
        ENDED,
        None,
    ),
    "ended, records half removed": (evidence(exited=exited()), ENDED, None),
    "ended unseen": (evidence(intent=intent(), exited=exited(None)), ENDED, Reason.EXIT_UNKNOWN),
    # another boot: nothing of it lives, whatever has its pid now
    "another boot": (evidence(intent=intent(OLD_BOOT), handle=handle(OLD_BOOT)), UNKNOWN, Reason.NODE_LOST),
    "another boot, pid and start time used again": (
        evidence(intent=intent(OLD_BOOT), handle=handle(OLD_BOOT), handle_runs=True),
        UNKNOWN,
        Reason.NODE_LOST,
    ),
    "another boot, never started": (evidence(intent=intent(OLD_BOOT)), UNKNOWN, Reason.NODE_LOST),
    # alive
    "child of the spawner": (evidence(intent=intent(), handle=handle(), child=(50, 500), handle_runs=True), RUNNING, None),
    "child, killed before the handle": (
        evidence(intent=intent(), child=(50, 500), has_cgroup=True, in_cgroup=INSIDE),
        RUNNING,
        None,
    ),
    "spawner was killed, it runs on": (
        evidence(intent=intent(spawner=OLD_SPAWNER), handle=handle(), handle_runs=True),
        RUNNING,
        None,
    ),
    "both were killed, its cgroup shows it": (
        evidence(intent=intent(spawner=OLD_SPAWNER), has_cgroup=True, in_cgroup=((50, 500), (51, 501))),
        RUNNING,
        None,
    ),
    # gone without a trace
    "gone with its spawner": (evidence(intent=intent(spawner=OLD_SPAWNER), handle=handle()), UNKNOWN, Reason.EXIT_UNKNOWN),
    "gone, others of it left": (
        evidence(intent=intent(), handle=handle(), has_cgroup=True, in_cgroup=((77, 700),)),
        UNKNOWN,
        Reason.EXIT_UNKNOWN,
    ),
    "a cgroup nobody wrote about": (evidence(has_cgroup=True, in_cgroup=INSIDE), UNKNOWN, Reason.EXIT_UNKNOWN),
    # never ran
    "killed after the intent": (evidence(intent=intent()), NOT_STARTED, Reason.NOT_STARTED),
    "killed after the cgroup": (evidence(intent=intent(), has_cgroup=True), NOT_STARTED, Reason.NOT_STARTED),
    "no cgroup was made, new spawner": (evidence(intent=intent(spawner=OLD_SPAWNER)), NOT_STARTED, Reason.NOT_STARTED),
    "a machine without cgroups": (evidence(intent=intent(), has_cgroup=None), NOT_STARTED, Reason.NOT_STARTED),
    # may have run and ended in between: claiming "not started" could run it twice
    "empty cgroup, new spawner": (evidence(intent=intent(spawner=OLD_SPAWNER), has_cgroup=True), UNKNOWN, Reason.EXIT_UNKNOWN),
    "no cgroups, new spawner": (evidence(intent=intent(spawner=OLD_SPAWNER), has_cgroup=None), UNKNOWN, Reason.EXIT_UNKNOWN),
}


@pytest.mark.parametrize("case", TABLE)
def test_adoption_says_what_is_true(case: str) -> None:
    seen, state, reason = TABLE[case]
    decided = decide_adoption(seen, boot_id=BOOT, spawner=SPAWNER, now_us=NOW_US)
    assert (decided.state, decided.reason) == (state, reason)
    assert decided.watched is (state is RUNNING and seen.child is not None)
    assert bool(decided.detail) is (reason is not None)
    if state is RUNNING:
        assert decided.handle is not None
        assert (decided.handle.pid, decided.handle.start_time, decided.handle.boot_id) == (50, 500, BOOT)


def test_a_missing_handle_is_made_and_an_existing_one_kept() -> None:
    made = decide_adoption(evidence(intent=intent(), child=(50, 500)), boot_id=BOOT, spawner=SPAWNER, now_us=NOW_US)
    assert made.handle == Handle(W, BOOT, 50, 500, NOW_US)
    seen = evidence(intent=intent(), handle=handle(), child=(50, 500))
    kept = decide_adoption(seen, boot_id=BOOT, spawner=SPAWNER, now_us=NOW_US)
    assert kept.handle == handle()


def test_never_not_started_where_anything_may_have_run() -> None:
    choices = itertools.product(
        (None, intent(), intent(OLD_BOOT), intent(spawner=OLD_SPAWNER)),
        (None, handle(), handle(OLD_BOOT)),
        (None, exited(), exited(None)),
        (None, (50, 500)),
        (False, True),
        (None, False, True),
        ((), INSIDE),
    )
    for an_intent, a_handle, an_exit, child, runs, has_cgroup, inside in choices:
        written = {"intent": an_intent, "handle": a_handle, "exited": an_exit}
        seen = evidence(**written, child=child, handle_runs=runs, has_cgroup=has_cgroup, in_cgroup=inside)
        decided = decide_adoption(seen, boot_id=BOOT, spawner=SPAWNER, now_us=NOW_US)
        if decided.state is NOT_STARTED:
            assert not (a_handle or an_exit or child or inside)
            assert an_intent is not None
            assert an_intent.boot_id == BOOT
        if decided.state is RUNNING:
            assert child or inside or runs
            assert not an_exit
