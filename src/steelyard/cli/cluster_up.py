"""`steelyard cluster up` and what an administrator does afterwards: from bare machines to a Slurm cluster.

Everything is seen over SSH, shown as a plan, and done only after a yes. The hosts as they were last applied are kept in the home,
so that `add`, `remove`, `drain` and `config` need no file.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steelyard.cli.fabric import fabric_option
from steelyard.cli.output import Progress, print_json, print_table, say
from steelyard.cli.session import find_paths, home_option, json_option
from steelyard.errors import Conflict, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steelyard.cli.cluster_look import Look
    from steelyard.engine.bringup.carry_out import Outcome
    from steelyard.model.cluster import BringUpPlan, ClusterSpec, HostEntry
    from steelyard.model.fabric import Fabric

UP_HELP = """Make the machines in a file one Slurm cluster, after showing the plan.

Each machine is read over SSH: cores, NUMA nodes, caches, memory, GPUs and their links. Slurm and munge are
installed from the distribution's packages, one munge key is spread, and slurm.conf, gres.conf, topology.conf,
cgroup.conf, prolog, epilog and health program are written, each choice with its reason. A file that somebody else
wrote, or that was edited since, is never touched: its host stays out. What is done already is not done again, so
run it again after anything that went wrong.

Needs Debian or Ubuntu there, and root or sudo without a password.

\b
HOSTS is a list of names, or:
  name: lab                # [steelyard]
  controller: n1           # [the first host]
  user: admin
  hosts:
    - n1
    - n[2-8]
    - name: big1
      address: 10.0.0.9
      partitions: [big]
      memory_reserve: 8GB

\b
Examples:
  steelyard cluster up hosts.yaml
  steelyard cluster up hosts.yaml --fabric ibnetdiscover.out -y
