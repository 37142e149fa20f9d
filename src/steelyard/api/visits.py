"""Routes that lead into a running replica of a function: which one that is, commands inside it, and what it really got.

Nothing of this is stored: the machine's agent knows, and answers. Whoever wants to be inside asks for a replica first (`hold`),
which wakes one where the function sleeps; it is kept awake from then on while anybody is inside. Of a function in a pool the
answer names the machine too, as `REPLICA@MACHINE`, so that whatever follows goes there without asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName, MachineId
from steelyard.model.proof import ReplicaProof
from steelyard.wire.api import ExecSignal, ExecSubmit, ExecView, LogChunk, ReplicaHeld

ReplicaPath = Annotated[
    str,
    Parameter(
        pattern=r"^[a-z0-9-]{1,63}\.[0-9]{1,9}\.[0-9a-f]{1,32}(@[a-z0-9-]{1,64})?$",
        description="A replica's id, as `hold` tells it.",
    ),
]
ReplicaWanted = Annotated[str, Parameter(max_length=200, pattern="^[a-z0-9.@-]*$", description="Its id, or how that ends.")]


async def find_visited(services: Services, name: str, replica: str = "") -> Function:
    """Raises NotFound."""
    row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
    if row is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    if replica:
        check_mine(name, replica)
    return row


def choose_machines(row: Function, wanted: str, is_there: Callable[[MachineId], bool]) -> list[MachineId]:
    """Machines of its pool that are asked for a replica: all for one by its id, and for any the best: 1. one that is heard, 2.
    that requests go to, 3. with a replica, 4. the first."""
    if wanted:
        return [place.machine for place in row.places]
    targets = row.targets

    def value(at: int) -> tuple[bool, bool, bool, int]:
        place = row.places[at]
        return not is_there(place.machine), place.machine not in targets, not place.replicas, at

    return [row.places[min(range(len(row.places)), key=value)].machine] if row.places else []


async def hold(services: Services, row: Function, wanted: str) -> str:
    """A replica that serves and is kept awake for now, with its machine where that is of a pool; "" where none serves yet. Raises
    Conflict, and Unreachable."""
    wanted, _, named = wanted.partition("@")
    machines = [OWN_MACHINE]
    if row.spec.pool:
        machines = [MachineId(named)] if named else choose_machines(row, wanted, services.hub.connected)
    if not machines:
        text = f"{row.name} is on no machine of pool {row.spec.pool} now: {row.detail or 'it was just deployed'}."
        raise Conflict(f"{text} Nothing was started.", code="no-replica")
    asked = (services.hub.ask("hold", row.name, body=wanted.encode(), machine=machine) for machine in machines)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused: list[str] = []
    for machine, answer in zip(machines, answers, strict=True):
        if isinstance(answer, BaseException):
            continue
        if not answer.error:
            return f"{answer.data.decode()}@{machine}" if answer.data and machine else answer.data.decode()
        refused.append(answer.error if len(machines) == 1 else f"{machine}: {answer.error}")
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    raise Conflict(" ".join(refused), code="no-replica")


async def find_place(services: Services, name: str, replica: str) -> tuple[str, MachineId]:
    """The replica's own id, and its machine. The function itself may be deleted already. Raises NotFound, and as `hold`."""
    check_mine(name, replica)
    workload, at, machine = replica.partition("@")
    if at:
        return workload, MachineId(machine)
    row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
    if row is None or not row.spec.pool:
        return workload, OWN_MACHINE
    # somebody has its id from elsewhere
    return workload, MachineId((await hold(services, row, workload)).partition("@")[2])


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
        held = await hold(services, await find_visited(services, name), replica)
        if held or services.clock.mono_ns() >= deadline_ns or services.watch.stopping:
            return ReplicaHeld(held)


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
    await find_visited(services, name, replica)
    return await ask_exec(services, *await find_place(services, name, replica), data, idempotency_key)


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
    services = services_of(request)
    place = await find_place(services, name, replica)
    return await follow_visit(services, name, place, command, (stdout_offset, stderr_offset), wait_s)


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
    services = services_of(request)
    workload, machine = await find_place(services, name, replica)
    answer = await services.hub.ask("exec-stop", f"{workload}-{command}", offset=data.signal, machine=machine)
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
        proofs = [] if answer.error else msgspec.json.decode(answer.data, type=list[ReplicaProof])
        found += [msgspec.structs.replace(each, machine=machine) for each in proofs]
    return found


VISIT_ROUTES = (prove_replicas, hold_replica, start_visit, visit_logs, stop_visit)
