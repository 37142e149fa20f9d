"""A machine's timing is read from files below a root, and its settings go through the journal on disk."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from steelyard.host.journal import SettingFiles, SettingsJournal
from steelyard.host.timing import count_others, observe_timing
from steelyard.lifecycle.settings import Form, Setting
from steelyard.lifecycle.timing import plan_settings
from steelyard.model.job import Plan
from steelyard.model.timing import Timing

TREE = {
    "proc/irq/24/smp_affinity_list": "0-3",
    "proc/irq/24/effective_affinity_list": "2",
    "proc/irq/25/smp_affinity_list": "0-3",
    "proc/irq/default_smp_affinity": "f",
    "proc/interrupts": "      CPU0 CPU1\n 24:  1  2  PCI-MSIX 0-edge  eth0-rx-0\nNMI:  0 0 Non-maskable\n",
    "proc/cpuinfo": "model name : x\nflags : fpu hypervisor sse\n",
    "proc/2/stat": "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 25 0 0",
    "proc/36/stat": "36 (odd) name) S 2 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 27 0 0",
    "proc/36/comm": "odd) name",
    "proc/36/status": "Name:\tx\nCpus_allowed_list:\t0-3\nMems_allowed_list:\t0\n",
    "proc/20/stat": "20 (migration/3) S 2 0 0 0 -1 69238848 0 0 0 0 0 0 0 0 20 0 1 0 25 0 0",
    "proc/20/comm": "migration/3",
    "proc/20/status": "Name:\tx\nCpus_allowed_list:\t3\n",
    "proc/900/stat": "900 (sshd) S 1 0 0 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0",
    "proc/900/status": "Name:\tsshd\nCpus_allowed_list:\t0-3\n",
    "sys/class/net/eth0/queues/rx-0/rps_cpus": "00000000,0000000f",
    "sys/devices/virtual/workqueue/cpumask": "f",
    "sys/devices/system/cpu/online": "0-3",
    "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpu3/cpufreq/scaling_available_governors": "performance powersave",
    "sys/devices/system/cpu/cpu3/cpuidle/state2/latency": "133",
    "sys/devices/system/cpu/cpu3/cpuidle/state2/disable": "0",
    "sys/devices/system/cpu/cpu3/cpuidle/state2/name": "C6",
}
PLAN = Plan(cpus=(3,), timing=Timing.REALTIME)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place, text in TREE.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text + "\n")
    return tmp_path


def journal(root: Path, boot: str = "boot", files: SettingFiles | None = None) -> SettingsJournal:
    return SettingsJournal(root / "run/steelyard", boot, files or SettingFiles(root))


def test_facts_are_read_from_the_tree(root: Path) -> None:
    facts = observe_timing(root)
    assert [(irq.number, irq.name, irq.served) for irq in facts.irqs] == [(24, "eth0-rx-0", (2,)), (25, "unused", ())]
    assert [(thread.name, thread.movable) for thread in facts.kernel_threads] == [("migration/3", False), ("odd) name", True)]
    assert facts.governors == {3: ("powersave", ("performance", "powersave"))}
    assert [(state.name, state.latency_us, state.disabled) for state in facts.idle_states] == [("C6", 133, False)]
    assert facts.guest


def test_an_empty_tree_has_no_facts_and_raises_nothing(tmp_path: Path) -> None:
    assert observe_timing(tmp_path).irqs == ()


def test_other_peoples_processes_are_counted_kernel_threads_and_our_own_are_not(root: Path) -> None:
    assert count_others((3,), (), root) == 1
    assert count_others((3,), (900,), root) == 0
    assert count_others((7,), (), root) == 0


def test_settings_are_journaled_before_they_are_changed_and_put_back(root: Path) -> None:
    wishes = plan_settings(PLAN, observe_timing(root)).settings
    seen: list[str] = []

    class Watched(SettingFiles):
        def write(self, place: str, text: str) -> None:
            entry = journal(root).load().entries[place]
            assert (entry.asked, entry.after, entry.verified) == (text, None, False)
            seen.append(place)
            super().write(place, text)

    unheld = journal(root, files=Watched(root)).hold("home/j-1.1", wishes)
    assert len(seen) == len(wishes)
    assert [entry.setting.part for entry in unheld] == ["kernel-threads"]  # no real thread stands behind this tree
    assert (root / "proc/irq/24/smp_affinity_list").read_text().startswith("0,1,2")
    assert (root / "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor").read_text().startswith("performance")
    entry = journal(root).load().entries["proc/irq/24/smp_affinity_list"]
    assert (entry.before, entry.verified) == ("0-3", True)
    assert journal(root).release("home/j-1.1") == ()
    assert (root / "proc/irq/24/smp_affinity_list").read_text() == "0-3"
    assert (root / "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor").read_text().startswith("powersave")
    assert not (root / "run/steelyard/settings.json").exists()


def test_a_killed_agents_settings_are_put_back_by_the_next(root: Path) -> None:
    class Killed(SettingFiles):
        def write(self, place: str, text: str) -> None:
            super().write(place, text)
            raise KeyboardInterrupt

    wish = Setting("proc/irq/24/smp_affinity_list", "irqs", Form.LIST, (3,))
    with pytest.raises(KeyboardInterrupt):
        journal(root, files=Killed(root)).hold("home/j-1.1", (wish,))
    assert (root / wish.place).read_text().startswith("0,1,2")
    half_written = root / "run/steelyard/.settings.json.4711.tmp"
    half_written.write_bytes(b"{")
    journal(root).restore(lambda holder: not holder.startswith("home/"))
    assert (root / wish.place).read_text().startswith("0-3")
    assert not half_written.exists()


def test_after_a_restart_of_the_machine_the_old_journal_says_nothing(root: Path) -> None:
    wish = Setting("proc/irq/24/smp_affinity_list", "irqs", Form.LIST, (3,))
    journal(root).hold("home/j-1.1", (wish,))
    assert journal(root, boot="later").load().entries == {}


def test_a_damaged_journal_is_kept_and_does_not_stop_anybody(root: Path) -> None:
    journal(root).hold("a/b", (Setting("proc/irq/24/smp_affinity_list", "irqs", Form.LIST, (3,)),))
    (root / "run/steelyard/settings.json").write_bytes(b"{")
    assert journal(root).load().entries == {}
    assert (root / "run/steelyard/settings.damaged.json").read_bytes() == b"{"


def test_a_link_in_a_settings_place_is_not_followed(root: Path, tmp_path: Path) -> None:
    place = root / "proc/irq/24/smp_affinity_list"
    place.unlink()
    (tmp_path / "victim").write_text("0-3")
    os.symlink(tmp_path / "victim", place)
    journal(root).hold("a/b", (Setting("proc/irq/24/smp_affinity_list", "irqs", Form.LIST, (3,)),))
    assert (tmp_path / "victim").read_text() == "0-3"


def test_the_journal_on_disk_says_asked_before_after_and_verified(root: Path) -> None:
    journal(root).hold("home/j-1.1", (Setting("proc/irq/24/smp_affinity_list", "irqs", Form.LIST, (3,)),))
    (entry,) = msgspec.json.decode((root / "run/steelyard/settings.json").read_bytes())["entries"].values()
    assert entry["asked"] == "0,1,2" and entry["before"] == "0-3" and entry["verified"] is True and "home/j-1.1" in entry["wants"]
