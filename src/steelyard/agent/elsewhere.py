"""How does this machine's gateway lead to functions on other machines? What the server says, as clusters and routes. Pure.

To a revision by connections of its own, through the gateway beside it, which only copies their bytes: then everything about a
request is decided here, as for a function of this machine. Where a revision can't be reached so, that gateway is handed each
request as it came, and decides there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Neighbourhood, Route, name_neighbourhood, name_revision
from steelyard.model.function import Lead
from steelyard.model.ids import FunctionName, MachineId
from steelyard.wire.agent import AssignedNeighbour, AwayFunction

Known = Mapping[MachineId, Neighbour]


def make_elsewhere(away: Iterable[AwayFunction], neighbours: Iterable[AssignedNeighbour]) -> GatewayDesired:
    """What the gateway has to know beside what is here."""
    known = {each.machine: Neighbour(each.machine, each.host, each.port) for each in neighbours}
    clusters: list[Cluster] = []
    routes: list[Route] = []
    handed: list[AwayFunction] = []
    for function in away:
        made = [_make_cluster(function.name, lead, known) for lead in function.leads]
        if made and all(cluster.members for cluster in made):
            clusters += made
            routes += _lead(function)
        else:
            handed.append(function)
            routes += _hand_over(function)
    return GatewayDesired(tuple(clusters), tuple(routes), (), _make_neighbourhoods(handed, known))


def _make_cluster(name: FunctionName, lead: Lead, known: Known) -> Cluster:
    members = tuple(known[machine] for machine in lead.machines if machine in known)
    reach = lead.reach
    return Cluster(
        name_revision(name, reach.revision),
        "",
        reach.connections_max,
        reach.pending_max,
        reach.idle_timeout_s,
        members=members,
    )


def _lead(function: AwayFunction) -> list[Route]:
    found: list[Route] = []
    names = {lead: name_revision(function.name, lead.reach.revision) for lead in function.leads}
    shares = tuple((name, lead.percent) for lead, name in names.items() if lead.percent)
    found.append(Route(function.name, shares, function.public, away=not shares))
    for lead, name in names.items():
        found += [Route(function.name, ((name, 100),), function.public, tag) for tag in lead.tags]
    return found


def _hand_over(function: AwayFunction) -> list[Route]:
    targets = ((name_neighbourhood(function.machines), 100),) if function.machines else ()
    return [Route(function.name, targets, function.public, tag, away=True) for tag in ("", *function.tags)]


def _make_neighbourhoods(away: Iterable[AwayFunction], known: Known) -> tuple[Neighbourhood, ...]:
    """Those that functions are on; each once."""
    wanted = sorted({function.machines for function in away if function.machines})
    return tuple(Neighbourhood(tuple(known[machine] for machine in machines if machine in known)) for machines in wanted)
