"""How healthy is a machine, and what may not be used on it? The words that checks, drift, placement, API and CLI share.

One rule joins them: a CRITICAL finding takes out of use exactly what it names in `blocks`, and nothing else ever does. A check
that could not look is UNKNOWN with its reason; PASS is only said of what was read.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

#: the subject of findings about the whole machine
NODE = "node"


class Severity(StrEnum):
    """From the best to the worst. UNKNOWN stands between INFO and WARNING: nobody has seen that all is well, nor the contrary."""

    PASS = "PASS"
    INFO = "INFO"
    UNKNOWN = "UNKNOWN"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class Remedy(StrEnum):
    """What should be done. Short, so that scripts can act on it; the sentence stands in `Finding.action`."""

    NONE = "none"
    WATCH = "watch"
    RESTART_APP = "restart-app"
    RESET_GPU = "reset-gpu"
    REBOOT = "reboot"
    RUN_DIAGNOSTICS = "run-diagnostics"
    CHECK_LINK = "check-link"
    CHECK_POWER = "check-power"
    UPDATE_DRIVER = "update-driver"
    CONTACT = "contact-vendor"
    REPLACE = "replace"
    CONFIGURE = "configure"


#: the sentences people read where a finding has none of its own
REMEDY_SENTENCES = {
    Remedy.NONE: "",
    Remedy.WATCH: "Nothing to do now; look again when it comes back.",
    Remedy.RESTART_APP: "Restart the program; look for a fault in it first.",
    Remedy.RESET_GPU: "Reset the GPU when it is idle.",
    Remedy.REBOOT: "Reboot the machine; power it off and on if that does not help.",
    Remedy.RUN_DIAGNOSTICS: "Take the device out and run the maker's diagnostics on it.",
    Remedy.CHECK_LINK: "Look at cable, connector and the other end of the link.",
    Remedy.CHECK_POWER: "Look at power cables, seating and cooling.",
    Remedy.UPDATE_DRIVER: "Bring driver and firmware to versions that go together.",
    Remedy.CONTACT: "Ask the maker; collect a bug report first.",
    Remedy.REPLACE: "Plan to replace the part.",
    Remedy.CONFIGURE: "Change the machine's settings.",
}


class Finding(msgspec.Struct, frozen=True):
    """What one check says of one subject."""

    #: `xid`, `ib-port`, `clock`, `drift`: stable, scripted against
    check: str
    #: `node`, a device as the topology names it (PCI address), a port (`mlx5_2/1`), a memory node (`numa:0`)
    subject: str
    severity: Severity
    #: one sentence: what is so
    sentence: str
    #: one sentence: what to do; "" where there is nothing to do
    action: str = ""
    remedy: Remedy = Remedy.NONE
    #: what was read, shortened, without serial numbers and MACs
    evidence: tuple[str, ...] = ()
    #: what a CRITICAL finding takes out of use: () nothing; one id: that device, memory node or `node`; two ids: only their use
    #: together (a link between them)
    blocks: tuple[str, ...] = ()
    #: of a log line, its number in this boot's kernel log: tells a new one from one that an active check has answered already
    sequence: int | None = None

    @property
    def blocking(self) -> bool:
        return self.severity is Severity.CRITICAL and bool(self.blocks)


class Health(msgspec.Struct, frozen=True):
    """All findings of one look."""

    findings: tuple[Finding, ...] = ()

    @property
    def worst(self) -> Severity:
        """UNKNOWN when nothing was looked at."""
        return max((finding.severity for finding in self.findings), key=lambda each: each.rank, default=Severity.UNKNOWN)

    @property
    def blocked(self) -> frozenset[tuple[str, ...]]:
        return frozenset(finding.blocks for finding in self.findings if finding.blocking)

    def worst_first(self) -> tuple[Finding, ...]:
        return tuple(sorted(self.findings, key=lambda each: (-each.severity.rank, each.check, each.subject)))


def pci_of(text: str) -> str:
    """`0000:9B:00`, `00000000:86:00.0`, `9b:00.0` -> the topology's way: `0000:9b:00.0`. Other words stay as they are."""
    head, dot, function = text.strip().lower().partition(".")
    parts = head.split(":")
    if not all(parts) or any(char not in "0123456789abcdef" for part in parts for char in part) or len(parts) not in (2, 3):
        return text
    domain = parts[0][-4:].rjust(4, "0") if len(parts) == 3 else "0000"
    return f"{domain}:{parts[-2]}:{parts[-1]}.{function if dot else '0'}"
