"""What did the management controller write into its event log?

From the text of `ipmitool sel elist`. Record numbers are hexadecimal.
"""

from __future__ import annotations

import re
from pathlib import Path

from steelyard.host.health.ask import ask
from steelyard.model.health_facts import HealthFacts, SelFact, Unread

RECORDS_MAX = 10_000
_ROW = re.compile(
    r"^\s*([0-9a-fA-F]{1,8}) \| ([^|]{1,30}) \| ([^|]{1,30}) \| ([^|]{1,80}) \| ([^|]{1,120}) \| (Asserted|Deasserted)"
)


def parse_sel(text: str) -> tuple[SelFact, ...]:
    """The newest 10,000 records. Lines of another form are passed over."""
    rows = [match for line in text.splitlines()[-RECORDS_MAX:] if (match := _ROW.match(line)) is not None]
    return tuple(
        SelFact(int(row[1], 16), f"{row[2].strip()} {row[3].strip()}", row[4].strip(), row[5].strip(), row[6] == "Asserted")
        for row in rows
    )


def observe_sel(root: Path) -> HealthFacts:
    if root != Path("/"):
        return HealthFacts(unread=(Unread("sel", "node", "The recorded tree holds no management controller's log."),))
    if not any((root / "dev" / name).exists() for name in ("ipmi0", "ipmi/0", "ipmidev/0")):
        return HealthFacts(unread=(Unread("sel", "node", "The machine shows no management controller (no /dev/ipmi0)."),))
    told = ask(["ipmitool", "sel", "elist"])
    if told.missing:
        return HealthFacts(unread=(Unread("sel", "node", "ipmitool is not installed, so that the management log is unread."),))
    if told.error:
        return HealthFacts(unread=(Unread("sel", "node", told.error),))
    return HealthFacts(sel=parse_sel(told.text))
