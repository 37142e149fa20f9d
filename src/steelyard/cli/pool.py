"""`steelyard pool`: machines of the attached Slurm cluster, as many as there is work for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from steelyard.cli.job_text import render_span
from steelyard.cli.output import print_json, print_table, say
from steelyard.cli.quantities import parse_bytes, parse_seconds, render_bytes
from steelyard.cli.session import home_option, json_option, new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import Refused
from steelyard.wire.pools import PilotView, PoolCreate, PoolDetail, PoolView

POOL_HELP = """Have machines of the attached Slurm cluster, as many as there is work for.

Each machine is a node that Slurm gave and that runs Steelyard's agent: a pilot. Jobs with --pool are placed on these machines by
Steelyard itself, in milliseconds, many to a machine. Machines come when jobs wait, go when nothing runs on them any more, and
are replaced before their time limit.

\b
Examples:
  steelyard cluster attach --partition gpu
  steelyard pool create train --nodes 0..8 --gpus-per-node 4 --cpus-per-node 32
  steelyard run --pool train --gpus 1 -- python train.py
  steelyard pool status train
"""


@click.group(help=POOL_HELP, short_help="Have machines of a Slurm cluster, as many as there is work for.")
def pool() -> None: ...


CREATE_HELP = """Make a pool. Its machines come when there is work for them.

The nodes need the same Steelyard installed as here, at the same path or at that of `cluster attach --python`, and have to reach
this machine at the address of `up --cluster-address`. Without --cpus-per-node a machine is a whole node.

\b
Examples:
  steelyard pool create train --nodes 0..8 --gpus-per-node h100:4 --cpus-per-node 32 --max-duration 12h
  steelyard pool create web --nodes 1..4 --cpus-per-node 8 --memory-per-node 32GB --idle 15m
  steelyard pool create mpi --nodes 0..8 --nodes-per-allocation 4
"""


@pool.command("create", help=CREATE_HELP, short_help="Make a pool.")
@click.argument("name")
@click.option("--nodes", default="0..1", metavar="MIN..MAX", show_default=True, help="How many machines there are at a time.")
@click.option(
    "--nodes-per-allocation",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Machines that come as one job of Slurm's, and go as one: for MPI over several of them.",
)
@click.option("--cpus-per-node", type=click.IntRange(1), help="CPUs of each, as Slurm counts them [default: whole nodes].")
@click.option("--memory-per-node", metavar="SIZE", help="Memory of each [default: what Slurm gives with the CPUs].")
@click.option("--gpus-per-node", default="", metavar="[MODEL:]N", help="GPUs of each; MODEL as Slurm names it.")
@click.option("--partition", default="", help="Slurm's partition [default: that of `cluster attach`].")
@click.option("--account", default="", help="Slurm's account [default: that of `cluster attach`].")
@click.option("--qos", default="", help="Slurm's quality of service, such as one that others preempt.")
@click.option("--max-duration", metavar="TIME", help="Time limit of each [default: the partition's].")
@click.option(
    "--idle", default="5m", metavar="TIME", show_default=True, help="Give a machine back when nothing ran on it for so long."
)
@click.option(
    "--drain", default="2m", metavar="TIME", show_default=True, help="Start nothing new so long before a machine's time limit."
)
@home_option
def create_pool(
    name: str,
    nodes: str,
    nodes_per_allocation: int,
    cpus_per_node: int | None,
    memory_per_node: str | None,
    gpus_per_node: str,
    partition: str,
    account: str,
    qos: str,
    max_duration: str | None,
    idle: str,
    drain: str,
    home: Path | None,
) -> None:
    least, most = parse_nodes(nodes)
    model, gpus = parse_gpus(gpus_per_node)
    body = PoolCreate(
        name=name,
        nodes_min=least,
        nodes_max=most,
        cpus_per_node=cpus_per_node,
        memory_per_node=None if memory_per_node is None else parse_bytes(memory_per_node),
        gpus_per_node=gpus,
        gpu_model=model,
        partition=partition,
        account=account,
        qos=qos,
        max_duration_s=None if max_duration is None else parse_seconds(max_duration),
        idle_s=parse_seconds(idle),
        drain_s=parse_seconds(drain),
        nodes_per_allocation=nodes_per_allocation,
    )
    with open_client(home) as client:
        view = client.fetch(PoolView, "POST", "/v1/pools", body=body, key=new_key())
    click.echo(f"{view.spec.name}: {_render_nodes(view)} machines, {_render_node(view)} each")


@pool.command(
    "ls",
    help="List pools, with how many machines each has.\n\n\b\nExamples:\n  steelyard pool ls\n"
    "  steelyard pool ls --json | jq '.[] | select(.complaint != \"\")'\n",
    short_help="List pools.",
)
@home_option
@json_option
def list_pools(home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        views = client.fetch(list[PoolView], "GET", "/v1/pools")
    if as_json:
        print_json(views)
        return
    print_table(
        ("pool", "nodes", "each", "ready", "coming", "going", "partition"),
        [
            (
                view.spec.name,
                _render_nodes(view),
                _render_node(view),
                str(view.pilots.get("READY", 0)),
                str(sum(view.pilots.get(state, 0) for state in ("SUBMITTED", "WAITING", "STARTING"))),
                "being deleted" if view.deleting else str(view.pilots.get("DRAINING", 0)),
                view.spec.partition,
            )
            for view in views
        ],
        "No pools. `steelyard pool create NAME` makes one.",
        keep=("pool",),
    )
    _say_complaints(views)


@pool.command(
    "status",
    help="Show a pool's machines, those that ended within a day too, and why each waits, goes or went.\n\n\b\nExamples:\n"
    "  steelyard pool status train\n  steelyard pool status train --json | jq '.pilots[].state'\n",
    short_help="Show a pool's machines.",
)
@click.argument("name")
@home_option
@json_option
def show_pool(name: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        detail = client.fetch(PoolDetail, "GET", f"/v1/pools/{quote(name)}")
    if as_json:
        print_json(detail)
        return
    view = detail.pool
    going = ", being deleted" if view.deleting else ""
    click.echo(f"{view.spec.name}: {_render_nodes(view)} machines, {_render_node(view)} each{going}")
    now_s = SystemClock().now_us() / 1e6
    print_table(
        ("machine", "state", "node", "slurm job", "since", "limit in", "why"),
        [
            (
                pilot.id,
                pilot.state,
                pilot.node,
                pilot.slurm_job,
                _render_age(pilot.ended_at or pilot.started_at or pilot.submitted_at, now_s),
                _render_left(pilot, now_s),
                pilot.detail,
            )
            for pilot in detail.pilots
        ],
        "No machines now: they come when jobs wait for them.",
        keep=("machine",),
    )
    _say_complaints([view])


DELETE_HELP = """Give all machines of a pool back and forget it. Refused while a function, a schedule, or a job that has not
ended names it.

