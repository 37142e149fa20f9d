"""Routes that lead into a running replica of a function: which one that is, commands inside it, and what it really got.

Nothing of this is stored: the machine's agent knows, and answers. Whoever wants to be inside asks for a replica first (`hold`),
which wakes one where the function sleeps; it is kept awake from then on while anybody is inside.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import Parameter

from steelyard.api.door import check_exec
from steelyard.api.functions import FunctionPath
from steelyard.api.idempotency import IdempotencyKey
from steelyard.api.inside import ExecPath, ask_exec
from steelyard.api.jobs import Offset, WaitS
from steelyard.api.logs import follow_visit
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.errors import Conflict, NotFound, Refused
from steelyard.model.function import Function
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName
from steelyard.model.proof import ReplicaProof
from steelyard.wire.api import ExecSignal, ExecSubmit, ExecView, LogChunk, ReplicaHeld

ReplicaPath = Annotated[
    str, Parameter(pattern=r"^[a-z0-9-]{1,63}\.[0-9]{1,9}\.[0-9a-f]{1,32}$", description="A replica's id, as `hold` tells it.")
]
ReplicaWanted = Annotated[str, Parameter(max_length=120, pattern="^[a-z0-9.-]*$", description="Its id, or how that ends.")]


async def find_visited(services: Services, name: str, replica: str = "") -> Function:
    """Raises NotFound."""
    row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
    if row is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    if replica:
        check_mine(name, replica)
    return row


def refuse_away(row: Function) -> None:
    """Streams into replicas lead to the home's own machine alone."""
    if row.spec.pool:
        where = ", ".join(place.machine for place in row.places) or "none of its machines yet"
        text = f"{row.name} is in the pool {row.spec.pool} ({where}), and commands lead into replicas at home only."
        raise Refused(text, code="in-pool")


def check_mine(name: str, replica: str) -> None:
    """Raises NotFound."""
    if replica.rsplit(".", 2)[0] != name:
        raise NotFound(f"The function {name} has no replica {replica}.")


@post("/v1/functions/{name:str}/hold", status_code=200, responses=errors(404, 409, 503))
async def hold_replica(
    request: Request[Any, Any, Any], name: FunctionPath, replica: ReplicaWanted = "", wait_s: WaitS = 0.0
) -> ReplicaHeld:
    """A replica that serves, the newest unless one is named, kept awake for some seconds. Where none does one is woken; the
    answer names none when it does not serve within `wait_s` yet: ask again."""
    services = services_of(request)
    deadline_ns = services.clock.mono_ns() + int(wait_s * 1e9)
    while True:
        refuse_away(await find_visited(services, name))
        answer = await services.hub.ask("hold", name, body=replica.encode())
        if answer.error:
            raise Conflict(answer.error, code="no-replica")
        if answer.data or services.clock.mono_ns() >= deadline_ns or services.watch.stopping:
            return ReplicaHeld(answer.data.decode())


@post(
    "/v1/functions/{name:str}/replicas/{replica:str}/exec",
    status_code=201,
    before_request=require_json,
    responses=errors(404, 409, 413, 415, 422),
)
async def start_visit(
    request: Request[Any, Any, Any],
    name: FunctionPath,
    replica: ReplicaPath,
    data: ExecSubmit,
    idempotency_key: IdempotencyKey,
) -> ExecView:
    """Run a command inside the replica: in its control group, as its user, with its function's variables."""
    services = services_of(request)
    refuse_findings(check_exec(data.argv, data.terminal))
    if data.rank is not None:
        raise Refused("Ranks are of jobs; a function has replicas.", code="no-such-rank")
    refuse_away(await find_visited(services, name, replica))
    return await ask_exec(services, replica, OWN_MACHINE, data, idempotency_key)


@get("/v1/functions/{name:str}/replicas/{replica:str}/exec/{command:str}/logs", responses=errors(404))
async def visit_logs(
    request: Request[Any, Any, Any],
    name: FunctionPath,
    replica: ReplicaPath,
    command: ExecPath,
    stdout_offset: Offset = 0,
    stderr_offset: Offset = 0,
    wait_s: WaitS = 0.0,
) -> LogChunk:
    """What the command wrote since the given offsets; waits up to `wait_s` for some, or for its end."""
    check_mine(name, replica)  # the function itself may be deleted already
    return await follow_visit(services_of(request), name, replica, command, (stdout_offset, stderr_offset), wait_s)


@post(
    "/v1/functions/{name:str}/replicas/{replica:str}/exec/{command:str}/stop",
    status_code=202,
    before_request=require_json,
    responses=errors(404, 413, 415, 422),
)
async def stop_visit(
    request: Request[Any, Any, Any], name: FunctionPath, replica: ReplicaPath, command: ExecPath, data: ExecSignal
) -> None:
    """Signal the command and what it started, but not the replica. One that has ended is left alone."""
    check_mine(name, replica)
    answer = await services_of(request).hub.ask("exec-stop", f"{replica}-{command}", offset=data.signal)
    if answer.error:
        raise NotFound(answer.error)


@get("/v1/functions/{name:str}/proof", responses=errors(404, 503))
async def prove_replicas(request: Request[Any, Any, Any], name: FunctionPath) -> list[ReplicaProof]:
    """What each of its replicas asked for beside what the kernel says it got. None while it sleeps: what sleeps has nothing."""
    services = services_of(request)
    return await ask_proofs(services, await find_visited(services, name))


async def ask_proofs(services: Services, row: Function) -> list[ReplicaProof]:
    found: list[ReplicaProof] = []
    for machine in [place.machine for place in row.places] if row.spec.pool else [OWN_MACHINE]:
        answer = await services.hub.ask("replica-proofs", row.name, machine=machine)
        found += [] if answer.error else msgspec.json.decode(answer.data, type=list[ReplicaProof])
    return found


VISIT_ROUTES = (prove_replicas, hold_replica, start_visit, visit_logs, stop_visit)
