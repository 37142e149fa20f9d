"""What `topo --fabric` and `place --fabric` show: how machines are wired to each other, and where a gang would go among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steelyard.errors import Refused
from steelyard.model import words
from steelyard.model.fabric import Fabric, name_key

if TYPE_CHECKING:
    from steelyard.model.gang import GangDemand, GangPlan, GangRefusal

#: more machines than this on a line are counted instead of named
NAMED_MAX = 8
#: the usual number of GPUs of a machine, where a fabric's file can't tell
GPUS_PER_NODE = 8
ASSUMED = f"the file tells no GPUs: {GPUS_PER_NODE} on each machine are assumed"


def fabric_option(command: click.decorators.FC) -> click.decorators.FC:
    """`--fabric FILE`, on every command that takes a recorded fabric."""
    return click.option(
        "--fabric",
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        metavar="FILE",
        help="Read a fabric instead: ibnetdiscover, Slurm's topology.conf or topology.yaml, or a list of NVLink domains.",
    )(command)


def load_fabric(files: Sequence[Path]) -> Fabric:
    from steelyard.host.fabric.read import read_fabric

    return read_fabric(files)


def render_fabric(fabric: Fabric) -> str:
    """Counts, then the levels from the outermost in, with what each group holds."""
    from steelyard.placement.fabric_levels import make_levels

    counts = (
        (len(fabric.hosts), "machine"),
        *(
            (sum(1 for s in fabric.switches if s.level == level), noun)
            for level, noun in ((1, "leaf switch"), (2, "spine switch"))
        ),
        (sum(1 for s in fabric.switches if s.level > 2), "core switch"),
        (len(fabric.domains), "NVLink domain"),
        (len(fabric.blocks), "block"),
    )
    lines = [" · ".join(words.count(number, noun) for number, noun in counts if number) or "an empty fabric"]
    levels = make_levels(fabric)
    for level in levels.levels:
        if level.name == "fabric":
            continue
        members: dict[int, list[str]] = {}
        for host, group in zip(levels.hosts, level.group, strict=True):
            members.setdefault(group, []).append(host)
        lines.append(f"\n{level.name}")
        lines += [f"  {level.labels[group]}: {_names(hosts)}" for group, hosts in members.items()]
    rails = sorted({rail for host in fabric.hosts for rail in host.rails})
    if rails:
        lines.append(f"\n{words.count(len(rails), 'rail')}")
    notes = [f"note: {note}" for note in (*fabric.notes, *levels.notes)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def plan_on_fabric(fabric: Fabric, demand: GangDemand, busy: Sequence[str]) -> GangPlan | GangRefusal:
    """On machines of eight GPUs each (no fabric file tells how many they have), but for those that are busy."""
    from steelyard.placement.fabric import plan_gang
    from steelyard.placement.fabric_state import make_state

    unknown = sorted(set(busy) - {host.name for host in fabric.hosts}, key=name_key)
    if unknown:
        raise Refused(f"This fabric has no machine {unknown[0]!r}. `steelyard topo --fabric` lists them.", code="no-such-node")
    state = make_state(fabric, {host.name: 0 if host.name in busy else GPUS_PER_NODE for host in fabric.hosts})
    for name in busy:
        state.close(name)
    return plan_gang(state, demand)


def gang_json(answer: GangPlan | GangRefusal) -> dict[str, object]:
    from steelyard.model.gang import GangPlan

    if isinstance(answer, GangPlan):
        return {
            "nodes": [member.node for member in answer.members],
            "span": answer.span,
            "common_level": answer.common_level,
            "rails": answer.rails,
            "explanation": answer.explanation,
            "notes": (ASSUMED,),
        }
    return {
        "refused": answer.reasons,
        "never": answer.never,
        "detail": answer.detail,
        "largest_possible": {"nodes": answer.largest_nodes},
    }


def render_gang(plan: GangPlan) -> str:
    rows = [
        ("machines", " ".join(member.node for member in plan.members)),
        ("within one", plan.common_level),
        ("touches", ", ".join(words.count(number, level) for level, number in plan.span.items())),
        ("rails", " ".join(map(str, plan.rails))),
    ]
    lines = [f"{name.ljust(14)} {text}" for name, text in rows if text]
    lines += [("because" if not at else "").ljust(15) + sentence for at, sentence in enumerate(plan.explanation)]
    lines.append(f"note: {ASSUMED}")
    return "\n".join(lines)


def _names(hosts: Sequence[str]) -> str:
    if len(hosts) <= NAMED_MAX:
        return ", ".join(hosts)
    return f"{hosts[0]} … {hosts[-1]} ({len(hosts)} machines)"
