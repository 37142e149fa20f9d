"""What is a function, what is one of its revisions, and in which states may they be?"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from steelyard.model.ids import FunctionName, MachineId, ProjectName
from steelyard.model.image import is_reference
from steelyard.model.job import NO_SHARE, Owner, Plan, Resources
from steelyard.model.mount import VolumeMount
from steelyard.model.reason import Reason
from steelyard.model.secret import SecretUse


class ScaleOn(msgspec.Struct, frozen=True):
    """What the replicas say of themselves, on their own metrics pages, adds replicas."""

    #: a Prometheus gauge, such as `vllm:num_requests_waiting`, or a counter, of which the increase per second is meant
    metric: str
    #: of that, for each replica
    target: float


class FunctionSpec(msgspec.Struct, frozen=True):
    """One revision, immutable. Either `file` + `attr` (an ASGI app) or `argv` (any program) is set."""

    #: ASGI: path of the Python file inside the bundle, and the attribute that is the app
    file: str | None = None
    attr: str | None = None
    #: program: what is executed; gets the socket as LISTEN_FDS (fd 3), or a relay when `port` is set
    argv: tuple[str, ...] = ()
    #: sha256 of the captured code; None runs in `cwd`
    bundle: str | None = None
    cwd: str | None = None
    #: interpreter of the user's environment (absolute); "" where an image brings it
    python: str = ""
    #: the program, or the function of the attribute (`@sy.web_server`), opens this TCP port on 127.0.0.1 itself; 0: a free one,
    #: told to each replica as PORT, also where its command says `$PORT`
    port: int | None = None
    #: of a program: it serves once a GET of this path is answered 2xx; empty: once it accepts a connection
    readiness: str = ""
    #: it runs in a container of this image (`model/image.py` has the forms); or in one of its owner's that was built here, by id,
    #: name, or the beginning of an id, and by its id once it is stored; "" means in neither
    image: str = ""
    #: of a container: a network of its own with nothing but loopback, instead of the machine's
    own_network: bool = False
    env: dict[str, str] = {}
    resources: Resources = Resources(cpus=1.0)
    replicas_min: int = 0
    replicas_max: int = 1
    #: requests one replica holds at a time
    concurrency: int = 8
    idle_timeout_s: float = 60.0
    #: a backlog adds replicas only as far as the last who waits would wait longer than that; None: whenever somebody waits
    target_wait_ms: float | None = None
    #: share of the replicas' places that may be busy before another one is added, above 0 to 1
    target_busy: float = 1.0
    #: kept ready beyond what is needed, while the function is awake
    buffer_replicas: int = 0
    #: of a program: numbers of its page /metrics
    scale_on: tuple[ScaleOn, ...] = ()
    #: a file or folder (absolute) that each start reads: kept in the machine's page cache while it sleeps; empty: nothing is
    weights: str = ""
    #: from the wake until the replica must serve
    startup_deadline_s: float = 60.0
    #: while it sleeps its cores and devices are lent to preemptible work, and a wake has them back after that long at most; None:
    #: they are its own, also asleep
    wake_bound_s: float | None = None
    public: bool = False
    as_root: bool = False
    volumes: tuple[VolumeMount, ...] = ()
    #: further attempts of a call after a lost replica, a timeout or an exception
    retries: int = 0
    #: one input of a call is given up after that long, by its replica, which is then replaced; None: never
    timeout_s: float | None = None
    #: the app that declares it, and the file it was declared in (a path of whoever deployed it): apps of one name are told apart
    #: by it; both empty for a function by itself
    app: str = ""
    origin: str = ""
    #: `call`: made for `.remote()` and `steelyard call`; `http`: a web app, asked by anything that speaks HTTP
    interface: Literal["http", "call"] = "http"
    #: what its replicas are given beside `env`, each name once
    secrets: tuple[SecretUse, ...] = ()
    #: it is on machines of this pool; "": on the home's own
    pool: str = ""
    #: on all of them, each with up to `replicas_max` replicas; else on one
    spread: bool = False

    @property
    def contained(self) -> bool:
        """Does it run in a container?"""
        return is_reference(self.image)

    @property
    def served_by_runner(self) -> bool:
        """Its replicas answer by themselves, from a template; else it is a program behind the relay."""
        return self.attr is not None and self.port is None

    @property
    def queue_max(self) -> int:
        """Requests that may wait in Envoy beyond what the replicas hold; more are answered 429."""
        return 100 * max(1, self.replicas_max)

    @property
    def reserved(self) -> Resources | None:
        """What a function holds for as long as it is deployed, for all its replicas together: whole cores of a dedicated one, and
        GPUs and network cards."""
        asked = self.resources
        if not (asked.whole_cores or asked.gpus or asked.nics):
            return None
        if not asked.whole_cores:
            # shares of the common cores and memory limits are taken by what runs, not by what is deployed
            return msgspec.structs.replace(asked, cpus=NO_SHARE, memory_bytes=None)
        memory = None if asked.memory_bytes is None else asked.memory_bytes * self.replicas_max
        return msgspec.structs.replace(asked, cpus=asked.cpus * self.replicas_max, memory_bytes=memory)


class Share(msgspec.Struct, frozen=True):
    """The part of a function's traffic that a revision gets."""

    revision: int
    #: 1..100
    percent: int


