"""What a class wants of a machine, what the machine can't do, and what the proof says of it."""

from __future__ import annotations

from steelyard.lifecycle.promise import SAMPLES_MIN, PromiseState, Wakeups, decide_promise, explain_promise, got_promise
from steelyard.lifecycle.proof import check_proof
from steelyard.lifecycle.settings import Entry, Form, Setting
from steelyard.lifecycle.timing import (
    IdleState,
    Irq,
    KernelThread,
    TimingFacts,
    asked_timing,
    explain_unheld,
    got_timing,
    plan_settings,
)
from steelyard.model.job import Plan
from steelyard.model.proof import ProofState
from steelyard.model.timing import Timing

SERVER = TimingFacts(
    online=(0, 1, 2, 3),
    irqs=(Irq(24, "eth0-rx-0", (0, 1, 2, 3), (3,)), Irq(25, "nvme0q1", (0,), (0,))),
    default_irq_mask="f",
    queues=(("sys/class/net/eth0/queues/rx-0/rps_cpus", "0"), ("sys/class/net/eth0/queues/tx-0/xps_cpus", "f")),
    workqueues=(("sys/devices/virtual/workqueue/cpumask", "f"),),
    kernel_threads=(
        KernelThread(36, 27, "kcompactd0", (0, 1, 2, 3), movable=True),
        KernelThread(20, 25, "migration/3", (3,), movable=False),
        KernelThread(60, 80, "kworker/u8:0", (0, 1, 2, 3), movable=False),
    ),
    governors=dict.fromkeys(range(4), ("powersave", ("performance", "powersave"))),
    idle_states=(IdleState(3, 0, "POLL", 0, False), IdleState(3, 1, "C1", 2, False), IdleState(3, 2, "C6", 133, False)),
)
PLAN = Plan(cpus=(2, 3), timing=Timing.REALTIME)


def test_realtime_steers_what_touches_its_cpus_and_leaves_the_rest() -> None:
    planned = plan_settings(PLAN, SERVER)
    assert [(setting.place, setting.part) for setting in planned.settings] == [
        ("proc/irq/24/smp_affinity_list", "irqs"),
        ("proc/irq/default_smp_affinity", "irqs"),
        ("sys/class/net/eth0/queues/tx-0/xps_cpus", "queues"),
        ("sys/devices/virtual/workqueue/cpumask", "workqueues"),
        ("thread/36/27", "kernel-threads"),
        ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "governor"),
        ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "governor"),
        ("sys/devices/system/cpu/cpu3/cpuidle/state2/disable", "idle-states"),
    ]
    assert planned.forbidden == ()
    assert any("1 kernel threads are bound" in note and "migration/3" in note for note in planned.notes)


def test_dedicated_and_best_effort_change_no_setting() -> None:
    assert plan_settings(Plan(cpus=(2, 3), timing=Timing.DEDICATED), SERVER).settings == ()
    assert plan_settings(Plan(), SERVER).settings == ()


def test_a_bare_guest_names_each_thing_it_does_not_offer() -> None:
    planned = plan_settings(PLAN, TimingFacts(online=(0, 1, 2, 3), guest=True))
    assert planned.settings == ()
    assert [sentence.split()[0] for sentence in planned.forbidden] == ["Interrupts", "The", "Idle"]
    assert any("guest" in note for note in planned.notes)


def test_many_refusals_of_one_kind_are_one_sentence() -> None:
    wishes = [Setting(f"proc/irq/{n}/smp_affinity_list", "irqs", Form.LIST, (3,), label=f"IRQ {n} (q{n})") for n in range(9)]
    entries = [Entry(wish, "0-3", "0-2", "0-3", error="the kernel manages it by itself", wants={"a": wish}) for wish in wishes]
    (sentence,) = explain_unheld(entries, "a")
    assert sentence.startswith("IRQ 0 (q0), IRQ 1 (q1)") and "and 5 more can't be changed" in sentence


def test_a_refusal_without_words_says_what_is_known() -> None:
    wish = Setting("proc/irq/1/smp_affinity_list", "irqs", Form.LIST, (1,), label="IRQ 1 (a)")
    assert "no CPU would be left" in explain_unheld([Entry(wish, "1", "1", "1", True, wants={"a": wish})], "a")[0]
    word = Setting("governor", "governor", Form.WORD, word="performance", label="the governor")
    assert "another value" in explain_unheld([Entry(word, "x", "performance", "y", wants={"a": word})], "a")[0]


def test_the_proof_of_realtime_is_read_back_part_by_part() -> None:
    asked = asked_timing(PLAN, SERVER)
    got = got_timing(PLAN, SERVER, "other", own_cpus=True)
    assert (
        got["timing"] == "dedicated" and got["irqs_on_its_cpus"] == [24] and got["kernel_threads_on_its_cpus"] == ["kcompactd0"]
    )
    assert got["governor"] == "powersave" and got["deep_idle_states"] == ["cpu3 C6"]
    proof = check_proof(asked, got, matched_before=False)
    assert proof.state is ProofState.PARTIAL
    assert "scheduler: asked fifo 50, got other" in proof.differences
    calm = TimingFacts(
        online=(0, 1, 2, 3),
        irqs=(Irq(24, "eth0-rx-0", (0, 1), (0,)),),
        governors={2: ("performance", ()), 3: ("performance", ())},
        idle_states=(IdleState(3, 2, "C6", 133, True),),
    )
    calm_got = got_timing(PLAN, calm, "fifo 50", own_cpus=True, memory_lock_limit="unlimited")
    assert check_proof(asked, calm_got, matched_before=False).state is ProofState.MATCH


def test_what_the_machine_forbids_makes_a_proof_partial_and_notes_do_not() -> None:
    assert check_proof({"share": 1.0}, {"share": 1.0}, True, None, ("No clock.",)).state is ProofState.PARTIAL
    noted = check_proof({"share": 1.0}, {"share": 1.0}, False, None, (), ("A tick.",))
    assert noted.state is ProofState.MATCH and noted.notes == ("A tick.",)


def test_a_promise_is_never_met_without_data() -> None:
    assert decide_promise(None) is PromiseState.NOT_VERIFIED
    assert decide_promise(Wakeups(SAMPLES_MIN - 1, 0, 5)) is PromiseState.NOT_VERIFIED
    assert decide_promise(Wakeups(SAMPLES_MIN, 0, 5)) is PromiseState.MET
    assert decide_promise(Wakeups(SAMPLES_MIN, 0, 5, stale=True)) is PromiseState.NOT_VERIFIED
    assert decide_promise(Wakeups(1, 1, 900)) is PromiseState.BREACHED
    assert got_promise(Wakeups(3, 0, 5))["max_wakeup_us"] is None
    assert "NOT VERIFIED: 3 wake-ups" in explain_promise(200, Wakeups(3, 0, 5))[0]
    assert explain_promise(200, Wakeups(SAMPLES_MIN, 0, 5)) == ()


def test_a_kept_promise_matches_and_a_breached_one_differs() -> None:
    kept, broken = got_promise(Wakeups(5000, 0, 180)), got_promise(Wakeups(5000, 2, 900))
    assert check_proof({"max_wakeup_us": 200}, kept, False).state is ProofState.MATCH
    assert check_proof({"max_wakeup_us": 200}, broken, False).differences == ("max_wakeup_us: asked 200, got 900",)
