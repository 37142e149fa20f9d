"""`steelyard cluster`: the Slurm cluster that Steelyard stands on, or is attached to."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steelyard.cli.cluster_up import add, config, drain, find_host, load_cluster, remove, resume, ssh_option, up
from steelyard.cli.output import print_json, print_table, say
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import find_paths, find_settings, home_option, json_option
from steelyard.errors import NotFound, Refused

if TYPE_CHECKING:
    from steelyard.engine.slurm.client import SlurmClient
    from steelyard.model.slurm import Attachment, SlurmCluster

CLUSTER_HELP = """Bring up a Slurm cluster of machines that you reach by SSH, or work on one that others run.

\b
Examples:
  steelyard cluster up hosts.yaml
  steelyard cluster attach --partition gpu --account lab
  steelyard cluster status
"""


@click.group(help=CLUSTER_HELP, short_help="Bring up a Slurm cluster, or work on one.")
def cluster() -> None: ...


for administration in (up, add, remove, drain, resume, config):
    cluster.add_command(administration)


ATTACH_HELP = """Attach to a Slurm cluster that others run.

Nothing is installed and no root is needed: Steelyard uses Slurm's own commands (22.05 or later), here or with --ssh on a login
host. Looks at the cluster and asks Slurm whether it would take a job for that partition and account; nothing is submitted. To
attach again replaces what was said before.

\b
Examples:
  steelyard cluster attach
  steelyard cluster attach --partition gpu --account lab --folder /nfs/me/steelyard
  steelyard cluster attach --ssh login.example.org
