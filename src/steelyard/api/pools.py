"""Routes of pools: create, list, look at, delete; and what a pilot's program says of itself.

A pool's pilots are asked for by `control/pools.py`. A pool that is deleted stays, and is shown, until its last pilot has ended.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.params import Parameter
from msgspec.structs import replace

from steelyard.api.auth import peer_of
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.peers import NO_DOOR
from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.services import services_of
from steelyard.api.views import pilot_view, pool_view
from steelyard.control import POOLS
from steelyard.control.pools import put_change
from steelyard.errors import Conflict, NotFound, Refused, Unauthorized
from steelyard.lifecycle.pilot import drain_pilot
from steelyard.model.ids import DEFAULT_PROJECT, MachineId
from steelyard.model.job import JobState
from steelyard.model.pool import POOL_NAME, NodeShape, Pool, PoolSpec
from steelyard.store import Event, Tx
from steelyard.wire.pilot import PilotCertificates
from steelyard.wire.pools import PilotDrain, PoolCreate, PoolDetail, PoolView

PoolPath = Annotated[str, Parameter(min_length=1, max_length=255, description="A pool's name.")]
PilotPath = Annotated[str, Parameter(min_length=1, max_length=255, description="A pilot's id.")]


@post("/v1/pools", status_code=201, before_request=require_json, responses=errors(409, 413, 415, 422, 507))
async def create_pool(request: Request[Any, Any, Any], data: PoolCreate, idempotency_key: IdempotencyKey) -> Response[PoolView]:
    """Make a pool: machines from the attached Slurm cluster, as many as there is work for between two bounds."""
    services = services_of(request)
    spec = read_spec(data)
    if services.find_engine() is None:
        text = "No cluster is attached that a pool could have its machines from. `steelyard cluster attach` does that."
        raise Refused(text, code="no-cluster")
    if services.settings.cluster_host is None:
        raise Refused(NO_DOOR, code="no-cluster-address")
    now = services.clock.now_us()

    def create(tx: Tx) -> PoolView:
        if tx.pool(spec.name) is not None:
            raise Conflict(f"There is a pool {spec.name} already. Use it, or choose another name.", code="name-taken")
        pool = Pool(spec, DEFAULT_PROJECT, services.owner, 1, now)
        tx.put_pool(pool)
        text = f"created, {spec.nodes_min}..{spec.nodes_max} nodes"
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "pool", spec.name, text))
        return pool_view(pool, (), "")

    answer = await mutate(request, idempotency_key, 201, create)
    services.driver.poke(POOLS)
    return answer


@get("/v1/pools", responses=errors())
async def list_pools(request: Request[Any, Any, Any]) -> list[PoolView]:
    services = services_of(request)
    pools, pilots = await services.store.read(lambda tx: (tx.pools(), tx.pilots()))
    return [pool_view(pool, [each for each in pilots if each.pool == pool.name], services.pools.silent) for pool in pools]


@get("/v1/pools/{name:str}", responses=errors(404))
async def get_pool(request: Request[Any, Any, Any], name: PoolPath) -> PoolDetail:
    """A pool with its machines, and those that it had within the last day."""
    services = services_of(request)

    def read(tx: Tx) -> PoolDetail:
        pool = _find(tx, name)
        pilots = [pilot for pilot in tx.pilots(ended=True) if pilot.pool == name]
        return PoolDetail(pool_view(pool, pilots, services.pools.silent), tuple(map(pilot_view, pilots)))

    return await services.store.read(read)


@delete("/v1/pools/{name:str}", status_code=204, responses=errors(404, 409, 422, 507))
async def delete_pool(request: Request[Any, Any, Any], name: PoolPath, idempotency_key: IdempotencyKey) -> Response[None]:
    """Give all its machines back, and forget the pool then. Refused while a function, a schedule, or a job that has not
    ended names it."""
    services = services_of(request)
    now = services.clock.now_us()

    def begin(tx: Tx) -> None:
        pool = _find(tx, name)
        users = find_users(tx, name)
        if users:
            told = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
            raise Conflict(f"Pool {name} is used by {told}. Nothing was changed. Stop or delete that first.", code="in-use")
        if not pool.deleting:
            tx.put_pool(replace(pool, generation=pool.generation + 1, deleting=True))
            tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "pool", name, "to be deleted"))

    answer = await mutate(request, idempotency_key, 204, begin)
    services.driver.poke(POOLS)
    return answer


@post("/v1/pilots/{pilot:str}/drain", status_code=204, before_request=require_json, responses=errors(404, 409, 422, 507))
async def drain(request: Request[Any, Any, Any], pilot: PilotPath, data: PilotDrain) -> None:
    """Nothing new on that machine: its allocation is about to end. What runs there goes on."""
    services = services_of(request)
    peer = peer_of(request)
    if peer is not None and peer.machine != pilot:
        raise Unauthorized(f"This is {peer.machine}, and no other pilot's business is its own.")
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        stored = tx.pilot(MachineId(pilot))
        if stored is None:
            raise NotFound(f"There is no pilot {pilot}.")
        put_change(tx, stored, drain_pilot(stored, data.why or "it was told to"), now)

    await services.store.write(commit)
    services.driver.poke(POOLS)


@post("/v1/pilots/{pilot:str}/certificates", status_code=201, responses=errors(404))
async def renew_certificates(request: Request[Any, Any, Any], pilot: PilotPath) -> PilotCertificates:
    """New ones for that machine's agent and gateway, for as long as it lives; asked for by the pilot itself."""
    services, peer = services_of(request), peer_of(request)
    if peer is None or peer.machine != pilot:
        raise Unauthorized("A pilot's certificates are given to itself alone.")
    stored = await services.store.read(lambda tx: tx.pilot(peer.machine))
    if stored is None or not stored.living:
        raise NotFound(f"{pilot} has ended, and needs no certificates.")
    return await asyncio.to_thread(services.certify, peer.machine)


