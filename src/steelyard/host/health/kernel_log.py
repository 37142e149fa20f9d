"""What went wrong, as the kernel's log tells it? Counts Xids, SXids, OOM kills, hardware, disk and lockup lines.

Reads the forms in which such logs are kept: /dev/kmsg records, `dmesg` in its time formats, the journal and syslog with month
names in several languages, pstore dumps, and NVIDIA's fabric manager log. Lines of one kind about one device with one code become
one event, so that memory stays bounded whatever the log holds. Never raises for odd text. Serial numbers, UUIDs and MACs are
masked in what is kept.
"""

from __future__ import annotations

import errno
import os
import re
from datetime import datetime
from pathlib import Path

import msgspec

from steelyard.model.health import pci_of
from steelyard.model.health_facts import HealthFacts, Log, LogEvent, LogKind, Unread

LINES_MAX = 200_000
#: characters of a line that are looked at and kept
LINE_MAX, TEXT_MAX = 2000, 220
EVENTS_MAX = 1000
#: records from this priority on come from programs
PRIORITY_USER = 8
#: one record of /dev/kmsg is at most this long
RECORD_BYTES = 8192

_MONTHS = (
    ("jan", "gen", "ene", "janv", "sty", "led"),
    ("feb", "fév", "fev", "lut", "úno"),
    ("mar", "mär", "mrt", "mrz", "bře"),
    ("apr", "avr", "abr", "kwi", "dub"),
    ("may", "mai", "mag", "mei", "maj", "kvě"),
    ("jun", "juin", "giu", "cze", "čer"),
    ("jul", "juil", "lug", "lip"),
    ("aug", "aoû", "aou", "ago", "sie", "srp"),
    ("sep", "set", "wrz", "zář"),
    ("oct", "okt", "ott", "out", "paź", "říj"),
    ("nov", "lis"),
    ("dec", "dez", "déc", "dic", "gru", "pro"),
)
_MONTH = {name: number for number, names in enumerate(_MONTHS, 1) for name in names}

_KMSG = re.compile(r"^(\d{1,6}),(\d{1,18}),(\d{1,18}),[^;]{0,40};")
_LEVEL = re.compile(r"^<\d{1,3}>")
_FACILITY = re.compile(r"^[a-z0-9]+\s*:[a-z]+\s*: ")
_UPTIME = re.compile(r"^\[\s*(\d{1,12}\.\d{1,9})\]\s?")
_ISO = re.compile(r"^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)[,.]?(\d{0,9})(?:[+-]\d\d:?\d\d|Z)?\s+")
_HUMAN = re.compile(r"^\[\w{2,5}\.? (\w{3,5})\.? +(\d{1,2}) (\d\d):(\d\d):(\d\d) (\d{4})\]\s?")
_FABRIC = re.compile(r"^\[(\w{3,5}) (\d{1,2}) (\d{4}) (\d\d):(\d\d):(\d\d)\] \[\w+\] \[tid \d+\] ")
_SYSLOG = re.compile(r"^(\w{3,5})\.? +(\d{1,2}) (\d\d):(\d\d):(\d\d) \S+ (?:kernel|[\w.-]+)(?:\[\d+\])?: ")
_SECRET = re.compile(
    r"GPU-[0-9a-f]{8}-[0-9a-f-]+|(?:[0-9a-f]{2}:){5,}[0-9a-f]{2}|(?i:serial\s*(?:number|no)?\s*[:=]\s*)\S+|(?i:guid\s*[:=]?\s*)0x[0-9a-f]+"
)

