"""What should each agent be doing? Renders everything desired of a machine into one `Assignment`.

The epoch is the server's: it is kept in the store and goes up once per start (R10), so that an agent refuses what an older server
still says. Within an epoch the generation goes up with each change of the content; it counts from 1 in each, so that telling an
agent something costs no write. After a restart of a machine nothing is sent to it before its first report has settled what became
of the attempts in doubt: the agent would start those that it has never heard of, while that report gives their places away.
What a machine has no work for it is not told: neither secrets nor keys. Never waits for an agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from steelyard.control import ASSIGNMENT, AgentLink
from steelyard.control.images import assign_images
from steelyard.control.live import LiveJobs
from steelyard.lifecycle.job import in_doubt
from steelyard.lifecycle.parts import find_port, why_end
from steelyard.model.built_image import Image
from steelyard.model.function import ApiKey, Function, Place
from steelyard.model.ids import OWN_MACHINE, JobId, MachineId
from steelyard.model.job import Job, JobState, Owner, Plan
from steelyard.model.machine import Machine
from steelyard.model.mount import MountedVolume, VolumeMount
from steelyard.model.secret import Secret
from steelyard.model.volume import Volume
from steelyard.scaling.places import decide_leads
from steelyard.store import Store, Tx
from steelyard.wire.agent import (
    AssignedFunction,
    AssignedJob,
    AssignedNeighbour,
    Assignment,
    AwayFunction,
    GangPlace,
    SecretVersion,
)


class Seen(msgspec.Struct, frozen=True):
    jobs: tuple[Job, ...]
    functions: tuple[Function, ...]
    keys: tuple[ApiKey, ...]
    epoch: int
    #: `Machine.place` of each machine, of the home's own even before it is known -> what it would still be sent
    offered: Mapping[MachineId, Assignment | None]
    #: all that there are, where work names any
    secrets: tuple[SecretVersion, ...] = ()
    volumes: tuple[Volume, ...] = ()
    images: tuple[Image, ...] = ()
    #: of pools
    machines: tuple[Machine, ...] = ()


class Actions(msgspec.Struct, frozen=True):
    """The content to send to machines (its generation is given on commit), but for those that have it already."""

    assignments: Mapping[MachineId, Assignment] = {}


class Report(msgspec.Struct, frozen=True):
    offered: Mapping[MachineId, Assignment] = {}


async def begin_epoch(store: Store) -> int:
    """Once per start of the server, before any loop runs."""
    return await store.write(lambda tx: tx.bump("epoch"))


async def load(store: Store, live: LiveJobs, offered: Mapping[MachineId, Assignment]) -> Seen:
    """`offered`: what machines would still be sent."""
    named = any(job.spec.secrets for job in live.holding)

    def read(tx: Tx) -> tuple[tuple[int, list[Job]], Seen]:
        changed, functions = tx.jobs_changed(live.change), tuple(tx.functions())
        asks = named or any(job.spec.secrets for job in changed[1]) or any(name_uses(function) for function in functions)
        secrets = tuple(name_version(secret) for secret in tx.secrets()) if asks else ()
        machines = tuple(machine for machine in tx.machines() if machine.pool)
        places = {OWN_MACHINE, *(machine.place for machine in machines)}
        seen = Seen(
            jobs=(),
            functions=functions,
            keys=tuple(tx.keys()),
            epoch=tx.counter("epoch"),
            offered={place: offered.get(place) for place in sorted(places)},
            secrets=secrets,
            volumes=tuple(tx.volumes()),
            images=tuple(tx.images()),
            machines=machines,
        )
        return changed, seen

    changed, seen = await store.read(read)
    live.apply(*changed)
    return msgspec.structs.replace(seen, jobs=live.holding)


def name_version(secret: Secret) -> SecretVersion:
    """Deleted and made anew, a secret begins at generation 1 again; no two are sealed with the same nonce."""
    return SecretVersion(secret.owner.user, secret.name, secret.sealed.nonce.hex())


def name_uses(function: Function) -> set[str]:
    """Names of the secrets that any of its revisions which may be reached is given."""
    return {use.name for each in function.live.values() for use in each.spec.secrets}


class Secrets(Protocol):
    """What the processes of a workload may show the API and the gateway."""

    def sign_job(self, job: Job) -> str: ...
    def sign_function(self, function: Function) -> str: ...
    def call_key(self, owner: Owner) -> str: ...


def admitted_keys(keys: Iterable[ApiKey], functions: Iterable[Function], secrets: Secrets) -> tuple[str, ...]:
    """What the gateway admits to private functions: keys that users made, and those of the functions' owners' own processes."""
    owners = {function.owner.user: function.owner for function in functions}
    return (*(key.secret for key in keys), *(secrets.call_key(owners[user]) for user in sorted(owners)))


#: jobs as they were rendered last
Known = Mapping[JobId, tuple[Job, AssignedJob]]
NOTHING: Known = {}


def decide(seen: Seen, now: int, secrets: Secrets, known: Known = NOTHING) -> Actions:
    del now
    changed: dict[MachineId, Assignment] = {}
    doubted = {job.machine for job in seen.jobs if in_doubt(job)}
    for place, offered in seen.offered.items():
        rendered = None if place in doubted else render_assignment(seen, secrets, place, known)
        if rendered is not None and (offered is None or rendered != msgspec.structs.replace(offered, generation=0)):
            changed[place] = rendered
    return Actions(changed)


def render_assignment(seen: Seen, secrets: Secrets, machine: MachineId = OWN_MACHINE, known: Known = NOTHING) -> Assignment:
    """Oldest first; generation 0 stands for "not offered yet". A job that is `known` is the same object again."""
    jobs = [job for job in seen.jobs if machine in job.machines]
    machines = {each.place: each for each in seen.machines}
    own = machine == OWN_MACHINE
    functions = [function for function in seen.functions if (not function.spec.pool if own else _has_place(function, machine))]
    named = {(job.owner.user, use.name) for job in jobs for use in job.spec.secrets}
    named |= {(function.owner.user, name) for function in functions for name in name_uses(function)}
    volumes = {(volume.name, volume.owner.uid): volume for volume in seen.volumes if not volume.deleting}
    return Assignment(
        epoch=seen.epoch,
        generation=0,
        jobs=tuple(
            known[job.id][1] if job.id in known and known[job.id][0] is job else render_job(job, part, secrets, volumes, machines)
            for job in sorted(jobs, key=lambda job: (job.submitted_at, job.id))
            if job.plan is not None and (part := job.plan.on(machine)) is not None
        ),
        functions=tuple(
            AssignedFunction(
                name=function.name,
                project=function.project,
                owner=function.owner,
                revision=each.revision,
                spec=each.spec,
                plan=each.plan if own else dict(_place(function, machine).plans).get(each.revision),
                token=secrets.sign_function(function),
                percent=each.percent,
                tags=each.tags,
                volumes=find_volumes(volumes, each.spec.volumes, function.owner),
                led=() if own else _find_led(function),
            )
            for function in functions
            for each in function.live.values()
            if own or each.spec.reserved is None or each.revision in dict(_place(function, machine).plans)
        ),
        keys=admitted_keys(seen.keys, seen.functions, secrets) if own else (),
        # only the home's own machine builds images, and only there are they cleared away
        images=assign_images(seen.images) if own else None,
        away=tuple(map(send_away, (function for function in seen.functions if function.spec.pool))) if own else (),
        neighbours=_find_neighbours(seen) if own else (),
        secrets=tuple(sorted((each for each in seen.secrets if (each.owner, each.name) in named), key=lambda each: each.name)),
    )


def render_job(
    job: Job,
    plan: Plan,
    secrets: Secrets,
    volumes: Mapping[tuple[str, int], Volume],
    machines: Mapping[MachineId, Machine],
) -> AssignedJob:
    """`plan`: what it has on the machine that is told."""
    stop_signal, stop_grace_s = why_end(job) or (job.stop_signal, job.stop_grace_s)
    return AssignedJob(
        attempt=job.attempt_id,
        job=job.id,
        project=job.project,
        owner=job.owner,
        spec=job.spec,
        plan=plan,
        stop_signal=stop_signal,
        stop_grace_s=stop_grace_s,
        suspended=job.state is JobState.SUSPENDED,
        array=job.array,
        restarts=job.restarts,
        token=secrets.sign_job(job),
        volumes=find_volumes(volumes, job.spec.volumes, job.owner),
        place=None if job.parts is None else _find_place(job, plan.machine, machines),
    )


def _find_place(job: Job, machine: MachineId, machines: Mapping[MachineId, Machine]) -> GangPlace:
    """Machines reach each other where their gateways are reached. One that is gone is named as it is known here."""
    hosts: list[str] = []
    addresses: list[str] = []
    for each in job.machines:
        found = machines.get(each)
        hosts.append(each if found is None else found.hostname)
        addresses.append(hosts[-1] if found is None or not found.gateway else find_address(found))
    cpus = () if job.plan is None else tuple(part.cpus for part in job.plan.parts)
    return GangPlace(job.machines.index(machine), tuple(hosts), tuple(addresses), find_port(job), cpus)


def find_address(machine: Machine) -> str:
    """Of its gateway; "" where it has none."""
    return machine.gateway.rpartition(":")[0].strip("[]")


def note_rendered(jobs: Iterable[Job], assignments: Iterable[Assignment]) -> Known:
    """For the next time; but for jobs with volumes, which may change meanwhile, and those that each of their machines is told
    something else of."""
    by_id = {job.id: job for job in jobs if not job.spec.volumes and job.parts is None}
    return {each.job: (by_id[each.job], each) for told in assignments for each in told.jobs if each.job in by_id}


def _has_place(function: Function, machine: MachineId) -> bool:
    return any(place.machine == machine for place in function.places)


def _place(function: Function, machine: MachineId) -> Place:
    return next(place for place in function.places if place.machine == machine)


def send_away(function: Function) -> AwayFunction:
    """What the home's gateway does with its requests. A key is asked for until no revision that one may reach wants it."""
    reached = {share.revision for place in function.places for share in place.routes.shares}
    specs = [each.spec for key, each in function.live.items() if each.percent or key in reached]
    tags = sorted({tag for each in function.live.values() for tag in each.tags})
    return AwayFunction(function.name, all(spec.public for spec in specs), tuple(tags), function.targets, decide_leads(function))