def read_spec(data: PoolCreate) -> PoolSpec:
    """Raises Refused for what no pool can be."""
    if not POOL_NAME.fullmatch(data.name):
        raise Refused("A pool's name has up to 32 of a-z, 0-9 and -, with no - at the ends.", code="bad-name")
    if data.nodes_min > data.nodes_max:
        raise Refused(f"{data.nodes_min} nodes at least and {data.nodes_max} at most can't both be.", code="bad-nodes")
    each = data.nodes_per_allocation
    if data.nodes_min % each or data.nodes_max % each:
        raise Refused(
            f"Machines of this pool come {each} at a time, so there can't be {data.nodes_min} at least and {data.nodes_max} at "
            f"most: make both multiples of {each}.",
            code="bad-nodes",
        )
    for word in (data.partition, data.account, data.qos):
        if word.startswith("-") or any(char.isspace() for char in word):
            raise Refused(f"{word!r} is no name of Slurm's.", code="bad-name")
    node = NodeShape(data.cpus_per_node, data.memory_per_node, data.gpus_per_node, data.gpu_model)
    return PoolSpec(
        data.name, data.nodes_min, data.nodes_max, node, data.partition, data.account, data.qos, data.max_duration_s,
        data.idle_s, data.drain_s, each,
    )  # fmt: skip


def find_users(tx: Tx, name: str) -> list[str]:
    """What names the pool: functions, schedules, and jobs that have not ended."""
    users = [f"function {function.name}" for function in tx.functions() if function.spec.pool == name]
    users += [f"schedule {each.name}" for each in tx.schedules() if each.spec is not None and each.spec.pool == name]
    living = tx.jobs([state for state in JobState if not state.terminal])
    return [*users, *(f"job {job.id}" for job in living if job.spec.pool == name)]


def _find(tx: Tx, name: str) -> Pool:
    pool = tx.pool(name)
    if pool is None:
        raise NotFound(f"There is no pool {name}. `steelyard pool ls` shows them.")
    return pool


POOL_ROUTES = (create_pool, list_pools, get_pool, delete_pool, drain, renew_certificates)