_PCI = r"(?:PCI:)?((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_XID = re.compile(rf"\bXid \({_PCI}\): (\d{{1,5}})")
_SXID = re.compile(rf"\bSXid \({_PCI}\): (\d{{1,6}})(?:, (Non-fatal|Fatal|Corrected))?", re.IGNORECASE)
_FABRIC_SXID = re.compile(rf"NVSwitch (non-fatal|fatal) error (\d{{1,6}}) .{{0,60}}?pci bus id {_PCI}", re.IGNORECASE)
_GPU_LOST = re.compile(rf"NVRM: GPU (?:at )?{_PCI}: GPU has fallen off the bus")
_AER = re.compile(r"\bAER: .{0,60}\b(un\w*correct\w*|corrected)\b(?: \((non-fatal|fatal)\))?", re.IGNORECASE)
_PCI_ADDRESS = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b")
_BLOCK = re.compile(r"\b(?:I/O error, dev|blk_update_request: .{0,40}error, dev) (?!loop|sr\d|fd\d|ram|nbd)([\w-]+)")
_NVME = re.compile(r"\bnvme (nvme\d+): .{0,80}?(timeout|controller is down|Removing after probe failure|I/O \d+ QID \d+ timeout)")
_FILESYSTEM = re.compile(
    r"(EXT4-fs error \(device ([\w-]+)\)|XFS \(([\w-]+)\): .{0,80}(?:corruption|shutdown)|Remounting filesystem read-only)",
    re.IGNORECASE,
)
_LOCKUP = re.compile(
    r"(soft lockup|hard LOCKUP|hung_task|blocked for more than \d+ seconds|rcu_sched .{0,40}stall|rcu: INFO: .{0,40}stall)",
    re.IGNORECASE,
)
#: programs of users that fault say `traps: NAME[PID] general protection fault`: that is no crash of the kernel
_CRASH = re.compile(
    r"(Kernel panic|BUG: unable to handle|Oops: |^general protection fault|sysrq: .{0,20}Trigger a crash)", re.MULTILINE
)
_SEGFAULT = re.compile(r"\bsegfault at \S+ ip \S+ sp \S+ error \d+ in (lib(?:nccl|rccl)[\w.+-]*)")
_HARDWARE = re.compile(r"(\[Hardware Error\]|Machine Check Exception|EDAC \w+: .{0,20}[CU]E )")
_UNCORRECTED = re.compile(
    r"uncorrected|severity: (?:fatal|recoverable)|context corrupt|Machine Check Exception|deferred|\bUE\b", re.IGNORECASE
)
_THROTTLE = re.compile(r"(temperature above threshold|cpu clock throttled)", re.IGNORECASE)
_OOM_ID = re.compile(r"oom-kill:constraint=(CONSTRAINT_\w+|\w+)")
_OOM = re.compile(r"(Out of memory: Kill(?:ed)? process|Memory cgroup out of memory: Kill(?:ed)? process)")


def parse_log(text: str, source: str) -> Log:
    """The log of `text`. Bounded: at most 200,000 lines are looked at, the newest ones."""
    lines = text.splitlines()
    dropped = max(0, len(lines) - LINES_MAX)
    events: dict[tuple[object, ...], LogEvent] = {}
    for number, line in enumerate(lines[dropped:], dropped + 1):
        take_line(events, line, number)
    return Log(source, len(lines), tuple(events.values()), len(lines), dropped)


def take_line(events: dict[tuple[object, ...], LogEvent], line: str, number: int) -> None:
    """Adds what one line says to `events`."""
    message, seconds, sequence = split_stamp(line[:LINE_MAX])
    event = read_message(message)
    if event is None:
        return
    sequence = number if sequence is None else sequence
    text = _SECRET.sub("…", message.strip())[:TEXT_MAX]
    key = (event.kind, event.device, event.code, event.fatal, event.detail)
    before = events.get(key)
    if before is None:
        if len(events) < EVENTS_MAX:
            events[key] = msgspec.structs.replace(event, first_s=seconds, last_s=seconds, sequence=sequence, text=text)
    else:
        events[key] = msgspec.structs.replace(before, count=before.count + 1, last_s=seconds, sequence=sequence, text=text)


