"""What do server and agent say to each other over the agent's outbound WebSocket? (msgpack, one struct per frame)

Level-triggered: an `Assignment` is everything the agent should be doing, a `Report` everything it sees. Either may be lost or
repeated without harm. Terminal attempts stay in every report until they leave the assignment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from steelyard.lifecycle.node import NodeHealth
from steelyard.lifecycle.registry_login import Login
from steelyard.model.batch import ArrayPlace, RankEnd
from steelyard.model.built_image import ImageSeen
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import FunctionSpec, FunctionState, Lead, Reach, RevisionState, Routes, Share
from steelyard.model.health import Finding
from steelyard.model.ids import AttemptId, FunctionName, ImageId, JobId, MachineId, ProjectName
from steelyard.model.image import Image
from steelyard.model.job import JobSpec, Owner, Plan, Terminal
from steelyard.model.machine import HeldPlan, Machine
from steelyard.model.mount import MountedVolume
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.usage import Usage

#: bytes of a log in one answer
LOG_READ_MAX = 262_144


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First frame of an agent."""

    wire_version: int
    machine: Machine


class GangPlace(msgspec.Struct, frozen=True):
    """Which part of a gang on several machines a machine has."""

    #: the machine's place among them, from 0; the job's plan is for its ranks alone
    node: int
    #: of all of them, in the order of ranks: their names, and where each is reached by the others
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    #: the first of the ports at which ranks meet, once all parts are prepared: its programs begin. 0: none does
    port: int = 0
    #: of each of them: CPUs that are its ranks' alone
    cpus: tuple[tuple[int, ...], ...] = ()


class AssignedJob(msgspec.Struct, frozen=True):
    attempt: AttemptId
    job: JobId
    project: ProjectName
    owner: Owner
    spec: JobSpec
    plan: Plan
    #: the server wants it to end: this signal now, SIGKILL after the grace
    stop_signal: int | None = None
    stop_grace_s: float = 10.0
    #: frozen, for now
    suspended: bool = False
    array: ArrayPlace | None = None
    #: earlier attempts that ran
    restarts: int = 0
    #: what its processes may show the API: to submit, look at and stop the owner's jobs
    token: str = ""
    volumes: tuple[MountedVolume, ...] = ()
    place: GangPlace | None = None


class AssignedFunction(msgspec.Struct, frozen=True):
    """A revision that should be reached; several of one function share its traffic. The agent keeps older ones routed until these
    have answered readiness."""

    name: FunctionName
    project: ProjectName
    owner: Owner
    revision: int
    spec: FunctionSpec
    #: cores that a dedicated function's replicas have to themselves; None: the common ones
    plan: Plan | None = None
    #: what its replicas may show the API: to call functions of the owner
    token: str = ""
    #: of the function's traffic, 0..100
    percent: int = 100
    tags: tuple[str, ...] = ()
    volumes: tuple[MountedVolume, ...] = ()
    #: on a machine of a pool: revisions of the function that the home's gateway may lead to, sorted. They stay until it does not
    led: tuple[int, ...] = ()


class AssignedNeighbour(msgspec.Struct, frozen=True):
    """A machine whose gateway hears this one's."""

    machine: MachineId
    #: an IP address, and the port
    host: str
    port: int


class AwayFunction(msgspec.Struct, frozen=True):
    """A function on other machines, that this one's gateway leads to."""

    name: FunctionName
    public: bool
    tags: tuple[str, ...] = ()
    #: sorted; each gets the same part of the requests. None: they are answered 503
    machines: tuple[MachineId, ...] = ()
    #: by revision; none: the gateways of the machines choose one for each request
    leads: tuple[Lead, ...] = ()

    @property
    def led(self) -> Routes:
        """What that says of revisions."""
        tags = sorted((tag, each.reach.revision) for each in self.leads for tag in each.tags)
        return Routes(tuple(Share(each.reach.revision, each.percent) for each in self.leads if each.percent), tuple(tags))


class AssignedImages(msgspec.Struct, frozen=True):
    """Of one owner: what may stay on the machine's disk. Whatever else lies there and is not being built is removed."""

    owner: Owner
    #: sorted
    layers: tuple[ImageId, ...]


class SecretVersion(msgspec.Struct, frozen=True):
    """A secret that assigned work names. The agent asks for its values over HTTP, and writes them to no disk."""

    #: user that it belongs to
    owner: str
    name: str
    #: another one each time its values are set
    version: str


