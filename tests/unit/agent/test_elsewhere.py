"""What the home's gateway is to know of functions on other machines."""

from __future__ import annotations

from steelyard.agent.elsewhere import make_elsewhere
from steelyard.gateway import Cluster, Neighbour, Neighbourhood, Route
from steelyard.gateway.check import check_gateway
from steelyard.model.function import Lead, Reach, Routes, Share
from steelyard.model.ids import FunctionName, MachineId
from steelyard.wire.agent import AssignedNeighbour, AwayFunction

N1, N2, N3 = (MachineId(f"n{number}") for number in (1, 2, 3))
NEIGHBOURS = tuple(AssignedNeighbour(machine, f"10.0.0.{at}", 7000) for at, machine in enumerate((N1, N2)))
ONE, TWO = (Neighbour(str(machine), f"10.0.0.{at}", 7000) for at, machine in enumerate((N1, N2)))
F = FunctionName("f")


def test_a_revision_is_led_to_within_its_own_bounds_and_divided_here() -> None:
    leads = (
        Lead(Reach(1, 8, 200, 2.5), (N1,), 90),
        Lead(Reach(2, 16, 300, 5.0), (N1, N2), 10, ("next",)),
        Lead(Reach(3, 4, 100, 5.0), (N2,), 0, ("odd", "old")),
    )
    function = AwayFunction(F, True, ("next", "odd", "old"), (N1, N2), leads)
    made = make_elsewhere([function], NEIGHBOURS)
    assert made.clusters == (
        Cluster("f.1", "", 8, 200, 2.5, members=(ONE,)),
        Cluster("f.2", "", 16, 300, 5.0, members=(ONE, TWO)),
        Cluster("f.3", "", 4, 100, 5.0, members=(TWO,)),
    )
    assert made.routes == (
        Route("f", (("f.1", 90), ("f.2", 10)), True),
        Route("f", (("f.2", 100),), True, "next"),
        Route("f", (("f.3", 100),), True, "odd"),
        Route("f", (("f.3", 100),), True, "old"),
    )
    assert made.neighbourhoods == () and check_gateway(made) == []
    assert function.led == Routes((Share(1, 90), Share(2, 10)), (("next", 2), ("odd", 3), ("old", 3)))


def test_requests_are_handed_over_where_no_revision_can_be_led_to() -> None:
    made = make_elsewhere([AwayFunction(F, False, ("next",), (N1, N2))], NEIGHBOURS)
    assert made.clusters == ()
    assert made.routes == tuple(Route("f", (("@n1+n2", 100),), False, tag, away=True) for tag in ("", "next"))
    assert made.neighbourhoods == (Neighbourhood((ONE, TWO)),) and check_gateway(made) == []


def test_a_function_with_tags_alone_answers_nothing_else() -> None:
    made = make_elsewhere([AwayFunction(F, False, ("t",), (N1,), (Lead(Reach(1, 1, 1, 1.0), (N1,), 0, ("t",)),))], NEIGHBOURS)
    assert made.routes == (Route("f", (), False, away=True), Route("f", (("f.1", 100),), False, "t"))
    assert check_gateway(made) == []


def test_a_machine_that_is_not_known_any_more_is_not_led_to() -> None:
    reach = Reach(1, 1, 1, 1.0)
    both, gone = (AwayFunction(F, True, (), machines, (Lead(reach, machines, 100),)) for machines in ((N1, N3), (N3,)))
    assert make_elsewhere([both], NEIGHBOURS).clusters[0].members == (ONE,)
    made = make_elsewhere([gone], NEIGHBOURS)
    assert made.clusters == () and [route.away for route in made.routes] == [True]
