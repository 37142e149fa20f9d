"""Would containers get this machine's GPUs, and by what? Wiring and what the machine shows in, findings out. Pure.

What would be refused at a start is found here before; a specification that is not used is named even where nothing needs it.
"""

from __future__ import annotations

from steelyard.lifecycle.cdi import resolve
from steelyard.lifecycle.device_edits import grant_devices
from steelyard.model.cdi import CdiFacts
from steelyard.model.health import NODE, Finding, Remedy, Severity
from steelyard.model.job import Plan
from steelyard.model.topology import Gpu, Topology

CHECK = "containers"


def judge_inside(topology: Topology, facts: CdiFacts) -> list[Finding]:
    problems = (*facts.problems, *resolve(facts.files)[1])
    findings = [
        Finding(
            CHECK, NODE, Severity.WARNING, f"The CDI specification {each.path} is not used: {each.text}.",
            "Mend or remove it.", Remedy.CONFIGURE,
        )
        for each in problems
    ]  # fmt: skip
    for gpu in topology.gpus:
        source, inside = find_source(gpu, topology, facts)
        if inside:
            findings.append(Finding(CHECK, gpu.id, Severity.PASS, f"Containers would get it by {source}."))
        else:
            severity = Severity.WARNING if facts.files or problems else Severity.INFO
            findings.append(Finding(CHECK, gpu.id, severity, f"Containers can't have it: {source}.", remedy=Remedy.CONFIGURE))
    return findings


def find_source(gpu: Gpu, topology: Topology, facts: CdiFacts) -> tuple[str, bool]:
    """(what brings it in, True) or (why nothing does, False). Of a GPU that MIG cut, all of its parts."""
    parts = tuple(part.uuid for part in gpu.mig_instances if part.uuid is not None)
    edits = grant_devices(Plan(gpus=(gpu.id,), mig_instances=parts), topology, facts)
    return (edits, False) if isinstance(edits, str) else (", ".join(edits.sources), True)
