"""`steelyard place`: which devices, cores and memory would a workload get? Decides with the scheduler's code, starts nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from steelyard.cli.fabric import fabric_option, gang_json, load_fabric, plan_on_fabric, render_gang
from steelyard.cli.output import print_json, say
from steelyard.cli.quantities import parse_bytes
from steelyard.cli.session import home_option, json_option
from steelyard.cli.topo import find_topology, from_option, take_files
from steelyard.errors import Refused, SteelyardError
from steelyard.model import words
from steelyard.model.fabric import Fabric
from steelyard.model.gang import GangDemand, GangPlan
from steelyard.model.timing import Timing

if TYPE_CHECKING:
    from steelyard.model.topology import Pair, Topology
    from steelyard.placement.devices import DevicePlan, Used
    from steelyard.placement.shortage import DeviceRefusal

#: exit code when there is no such place
NO_PLACE = 1
ALTERNATIVES = 3

PLACE_HELP = """Show which GPUs, network cards, cores and memory a workload would get, and why. Starts nothing.

GPUs are chosen for the best path between them, then for near network cards, cores and memory, then so that the best
remains for others. --gpus takes a model, a memory size or range, a count, a fraction or a MIG profile, joined by colons.

Without --from it is this machine, beside what a running Steelyard uses on it. The exit code is 1 when there is no such place.

\b
Examples:
  steelyard place --gpus H100:4 --nics 1 --cores 16
  steelyard place --from topo-m.txt --gpus 2 --occupied GPU0,GPU1 --json
  steelyard place --fabric topology.conf --nodes 16 --gpus 8 --level block
  steelyard place --from lstopo.xml --gpus 24GB..40GB:2 --timing dedicated --cores 8
