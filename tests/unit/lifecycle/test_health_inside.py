"""What would be refused at a start is known before."""

from __future__ import annotations

import msgspec

from gpu_root import GPUS, TOPOLOGY, VERSION, make_specification
from steelyard.lifecycle.cdi import read_specification
from steelyard.lifecycle.health_inside import find_source, judge_inside
from steelyard.model.cdi import CdiFacts, NvidiaDriver, OwnNode, Problem, Specification, SpecificationFile
from steelyard.model.health import Severity
from steelyard.model.topology import Topology

OWN = {pci: (OwnNode(f"/dev/nvidia{minor}", (195, minor)),) for pci, minor in zip(GPUS, (1, 0, 2), strict=True)}
DRIVER = CdiFacts(own_nodes=OWN, driver=NvidiaDriver(VERSION, ()))


def test_each_gpu_says_what_brings_it_in() -> None:
    findings = judge_inside(TOPOLOGY, DRIVER)
    assert [(each.subject, each.severity) for each in findings] == [(pci, Severity.PASS) for pci in GPUS]
    assert findings[0].sentence == f"Containers would get it by the files of NVIDIA's driver {VERSION}."


def test_without_specification_and_driver_it_is_said_what_to_do() -> None:
    first = judge_inside(TOPOLOGY, CdiFacts(own_nodes=OWN))[0]
    assert first.severity is Severity.INFO
    assert "neither a CDI specification" in first.sentence and first.sentence.endswith("nvidia.yaml.")


def test_a_specification_that_lacks_a_gpu_is_a_warning_for_that_one_alone() -> None:
    made = read_specification(make_specification(), "/etc/cdi/nvidia.json", typed=True)
    assert isinstance(made, Specification)
    facts = msgspec.structs.replace(DRIVER, files=(SpecificationFile("/etc/cdi/nvidia.json", 0, made),))
    findings = judge_inside(TOPOLOGY, facts)
    assert [each.severity for each in findings] == [Severity.PASS, Severity.PASS, Severity.WARNING]
    assert find_source(TOPOLOGY.gpus[0], TOPOLOGY, facts) == ("/etc/cdi/nvidia.json", True)


def test_what_is_not_used_is_named_also_on_a_machine_without_gpus() -> None:
    (finding,) = judge_inside(Topology(), CdiFacts(problems=(Problem("/etc/cdi/x.yaml", "it is damaged"),)))
    assert (finding.severity, finding.sentence) == (
        Severity.WARNING, "The CDI specification /etc/cdi/x.yaml is not used: it is damaged.",
    )  # fmt: skip
    assert judge_inside(Topology(), CdiFacts()) == []