"""


@cluster.command("attach", help=ATTACH_HELP, short_help="Attach to a Slurm cluster that others run.")
@click.option("--ssh", default="", metavar="HOST", help="Login host; `ssh HOST` has to ask for nothing.")
@click.option("--partition", default="", help="Partition for our jobs [default: Slurm's own].")
@click.option("--account", default="", help="Account for our jobs [default: Slurm's own].")
@click.option("--folder", default="", help="Folder for outputs and exit records, on storage that the nodes share "
              "[default: slurm in the home; with --ssh ~/.local/share/steelyard/slurm there].")  # fmt: skip
@click.option("--python", default="", metavar="PATH", help="Python of the Steelyard that is installed on the nodes, for pools "
              "[default: the one that runs this command].")  # fmt: skip
@home_option
@json_option
def attach_cluster(ssh: str, partition: str, account: str, folder: str, python: str, home: Path | None, as_json: bool) -> None:
    from steelyard.engine.slurm.attachment import save_attachment
    from steelyard.engine.slurm.client import CARRIED
    from steelyard.model.slurm import Attachment

    paths, _ = find_settings(home)
    if python and not python.startswith("/"):
        raise Refused(f"{python!r} is no absolute path. Nothing was changed.", code="bad-path")
    if ssh.startswith("-") or ssh.strip() != ssh:
        raise Refused(f"{ssh!r} is no host. Nothing was changed.", code="bad-host")
    wanted = Attachment(
        ssh=ssh,
        partition=partition,
        account=account,
        folder=folder or ("" if ssh else str(paths.home / "slurm")),
        env={name: os.environ[name] for name in CARRIED if os.environ.get(name)},
        python=python,
    )
    found, attachment = asyncio.run(_attach(wanted))
    save_attachment(paths, attachment)
    if as_json:
        print_json({"attachment": attachment, "cluster": found})
        return
    _show(found, attachment)


async def _attach(wanted: Attachment) -> tuple[SlurmCluster, Attachment]:
    from msgspec.structs import replace

    from steelyard.engine.slurm.observe import check_submission, observe_cluster
    from steelyard.engine.slurm.read import read_count

    client = _client(wanted)
    found = await observe_cluster(client)
    await check_submission(client, wanted, found)
    size, wait_s = (read_count(found.settings, name) for name in ("MaxArraySize", "KillWait"))
    wanted = replace(wanted, array_size_max=size or wanted.array_size_max, kill_wait_s=wait_s or wanted.kill_wait_s)
    # a root's Steelyard submits for everybody, who make folders of their own in it
    mode = "1777" if os.geteuid() == 0 and not wanted.ssh else "700"
    made = 'at=${1:-$HOME/.local/share/steelyard/slurm} && mkdir -p "$at" && chmod "$2" "$at" && cd "$at" && pwd -P'
    code, out, err = await client.run("sh", "-c", made, "folder", wanted.folder, mode)
    if code != 0:
        raise Refused(
            f"{wanted.folder} can't be made: {err.strip()}. Nothing was changed. Name another --folder.", code="bad-folder"
        )
    return found, replace(wanted, folder=out.strip())


@cluster.command(
    "status",
    help="Show the Slurm cluster: partitions, nodes, what they have and whether they take work. Where none is attached, the one "
    "that `cluster up` made from here: its controller is asked by ssh.\n\n\b\nExamples:\n"
    "  steelyard cluster status\n  steelyard cluster status --json | jq '.cluster.nodes[].state'\n",
    short_help="Show the Slurm cluster, its partitions and nodes.",
)
@ssh_option
@home_option
@json_option
def show_cluster(ssh_config: Path | None, home: Path | None, as_json: bool) -> None:
    from steelyard.engine.slurm.attachment import load_attachment
    from steelyard.engine.slurm.client import SlurmClient
    from steelyard.engine.slurm.observe import observe_cluster

    attachment = load_attachment(find_paths(home))
    asked = attachment or _reach_controller(home)
    found = asyncio.run(observe_cluster(SlurmClient(asked, os.environ, ssh_config)))
    if as_json:
        print_json({"attachment": attachment, "cluster": found})
        return
    _show(found, attachment)


def _reach_controller(home: Path | None) -> Attachment:
    """Of the cluster that `up` made from here, as a login host."""
    from steelyard.model.slurm import Attachment

    try:
        spec = load_cluster(home)
    except NotFound as err:
        text = "No cluster is attached, and none was brought up from here. `steelyard cluster attach` or `cluster up` does that."
        raise NotFound(text) from err
    head = find_host(spec, spec.controller_name)
    return Attachment(ssh=f"ssh://{head.user}@{head.address or head.name}:{head.port}".replace("//@", "//"))


def _show(found: SlurmCluster, attachment: Attachment | None) -> None:
    from steelyard.engine.slurm.observe import is_newer

    where = f", asked on {attachment.ssh}" if attachment is not None and attachment.ssh else ""
    click.echo(f"{found.name}: Slurm {found.version} on {found.controller}{where}")
    if attachment is None:
        click.echo("it was brought up from here and is not attached: `steelyard cluster attach` lets jobs go there")
    else:
        queue = " ".join(word for word in (attachment.partition, attachment.account and f"account {attachment.account}") if word)
        click.echo(f"jobs go to {queue or 'the default partition'}; outputs to {attachment.folder}")
    if is_newer(found.version):
        say(f"Slurm {found.version} is newer than any that this Steelyard was tried with.")
    print_table(
        ("partition", "state", "time limit", "nodes", "cpus"),
        [
            (each.name + ("*" if each.default else ""), each.state, each.time_max, str(each.nodes), str(each.cpus))
            for each in found.partitions
        ],
        "No partition is open to this user.",
    )
    kinds = Counter(
        (each.cpus, each.memory_bytes, _gres(each.gres), each.state, each.reason, ",".join(each.partitions))
        for each in found.nodes
    )
    print_table(
        ("nodes", "cpus", "memory", "devices", "state", "reason", "partitions"),
        [
            (str(count), str(cpus), render_bytes(memory), gres, state, reason, partitions)
            for (cpus, memory, gres, state, reason, partitions), count in kinds.items()
        ],
        "No nodes.",
    )


def _gres(gres: dict[str, int]) -> str:
    return " ".join(f"{count} {kind}" for kind, count in sorted(gres.items()))


def _client(attachment: Attachment) -> SlurmClient:
    from steelyard.engine.slurm.client import SlurmClient

    return SlurmClient(attachment, os.environ)


@cluster.command(
    "detach",
    help="Forget the Slurm cluster. Nothing changes there.\n\n\b\nExamples:\n  steelyard cluster detach\n",
    short_help="Forget the Slurm cluster.",
)
@home_option
def detach_cluster(home: Path | None) -> None:
    paths, _ = find_settings(home)
    paths.attachment.unlink(missing_ok=True)
    click.echo("no cluster is attached")
