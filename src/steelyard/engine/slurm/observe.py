"""What cluster is this? Asks Slurm what `cluster attach` and `cluster status` tell: five short questions."""

from __future__ import annotations

import asyncio

from steelyard.engine.slurm.client import SlurmClient
from steelyard.engine.slurm.read import read_nodes, read_partitions, read_record, read_settings, read_topology
from steelyard.errors import Refused
from steelyard.model.slurm import VERSION_MAX, VERSION_MIN, Attachment, SlurmCluster, parse_version

#: what decides what may be asked of a cluster
SHOWN = (
    "AccountingStorageEnforce", "AccountingStorageType", "KillWait", "MaxArraySize", "MaxJobCount", "MessageTimeout", "MinJobAge",
    "MpiDefault", "PreemptType", "ProctrackType", "SchedulerType", "SelectType", "SelectTypeParameters", "TaskPlugin",
    "TopologyPlugin",
)  # fmt: skip


async def observe_cluster(client: SlurmClient) -> SlurmCluster:
    """Raises what `SlurmClient.ask` raises, and Refused for a version that is too old."""
    settings = read_settings(await client.ask("scontrol", "show", "config"))
    version = settings.get("SLURM_VERSION", "")
    check_version(version)
    nodes, partitions, topology, accounts = await asyncio.gather(
        client.ask("scontrol", "-o", "show", "node"),
        client.ask("scontrol", "-o", "show", "partition"),
        client.run("scontrol", "-o", "show", "topology"),
        _ask_accounts(client, settings),
    )
    return SlurmCluster(
        name=settings.get("ClusterName", ""),
        controller=settings.get("SlurmctldHost[0]", "").partition("(")[0],
        version=version,
        partitions=read_partitions(partitions),
        nodes=read_nodes(nodes),
        settings={name: settings[name] for name in SHOWN if name in settings},
        topology=read_topology(topology[1]),
        accounts=accounts,
    )


def check_version(text: str) -> None:
    """Refused when it is older than what was tried. A newer one is not refused: see `is_newer`."""
    try:
        version = parse_version(text)
    except ValueError:
        raise Refused(f"`scontrol show config` tells no version of Slurm ({text!r}).", code="slurm-version") from None
    if version < VERSION_MIN:
        oldest = f"{VERSION_MIN[0]}.{VERSION_MIN[1]:02}"
        raise Refused(f"This is Slurm {text}, and Steelyard needs {oldest} or later. Nothing was changed.", code="slurm-version")


def is_newer(text: str) -> bool:
    """Than any that Steelyard knows?"""
    return parse_version(text) > VERSION_MAX


async def check_submission(client: SlurmClient, attachment: Attachment, cluster: SlurmCluster) -> None:
    """Would Slurm take a job of ours? Refused with its own words where not; nothing is submitted."""
    wanted = (f"--{name}={value}" for name, value in choose_queue(attachment).items())
    await client.ask("sbatch", "--test-only", "--ntasks=1", "--time=1", *wanted, "--wrap", "true")
    named = filter(None, attachment.partition.split(","))
    for name in sorted(set(named) - {each.name for each in cluster.partitions}):
        # hidden for us, or not ours to use: sbatch of 24.11 takes jobs for such a one too, and they never begin
        told = read_record(await client.ask("scontrol", "--all", "-o", "show", "partition", name))
        if told.get("Hidden") != "YES":
            groups = told.get("AllowGroups", "others")
            text = f"Partition {name} is not for this user (AllowGroups={groups}): what is submitted there never begins."
            raise Refused(f"{text} Nothing was changed.", code="slurm-refused")


def choose_queue(attachment: Attachment, account: str = "", partition: str = "") -> dict[str, str]:
    """Options of `sbatch` that say where a job waits, and who pays; those of the attachment where it names none itself."""
    both = {"partition": partition or attachment.partition, "account": account or attachment.account}
    return {name: value for name, value in both.items() if value}


async def _ask_accounts(client: SlurmClient, settings: dict[str, str]) -> tuple[str, ...]:
    if settings.get("AccountingStorageType") != "accounting_storage/slurmdbd":
        return ()
    # where accounting is away, or has a word against it, the cluster is no worse for it
    code, out, _ = await client.run("sh", "-c", 'sacctmgr -nP show assoc user="$(id -un)" format=account')
    return tuple(sorted({line.strip() for line in out.splitlines() if line.strip()})) if code == 0 else ()
