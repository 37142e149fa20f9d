"""What is held, shared and put back, whatever comes in between: workloads, kills, other people."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from steelyard.lifecycle.settings import (
    Form,
    Journal,
    Setting,
    Write,
    find_unheld,
    note_written,
    parse,
    plan_hold,
    plan_restore,
    render,
    same,
)


class Machine:
    """Places and what stands in them. `managed` places refuse every write, as the kernel's own interrupts do."""

    def __init__(self, values: dict[str, str], managed: frozenset[str] = frozenset()) -> None:
        self.values, self.managed = dict(values), managed
        self.journal = Journal("boot")

    def read(self, setting: Setting) -> str | None:
        return self.values.get(setting.place)

    def carry_out(self, journal: Journal, writes: tuple[Write, ...], writes_until_killed: int | None = None) -> bool:
        """As host/journal.py does it: save, write, save. Killed before the second saving when a number is given."""
        self.journal = journal
        results: dict[str, tuple[str | None, str]] = {}
        for at, write in enumerate(writes):
            if at == writes_until_killed:
                return False
            if write.place not in self.managed:
                self.values[write.place] = write.text
            error = "the kernel manages it by itself" if write.place in self.managed else ""
            results[write.place] = (self.values.get(write.place), error)
        if writes_until_killed is not None:
            return False
        self.journal = note_written(journal, results)
        return True

    def hold(self, holder: str, *wishes: Setting, killed: int | None = None) -> None:
        self.carry_out(*plan_hold(self.journal, holder, wishes, self.read), killed)

    def restore(self, *living: str, killed: int | None = None) -> None:
        self.carry_out(*plan_restore(self.journal, lambda holder: holder in living, self.read), killed)


def off(place: str, *cpus: int) -> Setting:
    return Setting(place, "irqs", Form.LIST, cpus, label=f"IRQ {place}")


def test_two_holders_keep_both_their_cpus_clear_and_the_last_one_puts_back() -> None:
    machine = Machine({"irq": "0-7"})
    machine.hold("a", off("irq", 1))
    assert machine.values["irq"] == "0,2,3,4,5,6,7"
    machine.hold("b", off("irq", 2, 3))
    assert machine.values["irq"] == "0,4,5,6,7"
    machine.restore("b")
    assert machine.values["irq"] == "0,1,4,5,6,7"
    machine.restore()
    assert same(Form.LIST, machine.values["irq"], "0-7") and machine.journal.entries == {}


def test_what_the_kernel_refuses_is_named_and_nothing_is_left_to_put_back() -> None:
    machine = Machine({"irq": "0-1"}, managed=frozenset({"irq"}))
    machine.hold("a", off("irq", 1))
    (entry,) = find_unheld(machine.journal, "a")
    assert (entry.before, entry.asked, entry.after, entry.verified) == ("0-1", "0", "0-1", False)
    assert entry.error == "the kernel manages it by itself"
    machine.restore()
    assert machine.values["irq"] == "0-1" and machine.journal.entries == {}


def test_the_last_cpu_is_never_taken_from_an_interrupt_and_that_is_named() -> None:
    machine = Machine({"irq": "1"})
    machine.hold("a", off("irq", 1))
    assert machine.values["irq"] == "1"
    assert [entry.setting.place for entry in find_unheld(machine.journal, "a")] == ["irq"]


def test_somebody_elses_change_is_left_and_recorded() -> None:
    machine = Machine({"governor": "powersave"})
    machine.hold("a", Setting("governor", "governor", Form.WORD, word="performance", label="the governor"))
    machine.values["governor"] = "schedutil"
    machine.restore()
    assert machine.values["governor"] == "schedutil"
    (foreign,) = machine.journal.foreign
    assert (foreign.ours, foreign.found) == ("performance", "schedutil")
    assert machine.journal.entries == {}