class Assignment(msgspec.Struct, frozen=True, tag=True):
    """Everything this agent should do. Older (epoch, generation) pairs are refused by the agent."""

    epoch: int
    generation: int
    jobs: tuple[AssignedJob, ...] = ()
    functions: tuple[AssignedFunction, ...] = ()
    #: secrets that private functions accept
    keys: tuple[str, ...] = ()
    #: those that jobs and functions name and that are there, sorted
    secrets: tuple[SecretVersion, ...] = ()
    #: None: nothing is removed
    images: tuple[AssignedImages, ...] | None = None
    away: tuple[AwayFunction, ...] = ()
    neighbours: tuple[AssignedNeighbour, ...] = ()


class ImagesSeen(msgspec.Struct, frozen=True):
    """What lies on the machine, and bytes of its disk that images may take."""

    layers: tuple[ImageSeen, ...]
    budget_bytes: int


class AttemptState(msgspec.Struct, frozen=True):
    """What the agent sees of one attempt, or of its part of one. `phase`: starting, prepared (of a gang on several machines:
    nothing but its programs is lacking), running, suspended (frozen as asked), ended (an exit record exists), not-started,
    unknown. A gang is running when all ranks are, and ended when all have."""

    attempt: AttemptId
    phase: str
    reason: Reason | None = None
    detail: str = ""
    pid: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    peak_memory_bytes: int | None = None
    #: given once it has ended: the last one made while it ran
    proof: Proof | None = None
    #: wake-ups later than `max_wakeup_us`, and the worst of them; told again only every few seconds
    wakeup_breaches: int = 0
    wakeup_worst_us: int = 0
    #: given once it has ended
    usage: Usage | None = None
    #: of a gang: the ranks that have ended
    ranks: tuple[RankEnd, ...] = ()
    #: of a gang: one of them did badly before anybody wanted an end, and the others on this machine are ended
    broken: bool = False
    #: of a gang: the first of the ports that it was given here
    port: int = 0


class RevisionSeen(msgspec.Struct, frozen=True):
    """What the agent sees of one revision. Counts go up from 0 at `since` (microseconds since the epoch), which names them."""

    revision: int
    #: DEPLOYING, READY, FAILED or, for a while after nothing leads to it, RETIRED
    state: RevisionState
    since: int = 0
    requests: int = 0
    errors: int = 0
    #: replicas that could not be started, or ended by themselves before any request
    failed_starts: int = 0
    reason: Reason | None = None
    detail: str = ""


class FunctionSeen(msgspec.Struct, frozen=True):
    name: FunctionName
    #: the newest revision this agent was given
    revision: int
    state: FunctionState
    #: the newest revision that Envoy routes to
    routed_revision: int | None = None
    reason: Reason | None = None
    detail: str = ""
    replicas: int = 0
    waking: int = 0
    queued: int = 0
    #: nothing of it is on its cores and devices, and preemptible jobs may be
    lends: bool = False
    routes: Routes = Routes()
    #: on a machine of a pool, as a place of it has it
    reach: tuple[Reach, ...] = ()
    revisions: tuple[RevisionSeen, ...] = ()


class ScalingChange(msgspec.Struct, frozen=True):
    """The number of replicas changed."""

    #: microseconds since the epoch
    at: int
    before: int
    after: int
    text: str


class ScalingSeen(msgspec.Struct, frozen=True):
    """What an agent answers when asked for "scaling", as a JSON list: why a revision has as many replicas as it has."""

    revision: int
    serving: int
    starting: int
    #: as many as it should have
    wanted: int
    text: str
    #: the oldest first
    changes: tuple[ScalingChange, ...] = ()


class HealthEvent(msgspec.Struct, frozen=True):
    """A line of the machine's history. `serial` goes up with each; the server may get one twice."""

    serial: int
    #: microseconds since the epoch
    at: int
    text: str


class MachineHealth(msgspec.Struct, frozen=True):
    """What an agent answers when asked for "health", as JSON."""

    #: `lifecycle.node.NodeState` of the machine as a whole
    state: str
    node: NodeHealth
    #: of the newest look
    findings: tuple[Finding, ...] = ()


class Report(msgspec.Struct, frozen=True, tag=True):
    seq: int
    machine: MachineId
    boot_id: str
    #: generation of the assignment this report was made under
    generation: int
    attempts: tuple[AttemptState, ...] = ()
    functions: tuple[FunctionSeen, ...] = ()
    #: ledger rows not acknowledged yet (at most 1000)
    coldstarts: tuple[ColdStart, ...] = ()
    #: devices, memory nodes (`numa:0`) or `node` that nothing new may be placed on; sick ones, and those not free yet
    blocked: tuple[str, ...] = ()
    #: devices that nothing new may use together
    blocked_pairs: tuple[tuple[str, str], ...] = ()
    held: tuple[HeldPlan, ...] = ()
    #: functions of which nothing new comes here, and that still have something to answer
    finishing: tuple[FunctionName, ...] = ()
    #: not acknowledged yet (at most 100)
    health_events: tuple[HealthEvent, ...] = ()
    #: None: it has not looked yet
    images: ImagesSeen | None = None
    #: of functions on other machines, what the gateway took last
    away: tuple[AwayFunction, ...] = ()


