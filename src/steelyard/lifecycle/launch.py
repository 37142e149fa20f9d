"""Which processes does an attempt have, and what is each of them told of its place? Pure: command lines and variables.

Three launchers. `none`: one process per rank, told its place by the variables that PyTorch, DeepSpeed, TensorFlow and JAX read.
`torchrun`: one process per node, which starts its node's ranks (https://pytorch.org/docs/stable/elastic/run.html). `mpi`: one
`mpirun`, which starts all ranks through PMIx; on machines that a batch system gave one step of that, which does the same. What
cannot be known here (a free port, the newest checkpoint) comes as `Facts`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator

import msgspec

from steelyard.model.batch import ArrayPlace, Gang, Launcher
from steelyard.model.ids import AttemptId, JobId
from steelyard.model.job import JobSpec

#: below the ephemeral range, where no outgoing connection takes a port between the look and its use
PORT_FIRST, PORT_LAST = 20_000, 32_000
_PYTHON = re.compile(r"^(python|pypy)[0-9.]*\Z", re.ASCII)
#: tells what stands before each rank (`engine/slurm/step.py`) which CPUs of each node to deal to its ranks
STEP_CPUS = "STEELYARD_STEP_CPUS"
#: options of the interpreter that take the next word
_WITH_WORD = ("-X", "-W")


class Steps(msgspec.Struct, frozen=True):
    """Of the batch system whose allocation holds the gang's machines, and whose own launcher starts MPI's ranks."""

    #: path of its `srun`
    srun: str
    #: the allocation's number
    job: str
    #: its names of the gang's machines, in the order of ranks
    nodes: tuple[str, ...]
    #: of each of them: CPUs that are the gang's alone; () where it shares them
    cpus: tuple[tuple[int, ...], ...]
    #: command line that stands before each rank
    before: tuple[str, ...]


class Facts(msgspec.Struct, frozen=True):
    """What whoever starts the attempt knows of it and of its machines."""

    job: JobId
    attempt: AttemptId
    #: name of each node, in the order of ranks; the same one twice where two nodes of a gang are one machine
    hosts: tuple[str, ...]
    #: where each node is reached by the others
    addresses: tuple[str, ...]
    #: the first of `ports_wanted` free ports in a row on the first node
    port: int
    api_url: str
    #: certificate that the API shows; "" where it is a public one, or none
    ca_file: str = ""
    restarts: int = 0
    #: path of the newest entry of `checkpoint_dir`; "" when there is none
    checkpoint: str = ""
    #: files made for it; "" where it has none
    script: str = ""
    hostfile: str = ""
    heartbeat: str = ""
    token: str = ""
    array: ArrayPlace | None = None
    #: physical cores that nobody else may use meanwhile; 0 when it shares them
    own_cores: int = 0
    #: its processes run with root's uid
    root: bool = False
    #: None: `mpirun` starts the ranks of MPI
    steps: Steps | None = None


class Launch(msgspec.Struct, frozen=True):
    """One process that Steelyard starts."""

    argv: tuple[str, ...]
    #: over the user's own variables
    env: dict[str, str]


def make_launches(spec: JobSpec, facts: Facts) -> tuple[Launch, ...]:
    """In the order of ranks (of nodes for torchrun). One for a job that is no gang."""
    argv = (facts.script, *spec.argv[1:]) if facts.script else spec.argv
    common = tell_attempt(facts)
    gang = spec.gang
    if gang is None:
        return (Launch(argv, common),)
    common |= _places(gang, facts)
    match gang.launcher:
        case Launcher.TORCHRUN:
            return tuple(
                Launch(make_torchrun(argv, gang, facts, node), {**common, "STEELYARD_NODE_RANK": str(node)})
                for node in range(gang.nodes)
            )
        case Launcher.MPI if facts.steps is not None:
            return (Launch(make_srun(argv, gang, facts.attempt, facts.steps), {**common, **_tell_cpus(facts.steps)}),)
        case Launcher.MPI:
            # SLURM_* are told for programs' sake: mpirun must not take them for an allocation of its own to start by srun
            return (Launch(make_mpirun(argv, gang, facts), {**common, "OMPI_MCA_ras": "^slurm", "OMPI_MCA_plm": "^slurm"}),)
        case Launcher.NONE:
            return tuple(Launch(argv, {**common, **_rank(rank, gang, facts)}) for rank in range(gang.world_size))


def count_processes(gang: Gang | None) -> int:
    """How many of them Steelyard starts itself."""
    if gang is None or gang.launcher is Launcher.MPI:
        return 1
    return gang.nodes if gang.launcher is Launcher.TORCHRUN else gang.world_size


def ports_wanted(gang: Gang | None) -> int:
    """In a row: the rendezvous, and one for each TensorFlow worker."""
    if gang is None:
        return 0
    return 1 + (gang.world_size if gang.launcher is Launcher.NONE else 0)


def list_ports(attempt: AttemptId, count: int) -> Iterator[int]:
    """First ports of runs of `count`, in the order in which they should be tried: the same attempt gets the same one whenever it
    is free, and attempts seldom ask for the same."""
    runs = max(1, (PORT_LAST - PORT_FIRST) // max(1, count))
    first = zlib.crc32(attempt.encode()) % runs
    for step in range(runs):
        yield PORT_FIRST + (first + step) % runs * max(1, count)


def render_hostfile(gang: Gang, hosts: tuple[str, ...]) -> str:
    """As DeepSpeed and Open MPI read it: a machine and its ranks in each line."""
    slots: Counter[str] = Counter()
    for node in range(gang.nodes):
        slots[hosts[node]] += gang.tasks_per_node
    return "".join(f"{host} slots={count}\n" for host, count in slots.items())


def make_torchrun(argv: tuple[str, ...], gang: Gang, facts: Facts, node: int = 0) -> tuple[str, ...]:
    """`python train.py` keeps its interpreter, a .py file gets torchrun's own, any other program is started as it is."""
    options = (
        f"--nnodes={gang.nodes}",
        f"--nproc-per-node={gang.tasks_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={facts.addresses[0]}:{facts.port}",
        f"--rdzv-id={facts.attempt}",
    )
    if len(facts.addresses) > 1:
        # what it would find out by the names of machines, which need not lead to these addresses
        options += (f"--rdzv-conf=is_host={int(node == 0)}", f"--local-addr={facts.addresses[node]}")
    if _PYTHON.match(argv[0].rpartition("/")[2]):
        flags, rest = _split_flags(argv[1:])
        # what follows -m is a module to torchrun too; code on the command line and a bare interpreter are not its business
        if rest and rest[0] != "-c":
            return (argv[0], *flags, "-m", "torch.distributed.run", *options, *rest)
    elif argv[0].endswith(".py"):
        return ("torchrun", *options, *argv)
    return ("torchrun", *options, "--no-python", *argv)


