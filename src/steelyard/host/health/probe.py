"""Does this part of the machine really work?

Active checks: they use the part instead of only looking at it. Run only while no work has it.

A GPU computes and remembers; the machine computes on every CPU, and its disk keeps what is written; disks are read; a bridge or
switch answers and counts no new errors. A part for which no such check is known is UNKNOWN, which does not pass.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from pathlib import Path

from steelyard.host.health.ask import ask
from steelyard.host.health.infiniband import observe_ports
from steelyard.host.health.network import observe_interfaces
from steelyard.host.sysfs import names, read_text
from steelyard.lifecycle.health_links import COUNTER_LIMITS
from steelyard.model.health import NODE, Finding, Remedy, Severity
from steelyard.model.health_facts import PortFact

#: the driver itself may need this long to come up for the first time
GPU_TIMEOUT_S = 120.0
WORK_BYTES = 4 << 20
READ_BYTES = 1 << 20
#: how long error counts are watched
WATCH_S = 1.0


def probe_gpu(pci: str) -> Finding:
    told = ask([sys.executable, "-P", "-m", "steelyard.host.health.gpu_probe", pci], GPU_TIMEOUT_S)
    said = told.text.strip().partition("\n")[0]
    if said.startswith("PASS"):
        return _finding(pci, Severity.PASS, said.removeprefix("PASS ") if said != "PASS" else "It computes.")
    if "failed with code 2" in told.error:
        return _finding(pci, Severity.UNKNOWN, said or "The GPU could not be looked at.")
    return _finding(pci, Severity.CRITICAL, said or told.error or "The GPU's check said nothing.")


def probe_node(folder: Path) -> Finding:
    """Every CPU hashes the same bytes, and `folder`'s disk gives back what was written and fsynced."""
    data = os.urandom(WORK_BYTES)
    allowed = os.sched_getaffinity(0)
    answers: dict[int, str] = {}
    cpu = -1
    try:
        for cpu in sorted(allowed):
            os.sched_setaffinity(0, {cpu})
            answers[cpu] = hashlib.sha256(data).hexdigest()
    except OSError as err:
        return _finding(NODE, Severity.CRITICAL, f"CPU {cpu} could not be used ({os.strerror(err.errno or 0)}).")
    finally:
        os.sched_setaffinity(0, allowed)
    most = max(set(answers.values()), key=list(answers.values()).count)
    odd = [cpu for cpu, answer in answers.items() if answer != most]
    if odd:
        return _finding(NODE, Severity.CRITICAL, f"CPU {odd[0]} computes another result than the others.")
    file = folder / ".probe"
    try:
        with file.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        kept = file.read_bytes() == data
    except OSError as err:
        return _finding(NODE, Severity.CRITICAL, f"The disk did not take what was written ({os.strerror(err.errno or 0)}).")
    finally:
        file.unlink(missing_ok=True)
    if not kept:
        return _finding(NODE, Severity.CRITICAL, "The disk gave back something else than what was written.")
    return _finding(NODE, Severity.PASS, f"{len(answers)} CPUs compute alike, and the disk keeps what is written.")


def probe_nvme(pci: str, root: Path = Path("/")) -> Finding:
    """Reads the start of its first namespace past the page cache. Writes nothing."""
    controllers = names(root / "sys/bus/pci/devices" / pci / "nvme")
    spaces = [name for each in controllers for name in names(root / "sys/class/nvme" / each) if name.startswith(f"{each}n")]
    if not spaces:
        return _finding(pci, Severity.UNKNOWN, "Its namespaces could not be found.")
    return _read_disk(pci, root / "dev" / spaces[0])


def probe_disk(name: str, root: Path = Path("/")) -> Finding | None:
    """By the kernel's name: `sda`, `sda1`, `dm-0`, or an NVMe controller, `nvme0`. None where there is no such disk."""
    if not name or "/" in name:
        return None
    controller = root / "sys/class/nvme" / name
    space = next((each for each in names(controller) if each.startswith(f"{name}n")), None)
    disk = space if space is not None else name
    if not (root / "sys/class/block" / disk).exists():
        return None
    return _read_disk(name, root / "dev" / disk)