def matters(record: bytes) -> bool:
    """Does one record of /dev/kmsg say anything of health? What a program wrote into the kernel's log is no word of the
    kernel."""
    priority = record.partition(b",")[0]
    if not priority.isdigit() or int(priority) >= PRIORITY_USER:
        return False
    message, _, _ = split_stamp(record.decode(errors="replace").partition("\n")[0][:LINE_MAX])
    return read_message(message) is not None


def split_stamp(line: str) -> tuple[str, float | None, int | None]:
    """(message, seconds on the log's clock, the kernel's own record number). Takes off as many prefixes as stand there: the
    journal's and the kernel's own may both be."""
    line = line.strip()
    seconds: float | None = None
    sequence: int | None = None
    match = _KMSG.match(line)
    if match is not None:
        return line[match.end() :], int(match[3]) / 1e6, int(match[2])
    for pattern, read in ((_LEVEL, None), (_FACILITY, None), (_ISO, _iso_s), (_HUMAN, _human_s), (_FABRIC, _fabric_s),
                          (_SYSLOG, _syslog_s), (_UPTIME, _uptime_s)):  # fmt: skip
        match = pattern.match(line)
        if match is not None and read is not _uptime_s:
            line = line[match.end() :]
            seconds = seconds if read is None else read(match)
        elif match is not None:
            line = line[match.end() :]
            seconds = _uptime_s(match) if seconds is None else seconds
    return line.removeprefix("kernel: "), seconds, sequence


def read_message(text: str) -> LogEvent | None:
    """What a line without its stamp says; None for what has nothing to do with health."""
    if (match := _XID.search(text)) is not None:
        return LogEvent(LogKind.XID, pci_of(match[1]), int(match[2]), detail=_xid_detail(int(match[2]), text))
    if (match := _SXID.search(text)) is not None:
        fatal = None if match[3] is None else match[3].lower() == "fatal"
        return LogEvent(LogKind.SXID, pci_of(match[1]), int(match[2]), fatal)
    if (match := _FABRIC_SXID.search(text)) is not None:
        return LogEvent(LogKind.SXID, pci_of(match[3]), int(match[2]), match[1].lower() == "fatal")
    if (match := _GPU_LOST.search(text)) is not None:
        return LogEvent(LogKind.GPU_LOST, pci_of(match[1]))
    if "nv_get_p2p_free_callback" in text:
        return LogEvent(LogKind.PEERMEM)
    if _OOM_ID.search(text) is not None or _OOM.search(text) is not None:
        limited = "MEMCG" in text or "Memory cgroup" in text
        return LogEvent(LogKind.OOM, detail="memory-limit" if limited else "")
    if (match := _SEGFAULT.search(text)) is not None:
        return LogEvent(LogKind.SEGFAULT, detail=match[1])
    if (match := _AER.search(text)) is not None:
        corrected, named = match[1].lower() == "corrected", _PCI_ADDRESS.findall(text.lower())
        detail = "corrected" if corrected else "nonfatal" if (match[2] or "").lower() == "non-fatal" else ""
        return LogEvent(LogKind.PCIE, pci_of(named[-1]) if named else "", detail=detail)
    return _read_machine(text)


def _read_machine(text: str) -> LogEvent | None:
    if _HARDWARE.search(text) is not None:
        # A record has many lines; only the one that tells the severity may make it bad.
        return LogEvent(LogKind.HARDWARE, detail="" if _UNCORRECTED.search(text) else "corrected")
    if (match := _BLOCK.search(text)) is not None:
        return LogEvent(LogKind.DISK, match[1])
    if (match := _NVME.search(text)) is not None:
        return LogEvent(LogKind.DISK, match[1], detail="timeout" if "timeout" in match[2] else "")
    if (match := _FILESYSTEM.search(text)) is not None:
        return LogEvent(LogKind.DISK, match[2] or match[3] or "", detail="file-system")
    if _LOCKUP.search(text) is not None:
        return LogEvent(LogKind.LOCKUP)
    if _CRASH.search(text) is not None:
        return LogEvent(LogKind.CRASH)
    if _THROTTLE.search(text) is not None:
        return LogEvent(LogKind.THERMAL)
    return None