class Routes(msgspec.Struct, frozen=True):
    """Where a function's requests go."""

    #: by revision; they sum to 100, or there are none
    shares: tuple[Share, ...] = ()
    #: (tag, revision), sorted
    tags: tuple[tuple[str, int], ...] = ()

    @property
    def revisions(self) -> set[int]:
        """All that a request may reach."""
        return {share.revision for share in self.shares} | {revision for _, revision in self.tags}


class Reach(msgspec.Struct, frozen=True):
    """How a revision on another machine is reached from the home's gateway: by connections to itself, within these bounds."""

    revision: int
    #: at once; replicas_max x concurrency
    connections_max: int
    #: requests that may wait for one; more are answered 429
    pending_max: int
    #: a connection that is not used for so long is closed
    idle_timeout_s: float


class Lead(msgspec.Struct, frozen=True):
    """Where the home's gateway leads a part of a function's requests: to a revision on other machines."""

    reach: Reach
    #: sorted; they have it
    machines: tuple[MachineId, ...]
    #: of the requests that no tag leads, 0..100
    percent: int = 0
    tags: tuple[str, ...] = ()


class LiveRevision(msgspec.Struct, frozen=True):
    """A revision that may be reached: by a share of the traffic, by tags, or both."""

    revision: int
    spec: FunctionSpec
    percent: int = 0
    tags: tuple[str, ...] = ()
    #: cores, memory nodes and devices of its own
    plan: Plan | None = None


class Rollout(msgspec.Struct, frozen=True):
    """A new revision that is watched: it goes back to `before` when too many of its requests fail."""

    revision: int
    #: who had the traffic before it
    before: tuple[Share, ...]
    #: share of failed requests above that of the others, 0..1
    errors_max: float
    #: when it took traffic; None: it has not yet
    since: int | None = None
    #: what the others, and it by a tag, had counted by then
    old_requests: int = 0
    old_errors: int = 0
    new_requests: int = 0
    new_errors: int = 0


class FunctionState(StrEnum):
    #: the newest revision is not routed yet (an older one may still serve)
    DEPLOYING = "DEPLOYING"
    SLEEPING = "SLEEPING"
    WAKING = "WAKING"
    RUNNING = "RUNNING"
    #: the newest revision could not be made ready; an older one, if any, still serves
    FAILED = "FAILED"
    #: no agent reports it
    UNKNOWN = "UNKNOWN"


class Place(msgspec.Struct, frozen=True):
    """Where a function of a pool is: one machine of it, whose agent and gateway do there what the home's do for others."""

    machine: MachineId
    #: (revision, its plan): cores and devices of its own there
    plans: tuple[tuple[int, Plan], ...] = ()
    #: no new request should go there; it is left once the home's gateway sends none
    leaving: bool = False
    # the rest is what its agent says
    #: None: nothing yet
    state: FunctionState | None = None
    #: the newest revision that its agent was given
    revision: int = 0
    routes: Routes = Routes()
    #: of each revision that its gateway leads to; empty where requests have to find theirs at that gateway
    reach: tuple[Reach, ...] = ()
    replicas: int = 0
    waking: int = 0
    queued: int = 0
    reason: Reason | None = None
    detail: str = ""

    @property
    def ready(self) -> bool:
        """Its gateway has where to send requests."""
        return bool(self.routes.shares)


