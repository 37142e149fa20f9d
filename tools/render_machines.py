"""Writes docs/machines.md: every recorded machine, what is read from it, and placements of 2, 4 and 8 GPUs beside brute force.

    python tools/render_machines.py [FOLDER]      (default: STEELYARD_FIXTURES, or ../shared/fixtures beside the checkout)

Takes some minutes, nearly all of them brute force.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from brute_force import Values, brute_force  # noqa: E402
from steelyard.errors import Refused  # noqa: E402
from steelyard.host.fabric.read import read_fabric  # noqa: E402
from steelyard.host.health.recorded import read_recorded  # noqa: E402
from steelyard.host.topology.read import read_topology  # noqa: E402
from steelyard.lifecycle.health import judge_health  # noqa: E402
from steelyard.model.fabric import Fabric  # noqa: E402
from steelyard.model.gang import GangDemand, GangPlan  # noqa: E402
from steelyard.model.gpu_demand import GpuDemand  # noqa: E402
from steelyard.model.timing import Timing  # noqa: E402
from steelyard.model.topology import Topology  # noqa: E402
from steelyard.placement.devices import DevicePlan, Used, make_demand  # noqa: E402
from steelyard.placement.fabric import plan_gang  # noqa: E402
from steelyard.placement.fabric_state import FabricState, make_state  # noqa: E402
from steelyard.placement.shortage import plan_devices  # noqa: E402

PAGE = ROOT / "docs" / "machines.md"
COUNTS = (2, 4, 8)
GANGS = (2, 8, 18, 36)
HEAD = """# Recorded machines

Every recorded machine, fabric and fault that the readers are held against, and what is read from each. Written by
`python tools/render_machines.py`. Evidence level: *recorded machine*; nothing here ran on these machines.
"""
MACHINES = """
## Machines

What the file tells; a dash is what it does not tell. `cores` is empty where a source lists logical CPUs but not which of them are
siblings. **2, 4, 8 GPUs**: the worst path among the GPUs that `steelyard place` chooses on the empty machine, with two network
cards where there are that many, then the sum of the pair values (Gbit/s in one direction, or ranks of path classes where the
bandwidth of a link is not known). `=` says that trying every set of GPUs finds none that is better by any rule of
`src/steelyard/placement/devices.py`; `WORSE` would say that one was found.

| file | packages | NUMA | cores | threads | GPUs | NICs | NVMe | 2 GPUs | 4 GPUs | 8 GPUs |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
FABRICS = """
## Fabrics

A gang of N machines is placed on the empty fabric: the innermost level at which one group holds it, and the groups it touches.

| file | machines | switches | NVLink domains | blocks | 2 | 8 | 18 | 36 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
FAULTS = """
## Faults

Read by `steelyard check --from`.

| file | worst | findings |
| --- | --- | --- |
"""
REFUSED = """
## Refused

Files of another kind, or damaged ones, each with the sentence that a user sees.

| file | sentence |
| --- | --- |
"""


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0] if arguments else os.environ.get("STEELYARD_FIXTURES") or ROOT.parent / "shared" / "fixtures")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder]
    rows: dict[str, list[str]] = {MACHINES: [], FABRICS: [], FAULTS: [], REFUSED: []}
    for at, path in enumerate(files):
        print(f"{at + 1}/{len(files)} {path.relative_to(folder)}", file=sys.stderr)
        section, cells = describe(path)
        rows[section].append("| " + " | ".join((f"`{path.relative_to(folder)}`", *cells)) + " |\n")
    PAGE.write_text(HEAD + "".join(title + "".join(lines) for title, lines in rows.items()))
    wrong = sum("WORSE" in line for line in rows[MACHINES])
    print(f"{PAGE}: {len(files)} files, {wrong} placements worse than brute force", file=sys.stderr)
    return 1 if wrong else 0


def describe(path: Path) -> tuple[str, tuple[str, ...]]:
    """(section, cells). A file is what the first reader that knows it says; if none does, the last refusal stands."""
    refusal = ""
    try:
        return MACHINES, describe_machine(read_topology([path]))
    except Refused as err:
        refusal = err.public
    try:
        return FABRICS, describe_fabric(read_fabric([path]))
    except Refused as err:
        refusal = err.public if "fabric" in refusal else refusal
    try:
        health = judge_health(read_recorded(path))
    except Refused as err:
        return REFUSED, ((err.public if "check" in refusal else refusal).replace("|", "/"),)
    kinds = Counter(finding.severity.value for finding in health.findings)
    return FAULTS, (health.worst.value, ", ".join(f"{number} {word}" for word, number in kinds.items()))


def describe_machine(topology: Topology) -> tuple[str, ...]:
    numbers = (
        topology.packages,
        len(topology.numa_nodes),
        len(topology.cores) if topology.smt_known else None,
        topology.threads,
        len(topology.gpus),
        len(topology.nics),
        len(topology.nvme),
    )
    return (*(str(number) if number else "-" for number in numbers), *(describe_choice(topology, count) for count in COUNTS))


def describe_choice(topology: Topology, count: int) -> str:
    """`NV12, 24000 =`; a dash where the machine has fewer GPUs."""
    nics = 2 if len(topology.nics) >= 2 else 0
    demand = make_demand(GpuDemand(count=count), nics, 0, None, Timing.BEST_EFFORT)
    plan = plan_devices(topology, Used(), demand)
    if not isinstance(plan, DevicePlan) and nics:
        demand = make_demand(GpuDemand(count=count), 0, 0, None, Timing.BEST_EFFORT)
        plan = plan_devices(topology, Used(), demand)
    if not isinstance(plan, DevicePlan):
        return "-"
    best, cards, _ = brute_force(topology, Used(), demand)
    values = Values(topology)
    by_id = {gpu.id: gpu for gpu in topology.gpus}
    ours, optimum = (values.of_set(tuple(by_id[gpu] for gpu in gpus)) for gpus in (plan.gpus, best))
    same = (plan.gpus, plan.nics) == (best, cards)
    verdict = "=" if same else f"WORSE than {optimum[0] / 1000:g}, {optimum[1] / 1000:g}"
    return f"{plan.bottleneck.class_name if plan.bottleneck else '-'}, {ours[1] / 1000:g} {verdict}"


def describe_fabric(fabric: Fabric) -> tuple[str, ...]:
    numbers = (len(fabric.hosts), len(fabric.switches), len(fabric.domains), len(fabric.blocks))
    state = make_state(fabric, 8)
    return (*(str(number) if number else "-" for number in numbers), *(describe_gang(state, nodes) for nodes in GANGS))


def describe_gang(state: FabricState, nodes: int) -> str:
    plan = plan_gang(state, GangDemand(nodes, 8))
    if not isinstance(plan, GangPlan):
        return "-"
    return f"{plan.common_level}: " + ", ".join(f"{number} {level}" for level, number in plan.span.items() if level != "fabric")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