def _split_flags(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The interpreter's own flags, and what it is to run."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
        at += 2 if words[at] in _WITH_WORD else 1
    return words[:at], words[at:]


def make_mpirun(argv: tuple[str, ...], gang: Gang, facts: Facts) -> tuple[str, ...]:
    """Ranks are bound to cores only where nobody else may use these: two jobs that share cores would both be bound to the first
    ones. There mpirun must not count cores either."""
    ranks = gang.world_size
    bound = facts.own_cores >= ranks
    return (
        "mpirun",
        *(("--allow-run-as-root",) if facts.root else ()),
        "-n",
        str(ranks),
        *(("--map-by", "core", "--bind-to", "core") if bound else ("--oversubscribe", "--bind-to", "none")),
        *argv,
    )


def make_srun(argv: tuple[str, ...], gang: Gang, attempt: AttemptId, steps: Steps) -> tuple[str, ...]:
    """Cores are dealt by us, so srun neither binds nor counts them: the allocation holds other work beside these ranks."""
    return (
        steps.srun,
        f"--jobid={steps.job}",
        f"--job-name={attempt}",
        "--overlap",
        "--overcommit",
        "--mpi=pmix",
        f"--nodes={gang.nodes}",
        f"--ntasks={gang.world_size}",
        f"--ntasks-per-node={gang.tasks_per_node}",
        f"--nodelist={','.join(steps.nodes)}",
        "--distribution=block",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        *steps.before,
        *argv,
    )


def _tell_cpus(steps: Steps) -> dict[str, str]:
    return {STEP_CPUS: ";".join(",".join(map(str, cpus)) for cpus in steps.cpus)}


def tell_api(api_url: str, token: str, ca_file: str) -> dict[str, str]:
    """How the processes of a workload call the API; "" where there is no token, or no certificate of its own."""
    told = {"STEELYARD_API_URL": api_url, "STEELYARD_TOKEN": token, "STEELYARD_CA": ca_file}
    return {name: value for name, value in told.items() if value}


def tell_attempt(facts: Facts) -> dict[str, str]:
    env = {
        "STEELYARD_JOB_ID": facts.job,
        "STEELYARD_ATTEMPT_ID": facts.attempt,
        "STEELYARD_RESTART_COUNT": str(facts.restarts),
        "STEELYARD_CHECKPOINT": facts.checkpoint,
        **tell_api(facts.api_url, facts.token, facts.ca_file),
    }
    if facts.heartbeat:
        env["STEELYARD_HEARTBEAT"] = facts.heartbeat
    if facts.array is not None:
        env |= {"STEELYARD_ARRAY_ID": facts.array.id, "STEELYARD_ARRAY_INDEX": str(facts.array.index)}
    return env


def _places(gang: Gang, facts: Facts) -> dict[str, str]:
    """What all of a gang are told, whoever starts its ranks."""
    return {
        "MASTER_ADDR": facts.addresses[0],
        "MASTER_PORT": str(facts.port),
        "STEELYARD_NODELIST": ",".join(dict.fromkeys(facts.hosts[: gang.nodes])),
        "STEELYARD_NODES": str(gang.nodes),
        "STEELYARD_TASKS": str(gang.world_size),
        "STEELYARD_HOSTFILE": facts.hostfile,
    }


def _rank(rank: int, gang: Gang, facts: Facts) -> dict[str, str]:
    node, local = divmod(rank, gang.tasks_per_node)
    workers = [f"{facts.addresses[each // gang.tasks_per_node]}:{facts.port + 1 + each}" for each in range(gang.world_size)]
    tensorflow = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(gang.world_size),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(gang.tasks_per_node),
        "NODE_RANK": str(node),
        "GROUP_RANK": str(node),
        "STEELYARD_NODE_RANK": str(node),
        "TF_CONFIG": json.dumps(tensorflow),
        "JAX_COORDINATOR_ADDRESS": f"{facts.addresses[0]}:{facts.port}",
        "JAX_NUM_PROCESSES": str(gang.world_size),
        "JAX_PROCESS_ID": str(rank),
    }