class Function(msgspec.Struct, frozen=True):
    """A function and the newest of its revisions that may be reached; others stand in `beside`."""

    name: FunctionName
    project: ProjectName
    owner: Owner
    generation: int
    #: number of that revision, from 1: of the newest one, unless it was gone back from
    revision: int
    spec: FunctionSpec
    deployed_at: int
    state: FunctionState = FunctionState.DEPLOYING
    #: the newest revision that gets traffic; None before the first was ready
    routed_revision: int | None = None
    reason: Reason | None = None
    #: traceback or sentence when FAILED
    detail: str = ""
    #: cores, memory nodes and devices that all its replicas share, and nobody else
    plan: Plan | None = None
    replicas: int = 0
    waking: int = 0
    queued: int = 0
    #: as its agent says: it sleeps, nothing of it is on its cores and devices, and `wake_bound_s` lends them
    lends: bool = False
    #: of an ephemeral function (`run`, `serve`): deleted then unless its lease is renewed; microseconds, wall clock
    expires_at: int | None = None
    #: of the traffic, that this revision should get; and the tags that lead to it
    percent: int = 100
    tags: tuple[str, ...] = ()
    beside: tuple[LiveRevision, ...] = ()
    #: as its agent says: where requests go now
    routes: Routes = Routes()
    rollout: Rollout | None = None
    #: of a function in a pool, by machine
    places: tuple[Place, ...] = ()
    #: machines that the home's gateway sends its requests to, as it says
    reached: tuple[MachineId, ...] = ()
    #: revisions that it leads them to itself, as it says
    led: Routes = Routes()

    @property
    def targets(self) -> tuple[MachineId, ...]:
        """Machines that its requests should go to: where it is ready and stays; while there is none, where it is still ready."""
        ready = [place for place in self.places if place.ready]
        return tuple(place.machine for place in ([place for place in ready if not place.leaving] or ready))

    @property
    def held(self) -> tuple[tuple[FunctionSpec, Plan], ...]:
        """What its revisions have to themselves, on whichever machine."""
        live = self.live
        away = [(live[key].spec, plan) for place in self.places for key, plan in place.plans if key in live]
        return (*((each.spec, each.plan) for each in live.values() if each.plan is not None), *away)

    @property
    def live(self) -> dict[int, LiveRevision]:
        """All revisions that may be reached, by number, the oldest first."""
        newest = LiveRevision(self.revision, self.spec, self.percent, self.tags, self.plan)
        return {each.revision: each for each in sorted((*self.beside, newest), key=lambda each: each.revision)}


class RevisionState(StrEnum):
    #: it has not answered readiness yet
    DEPLOYING = "DEPLOYING"
    #: it may be reached
    READY = "READY"
    #: it could not be made ready
    FAILED = "FAILED"
    #: it took traffic, and too many of its requests failed
    ROLLED_BACK = "ROLLED_BACK"
    #: nothing leads to it any more
    RETIRED = "RETIRED"


class Counted(msgspec.Struct, frozen=True):
    """What an agent counted of a revision's requests since a certain moment. The next look at that count adds the difference."""

    machine: MachineId
    since: int = 0
    requests: int = 0
    errors: int = 0


class Revision(msgspec.Struct, frozen=True):
    """One revision of a function, as it is remembered: what it was, who deployed it and how it went."""

    function: FunctionName
    project: ProjectName
    owner: Owner
    generation: int
    revision: int
    spec: FunctionSpec
    deployed_at: int
    #: the user who deployed it
    by: str
    #: share of failed requests above which it is gone back from while it is watched; None: never
    errors_max: float | None = None
    #: what it had, or has, to itself
    plan: Plan | None = None
    #: DEPLOYING until it is known how it went; never RETIRED, which is a matter of routes
    state: RevisionState = RevisionState.DEPLOYING
    #: of FAILED and ROLLED_BACK
    reason: Reason | None = None
    detail: str = ""
    #: on all machines together
    requests: int = 0
    errors: int = 0
    #: what of them each machine's agent counted last
    counted: tuple[Counted, ...] = ()


class ReplicaEnd(msgspec.Struct, frozen=True):
    """How a replica ended that nobody had told to."""

    replica: str
    #: microseconds, wall clock
    ended_at: int
    reason: Reason
    #: a sentence for the user
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    #: the most memory that it had
    memory_peak_bytes: int | None = None


class ApiKey(msgspec.Struct, frozen=True):
    """A bearer key for private functions of a project."""

    name: str
    project: ProjectName
    owner: Owner
    generation: int
    secret: str
    created_at: int
