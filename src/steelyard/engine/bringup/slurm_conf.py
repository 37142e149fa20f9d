"""What is in slurm.conf, gres.conf and cgroup.conf of a cluster of these nodes? Pure text; what is a choice has its reason.

Options: slurm.conf(5), gres.conf(5), cgroup.conf(5) of Slurm 22.05 to 26.05. Paths are Debian's and Ubuntu's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.engine.bringup.node import Node, NodeGpu, Socketing

FOLDER = "/etc/slurm"
STATE, SPOOL, LOGS = "/var/lib/slurm/slurmctld", "/var/lib/slurm/slurmd", "/var/log/slurm"
PROLOG, EPILOG, HEALTH = (f"{FOLDER}/steelyard-{name}.sh" for name in ("prolog", "epilog", "health"))
#: there while the last look found something CRITICAL; holds why
VERDICT = "/run/steelyard-node/critical"
#: what a person has looked at and taken back into use; counts until the next start of the machine
FORGIVEN = "/run/steelyard-node/forgiven"
#: partition of hosts that name none
PARTITION = "main"
_HEALTH_S = 300


class Choices(msgspec.Struct, frozen=True):
    """What the machines decide about the cluster as a whole."""

    cluster: str
    controller: str
    controller_address: str
    socketing: Socketing = Socketing.PACKAGE
    socketing_why: str = ""
    #: "v1", "v2", "mixed" or "none"
    cgroups: str = "v2"
    #: those that every machine has
    controllers: frozenset[str] = frozenset()
    #: of every machine its own name leads to an address that others reach
    names_are_public: bool = False
    #: "topology/tree", "topology/block" or ""
    topology: str = ""

    @property
    def tracked(self) -> bool:
        """Can Slurm hold a job's processes together by control groups?"""
        return self.cgroups in ("v2", "mixed") or (self.cgroups == "v1" and "freezer" in self.controllers)


def render_slurm_conf(choices: Choices, nodes: Sequence[Node]) -> str:
    lines = [
        f"ClusterName={choices.cluster}",
        f"SlurmctldHost={choices.controller}({choices.controller_address})",
        "SlurmUser=slurm",
        "AuthType=auth/munge",
        f"StateSaveLocation={STATE}",
        f"SlurmdSpoolDir={SPOOL}",
        "SlurmctldPidFile=/run/slurmctld.pid",
        "SlurmdPidFile=/run/slurmd.pid",
        f"SlurmctldLogFile={LOGS}/slurmctld.log",
        f"SlurmdLogFile={LOGS}/slurmd.log",
        "",
        *_communication(choices),
        "# A node that was only cut off comes back by itself; one that restarted or lost memory waits until somebody has looked.",
        "ReturnToService=1",
        "",
        *_selection(choices, nodes),
        *_tracking(choices),
        "# A batch job is looked at when it comes, not up to three seconds later.",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0",
        *_topology(choices),
        "# Programs that want PMIx ask for it (srun --mpi=pmix); every other step would pay for it.",
        "MpiDefault=none",
        "",
        *_programs(gpus=any(node.gpus for node in nodes)),
        *(["GresTypes=gpu", ""] if any(node.gpus for node in nodes) else []),
    ]
    for node in nodes:
        lines += [*(f"# {node.name}: {note}" for note in node.notes), _node_line(node)]
    return "\n".join([*lines, "", *_partitions(nodes)]) + "\n"


def _communication(choices: Choices) -> list[str]:
    if choices.names_are_public:
        return [
            "# Every host's own name leads to the address that the others use: Slurm listens on that one, not on all.",
            "CommunicationParameters=NoInAddrAny",
        ]
    return [
        "# CommunicationParameters=NoInAddrAny is left away: some host's own name leads to loopback, where nobody reaches Slurm.",
    ]


