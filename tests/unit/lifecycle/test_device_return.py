"""A device is free when no process holds it and its memory is as before; anything else is said."""

from __future__ import annotations

from steelyard.lifecycle.device_return import TOLERANCE_BYTES, Baseline, Holder, ReturnDecision, Verdict, decide_return

GPU = "0000:0f:00.0"
MONITOR = Holder(10, 100, "nvidia-persiste")
ORPHAN = Holder(20, 200, "python3", "job-1.1")
STRANGER = Holder(30, 300, "python3")
FRESH = Baseline()


def decide(*holders: Holder, memory: int | None = 0, baseline: Baseline = FRESH, live: set[str] | None = None) -> ReturnDecision:
    return decide_return(GPU, holders, live or set(), {"job-1.1"}, memory, baseline)


def test_nobody_holds_it_and_memory_is_at_baseline() -> None:
    assert decide().verdict is Verdict.RETURN


def test_what_ended_work_left_is_ended_and_traced_to_its_attempt() -> None:
    decision = decide(ORPHAN, STRANGER)
    assert (decision.verdict, decision.orphans) == (Verdict.KILL, (ORPHAN,))
    assert "job-1.1" in decision.sentence and "pid 20" in decision.sentence


def test_a_stranger_is_waited_for_and_named_but_never_killed() -> None:
    decision = decide(STRANGER)
    assert (decision.verdict, decision.orphans) == (Verdict.WAIT, ()) and "pid 30" in decision.sentence
    starting = decide(Holder(40, 400, "python3", "job-2.1"))
    assert (starting.verdict, starting.orphans) == (Verdict.WAIT, ())


def test_who_held_it_before_does_not_count() -> None:
    assert decide(MONITOR, baseline=Baseline((MONITOR.process,))).verdict is Verdict.RETURN
    reused = Holder(10, 999, "python3")
    assert decide(reused, baseline=Baseline((MONITOR.process,))).verdict is Verdict.WAIT


def test_memory_above_the_baseline_keeps_it_out() -> None:
    baseline = Baseline(memory_bytes=500 << 20)
    assert decide(memory=(500 << 20) + TOLERANCE_BYTES, baseline=baseline).verdict is Verdict.RETURN
    above = decide(memory=(500 << 20) + TOLERANCE_BYTES + 1, baseline=baseline)
    assert above.verdict is Verdict.WAIT and "564 MiB" in above.sentence


def test_without_a_word_about_memory_it_says_not_verified() -> None:
    decision = decide(memory=None)
    assert decision.verdict is Verdict.NOT_VERIFIED and "NOT VERIFIED" in decision.sentence


def test_a_shared_device_is_not_verified_while_others_run_on_it() -> None:
    neighbour = Holder(50, 500, "python3", "job-9.1")
    assert decide(neighbour, memory=9 << 30, live={"job-9.1"}).verdict is Verdict.NOT_VERIFIED


def test_a_network_card_has_no_memory_to_ask_about() -> None:
    decision = decide_return("mlx5_0", (), set(), {"job-1.1"}, None, Baseline(), has_memory=False)
    assert decision.verdict is Verdict.RETURN
