"""Which machine settings does a workload want held, and what follows when workloads come, end, or vanish? Pure.

A journal has one entry per place (a file, or a kernel thread's affinity). `plan_hold` adds a workload's wish, `plan_restore`
takes out the wishes of those that are gone; both return the journal to save *before* the writes to make. `note_written` takes
in what was read back afterwards. Rules:
1. `before` is what stood there when the first holder came; it is kept until the last one goes, and is then written back.
2. Holders share: CPUs to keep off are united, so that the place always holds `before` without everybody's CPUs.
3. Only what is ours is changed: a value that we neither found nor wrote was put there by somebody else. It is left alone,
   recorded as foreign, and from then on counts as `before`.
Never reads or writes a setting; `host/journal.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec

#: foreign changes kept in the journal, the newest
FOREIGN_MAX = 100


class Form(StrEnum):
    """How a place writes its value."""

    #: CPUs as 0-3,8
    LIST = "list"
    #: CPUs as hexadecimal, 32 bits a group: 00000000,0000010f
    MASK = "mask"
    #: any text
    WORD = "word"


class Setting(msgspec.Struct, frozen=True):
    """One wish of one workload."""

    #: path below the root without the leading slash, or `thread/<pid>/<start time>` for a kernel thread's affinity
    place: str
    #: which part of the timing class it serves: irqs, queues, workqueues, kernel-threads, governor, idle-states
    part: str
    form: Form
    #: LIST and MASK: CPUs to keep off
    without: tuple[int, ...] = ()
    #: WORD: the text to hold
    word: str = ""
    #: what people call it: "IRQ 36 (virtio1-req.0)"
    label: str = ""


class Entry(msgspec.Struct, frozen=True):
    """One place that is held, or has to be put back."""

    setting: Setting
    #: what stood there before us
    before: str
    #: what we last wrote, or were about to
    asked: str
    #: what was read back after it; None until then
    after: str | None = None
    #: did `after` fit `asked`?
    verified: bool = False
    #: what may still stand there while a change is under way
    previous: str | None = None
    #: the kernel's refusal, in its words
    error: str = ""
    #: holder -> its wish
    wants: dict[str, Setting] = {}


class Foreign(msgspec.Struct, frozen=True):
    """Somebody else changed a place while we held it; their value was left."""

    place: str
    label: str
    ours: str
    found: str


class Journal(msgspec.Struct, frozen=True):
    #: settings do not outlive a restart of the machine, and neither does this
    boot_id: str
    entries: dict[str, Entry] = {}
    foreign: tuple[Foreign, ...] = ()


class Write(msgspec.Struct, frozen=True):
    place: str
    form: Form
    text: str


Read = Callable[[Setting], str | None]


def plan_hold(journal: Journal, holder: str, settings: tuple[Setting, ...], read: Read) -> tuple[Journal, tuple[Write, ...]]:
    """The holder wants all of `settings`. Places that can't be read are left out: there is nothing to hold."""
    entries, foreign, writes = dict(journal.entries), list(journal.foreign), list[Write]()
    for setting in settings:
        present = read(setting)
        if present is None:
            continue
        entry = entries.get(setting.place)
        if entry is None:
            entry = Entry(setting, before=present, asked=present, after=present, verified=True)
        elif not _is_ours(entry, present):
            foreign.append(Foreign(setting.place, setting.label, entry.asked, present))
            entry = _give_way(entry, present)
        entry = msgspec.structs.replace(entry, wants={**entry.wants, holder: setting})
        entries[setting.place] = _aim(entry, present, writes)
    return Journal(journal.boot_id, entries, tuple(foreign[-FOREIGN_MAX:])), tuple(writes)