def _selection(choices: Choices, nodes: Sequence[Node]) -> list[str]:
    per_cpu = min((node.real_memory_mib // node.cpus for node in nodes), default=1)
    lines = [
        "# Cores, memory and GPUs are handed out one by one; siblings of a core never go to two jobs.",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "# What a job gets that asks for no memory: without this it would have all of the node. The least of all nodes per CPU.",
        f"DefMemPerCPU={max(1, per_cpu)}",
    ]
    if choices.socketing is not Socketing.PACKAGE:
        lines += [f"# {choices.socketing_why}.", f"SlurmdParameters={choices.socketing}"]
    elif choices.socketing_why:
        lines.append(f"# A socket stays a package: {choices.socketing_why}.")
    return lines


def _tracking(choices: Choices) -> list[str]:
    if not choices.tracked:
        return [
            f"# No control groups that Slurm can use on every machine ({choices.cgroups}): processes that leave their session",
            "# escape, and nothing holds jobs to their memory.",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/affinity",
            "JobAcctGatherType=jobacct_gather/linux",
        ]
    return [
        "# Control groups hold a job's processes together and to what it was given; task/affinity binds tasks to cores.",
        "ProctrackType=proctrack/cgroup",
        "TaskPlugin=task/cgroup,task/affinity",
        "JobAcctGatherType=jobacct_gather/cgroup",
    ]


def _topology(choices: Choices) -> list[str]:
    if not choices.topology:
        return [
            "# How the machines are wired to each other is not known (--fabric tells it), so none counts as nearer than another."
        ]
    return ["# Jobs of several nodes are placed by topology.conf.", f"TopologyPlugin={choices.topology}"]


def _programs(gpus: bool) -> list[str]:
    return [
        "# Where a job's first step starts. (PrologFlags=Alloc, on all nodes beforehand, makes srun take twice as long.)",
        f"Prolog={PROLOG}",
        *([f"Epilog={EPILOG}"] if gpus else ["# Epilog is left away: it looks at GPUs, and no machine has one."]),
        f"# Looks every {_HEALTH_S // 60} minutes, at busy machines too, one after the other; drains what is CRITICAL.",
        f"HealthCheckProgram={HEALTH}",
        f"HealthCheckInterval={_HEALTH_S}",
        "HealthCheckNodeState=ANY,CYCLE",
        "",
    ]


def _node_line(node: Node) -> str:
    words = [
        f"NodeName={node.name}",
        f"NodeAddr={node.address}",
        f"CPUs={node.cpus}",
        "Boards=1",
        f"SocketsPerBoard={node.sockets}",
        f"CoresPerSocket={node.cores_per_socket}",
        f"ThreadsPerCore={node.threads_per_core}",
        f"RealMemory={node.real_memory_mib}",
        *([f"Gres={node.gres}"] if node.gres else []),
        *([f"Feature={','.join(node.features)}"] if node.features else []),
        "State=UNKNOWN",
    ]
    return f"# {node.name}: {node.reserve_mib} MiB of its memory stay with the system.\n{' '.join(words)}"


def _partitions(nodes: Sequence[Node]) -> list[str]:
    """Hosts that name none are in `main`, and in `gpu` where some machines have GPUs and some not."""
    plain = [node for node in nodes if not node.partitions]
    members: dict[str, list[str]] = {PARTITION: [node.name for node in plain]} if plain else {}
    with_gpus = [node.name for node in plain if node.gpus]
    lines: list[str] = []
    if with_gpus and len(with_gpus) < len(plain):
        members["gpu"] = with_gpus
        lines.append("# Some machines have GPUs and some not: `gpu` is those that have.")
    for node in nodes:
        for partition in node.partitions:
            members.setdefault(partition, []).append(node.name)
    default = next(iter(members), "")
    return lines + [
        f"PartitionName={name} Nodes={','.join(of)} Default={'YES' if name == default else 'NO'} MaxTime=INFINITE State=UP"
        for name, of in members.items()
    ]


def render_gres_conf(nodes: Sequence[Node]) -> str:
    lines = [
        "# Which file is which GPU, how many links join it to the others in this order, and the numbers of the cores near it."
    ]
    for node in nodes:
        lines += [_gpu_line(node, gpu) for gpu in node.gpus]
    if len(lines) == 1:
        lines = ["# No machine has a GPU that a driver runs."]
    return "\n".join(lines) + "\n"


def _gpu_line(node: Node, gpu: NodeGpu) -> str:
    words = [f"NodeName={node.name}", "Name=gpu", f"Type={gpu.type}", f"File={gpu.file}"]
    words += [f"Links={','.join(map(str, gpu.links))}"] if gpu.links else []
    words += [f"Cores={_runs(gpu.cores)}"] if gpu.cores else []
    return " ".join(words)


def _runs(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> `0-2,5`"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def render_cgroup_conf(choices: Choices) -> str:
    if not choices.tracked:
        return "# Not used: slurm.conf says why.\n"
    known = choices.controllers if choices.cgroups == "v1" else frozenset({"cpuset", "memory", "devices"})
    plugin = f"cgroup/{choices.cgroups}" if choices.cgroups != "mixed" else "autodetect"
    lines = ["# As the machines are mounted; where both are, Slurm would not choose by itself.", f"CgroupPlugin={plugin}"]
    for option, controller, what in (
        ("ConstrainCores", "cpuset", "runs on cores of others"),
        ("ConstrainRAMSpace", "memory", "takes memory of others"),
        ("ConstrainDevices", "devices", "opens GPUs of others"),
    ):
        there = controller in known
        lines.append(
            f"# No job {what}."
            if there
            else f"# Not every machine has the controller {controller}, so a job may be one that {what}."
        )
        lines.append(f"{option}={'yes' if there else 'no'}")
    return "\n".join(lines) + "\n"


def render_scripts(steelyard: str) -> dict[str, str]:
    """Prolog, epilog and health program of one host, path to text. `steelyard`: the program there, or ""."""
    if not steelyard:
        why = "# There is no steelyard on this host (hosts.yaml may tell where it is), so nothing is looked at.\nexit 0\n"
        return dict.fromkeys((PROLOG, EPILOG, HEALTH), f"#!/bin/sh\n{why}")
    quoted = "'" + steelyard.replace("'", "'\\''") + "'"
    return {
        PROLOG: "#!/bin/sh\n"
        "# The health program has found nothing CRITICAL: the job need not wait for anything to be started.\n"
        f"[ -e {VERDICT} ] || exit 0\n"
        f"exec {quoted} node prolog\n",
        EPILOG: "#!/bin/sh\n"
        "# Only a job that had GPUs may have left something on them.\n"
        '[ -n "${SLURM_JOB_GPUS:-}" ] || exit 0\n'
        f"exec {quoted} node epilog\n",
        HEALTH: f"#!/bin/sh\nexec {quoted} node health\n",
    }
