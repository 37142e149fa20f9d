"""How many memory errors were counted?

Main memory from EDAC under a root; GPUs from `nvidia-smi`, where it is; module slots from the text of `dmidecode`, whose serial
numbers are passed over.
"""

from __future__ import annotations

import re
from pathlib import Path

from steelyard.host.health.ask import ask
from steelyard.host.sysfs import numbered, read_int
from steelyard.model.health import pci_of
from steelyard.model.health_facts import DimmFact, EccFact, HealthFacts, Unread

_FIELDS = "pci.bus_id,ecc.errors.corrected.volatile.total,ecc.errors.uncorrected.volatile.total"
_REMAP_FIELDS = "pci.bus_id,remapped_rows.pending,remapped_rows.failure"
_UNITS = {"MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40, "kB": 1 << 10}


def observe_memory_errors(root: Path) -> HealthFacts:
    base = root / "sys/devices/system/edac/mc"
    controllers = numbered(base, "mc")
    if not controllers:
        reason = "This kernel counts no memory errors: it has no EDAC driver for the machine, or the machine is a guest."
        return HealthFacts(unread=(Unread("ecc", "node", reason),))
    return HealthFacts(
        ecc=tuple(
            EccFact(f"mc{number}", read_int(base / f"mc{number}/ce_count"), read_int(base / f"mc{number}/ue_count"))
            for number in controllers
        )
    )


def observe_gpu_errors() -> HealthFacts:
    """Asks `nvidia-smi`; nothing where it is not installed (there is nothing to ask about then)."""
    told = ask(["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"])
    if told.missing:
        return HealthFacts()
    if told.error:
        return HealthFacts(unread=(Unread("gpu-ecc", "node", told.error),))
    remaps = ask(["nvidia-smi", f"--query-gpu={_REMAP_FIELDS}", "--format=csv,noheader,nounits"])
    return HealthFacts(ecc=parse_gpu_errors(told.text, remaps.text))


def parse_gpu_errors(errors: str, remaps: str) -> tuple[EccFact, ...]:
    """Two answers of nvidia-smi in CSV. `[N/A]` is not known."""
    pending = {pci_of(row[0]): row for row in _rows(remaps) if len(row) == 3}
    found: list[EccFact] = []
    for row in _rows(errors):
        if len(row) != 3:
            continue
        pci = pci_of(row[0])
        remap = pending.get(pci, ["", "", ""])
        found.append(EccFact(pci, _int(row[1]), _int(row[2]), _yes(remap[1]), _yes(remap[2])))
    return tuple(found)


def parse_dmidecode(text: str) -> DimmFact | None:
    """Slots and modules of type 17 records; None where the text has none (dmidecode was asked for something else)."""
    slots, sizes = 0, dict[int, int]()
    for block in re.split(r"^(?=Handle 0x)", text, flags=re.MULTILINE):
        if not re.match(r"Handle 0x[0-9A-Fa-f]+, DMI type 17,", block):
            continue
        slots += 1
        match = re.search(r"^\s*Size: (\d{1,9}) (kB|MB|GB|TB)\s*$", block, re.MULTILINE)
        if match is not None:
            size = int(match[1]) * _UNITS[match[2]]
            sizes[size] = sizes.get(size, 0) + 1
    return DimmFact(slots, sum(sizes.values()), sizes) if slots else None


def observe_dimms(root: Path) -> DimmFact | None:
    """The firmware's own table through `dmidecode`, which needs root; a recorded tree may hold its text."""
    if root != Path("/"):
        return None
    told = ask(["dmidecode", "-t", "17"])
    return None if told.missing or told.error else parse_dmidecode(told.text)


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def _int(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _yes(text: str) -> bool | None:
    word = text.lower()
    return True if word in ("yes", "1") else False if word in ("no", "0") else None
