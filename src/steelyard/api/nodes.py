"""Routes of nodes: which machines there are, how each is wired, and who uses what of it."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, get
from litestar.params import Parameter

from steelyard.api.problems import errors
from steelyard.api.services import services_of
from steelyard.control.live import HOLDING
from steelyard.errors import NotFound
from steelyard.lifecycle.node import NodeState
from steelyard.model.health import NODE
from steelyard.model.machine import Machine
from steelyard.store import Tx
from steelyard.wire.node_api import NodeDetail, NodeView

NodePath = Annotated[str, Parameter(min_length=1, max_length=255, description="A node's name or id.")]


@get("/v1/nodes", responses=errors())
async def list_nodes(request: Request[Any, Any, Any]) -> list[NodeView]:
    """The home's own first, then those of pools."""
    services = services_of(request)
    machines = await services.store.read(lambda tx: tx.machines())
    return [node_view(machine, services.hub.lost(machine.place)) for machine in machines]


@get("/v1/nodes/{name:str}", responses=errors(404))
async def get_node(request: Request[Any, Any, Any], name: NodePath) -> NodeDetail:
    """The machine as its agent observed it, with who uses which device and CPU."""
    services = services_of(request)

    def look(tx: Tx) -> NodeDetail:
        machines = tx.machines()
        # several machines of pools may be on one host, one after the other or beside each other
        named = [each for each in machines if each.id == name] or [each for each in machines if each.hostname == name]
        if not named:
            raise NotFound(f"There is no node {name}. `steelyard nodes` lists them.", code="no-such-node")
        return NodeDetail(node_view(named[0], services.hub.lost(named[0].place)), named[0], find_users(tx, named[0]))

    return await services.store.read(look)


def node_view(machine: Machine, lost: bool) -> NodeView:
    topology = machine.topology
    return NodeView(
        name=machine.hostname,
        id=machine.id,
        state=_state(machine, lost),
        cores=len(machine.cores),
        threads=len(machine.cpus),
        numa_nodes=len(machine.numa_nodes),
        memory_bytes=machine.memory_bytes,
        gpus=len(topology.gpus) if topology else 0,
        nics=len(topology.nics) if topology else 0,
        virtualisation=machine.virtualisation,
        kernel=machine.kernel,
        pool=machine.pool,
        detail=machine.draining,
    )


def _state(machine: Machine, lost: bool) -> str:
    if lost:
        return "UNKNOWN"
    if NODE in machine.blocked:
        return NodeState.DRAINED.value
    if machine.draining:
        return NodeState.DRAINING.value
    return NodeState.DEGRADED.value if machine.blocked or machine.blocked_pairs else NodeState.READY.value


def find_users(tx: Tx, machine: Machine) -> dict[str, str]:
    """Device id or `cpu:N` -> the job or function that holds it. Cores that are shared are nobody's."""
    used: dict[str, str] = {}
    for job in tx.jobs(HOLDING):
        plan = None if job.plan is None else job.plan.on(machine.place)
        if plan is not None:
            held = [*plan.gpus, *plan.nics, *(f"cpu:{cpu}" for cpu in plan.cpus)]
            used |= dict.fromkeys(held, f"job {job.id} {job.spec.name}")
    for row in tx.functions():
        for plan in [each.plan for each in row.live.values() if each.plan is not None]:
            if plan.machine != machine.place:
                continue
            held = [*plan.gpus, *plan.nics, *(f"cpu:{cpu}" for cpu in plan.cpus)]
            # a job that is there has it lent
            used |= dict.fromkeys(set(held) - used.keys(), f"function {row.name}")
    for older in machine.held:
        held = [*older.plan.gpus, *older.plan.nics, *(f"cpu:{cpu}" for cpu in older.plan.cpus)]
        used |= dict.fromkeys(set(held) - used.keys(), f"function {older.function}, an older revision")
    return used


NODE_ROUTES = (list_nodes, get_node)
