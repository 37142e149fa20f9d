"""What is left to do until these machines are this cluster? All that was seen in, steps out; none when nothing is left. Pure.

A host that can't take part is left out with the reason and the others go on; what is already in the cluster and can't be reached
now keeps its place in Slurm's files. Without the controller nothing is done at all, and wherever a file stands that we did not
write, or that was edited since, that host is left as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from steelyard.engine.bringup.kept import read_controller, read_nodes
from steelyard.engine.bringup.node import Node, choose_socketing, make_node
from steelyard.engine.bringup.seen import KEY, PATHS
from steelyard.engine.bringup.slurm_conf import (
    EPILOG,
    FOLDER,
    HEALTH,
    PROLOG,
    Choices,
    render_cgroup_conf,
    render_gres_conf,
    render_scripts,
    render_slurm_conf,
)
from steelyard.engine.bringup.topology_conf import render_topology_conf
from steelyard.engine.bringup.written import sign, whose
from steelyard.errors import Refused
from steelyard.model.cluster import BringUpPlan, ClusterSpec, SeenHost, Step, StepKind, Written
from steelyard.model.fabric import Fabric
from steelyard.model.slurm import VERSION_MAX, VERSION_MIN

DISTRIBUTIONS = ("debian", "ubuntu")
#: munge refuses what is five minutes old; a tenth of that is a clock that nobody keeps
CLOCK_MAX_S, CLOCK_NOTE_S = 30.0, 1.0
_CONF, _GRES, _TOPOLOGY, _CGROUP = (f"{FOLDER}/{name}.conf" for name in ("slurm", "gres", "topology", "cgroup"))
_SCRIPTS = (PROLOG, EPILOG, HEALTH)


def plan_bring_up(
    spec: ClusterSpec, seen: Mapping[str, SeenHost], unreachable: Mapping[str, str], fabric: Fabric | None
) -> BringUpPlan:
    """`unreachable`: host -> why. Raises Refused when the controller can't be the controller; nothing is to be done then."""
    controller = spec.controller_name
    head = seen.get(controller)
    left_out = dict(unreachable)
    for entry in spec.hosts:
        host = seen.get(entry.name)
        if host is not None and (why := find_obstacle(host, head) or _find_other_cluster(host, controller)):
            left_out[entry.name] = why
    if head is None or controller in left_out:
        raise Refused(
            f"{controller} can't be the controller: {left_out.get(controller, 'it was not looked at')}. Nothing was changed. "
            "Mend that, or name another `controller` in the file.",
            code="no-controller",
        )
    taking = [entry for entry in spec.hosts if entry.name not in left_out]
    machines = [machine for entry in taking if (machine := seen[entry.name].topology) is not None]
    socketing, why = choose_socketing(machines)
    kept = read_nodes(head.files.get(_CONF, ""), head.files.get(_GRES, ""))
    nodes = [
        make_node(entry, seen[entry.name], socketing) if entry in taking else kept[entry.name]
        for entry in spec.hosts
        if entry in taking or entry.name in kept
    ]
    hosts = [seen[entry.name] for entry in taking]
    topology, topology_text = render_topology_conf(fabric, [node.name for node in nodes], head.slurm)
    choices = Choices(
        cluster=spec.name,
        controller=controller,
        controller_address=next(node.address for node in nodes if node.name == controller),
        socketing=socketing,
        socketing_why=why,
        cgroups=_common_cgroups(hosts),
        controllers=frozenset.intersection(*(host.controllers for host in hosts)),
        names_are_public=all(host.name_is_public for host in hosts),
        topology=topology,
    )
    common = render_files(choices, nodes, topology_text)
    steps: list[Step] = []
    for host in hosts:
        scripts = {path: sign(text) for path, text in render_scripts(host.steelyard).items()}
        steps += _steps(host, head, common | scripts, nodes)
    return BringUpPlan(tuple(steps), left_out, tuple(_notes(hosts, head, nodes, left_out)), tuple(node.name for node in nodes))


def render_files(choices: Choices, nodes: Sequence[Node], topology: str) -> dict[str, str]:
    """The files that are the same on every host, path to content."""
    return {
        _CONF: sign(render_slurm_conf(choices, nodes)),
        _GRES: sign(render_gres_conf(nodes)),
        _TOPOLOGY: sign(topology),
        _CGROUP: sign(render_cgroup_conf(choices)),
    }


def plan_removal(host: SeenHost) -> BringUpPlan:
    """What takes a machine out of its cluster: slurmd ends, and our files go. Files of others stay."""
    running = [Step(host.name, StepKind.STOP, "slurmd", "it is no node any more")] if "slurmd" in host.running else []
    ours = [path for path in PATHS if whose(host.files.get(path)) is Written.OURS]
    stay = [path for path in PATHS if whose(host.files.get(path)) in (Written.EDITED, Written.FOREIGN)]
    if stay:
        return BringUpPlan(left_out={host.name: f"{stay[0]} is not as `cluster up` wrote it"})
    return BringUpPlan((*running, *(Step(host.name, StepKind.REMOVE, path, "it was written by `cluster up`") for path in ours)))