"""


@click.command(help=PLACE_HELP, short_help="Show which devices and cores a workload would get, and why.")
@click.argument("words", nargs=-1, metavar="")
@from_option
@click.option("--gpus", metavar="DEMAND", help="For example 4, H100:4, A100:80GB:2, 24GB..40GB, H100:0.5, A100:1g.10gb:2.")
@click.option("--nics", type=click.IntRange(0, 1024), default=0, help="Network cards, near the GPUs.")
@click.option("--cores", type=click.IntRange(0, 100_000), default=0, help="Physical cores, near the GPUs.")
@click.option("--memory", help="Memory, for example 64GB.")
@click.option(
    "--timing",
    type=click.Choice([timing.value for timing in Timing]),
    default=Timing.BEST_EFFORT.value,
    show_default=True,
    help="`dedicated` and `realtime` take the cores for themselves, and local memory only.",
)
@fabric_option
@click.option("--nodes", type=click.IntRange(1, 100_000), default=1, help="With --fabric: machines of the gang.")
@click.option("--level", metavar="LEVEL", help="With --fabric: all in one such group (domain, block, leaf, spine).")
@click.option("--prefer", metavar="LEVEL", help="With --fabric: touch as few of these groups as possible.")
@click.option("--rails", is_flag=True, help="With --fabric: every machine on the same rails.")
@click.option("--occupied", multiple=True, metavar="ID,…", help="Devices (and CPUs, as cpu:0-3) that somebody else has.")
@home_option
@json_option
def place(
    words: tuple[str, ...],
    files: tuple[Path, ...],
    gpus: str | None,
    nics: int,
    cores: int,
    memory: str | None,
    timing: str,
    fabric: tuple[Path, ...],
    nodes: int,
    level: str | None,
    prefer: str | None,
    rails: bool,
    occupied: tuple[str, ...],
    home: Path | None,
    as_json: bool,
) -> None:
    from steelyard.model.gpu_demand import parse_gpu_demand
    from steelyard.placement.devices import DevicePlan, make_demand
    from steelyard.placement.shortage import plan_devices

    if words and not files and not fabric:
        raise Refused(f"{words[0]!r} is not understood. Files are given with --from.", code="bad-argument")
    files, fabric = take_files(files, words if files else ()), take_files(fabric, () if files else words)
    names = [name.strip() for listed in occupied for name in listed.split(",") if name.strip()]
    if fabric and (nics or cores or memory):
        raise Refused("A fabric's file tells no cards, cores or memory of its machines. Leave these out.", code="not-told")
    if fabric:
        demand = GangDemand(
            nodes,
            _gpus_per_node(gpus),
            exclusive=Timing(timing) is not Timing.BEST_EFFORT,
            required_level=level,
            preferred_level=prefer,
            rails_aligned=rails,
        )
        _place_gang(load_fabric(fabric), demand, names, as_json)
        return
    if nodes > 1 or level or prefer or rails:
        raise Refused("--nodes, --level, --prefer and --rails are about a fabric. Give --fabric FILE.", code="no-fabric")
    if not (gpus or nics or cores or memory):
        raise Refused("Nothing was asked for. Give --gpus, --nics, --cores or --memory.", code="nothing-asked")
    demand = make_demand(
        parse_gpu_demand(gpus) if gpus else None, nics, cores, parse_bytes(memory) if memory else None, Timing(timing)
    )
    topology, users = find_topology(None, files, home)
    if not files:
        users = _ask_users(home)
    used = make_used(topology, [*users, *names])
    answer = plan_devices(topology, used, demand, alternatives=ALTERNATIVES)
    if isinstance(answer, DevicePlan):
        answer = msgspec.structs.replace(answer, notes=(*answer.notes, *_caveats(topology, cores)))
    if as_json:
        print_json(plan_json(answer, topology) if isinstance(answer, DevicePlan) else refusal_json(answer))
    elif isinstance(answer, DevicePlan):
        click.echo(render_plan(answer))
    else:
        say(f"There is no such place{' on this machine' if answer.never else ' now'}: {answer.detail}.")
        say(f"At most: {', '.join(_most(name, value) for name, value in answer.largest_possible.items())}.")
    if not isinstance(answer, DevicePlan):
        sys.exit(NO_PLACE)


def _most(name: str, value: int) -> str:
    return f"{words.exact_size(value)} of memory" if name == "memory_bytes" else f"{value} {name}"


def _caveats(topology: Topology, cores: int) -> tuple[str, ...]:
    """What the machine's description says of itself, and what its CPUs don't tell."""
    siblings = "which CPUs are siblings of one core is not told: each is counted as a core"
    return (*topology.notes, *((siblings,) if cores and not topology.smt_known else ()))


def _gpus_per_node(gpus: str | None) -> float:
    from steelyard.model.gpu_demand import parse_gpu_demand

    demand = parse_gpu_demand(gpus) if gpus else None
    return 0 if demand is None else demand.fraction or demand.count


def _place_gang(fabric: Fabric, demand: GangDemand, busy: list[str], as_json: bool) -> None:
    answer = plan_on_fabric(fabric, demand, busy)
    if as_json:
        print_json(gang_json(answer))
    elif isinstance(answer, GangPlan):
        click.echo(render_gang(answer))
    else:
        say(f"There is no such place{' on this fabric' if answer.never else ' now'}: {answer.detail}.")
        say(f"At most: {answer.largest_nodes} machines.")
    if not isinstance(answer, GangPlan):
        sys.exit(NO_PLACE)


def _ask_users(home: Path | None) -> list[str]:
    """What a running Steelyard uses on this machine; nothing where none answers, which is said."""
    from steelyard.cli.session import open_client
    from steelyard.wire.node_api import NodeDetail, NodeView

    try:
        with open_client(home) as client:
            return [
                device
                for node in client.fetch(list[NodeView], "GET", "/v1/nodes")
                if not node.pool
                for device in client.fetch(NodeDetail, "GET", f"/v1/nodes/{node.id}").used
            ]
    except SteelyardError:
        say("No Steelyard answers here, so nothing counts as occupied.")
        return []


def make_used(topology: Topology, names: list[str]) -> Used:
    """Ids or names as `topo` shows them, or `cpu:0-3`. A name that the machine does not have is refused, not passed over."""
    from steelyard.cli.topology_layout import short_names
    from steelyard.host.sysfs import parse_cpus
    from steelyard.host.topology.notation import read_pci
    from steelyard.placement.devices import Used
    from steelyard.placement.gpus import GpuUse

    shown = {nic.name: nic.id for nic in topology.nics if nic.name}
    shown |= {short: device for device, short in short_names(topology).items()}
    gpus, nics, cpus = {gpu.id for gpu in topology.gpus}, {nic.id for nic in topology.nics}, set[int]()
    every = {cpu for core in topology.cores for cpu in core.cpus}
    held: set[str] = set()
    for name in filter(None, (name.strip() for name in names)):
        if name.startswith("cpu:"):
            listed = set(parse_cpus(name[4:])) if re.fullmatch(r"\d{1,6}(-\d{1,6})?", name[4:]) else set()
            if not listed or not listed <= every:
                raise Refused(f"{name!r} names CPUs that this machine does not have, or that are offline.", code="no-such-cpu")
            cpus |= listed
            continue
        known = name if name in gpus | nics else shown.get(name) or read_pci(name) or name
        if known not in gpus | nics:
            raise Refused(
                f"This machine has no GPU or network card {name!r}. `steelyard topo` lists them.", code="no-such-device"
            )
        held.add(known)
    return Used(gpus=GpuUse(shares=dict.fromkeys(held & gpus, 1.0)), nics=frozenset(held & nics), cpus=frozenset(cpus))


def plan_json(plan: DevicePlan, topology: Topology) -> dict[str, object]:
    """`cores`: a CPU of each chosen core, its first; `cpus`: all of them with their siblings."""
    chosen = set(plan.cores)
    return {
        "gpus": plan.gpus,
        "gpu_fraction": plan.gpu_fraction,
        "mig_instances": plan.mig_instances,
        "nics": plan.nics,
        "cores": sorted(core.cpus[0] for core in topology.cores if chosen.issuperset(core.cpus)),
        "cpus": plan.cores,
        "memory_nodes": plan.memory_nodes,
        "bottleneck": _bottleneck(plan.bottleneck),
        "pair_sum": plan.pair_sum,
        "remainder": plan.remainder,
        "alternatives": [
            {"gpus": other.gpus, "bottleneck": _bottleneck(other.bottleneck), "pair_sum": other.pair_sum}
            for other in plan.alternatives
        ],
        "explanation": plan.explanation,
        "notes": plan.notes,
    }


def refusal_json(refusal: DeviceRefusal) -> dict[str, object]:
    return {
        "refused": refusal.reasons,
        "never": refusal.never,
        "detail": refusal.detail,
        "largest_possible": refusal.largest_possible,
    }


def _bottleneck(pair: Pair | None) -> dict[str, object] | None:
    return None if pair is None else {"class": pair.class_name, "gbps": pair.gbps}


def render_plan(plan: DevicePlan) -> str:
    from steelyard.cli.topology_text import render_gbps
    from steelyard.host.sysfs import format_cpus

    worst = plan.bottleneck
    path = "" if worst is None else worst.class_name + (f" ({render_gbps(worst.gbps)})" if worst.gbps else "")
    rows = [
        ("GPUs", " ".join(plan.gpus) + (f"  ({plan.gpu_fraction:g} of each)" if plan.gpu_fraction < 1 and plan.gpus else "")),
        ("MIG instances", " ".join(plan.mig_instances)),
        ("worst path", path),
        ("network cards", " ".join(plan.nics)),
        ("CPUs", format_cpus(plan.cores)),
        ("memory nodes", format_cpus(plan.memory_nodes)),
    ]
    lines = [f"{name.ljust(14)} {text}" for name, text in rows if text]
    lines += [f"{'because' if not at else ''}".ljust(15) + sentence for at, sentence in enumerate(plan.explanation)]
    for at, other in enumerate(plan.alternatives):
        named = other.bottleneck.class_name if other.bottleneck else "alone"
        lines.append(f"{'next best' if not at else ''}".ljust(15) + f"{' '.join(other.gpus)}  {named}")
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)