class ReportAck(msgspec.Struct, frozen=True, tag=True):
    """The report is committed; its ledger rows need not be sent again."""

    seq: int


class ExecStart(msgspec.Struct, frozen=True):
    """A command to run inside a running attempt."""

    argv: tuple[str, ...]
    #: inside which rank of a gang; None: its first
    rank: int | None = None
    #: asking again with the same key starts nothing twice
    key: str = ""
    #: None: empty input, output to logs
    terminal: Terminal | None = None


class ExecState(msgspec.Struct, frozen=True):
    """What an agent answers when asked for "exec-state", as JSON."""

    ended: bool
    #: the command's own code, or 128 + signal; None while it runs, and when it is not known
    exit_code: int | None = None
    detail: str = ""


class VolumeMake(msgspec.Struct, frozen=True):
    """A volume's folder to make, or with `path` to look at: somebody's own that is to be one."""

    owner: Owner
    path: str = ""


class PullStart(msgspec.Struct, frozen=True):
    """A container image to fetch, and for whom."""

    image: str
    owner: Owner
    #: at its registry, instead of the owner's own
    login: Login | None = None


class ContainerImageSeen(msgspec.Struct, frozen=True):
    """One that lies on the machine."""

    image: Image
    #: what it is known as there
    references: tuple[str, ...]
    #: microseconds, wall clock
    used_at: int
    #: workloads that run on it
    used_by: tuple[str, ...]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Server asks, agent answers with the same id. `what`:

    "log"; "proof" (JSON `Proof`); "usage" (JSON `Usage` of a running attempt)
    "keys": answered once the gateway admits just the keys that `workload` is the digest of
    "template" (JSON list of `TemplateSeen`): of the function `workload`, from the base on; empty for a command
    "ends" (JSON list of `ReplicaEnd`): of replicas of the function `workload` that nobody told to end
    "image-packages" (JSON list of texts): what is installed in the image `<uid>/<id>`
    "container-images" (JSON list of `ContainerImageSeen`); "image-remove" the one whose digest `workload` is
    "image-pull": begin to fetch (`body`: JSON `PullStart`), or join who fetches it already; "image-pull-state" of the pull
    `workload` (both answered with a JSON `PullView`; nothing: it is not known)
    "health" (JSON `MachineHealth`); "readmit": begin a check of the subject `workload`; "keep-hardware"
    "scaling": of the function `workload` (JSON list of `ScalingSeen`, one for each revision that gets traffic)
    "exec": start `body` (JSON `ExecStart`) inside the attempt, answered with its name, such as `x1`; it is the workload
    `<attempt>-x1`, of which "exec-state" tells (JSON `ExecState`) and which "exec-stop" sends the signal `offset`.
    "stream": open `body` (JSON `StreamStart`) and dial back
    "volume-make": the folder of the volume `workload` (`body`: JSON `VolumeMake`), answered with its path; "volume-delete";
    "volumes" (`body`: JSON list of paths): how large they are, JSON list of `VolumeSeen` in that order
    """

    id: int
    what: str
    #: an attempt, `<attempt>.<rank>` of a gang of several processes, or `<function>` for a function's log
    workload: str
    #: log: "stdout" or "stderr", byte offset, byte limit
    stream: str = "stdout"
    offset: int = 0
    limit: int = LOG_READ_MAX
    body: bytes = b""
    #: log: bytes before and behind that are told too
    margin: int = 0


class Answer(msgspec.Struct, frozen=True, tag=True):
    id: int
    #: log bytes, or what was asked as JSON; empty with `error` set when it can't be had
    data: bytes = b""
    #: log: where the next read begins (past gaps cut out by rotation)
    next_offset: int = 0
    error: str = ""
    #: log: the line about bytes cut out before `data`; `margin` bytes before and behind it; whether nothing that is not there yet
    #: will ever follow right behind
    gap: bytes = b""
    before: bytes = b""
    after: bytes = b""
    cut: bool = False


FromServer = Assignment | ReportAck | Ask


def digest_keys(keys: Iterable[str]) -> str:
    """Names a set of keys without telling them."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


encode = msgspec.msgpack.Encoder().encode
decode_from_server = msgspec.msgpack.Decoder(FromServer).decode