def _xid_detail(code: int, text: str) -> str:
    """45: `caused:149`; 144-150: `nonfatal`; 154: what the driver asks for now."""
    if code == 45 and (match := re.search(r"caused by previous Xid (\d{1,5})", text)):
        return f"caused:{match[1]}"
    if 144 <= code <= 150:
        return "nonfatal" if re.search(r"\bnonfatal\b", text, re.IGNORECASE) else ""
    if code == 154 and (match := re.search(r" to \S+ \(([^)]{1,60})\)", text)):
        return match[1].lower()
    return ""


def _iso_s(match: re.Match[str]) -> float | None:
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    return _seconds(year, month, day, hour, minute, second, float(f"0.{match[7] or 0}"))


def _human_s(match: re.Match[str]) -> float | None:
    return _named(match[1], int(match[6]), match[2], match[3], match[4], match[5])


def _fabric_s(match: re.Match[str]) -> float | None:
    return _named(match[1], int(match[3]), match[2], match[4], match[5], match[6])


def _syslog_s(match: re.Match[str]) -> float | None:
    # Syslog leaves the year out; any leap year serves, for times are compared within one log only.
    return _named(match[1], 2000, match[2], match[3], match[4], match[5])


def _uptime_s(match: re.Match[str]) -> float | None:
    return float(match[1])


def _named(month: str, year: int, day: str, hour: str, minute: str, second: str) -> float | None:
    word = month.lower()
    number = _MONTH.get(word) or _MONTH.get(word[:4]) or _MONTH.get(word[:3])
    return None if number is None else _seconds(year, number, int(day), int(hour), int(minute), int(second), 0.0)


def _seconds(year: int, month: int, day: int, hour: int, minute: int, second: int, fraction: float) -> float | None:
    try:
        whole = datetime(year, month, day, hour, minute, min(second, 59)) - datetime(1970, 1, 1)  # noqa: DTZ001
    except ValueError:
        return None
    return whole.total_seconds() + fraction


def observe_kernel_log(root: Path = Path("/")) -> HealthFacts:
    """The running kernel's own ring buffer, without waiting for more; of a recorded tree, `var/log/dmesg`."""
    if root != Path("/"):
        for name in ("var/log/dmesg", "dmesg"):
            if (root / name).is_file():
                return HealthFacts(logs=(parse_log((root / name).read_text(errors="replace"), name),))
        return HealthFacts(unread=(Unread("kernel-log", "node", "The recorded tree holds no kernel log."),))
    events: dict[tuple[object, ...], LogEvent] = {}
    lines = dropped = newest = 0
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        return _unread(err)
    try:
        while lines < LINES_MAX:
            try:
                record = os.read(fd, RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as err:
                if err.errno == errno.EPIPE:  # overwritten while we read: the next read goes on behind the gap
                    dropped += 1
                    continue
                if err.errno == errno.EINVAL:
                    continue
                return _unread(err)
            lines += 1
            newest = max(newest, _number(record))
            priority = record.partition(b",")[0]
            if not priority.isdigit() or int(priority) >= PRIORITY_USER:
                continue  # a program wrote it into the kernel's log: it is no word of the kernel
            take_line(events, record.decode(errors="replace").partition("\n")[0], lines)
    finally:
        os.close(fd)
    if lines == 0:
        return HealthFacts(unread=(Unread("kernel-log", "node", "The kernel's log is empty here; a container may hide it."),))
    return HealthFacts(logs=(Log("kernel log", lines, tuple(events.values()), newest, dropped),))


def _number(record: bytes) -> int:
    parts = record.split(b",", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0


def _unread(err: OSError) -> HealthFacts:
    what = (
        "Steelyard may not read the kernel's log; run it as root"
        if isinstance(err, PermissionError)
        else "The kernel's log can't be read"
    )
    return HealthFacts(unread=(Unread("kernel-log", "node", f"{what} ({os.strerror(err.errno or 0)})."),))