"""


def ssh_option(command: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "--ssh-config", type=click.Path(exists=True, path_type=Path), metavar="FILE", help="In the place of ~/.ssh/config."
    )(command)


def yes_option(command: click.decorators.FC) -> click.decorators.FC:
    return click.option("-y", "--yes", is_flag=True, help="Do it without asking.")(command)


@click.command(help=UP_HELP, short_help="Make machines one Slurm cluster.")
@click.argument("hosts", type=click.Path(path_type=Path))
@fabric_option
@ssh_option
@yes_option
@home_option
@json_option
def up(hosts: Path, fabric: tuple[Path, ...], ssh_config: Path | None, yes: bool, home: Path | None, as_json: bool) -> None:
    from steelyard.cli.cluster_hosts import read_hosts
    from steelyard.host.bounded import read_bounded

    spec = read_hosts(read_bounded(hosts, 1 << 20).decode(errors="replace"), hosts.name)
    asyncio.run(_bring_up(_with_fabric(spec, fabric, hosts.parent), ssh_config, home, yes=yes, as_json=as_json))


@click.command(short_help="Add machines to the cluster.")
@click.argument("hosts", nargs=-1, required=True)
@fabric_option
@ssh_option
@yes_option
@home_option
@json_option
def add(
    hosts: tuple[str, ...], fabric: tuple[Path, ...], ssh_config: Path | None, yes: bool, home: Path | None, as_json: bool
) -> None:
    """Add machines to the cluster that `up` made; the same as listing them in its file.

    \b
    Examples:
      steelyard cluster add n4
      steelyard cluster add n[5-8]
    """
    import msgspec

    from steelyard.cli.cluster_hosts import read_hosts

    spec = load_cluster(home)
    more = read_hosts("\n".join(f"- {host}" for host in hosts), "the command line").hosts
    known = {host.name for host in spec.hosts}
    if twice := [host.name for host in more if host.name in known]:
        raise Conflict(f"{twice[0]} is in the cluster already. Nothing was changed.", code="host-twice")
    # reached as the controller is
    head = find_host(spec, spec.controller_name)
    joining = (msgspec.structs.replace(host, user=head.user, port=head.port) for host in more)
    larger = msgspec.structs.replace(_with_fabric(spec, fabric, Path("/")), hosts=(*spec.hosts, *joining))
    asyncio.run(_bring_up(larger, ssh_config, home, yes=yes, as_json=as_json))


@click.command(short_help="Take a machine out of the cluster.")
@click.argument("host")
@ssh_option
@yes_option
@home_option
@json_option
def remove(host: str, ssh_config: Path | None, yes: bool, home: Path | None, as_json: bool) -> None:
    """Take a machine out of the cluster, and what was written off it. Refused while jobs run there: drain it first.

    \b
    Examples:
      steelyard cluster drain n4
      steelyard cluster remove n4
    """
    import msgspec

    spec = load_cluster(home)
    leaving = find_host(spec, host)
    if host == spec.controller_name:
        raise Refused(f"{host} is the controller: without it there is no cluster. Nothing was changed.", code="controller")
    smaller = msgspec.structs.replace(spec, hosts=tuple(each for each in spec.hosts if each.name != host))
    asyncio.run(_bring_up(smaller, ssh_config, home, yes=yes, as_json=as_json, leaving=leaving))


@click.command(short_help="Let no new jobs start on a machine.")
@click.argument("host")
@click.option("--reason", default="by hand", show_default=True, help="Shown by `sinfo -R`.")
@ssh_option
@home_option
def drain(host: str, reason: str, ssh_config: Path | None, home: Path | None) -> None:
    """Let no new jobs start on a machine; those that run go on.

    \b
    Examples:
      steelyard cluster drain n2 --reason "new memory"
    """
    _update(home, ssh_config, host, ["State=DRAIN", f"Reason={reason}"])
    click.echo(f"{host} takes no new jobs")


@click.command(short_help="Let jobs start on a machine again.")
@click.argument("host")
@ssh_option
@home_option
def resume(host: str, ssh_config: Path | None, home: Path | None) -> None:
    """Let jobs start on a machine again that was drained, by hand or by its health program.

    What the health program had found counts no more, until the machine starts anew.

    \b
    Examples:
      steelyard cluster resume n2
    """
    from steelyard.engine.bringup.slurm_conf import FORGIVEN, VERDICT

    _run_as_root(home, ssh_config, host, f"[ ! -e {VERDICT} ] || mv {VERDICT} {FORGIVEN}")
    _update(home, ssh_config, host, ["State=RESUME"])
    click.echo(f"{host} takes jobs")


@click.command(short_help="Show what the machines' files would be.")
@click.argument("hosts", required=False, type=click.Path(path_type=Path))
@click.option("--diff", is_flag=True, help="Only what differs from the files that are there.")
@fabric_option
@ssh_option
@home_option
def config(hosts: Path | None, diff: bool, fabric: tuple[Path, ...], ssh_config: Path | None, home: Path | None) -> None:
    """Show the files that `up` would write, of the hosts in a file or of the cluster as it was last brought up. Changes nothing.

    \b
    Examples:
      steelyard cluster config hosts.yaml
      steelyard cluster config --diff
    """
    from steelyard.cli.cluster_hosts import read_hosts
    from steelyard.host.bounded import read_bounded

    spec = load_cluster(home) if hosts is None else read_hosts(read_bounded(hosts, 1 << 20).decode(errors="replace"), hosts.name)
    asyncio.run(_show_config(_with_fabric(spec, fabric, hosts.parent if hosts else Path("/")), ssh_config, diff=diff))


# what they share


async def _bring_up(
    spec: ClusterSpec,
    ssh_config: Path | None,
    home: Path | None,
    *,
    yes: bool,
    as_json: bool,
    leaving: HostEntry | None = None,
) -> None:
    from steelyard.cli.cluster_look import look
    from steelyard.clock import SystemClock
    from steelyard.engine.bringup.carry_out import carry_out

    progress = Progress(quiet=as_json)
    progress.show(f"looking at {len(spec.hosts)} hosts")
    entries = [*spec.hosts, *([leaving] if leaving else [])]
    async with look(entries, ssh_config, SystemClock()) as found:
        progress.clear()
        plan = await _plan(spec, found, leaving)
        if not as_json:
            _show_plan(plan)
        outcome = None
        if plan.steps:
            if not yes and as_json:
                _print_plan(plan, None)
                raise Refused("With --json nobody is asked. Look at the plan, then say -y. Nothing was done.", code="not-asked")
            if not yes and not _agreed(len(plan.steps)):
                say("Nothing was done.")
                sys.exit(1)
            _save(spec, home)
            needed = {step.host for step in plan.steps} | {spec.controller_name}
            shells = {name: shell for name, shell in found.shells.items() if name in needed}
            outcome = await carry_out(plan, spec.controller_name, shells, progress.show)
            progress.clear()
        else:
            _save(spec, home)
    _finish(plan, outcome, as_json)


async def _plan(spec: ClusterSpec, found: Look, leaving: HostEntry | None) -> BringUpPlan:
    import msgspec

    from steelyard.engine.bringup.plan import plan_bring_up, plan_removal

    staying = {host.name for host in spec.hosts}
    seen = {name: host for name, host in found.seen.items() if name in staying}
    unreachable = {name: why for name, why in found.unreachable.items() if name in staying}
    plan = plan_bring_up(spec, seen, unreachable, await _fabric(spec, found))
    if leaving is None:
        return plan
    await _refuse_busy(found, spec.controller_name, leaving.name)
    if leaving.name not in found.seen:
        note = f"{leaving.name}: {found.unreachable[leaving.name]}; what was written there stays."
        return msgspec.structs.replace(plan, notes=(*plan.notes, note))
    removal = plan_removal(found.seen[leaving.name])
    return msgspec.structs.replace(plan, steps=(*plan.steps, *removal.steps), left_out={**plan.left_out, **removal.left_out})


async def _fabric(spec: ClusterSpec, found: Look) -> Fabric | None:
    from steelyard.cli.cluster_look import discover_fabric
    from steelyard.cli.fabric import load_fabric

    return load_fabric([Path(file) for file in spec.fabric]) if spec.fabric else await discover_fabric(found)


def _with_fabric(spec: ClusterSpec, files: Sequence[Path], folder: Path) -> ClusterSpec:
    """With the files that the command line names, else those named before, as absolute paths. `folder`: of the file of hosts."""
    import msgspec

    named = tuple(str(file.absolute()) for file in files) or tuple(str((folder / file).absolute()) for file in spec.fabric)
    return msgspec.structs.replace(spec, fabric=named)


async def _refuse_busy(found: Look, controller: str, host: str) -> None:
    said = await found.shells[controller].run(f"squeue -h -w {host} -o %A")
    if said.code == 0 and said.out.split():
        jobs = ", ".join(said.out.split()[:5])
        raise Conflict(
            f"Jobs run on {host} ({jobs}). `steelyard cluster drain {host}` and wait, or cancel them. Nothing was changed.",
            code="host-busy",
        )


def _show_plan(plan: BringUpPlan) -> None:
    from steelyard.cli.cluster_text import plan_rows

    for name, why in plan.left_out.items():
        say(f"{name} stays out: {why}.")
    for note in plan.notes:
        say(note)
    print_table(("host", "step", "what", "why"), plan_rows(plan), "Nothing to do: every host that takes part is as it should be.")


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise Refused("Nobody is there to ask. Look at the plan above, then say -y. Nothing was done.", code="not-asked")
    return click.confirm(f"Do {'this' if count == 1 else f'these {count} steps'}?", default=None, err=True)


def _print_plan(plan: BringUpPlan, outcome: Outcome | None) -> None:
    """As JSON. `outcome`: of what was carried out."""
    from steelyard.cli.cluster_text import plan_rows

    print_json(
        {
            "steps": [dict(zip(("host", "step", "what", "why"), row, strict=True)) for row in plan_rows(plan)],
            "nodes": plan.nodes,
            "left_out": plan.left_out,
            "notes": plan.notes,
            "failed": outcome.failed if outcome is not None else {},
            "states": outcome.states if outcome is not None else {},
        }
    )


def _finish(plan: BringUpPlan, outcome: Outcome | None, as_json: bool) -> None:
    from steelyard.cli.cluster_text import not_ready

    failed = dict(outcome.failed) if outcome is not None else {}
    waiting = not_ready(plan, outcome.states, outcome.reasons) if outcome is not None else []
    if as_json:
        _print_plan(plan, outcome)
    for name, why in failed.items():
        say(f"{name} was not finished: {why}. Run this again.")
    for sentence in waiting:
        say(sentence)
    if not as_json and outcome is not None and not failed and not waiting:
        click.echo(f"{len(plan.nodes) - len(plan.left_out.keys() & set(plan.nodes))} nodes take work")
    sys.exit(1 if failed or waiting or plan.left_out else 0)


async def _show_config(spec: ClusterSpec, ssh_config: Path | None, *, diff: bool) -> None:
    from steelyard.cli.cluster_look import look
    from steelyard.cli.cluster_text import render_diff
    from steelyard.clock import SystemClock
    from steelyard.model.cluster import StepKind

    async with look(spec.hosts, ssh_config, SystemClock()) as found:
        if not diff:
            # as if nothing were there: all files of the controller
            found.seen = {name: _bare(host) for name, host in found.seen.items()}
        plan = await _plan(spec, found, None)
    for name, why in plan.left_out.items():
        say(f"{name} stays out: {why}.")
    if diff:
        text = render_diff(plan, found.seen)
        click.echo(text, nl=False) if text else say("No file differs.")
        return
    for step in plan.steps:
        if step.kind is StepKind.WRITE and step.host == spec.controller_name:
            click.echo(f"==> {step.subject} <==\n{step.content}")


def _bare(host: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(host, files={})


def _update(home: Path | None, ssh_config: Path | None, host: str, words: list[str]) -> None:
    import shlex

    spec = load_cluster(home)
    find_host(spec, host)
    _run_as_root(home, ssh_config, spec.controller_name, shlex.join(["scontrol", "update", f"NodeName={host}", *words]))


def _run_as_root(home: Path | None, ssh_config: Path | None, host: str, script: str) -> None:
    entry = find_host(load_cluster(home), host)

    async def ask() -> None:
        from steelyard.engine.bringup.ssh import Shell
        from steelyard.errors import EdgeFailed

        async with Shell(entry, ssh_config) as shell:
            said = await shell.run(script, as_root=True)
        if said.code != 0:
            raise EdgeFailed(f"{host} refused: {(said.err or said.out).strip()}. Nothing was changed.", code="refused-there")

    asyncio.run(ask())


def _file(home: Path | None) -> Path:
    return find_paths(home).home / "cluster.json"


def load_cluster(home: Path | None) -> ClusterSpec:
    import msgspec

    from steelyard.errors import StoreDamaged
    from steelyard.model.cluster import ClusterSpec

    file = _file(home)
    try:
        return msgspec.json.decode(file.read_bytes(), type=ClusterSpec)
    except FileNotFoundError as err:
        raise NotFound("No cluster was brought up from here: steelyard cluster up hosts.yaml.", code="no-cluster") from err
    except msgspec.MsgspecError as err:
        raise StoreDamaged(
            f"{file} is damaged ({err}). Nothing was changed. `steelyard cluster up` with the file of hosts writes it anew.",
            code="cluster-damaged",
        ) from err


def _save(spec: ClusterSpec, home: Path | None) -> None:
    import msgspec

    from steelyard.config import write_file

    file = _file(home)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, msgspec.json.format(msgspec.json.encode(spec), indent=2))


def find_host(spec: ClusterSpec, name: str) -> HostEntry:
    for each in spec.hosts:
        if each.name == name:
            return each
    raise NotFound(f"{name} is not in the cluster: {', '.join(host.name for host in spec.hosts[:8])}.", code="no-such-host")
