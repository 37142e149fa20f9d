"""What do the lines of a kernel log mean for the machine's devices? Log events in, findings out.

An Xid is judged by its kind (`xid.py`), an SXid by its fatality (`sxid.py`) and, where that leaves it open, by the line's own
word. Xid 45 is the driver clearing away after another error: where that other one is named in the line, or stands near it about
the same device, 45 is only its consequence. A fatal SXid takes the whole machine out of use, for its mending resets every GPU
and switch.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.lifecycle.sxid import CORRECTED, SXIDS, Fatality
from steelyard.lifecycle.xid import XIDS, XidKind
from steelyard.model.health import NODE, REMEDY_SENTENCES, Finding, Remedy, Severity
from steelyard.model.health_facts import Log, LogEvent, LogKind

#: an Xid 45 within this of another Xid belongs to it: in seconds, or in lines where the log has no times
NEAR_S, NEAR_LINES = 60.0, 200
#: engine errors from here on are the GPU's own fault, not one program's
ENGINE_MANY = 10
#: corrected errors from here on are worth a warning
CORRECTED_MANY = 100

#: the driver's words in an Xid 154 line that ask for nothing
_NO_RECOVERY = ("none",)

_MACHINE: dict[LogKind, tuple[Severity, Remedy, str, str]] = {
    LogKind.HARDWARE: (
        Severity.CRITICAL,
        Remedy.RUN_DIAGNOSTICS,
        "The CPU or its memory reported a hardware error that could not be corrected",
        "Take the machine out and run its maker's diagnostics.",
    ),
    LogKind.CRASH: (
        Severity.CRITICAL,
        Remedy.REBOOT,
        "The kernel crashed",
        "Keep the log, reboot, and look at what it was doing.",
    ),
    LogKind.LOCKUP: (
        Severity.WARNING,
        Remedy.WATCH,
        "A CPU or a task made no progress for long",
        "Look at what held it: storage, a driver, or a hypervisor that gave no time.",
    ),
    LogKind.SEGFAULT: (
        Severity.WARNING,
        Remedy.RESTART_APP,
        "A program crashed inside its GPU communication library",
        "Look at the versions of driver and NCCL or RCCL, and at the network that it ran over.",
    ),
    LogKind.PEERMEM: (
        Severity.INFO,
        Remedy.NONE,
        "nvidia-peermem said that memory it had lent was already gone; it does so when programs end",
        "",
    ),
    LogKind.THERMAL: (
        Severity.WARNING,
        Remedy.CHECK_POWER,
        "A CPU slowed down because it got too hot",
        "Look at fans, dust and inlet air.",
    ),
}


def judge_log(log: Log) -> list[Finding]:
    """One finding for each kind, device and code; PASS when the log holds nothing that matters."""
    findings = [finding for event in log.events if (finding := _judge(event, log.events)) is not None]
    if not findings:
        rest = f"; {log.dropped} more were lost" if log.dropped else ""
        return [Finding("kernel-log", NODE, Severity.PASS, f"Nothing wrong in {log.lines} lines of {log.source}{rest}.")]
    return findings


def _judge(event: LogEvent, all_events: Sequence[LogEvent]) -> Finding | None:
    match event.kind:
        case LogKind.XID:
            return _judge_xid(event, all_events)
        case LogKind.SXID:
            return _judge_sxid(event)
        case LogKind.GPU_LOST:
            told = any(other.kind is LogKind.XID and other.code == 79 and other.device == event.device for other in all_events)
            return (
                None
                if told
                else _judge_xid(LogEvent(LogKind.XID, event.device, 79, text=event.text, sequence=event.sequence), ())
            )
        case LogKind.OOM:
            return _judge_oom(event)
        case LogKind.PCIE:
            return _judge_pcie(event)
        case LogKind.DISK:
            return _judge_disk(event)
        case LogKind.HARDWARE if event.detail == "corrected":
            many = event.count >= CORRECTED_MANY
            return _finding(
                event,
                NODE,
                Severity.WARNING if many else Severity.INFO,
                f"Memory or CPU errors were corrected ({_times(event)})",
                Remedy.REPLACE if many else Remedy.WATCH,
                "Find the memory module by its EDAC label and plan to replace it." if many else "",
            )
        case _:
            severity, remedy, sentence, action = _MACHINE[event.kind]
            return _finding(event, NODE, severity, f"{sentence} ({_times(event)})", remedy, action, blocks=(NODE,))


def _judge_xid(event: LogEvent, all_events: Sequence[LogEvent]) -> Finding:
    meaning = XIDS.get(event.code or 0)
    if meaning is None:
        return _finding(
            event,
            event.device,
            Severity.WARNING,
            f"Xid {event.code}, which is not in the catalogue ({_times(event)})",
            Remedy.CONTACT,
            "Look it up for this driver version.",
            check="xid",
        )
    severity, remedy, action = meaning.severity, meaning.remedy, meaning.action
    sentence = f"Xid {event.code} {meaning.mnemonic.removeprefix('ROBUST_CHANNEL_')} ({_times(event)})"
    if meaning.kind is XidKind.CLEANUP and (cause := _cause(event, all_events)) is not None:
        severity, remedy, action = Severity.INFO, Remedy.NONE, ""
        sentence = f"Xid 45 after Xid {cause}: the driver cleared away what that error ended"
    elif meaning.kind is XidKind.NVLINK and event.detail == "nonfatal":
        severity, action = Severity.WARNING, "Watch this link; look at its connections if it comes again."
    elif meaning.kind is XidKind.ENGINE and event.count >= ENGINE_MANY:
        remedy, action = Remedy.RUN_DIAGNOSTICS, REMEDY_SENTENCES[Remedy.RUN_DIAGNOSTICS]
    elif meaning.kind is XidKind.RECOVERY:
        severity, remedy, action = _recovery(event.detail)
    blocks = (event.device,) if severity is Severity.CRITICAL else ()
    return _finding(event, event.device, severity, sentence, remedy, action, blocks=blocks, check="xid")


def _recovery(asked: str) -> tuple[Severity, Remedy, str]:
    """What the driver says has to be done next (Xid 154)."""
    if asked in _NO_RECOVERY:
        return Severity.INFO, Remedy.NONE, ""
    if "reboot" in asked:
        return Severity.CRITICAL, Remedy.REBOOT, "The driver asks for a reboot."
    if "reset" in asked:
        return Severity.CRITICAL, Remedy.RESET_GPU, "The driver asks for a reset of the GPU."
    return Severity.WARNING, Remedy.WATCH, f"The driver asks for: {asked}." if asked else "Do what the driver names in this line."


def _cause(event: LogEvent, others: Sequence[LogEvent]) -> int | None:
    """The Xid that an Xid 45 follows from; None when it stands alone."""
    if event.detail.startswith("caused:"):
        return int(event.detail.removeprefix("caused:"))
    for other in others:
        if other.kind is not LogKind.XID or other.device != event.device or other.code in (45, None):
            continue
        times = (event.first_s, event.last_s, other.first_s, other.last_s)
        if event.first_s is not None and event.last_s is not None and other.first_s is not None and other.last_s is not None:
            near = other.first_s - NEAR_S <= event.last_s and event.first_s <= other.last_s + NEAR_S
        else:
            near = all(time is None for time in times) and abs(other.sequence - event.sequence) <= NEAR_LINES
        if near:
            return other.code
    return None


def _judge_sxid(event: LogEvent) -> Finding:
    meaning = SXIDS.get(event.code or 0)
    name = f"SXid {event.code} {meaning.name}" if meaning is not None else f"SXid {event.code}, which is not in the catalogue"
    fatal = event.fatal is True or (meaning is not None and meaning.fatality is Fatality.ALWAYS)
    if fatal and (meaning is None or meaning.fatality is not Fatality.NEVER):
        severity, remedy = Severity.CRITICAL, Remedy.RESET_GPU
        action = "Drain the machine; reset all its GPUs and NVSwitches together, or reboot it."
    elif event.code in CORRECTED:
        severity, remedy, action = Severity.INFO, Remedy.NONE, ""
    else:
        severity, remedy = Severity.WARNING, Remedy.CHECK_LINK
        action = "Look at what ran over the fabric then; look at the link's connections if it comes again."
    blocks = (NODE,) if severity is Severity.CRITICAL else ()
    return _finding(event, event.device, severity, f"{name} ({_times(event)})", remedy, action, blocks=blocks, check="sxid")


def _judge_oom(event: LogEvent) -> Finding:
    if event.detail == "memory-limit":
        sentence = f"Work was ended at its own memory limit ({_times(event)}); the machine had memory left"
        return _finding(event, NODE, Severity.INFO, sentence, Remedy.NONE, "Ask for more memory for that work.")
    sentence = f"The machine ran out of memory and the kernel ended programs ({_times(event)})"
    return _finding(
        event,
        NODE,
        Severity.WARNING,
        sentence,
        Remedy.CONFIGURE,
        "Give work memory limits, so that it ends before the machine does.",
    )


def _judge_pcie(event: LogEvent) -> Finding:
    if event.detail == "corrected":
        many = event.count >= CORRECTED_MANY
        action = "Look at the card's seating and its riser." if many else ""
        return _finding(
            event,
            event.device,
            Severity.WARNING if many else Severity.INFO,
            f"PCIe errors were corrected ({_times(event)})",
            Remedy.CHECK_LINK if many else Remedy.WATCH,
            action,
        )
    if event.detail == "nonfatal":
        action = "Look at the card's seating and its riser."
        sentence = f"PCIe errors that cost a transfer, not the link ({_times(event)})"
        return _finding(event, event.device, Severity.WARNING, sentence, Remedy.CHECK_LINK, action)
    sentence = f"PCIe errors that could not be corrected ({_times(event)})"
    action = "Look at the card's seating and its riser; replace what it hangs on if it comes again."
    return _finding(event, event.device, Severity.CRITICAL, sentence, Remedy.CHECK_LINK, action, blocks=(event.device,))


def _judge_disk(event: LogEvent) -> Finding:
    subject = event.device or NODE
    if event.detail == "timeout":
        action = "Look at the disk's firmware and its own error counts."
        return _finding(event, subject, Severity.WARNING, f"The disk answered too late ({_times(event)})", Remedy.WATCH, action)
    if event.detail == "file-system":
        sentence, action = "The file system has an error", "Unmount it, check it, and restore what is lost."
    else:
        sentence, action = (
            "Reads or writes failed",
            "Look at the disk's own error counts (smartctl, nvme smart-log) and replace it.",
        )
    return _finding(event, subject, Severity.CRITICAL, f"{sentence} ({_times(event)})", Remedy.REPLACE, action, blocks=(subject,))


def _finding(
    event: LogEvent,
    subject: str,
    severity: Severity,
    sentence: str,
    remedy: Remedy,
    action: str,
    *,
    blocks: tuple[str, ...] = (),
    check: str | None = None,
) -> Finding:
    return Finding(
        check=check or event.kind.value,
        subject=subject or NODE,
        severity=severity,
        sentence=f"{sentence}.",
        action=action,
        remedy=remedy,
        evidence=(event.text,) if event.text else (),
        blocks=blocks if severity is Severity.CRITICAL else (),
        sequence=event.sequence,
    )


def _times(event: LogEvent) -> str:
    return "1 line" if event.count == 1 else f"{event.count} lines"