def plan_restore(journal: Journal, living: Callable[[str], bool], read: Read) -> tuple[Journal, tuple[Write, ...]]:
    """Those for whom `living` is false want nothing any more. Entries without a wish stay until `note_written` has seen them put
    back, so that a crash in between changes nothing."""
    entries, foreign, writes = dict[str, Entry](), list(journal.foreign), list[Write]()
    for place, old in journal.entries.items():
        wants = {holder: setting for holder, setting in old.wants.items() if living(holder)}
        if wants and len(wants) == len(old.wants):
            entries[place] = old
            continue
        entry = msgspec.structs.replace(old, wants=wants)
        present = read(entry.setting)
        if present is None:
            continue  # the interrupt, thread or CPU is gone, and its setting with it
        if not _is_ours(entry, present):
            foreign.append(Foreign(place, entry.setting.label, entry.asked, present))
            entry = _give_way(entry, present)
            if wants:
                entries[place] = entry
            continue
        if not wants and same(entry.setting.form, present, entry.before):
            continue
        entries[place] = _aim(entry, present, writes)
    return Journal(journal.boot_id, entries, tuple(foreign[-FOREIGN_MAX:])), tuple(writes)


def note_written(journal: Journal, results: Mapping[str, tuple[str | None, str]]) -> Journal:
    """`results`: place -> (what was read back, the kernel's refusal or ""). Entries that are back at `before`, with nobody
    wanting them, are done; one that could not be put back stays, for the next try."""
    entries = dict(journal.entries)
    for place, (present, error) in results.items():
        entry = entries.get(place)
        if entry is None:
            continue
        if present is None or (not entry.wants and same(entry.setting.form, present, entry.before)):
            del entries[place]
            continue
        entries[place] = msgspec.structs.replace(
            entry, after=present, verified=same(entry.setting.form, present, entry.asked), previous=None, error=error
        )
    return msgspec.structs.replace(journal, entries=entries)


def find_unheld(journal: Journal, holder: str) -> tuple[Entry, ...]:
    """What the holder wanted and the machine did not do, by place."""
    return tuple(
        entry
        for _, entry in sorted(journal.entries.items())
        if holder in entry.wants and not (entry.verified and _has_wish(entry, entry.wants[holder]))
    )


def same(form: Form, left: str, right: str) -> bool:
    """Do two texts mean the same value? The kernel writes back `0-1` for `0,1`."""
    return left.strip() == right.strip() if form is Form.WORD else parse(form, left) == parse(form, right)


def parse(form: Form, text: str) -> frozenset[int]:
    """The CPUs of a LIST or MASK; what is no number is passed over."""
    if form is Form.MASK:
        try:
            mask = int(text.strip().replace(",", "") or "0", 16)
        except ValueError:
            return frozenset()
        return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def render(form: Form, cpus: frozenset[int]) -> str:
    """The way the kernel takes it."""
    if form is Form.LIST:
        return ",".join(str(cpu) for cpu in sorted(cpus))
    digits = f"{sum(1 << cpu for cpu in cpus):x}"
    groups = [digits[max(0, end - 8) : end] for end in range(len(digits), 0, -8)]
    return ",".join(group if at == 0 else group.zfill(8) for at, group in enumerate(reversed(groups)))


def _wanted(entry: Entry) -> str:
    """What should stand there. CPUs to keep off that would leave none are not taken out: something has to do the work."""
    if not entry.wants:
        return entry.before
    form = entry.setting.form
    if form is Form.WORD:
        return entry.wants[min(entry.wants)].word
    left = parse(form, entry.before).difference(*(setting.without for setting in entry.wants.values()))
    return render(form, left) if left else entry.before


def _has_wish(entry: Entry, setting: Setting) -> bool:
    if setting.form is Form.WORD:
        return entry.asked == setting.word
    return not parse(setting.form, entry.asked) & set(setting.without)


def _aim(entry: Entry, present: str, writes: list[Write]) -> Entry:
    """The entry with what is wanted now; a write when the present value is another."""
    text = _wanted(entry)
    if same(entry.setting.form, text, present):
        return msgspec.structs.replace(entry, asked=text, after=present, verified=True, previous=None, error="")
    writes.append(Write(entry.setting.place, entry.setting.form, text))
    return msgspec.structs.replace(entry, asked=text, after=None, verified=False, previous=present, error="")


def _is_ours(entry: Entry, present: str) -> bool:
    known = (entry.before, entry.asked, entry.after, entry.previous)
    return any(value is not None and same(entry.setting.form, value, present) for value in known)


def _give_way(entry: Entry, present: str) -> Entry:
    return msgspec.structs.replace(entry, before=present, asked=present, after=present, verified=True, previous=None, error="")