def test_a_place_that_is_gone_is_forgotten() -> None:
    machine = Machine({"irq": "0-1"})
    machine.hold("a", off("irq", 1))
    del machine.values["irq"]
    machine.restore()
    assert machine.journal.entries == {} and machine.journal.foreign == ()


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_kill_between_the_journal_and_the_change_is_put_right(killed: int) -> None:
    machine = Machine({"x": "0-3", "y": "0-3"})
    machine.hold("a", off("x", 1), off("y", 1), killed=killed)
    machine.restore()
    assert {same(Form.LIST, value, "0-3") for value in machine.values.values()} == {True}
    assert machine.journal.entries == {} and machine.journal.foreign == ()


def test_a_second_kill_while_putting_back_is_put_right() -> None:
    machine = Machine({"x": "0-3", "y": "0-3"})
    machine.hold("a", off("x", 1), off("y", 1))
    machine.restore(killed=1)
    assert machine.journal.entries.keys() == {"x", "y"}
    machine.restore()
    assert {same(Form.LIST, value, "0-3") for value in machine.values.values()} == {True}
    assert machine.journal.entries == {}


@given(st.frozensets(st.integers(0, 200)), st.sampled_from([Form.LIST, Form.MASK]))
def test_what_is_rendered_is_parsed_back(cpus: frozenset[int], form: Form) -> None:
    assert parse(form, render(form, cpus)) == cpus


def test_masks_are_written_in_groups_of_32_bits() -> None:
    assert render(Form.MASK, frozenset({0, 33})) == "2,00000001"
    assert parse(Form.MASK, "00000002,00000001") == {0, 33}


CPUS = 4
PLACES = {"irq/1": "0-3", "irq/2": "2-3", "mask": "f", "governor": "powersave", "managed": "0-3"}
HOLDERS = ("a", "b", "c")


def wishes(cpus: tuple[int, ...]) -> tuple[Setting, ...]:
    return (
        off("irq/1", *cpus),
        off("irq/2", *cpus),
        Setting("mask", "workqueues", Form.MASK, cpus),
        Setting("governor", "governor", Form.WORD, word="performance"),
        off("managed", *cpus),
    )


class Lives(RuleBasedStateMachine):
    """Workloads come and go, the agent is killed anywhere, other people change things. In the end all is as it was, or named."""

    @initialize()
    def begin(self) -> None:
        self.machine = Machine(PLACES, managed=frozenset({"managed"}))
        self.living: set[str] = set()
        self.touched: set[str] = set()

    @rule(holder=st.sampled_from(HOLDERS), cpu=st.integers(0, CPUS - 1), killed=st.none() | st.integers(0, 5))
    def starts(self, holder: str, cpu: int, killed: int | None) -> None:
        self.machine.hold(holder, *wishes((cpu,)), killed=killed)
        if killed is None:
            self.living.add(holder)
        else:  # the agent comes back and finds that it never started
            self.living.discard(holder)
            self.machine.restore(*self.living)

    @rule(holder=st.sampled_from(HOLDERS), killed=st.none() | st.integers(0, 5))
    def ends(self, holder: str, killed: int | None) -> None:
        self.living.discard(holder)
        self.machine.restore(*self.living, killed=killed)

    @rule(place=st.sampled_from(["irq/1", "mask", "governor"]), word=st.sampled_from(["1", "2", "3"]))
    def somebody_else_changes(self, place: str, word: str) -> None:
        self.machine.values[place] = word
        self.touched.add(place)

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.restore()
        self.machine.restore()
        assert self.machine.journal.entries == {}
        named = {foreign.place for foreign in self.machine.journal.foreign}
        for place, before in PLACES.items():
            form = wishes(())[list(PLACES).index(place)].form
            as_before = same(form, self.machine.values[place], before)
            # whose change was made while nobody held the place is nobody's business, and stays
            assert as_before or place in self.touched, f"{place} is {self.machine.values[place]}"
        assert named <= self.touched


Lives.TestCase.settings = settings(max_examples=150, stateful_step_count=25)
TestLives = Lives.TestCase
