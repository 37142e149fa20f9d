"""Are all GPUs of a machine linked as well as their peers? The machine's topology in, findings out.

Peers are GPUs of one name. One with fewer links up than the others, or fewer PCIe lanes than it could use, makes every collective
over all of them slower: a WARNING. That it had more before is drift, and judged there.
"""

from __future__ import annotations

from steelyard.model.health import Finding, Remedy, Severity
from steelyard.model.topology import Topology


def judge_topology(topology: Topology) -> tuple[Finding, ...]:
    findings: list[Finding] = []
    for gpu in topology.gpus:
        most = max((other.links for other in topology.gpus if other.name == gpu.name and other.links is not None), default=0)
        if gpu.links is not None and gpu.links < most:
            sentence = f"The GPU has {gpu.links} links up, others of its kind have {most}."
            action = "Look for Xid 74 or 144 to 150 in the log; reset the GPU, then look at the links' connections."
            findings.append(Finding("gpu-links", gpu.id, Severity.WARNING, sentence, action, Remedy.CHECK_LINK))
        if gpu.pcie_width is not None and gpu.pcie_width_max is not None and 0 < gpu.pcie_width < gpu.pcie_width_max:
            sentence = f"The GPU uses {gpu.pcie_width} of {gpu.pcie_width_max} PCIe lanes."
            action = "Look at its seating; if the slot has no more lanes, nothing is wrong."
            findings.append(Finding("gpu-lanes", gpu.id, Severity.WARNING, sentence, action, Remedy.CHECK_LINK))
    told = [gpu for gpu in topology.gpus if gpu.links is not None or gpu.pcie_width is not None]
    if told and not findings:
        noun = "1 GPU" if len(told) == 1 else f"{len(told)} GPUs"
        findings.append(Finding("gpu-links", "gpus", Severity.PASS, f"{noun} linked as well as their peers."))
    return tuple(findings)