def _find_led(function: Function) -> tuple[int, ...]:
    """What the home's gateway leads to, or is about to."""
    return tuple(sorted(function.led.revisions | {each.reach.revision for each in decide_leads(function)}))


def _find_neighbours(seen: Seen) -> tuple[AssignedNeighbour, ...]:
    """Machines that functions have places on."""
    used = {place.machine for function in seen.functions for place in function.places}
    found: list[AssignedNeighbour] = []
    for machine in seen.machines:
        host = find_address(machine)
        if machine.id in used and host:
            found.append(AssignedNeighbour(machine.id, host, int(machine.gateway.rpartition(":")[2])))
    return tuple(found)


def find_volumes(
    stored: Mapping[tuple[str, int], Volume], asked: Sequence[VolumeMount], owner: Owner
) -> tuple[MountedVolume, ...]:
    """With their folders; without one where the volume has gone since, or is somebody else's: the start will say so."""
    found = [(mount, stored.get((mount.name, owner.uid))) for mount in asked]
    return tuple(
        MountedVolume(mount.name, volume.path if volume is not None else "", mount.path, mount.read_only)
        for mount, volume in found
    )


async def carry_out(
    store: Store, agents: AgentLink, actions: Actions, generation: int, held: Mapping[MachineId, Assignment] = {}
) -> Report:
    """`generation`: one more than the last that this server offered. `held`: what machines would have been sent before this was
    rendered."""
    if not actions.assignments:
        return Report()
    doubted: set[MachineId] = set()
    if not all(place in held and agents.holds(place, held[place]) for place in actions.assignments):
        # a machine may have restarted since this was rendered; of one that had something to be sent that has been dropped then
        doubted = await store.read(lambda tx: {job.machine for job in tx.jobs({JobState.UNKNOWN}) if in_doubt(job)})
    offered: dict[MachineId, Assignment] = {}
    for place, assignment in actions.assignments.items():
        if place not in doubted:
            offered[place] = msgspec.structs.replace(assignment, generation=generation)
            agents.offer(place, offered[place])
    return Report(offered)


class AssignmentLoop:
    name = ASSIGNMENT
    tick_s = 5.0

    def __init__(self, store: Store, agents: AgentLink, live: LiveJobs, secrets: Secrets) -> None:
        self._store = store
        self._agents = agents
        self._live = live
        self._secrets = secrets
        self._offered: dict[MachineId, Assignment] = {}
        self._known = NOTHING
        self._generation = 0

    async def activate(self) -> Sequence[str]:
        held = {place: offered for place, offered in self._offered.items() if self._agents.holds(place, offered)}
        seen = await load(self._store, self._live, held)
        for place in self._offered.keys() - seen.offered.keys():
            self._agents.drop(place)
            del self._offered[place]
        actions = decide(seen, 0, self._secrets, self._known)
        report = await carry_out(self._store, self._agents, actions, self._generation + 1, held)
        if report.offered:
            self._offered |= report.offered
            self._known = note_rendered(seen.jobs, self._offered.values())
            self._generation += 1
        return ()