def find_obstacle(host: SeenHost, head: SeenHost | None) -> str:
    """Why this machine can't take part, a sentence without its end; "" when it can. `head`: the controller, if it was seen."""
    strange = [path for path in PATHS if whose(host.files.get(path)) in (Written.EDITED, Written.FOREIGN)]
    if strange:
        how = "was edited after" if whose(host.files[strange[0]]) is Written.EDITED else "was not written by"
        return f"{strange[0]} {how} `cluster up`, so it is left as it is (move it away, or use `cluster attach`)"
    if host.distribution.split()[0] not in DISTRIBUTIONS:
        return f"its distribution ({host.distribution}) is not one whose packages are known here (Debian, Ubuntu)"
    if not host.root:
        return "the user there can't become root without a password (sudo -n is refused)"
    if host.hostname != host.name:
        return f"it calls itself {host.hostname or 'nothing'}: use that name in the file, with `address` for where it is reached"
    if not VERSION_MIN <= host.slurm <= VERSION_MAX:
        told = "no package slurmd is known to it" if host.slurm == (0, 0) else f"it has Slurm {_dotted(host.slurm)}"
        return f"{told}, and Slurm {_dotted(VERSION_MIN)} to {_dotted(VERSION_MAX)} is needed"
    if host.unread or host.topology is None or not host.topology.cores or not host.topology.memory_bytes:
        return f"its hardware can't be told ({host.unread or 'it tells no cores or no memory'})"
    if head is None or head.name == host.name:
        return ""
    if host.slurm > head.slurm:
        return (
            f"its Slurm {_dotted(host.slurm)} is newer than the controller's {_dotted(head.slurm)}, which then can't talk to it"
        )
    apart = host.clock_ahead_s - head.clock_ahead_s
    if abs(apart) > CLOCK_MAX_S:
        where = "ahead of" if apart > 0 else "behind"
        return f"its clock is {abs(apart):.0f} s {where} the controller's, too far for munge's credentials (set it)"
    return ""


def _find_other_cluster(host: SeenHost, controller: str) -> str:
    """Moving a controller would lose its queue, and taking another cluster's node its jobs: neither happens by a slip."""
    other = read_controller(host.files.get(_CONF, ""))
    if other in ("", controller):
        return ""
    return f"it is in the cluster whose controller is {other} (name that one, or take {host.name} out there: `cluster remove`)"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]:02}"


def _common_cgroups(hosts: Sequence[SeenHost]) -> str:
    kinds = {host.cgroups for host in hosts}
    if "none" in kinds:
        return "none"
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _steps(host: SeenHost, head: SeenHost, files: Mapping[str, str], nodes: Sequence[Node]) -> list[Step]:
    """In the order in which they are carried out on that host."""
    steps: list[Step] = []
    is_head = host.name == head.name
    # a distribution starts what it installs: a node must not come up as a second controller
    missing = [package for package in host.missing if is_head or package != "slurmctld"]
    if missing:
        steps.append(Step(host.name, StepKind.INSTALL, " ".join(missing), "from the distribution"))
    if not host.key and is_head:
        steps.append(Step(host.name, StepKind.KEY, KEY, "there is none: munge's key for the cluster is made here"))
    elif not is_head and (host.key != head.key or not head.key):
        steps.append(
            Step(host.name, StepKind.KEY, KEY, "the controller's" + (", in the place of another one" if host.key else ""))
        )
    for path, content in files.items():
        if host.files.get(path) != content:
            steps.append(Step(host.name, StepKind.WRITE, path, "changed" if path in host.files else "new", content))
    read = hashlib.sha256("".join(files[path] for path in files if path not in _SCRIPTS).encode()).hexdigest()
    keyed = any(step.kind is StepKind.KEY for step in steps)
    programs = {"munged": "" if keyed else host.key, **({"slurmctld": read} if is_head else {}), "slurmd": read}
    for program, digest in programs.items():
        if program not in host.running:
            steps.append(Step(host.name, StepKind.START, program, "it does not run", digest))
        elif not digest or host.started.get(program) != digest:
            what = "munge's key" if program == "munged" else "its files"
            steps.append(
                Step(host.name, StepKind.RESTART, program, f"it was not started with {what} as they are now; jobs go on", digest)
            )
    return steps


def _notes(hosts: Sequence[SeenHost], head: SeenHost, nodes: Sequence[Node], left_out: Mapping[str, str]) -> list[str]:
    notes = [
        f"{host.name}: its clock is {abs(host.clock_ahead_s - head.clock_ahead_s):.1f} s from the controller's."
        for host in hosts
        if abs(host.clock_ahead_s - head.clock_ahead_s) > CLOCK_NOTE_S
    ]
    notes += [f"{node.name}: {note}" for node in nodes for note in node.notes]
    bare = [host.name for host in hosts if not host.steelyard]
    if bare:
        notes.append(f"{', '.join(bare)}: no steelyard there, so prolog, epilog and health program look at nothing.")
    stay = [name for name in left_out if name in {node.name for node in nodes}]
    if stay:
        notes.append(f"{', '.join(stay)}: left as it is, and keeps its place in the cluster.")
    return notes
