"""How healthy is the machine that these facts were read from? Facts in, findings out, one for every check; never fails.

A part that was looked at and has nothing to say of itself (no InfiniBand, no SEL) gives no finding; one that could not be
looked at gives UNKNOWN with the reason. Never reads anything itself.
"""

from __future__ import annotations

import msgspec

from steelyard.lifecycle.health_links import judge_interfaces, judge_pci, judge_ports
from steelyard.lifecycle.health_log import judge_log
from steelyard.lifecycle.health_platform import judge_disks, judge_ecc, judge_platform, judge_sel
from steelyard.model.health import Finding, Health, Severity
from steelyard.model.health_facts import HealthFacts


def judge_health(facts: HealthFacts) -> Health:
    findings: list[Finding] = []
    for log in facts.logs:
        findings += judge_log(log)
    findings += judge_ports(facts.ports, facts.interfaces)
    findings += judge_interfaces(facts.interfaces)
    findings += judge_pci(facts.pci)
    findings += judge_ecc(facts.ecc)
    findings += judge_disks(facts.disks)
    if facts.sel is not None:
        findings += judge_sel(facts.sel)
    if facts.platform is not None:
        findings += judge_platform(facts.platform)
    findings += [Finding(each.check, each.subject, Severity.UNKNOWN, each.reason) for each in facts.unread]
    return Health(tuple(findings))


def forgive(health: Health, answered: dict[str, int]) -> Health:
    """What a passed active check has answered is history: log lines up to the number in `answered`, by what they blocked, become
    INFO. Newer lines stand as they are."""

    def soften(finding: Finding) -> Finding:
        if not finding.blocking or finding.sequence is None:
            return finding
        if all(finding.sequence <= answered.get(subject, -1) for subject in finding.blocks):
            sentence = f"{finding.sentence} A later active check passed."
            return msgspec.structs.replace(finding, severity=Severity.INFO, sentence=sentence, action="", blocks=())
        return finding

    return Health(tuple(soften(finding) for finding in health.findings))
