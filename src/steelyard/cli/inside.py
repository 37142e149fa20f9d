"""What does a name mean to whoever wants to be inside: a job, or a replica of a function? Where the API has it.

A name that could be a job's id is a job's; anything else is a function's, which is woken when it sleeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import click

from steelyard.cli.attend import POLL_S
from steelyard.cli.output import Progress
from steelyard.cli.patience import Patience
from steelyard.cli.session import quote
from steelyard.errors import Refused
from steelyard.wire.api import ReplicaHeld
from steelyard.wire.http import ApiClient

F = TypeVar("F", bound=Callable[..., object])
#: as they are written on the command line, array elements too
JOB = re.compile(r"(?:j-)?[0-9]+(?:[_.].+)?")
#: what may be asked before its start is told
SOON_S = 1.0


def inside_options(command: F) -> F:
    """`--rank` and `--replica`: which process is meant, of several."""
    rank = click.option("--rank", type=click.IntRange(0), help="Inside which rank of a gang [default: the first].")
    text = "Inside which replica of a function, by its id or how that ends [default: the newest]."
    replica = click.option("--replica", metavar="ID", default="", help=text)
    return rank(replica(command))


def names_job(name: str) -> bool:
    return JOB.fullmatch(name) is not None


def check_which(name: str, rank: int | None, replica: str) -> None:
    """Raises Refused."""
    if names_job(name) and replica:
        raise Refused(f"--replica is for functions, and {name} is a job. A gang has ranks: --rank.", code="unfit-option")
    if not names_job(name) and rank is not None:
        raise Refused(f"--rank is for jobs, and {name} is a function, which has replicas: --replica.", code="unfit-option")


def find_inside(client: ApiClient, patience: Patience, name: str, replica: str = "") -> str:
    """Path of the job or the replica. Waits until that serves, and says so; Ctrl-C gives up, and leaves it as it is."""
    if names_job(name):
        return f"/v1/jobs/{quote(name)}"
    progress = Progress(quiet=True)
    try:
        wait_s = SOON_S
        while not (held := hold(client, patience, name, replica, wait_s)):
            progress.show(f"{name} wakes")
            wait_s = POLL_S
    finally:
        progress.clear()
    return f"/v1/functions/{quote(name)}/replicas/{quote(held)}"


def hold(client: ApiClient, patience: Patience, name: str, replica: str, wait_s: float) -> str:
    """A replica that serves and is kept awake for now; "" while none does."""
    path, params = f"/v1/functions/{quote(name)}/hold", {"replica": replica, "wait_s": wait_s}
    return patience.call(
        lambda: client.fetch(ReplicaHeld, "POST", path, params=params, wait_s=wait_s), "waking a replica"
    ).replica
