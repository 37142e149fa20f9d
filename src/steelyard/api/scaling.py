"""Route that says why a function has as many replicas as it has. Its agent decides, so its agent is asked."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, get

from steelyard.api.functions import FunctionPath
from steelyard.api.problems import errors
from steelyard.api.services import services_of
from steelyard.api.views import function_view
from steelyard.api.visits import ask_proofs
from steelyard.clock import rfc3339
from steelyard.errors import NotFound, Unreachable
from steelyard.lifecycle.proof import explain_tier
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName, MachineId
from steelyard.wire.agent import ScalingSeen
from steelyard.wire.scaling import FunctionWhyView, RevisionScaling, ScalingStep

_decode = msgspec.json.Decoder(tuple[ScalingSeen, ...]).decode


@get("/v1/functions/{name:str}/why", responses=errors(404, 503))
async def why_function(request: Request[Any, Any, Any], name: FunctionPath) -> FunctionWhyView:
    """The decision of the last look at each revision that gets traffic, in words, and the last changes."""
    services = services_of(request)
    row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
    if row is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    view = function_view(row, services.settings, services.hub.lost_of(row))
    revisions: list[RevisionScaling] = []
    for machine in [place.machine for place in row.places] if row.spec.pool else [OWN_MACHINE]:
        answer = await services.hub.ask("scaling", name, machine=machine)
        if answer.error:
            raise Unreachable(answer.error, code="agent-refused")
        revisions += [_render(seen, machine) for seen in _decode(answer.data)]
    proofs = await ask_proofs(services, row)
    lowered = tuple(f"{each.replica}: {text}" for each in proofs if (text := explain_tier(each.proof)))
    return FunctionWhyView(view.name, view.state, view.reason, view.detail, tuple(revisions), view.machines, lowered)


def _render(seen: ScalingSeen, machine: MachineId) -> RevisionScaling:
    steps = tuple(ScalingStep(rfc3339(change.at), change.before, change.after, change.text) for change in seen.changes)
    return RevisionScaling(seen.revision, seen.serving, seen.starting, seen.wanted, seen.text, steps, machine)


SCALING_ROUTES = (why_function,)