def probe_pci(pci: str, root: Path = Path("/")) -> Finding | None:
    """A bridge, a switch or whatever else hangs on the bus: it answers, and counts no new errors for a moment. None where there
    is no such part."""
    folder = root / "sys/bus/pci/devices" / pci
    if not pci or "/" in pci or not folder.exists():
        return None
    before = _fatal_errors(folder)
    try:
        answered = (folder / "config").read_bytes()[:2]
    except OSError as err:
        severity = Severity.UNKNOWN if isinstance(err, PermissionError) else Severity.CRITICAL
        return _finding(pci, severity, f"It could not be asked ({os.strerror(err.errno or 0)}).")
    if len(answered) < 2 or answered == b"\xff\xff":
        return _finding(pci, Severity.CRITICAL, "It does not answer on the bus.")
    if before is None:
        return _finding(pci, Severity.UNKNOWN, "It answers, but how many errors it had can't be read.")
    threading.Event().wait(WATCH_S)
    after = _fatal_errors(folder)
    if after is None or after > before:
        return _finding(pci, Severity.CRITICAL, f"It counted new errors within {WATCH_S:.0f} s.")
    return _finding(pci, Severity.PASS, "It answers on the bus and counts no new errors.")


def _fatal_errors(folder: Path) -> int | None:
    """All that could not be corrected; None where the kernel does not count them."""
    totals = [
        int(line.split()[1])
        for kind in ("fatal", "nonfatal")
        for line in (read_text(folder / f"aer_dev_{kind}") or "").splitlines()
        if re.fullmatch(r"TOTAL_ERR_\w+ \d+", line)
    ]
    return sum(totals) if totals else None


def _read_disk(subject: str, path: Path) -> Finding:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, READ_BYTES, os.POSIX_FADV_DONTNEED)
            read = len(os.read(fd, READ_BYTES))
        finally:
            os.close(fd)
    except OSError as err:
        severity = Severity.UNKNOWN if isinstance(err, PermissionError) else Severity.CRITICAL
        return _finding(subject, severity, f"It could not be read ({os.strerror(err.errno or 0)}).")
    return _finding(subject, Severity.PASS if read else Severity.CRITICAL, f"{read} bytes were read from it.")


def probe_nic(subject: str, root: Path = Path("/")) -> Finding:
    """`subject`: PCI address or device name. Every port carries traffic, and none counts new errors for a moment."""
    before = _ports_of(subject, root)
    interfaces = [each for each in observe_interfaces(root) if subject in (each.pci, each.name)]
    if not before and not interfaces:
        return _finding(subject, Severity.UNKNOWN, "It has neither a port nor an interface to look at.")
    bad = [f"{each.device}/{each.port} is {each.state}" for each in before if each.state != "active"]
    bad += [f"{each.name} is {each.operstate}" for each in interfaces if each.operstate != "up"]
    if bad:
        return _finding(subject, Severity.CRITICAL, f"{', '.join(bad)}.")
    threading.Event().wait(WATCH_S)
    grown = [f"{new.device}/{new.port}" for old, new in zip(before, _ports_of(subject, root), strict=False) if _grew(old, new)]
    if grown:
        return _finding(subject, Severity.CRITICAL, f"{', '.join(grown)} counted new errors within {WATCH_S:.0f} s.")
    return _finding(subject, Severity.PASS, "All its ports are active and count no new errors.")


def _ports_of(subject: str, root: Path) -> list[PortFact]:
    return [port for port in observe_ports(root) if subject in (port.pci, port.device)]


def _grew(old: PortFact, new: PortFact) -> bool:
    return any(value > old.counters.get(name, value) for name, value in new.counters.items() if name in COUNTER_LIMITS)


def _finding(subject: str, severity: Severity, sentence: str) -> Finding:
    remedy = Remedy.RUN_DIAGNOSTICS if severity is Severity.CRITICAL else Remedy.NONE
    action = "Run the maker's diagnostics." if severity is Severity.CRITICAL else ""
    return Finding("probe", subject, severity, sentence, action, remedy)