\b
Examples:
  steelyard pool delete train
"""


@pool.command("delete", help=DELETE_HELP, short_help="Give a pool's machines back, and forget it.")
@click.argument("name")
@home_option
def delete_pool(name: str, home: Path | None) -> None:
    with open_client(home) as client:
        client.call("DELETE", f"/v1/pools/{quote(name)}", key=new_key())
    click.echo(f"{name} is being deleted; it goes when Slurm has its machines back")


def parse_nodes(text: str) -> tuple[int, int]:
    """`2..8`, or `4` for always four. Raises Refused."""
    least, dots, most = text.partition("..")
    try:
        found = int(least), int(most if dots else least)
    except ValueError:
        raise Refused(f"{text!r} is no number of machines. Write for example 0..8, or 4.", code="bad-nodes") from None
    return found


def parse_gpus(text: str) -> tuple[str, int]:
    """`h100:4` -> ("h100", 4); "" -> ("", 0). Raises Refused."""
    model, _, count = text.rpartition(":")
    if not text:
        return "", 0
    if not count.isdecimal():
        raise Refused(f"{text!r} is no number of GPUs. Write for example 4, or h100:4.", code="bad-gpus")
    return model, int(count)


def _render_nodes(view: PoolView) -> str:
    return f"{view.spec.nodes_min}..{view.spec.nodes_max}"


def _render_node(view: PoolView) -> str:
    node = view.spec.node
    parts = ["a whole node" if node.cpus is None else f"{node.cpus} CPUs"]
    if node.memory_bytes is not None:
        parts.append(render_bytes(node.memory_bytes))
    if node.gpus:
        parts.append(f"{node.gpus} GPUs" + (f" {node.gpu_model}" if node.gpu_model else ""))
    together = view.spec.nodes_per_allocation
    return ", ".join(parts) + (f"; {together} to an allocation" if together > 1 else "")


def _say_complaints(views: list[PoolView]) -> None:
    for view in views:
        if view.complaint:
            say(f"{view.spec.name}: {view.complaint}")


def _render_age(at: str, now_s: float) -> str:
    return render_span(max(0.0, float(int(now_s - _seconds(at)))))


def _render_left(pilot: PilotView, now_s: float) -> str:
    if pilot.ends_at is None or pilot.ended_at is not None:
        return ""
    return render_span(max(0.0, float(int(_seconds(pilot.ends_at) - now_s))))


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).astimezone(UTC).timestamp()
