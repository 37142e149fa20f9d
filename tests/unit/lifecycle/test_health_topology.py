"""GPUs beside their peers."""

from __future__ import annotations

from steelyard.lifecycle.health_topology import judge_topology
from steelyard.model.health import Severity
from steelyard.model.topology import Gpu, Topology


def make(*links: int | None, width: int = 16) -> Topology:
    return Topology(
        gpus=tuple(Gpu(f"g{n}", "H100", links=each, pcie_width=width, pcie_width_max=16) for n, each in enumerate(links))
    )


def test_a_gpu_with_fewer_links_than_its_peers_is_a_warning() -> None:
    assert [(each.subject, each.severity) for each in judge_topology(make(18, 18, 17))] == [("g2", Severity.WARNING)]
    assert [each.severity for each in judge_topology(make(18, 18))] == [Severity.PASS]


def test_other_kinds_are_no_peers_and_what_is_not_told_is_not_compared() -> None:
    mixed = Topology(gpus=(Gpu("a", "H100", links=18), Gpu("b", "A100", links=12), Gpu("c", "H100")))
    assert [each.severity for each in judge_topology(mixed)] == [Severity.PASS]
    assert judge_topology(Topology(gpus=(Gpu("a"),))) == ()


def test_fewer_lanes_than_possible_are_a_warning() -> None:
    assert {each.check for each in judge_topology(make(None, width=8))} == {"gpu-lanes"}
