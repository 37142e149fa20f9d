"""Whose turn is it, by what everybody has used and was promised? Accounts, usage and time in, a rank per account out.

Slurm's fair tree (slurm.schedmd.com/fair_tree.html). Accounts form a tree, `lab/alice` is below `lab`. Among siblings an
account's Level FS is its part of the shares divided by its part of the usage, so that an account is only ever compared with its
siblings: a lab's members share what the lab has, whatever other labs do.
1. Siblings are visited from the highest Level FS to the lowest, and each one's children before its next sibling.
2. Siblings with the same Level FS are one: their children are visited as if they were siblings of each other.
3. Accounts without children get their rank as they are visited, 0 first. Equal ones get the same rank, and one that is equal to
   an account with children gets the rank of the first of those; the next rank is the number of accounts before it.
Where jobs run under `lab` itself, `lab` is also a sibling of its children, with one share.

Usage is core-seconds and fades: after a half-life, half of it counts. What runs counts from its start on, so that a long job is
not free until it ends. What is charged at its end is what counted until then, so nothing jumps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec

from steelyard.model.job import Job, Resources
from steelyard.model.site import Account
from steelyard.scheduling.amounts import count_cores, count_gpus
from steelyard.scheduling.snapshot import Holding

#: as many cores as a server with GPUs commonly has per GPU, and as clouds sell with one
GPU_CORES = 16
#: Slurm's PriorityDecayHalfLife
HALF_LIFE_S = 7 * 86400.0


class Standing(msgspec.Struct, frozen=True):
    """Where one account stands: a row of the table."""

    name: str
    #: as set, or 1 where nobody made it
    shares: float
    #: its part of its siblings' shares
    norm_shares: float
    #: core-seconds, of the accounts below it too, as of now
    usage: float
    #: its part of its siblings' usage; 0 where nobody used anything
    norm_usage: float
    #: norm_shares / norm_usage; infinite without usage
    level_fs: float
    #: 0 first; None: an account under which no job runs, only accounts below it
    rank: int | None


class _Node:
    """An account while it is ranked."""

    def __init__(self, name: str, itself: bool = False) -> None:
        self.name = name
        #: stands for the jobs of an account that has others below it
        self.itself = itself
        self.shares = 1.0
        #: of itself alone
        self.used: list[float] = []
        self.children: list[_Node] = []
        self.usage = 0.0
        self.norm_shares = 1.0
        self.norm_usage = 0.0
        self.level_fs = math.inf
        self.rank: int | None = None


def fair_share_ranks(
    accounts: Iterable[Account],
    holdings: Iterable[Holding],
    now: int,
    names: Iterable[str] = (),
    half_life_s: float = HALF_LIFE_S,
) -> dict[str, int]:
    """Account -> rank, 0 first, of every account that may have jobs. `names`: accounts of jobs, made or not."""
    roots = _build(accounts, holdings, now, names, half_life_s)
    return {node.name: node.rank for node in _walk(roots) if node.rank is not None}


def list_standings(
    accounts: Iterable[Account],
    holdings: Iterable[Holding],
    now: int,
    names: Iterable[str] = (),
    half_life_s: float = HALF_LIFE_S,
) -> tuple[Standing, ...]:
    """Every account, each before those below it, in the order of their names."""
    roots = _build(accounts, holdings, now, names, half_life_s)
    found: dict[str, Standing] = {}
    for node in _walk(roots):
        if node.itself:
            # one row per account: the table shows all that it used, and the rank that its own jobs have
            found[node.name] = msgspec.structs.replace(found[node.name], rank=node.rank)
            continue
        found[node.name] = Standing(
            node.name, node.shares, node.norm_shares, node.usage, node.norm_usage, node.level_fs, node.rank
        )
    return tuple(found.values())


def charge(account: Account, usage: float, now: int, half_life_s: float = HALF_LIFE_S) -> Account:
    """`usage` core-seconds more, as of `now`. The same result in whatever order charges come."""
    if now < account.usage_at:
        return msgspec.structs.replace(account, usage=account.usage + usage * _fade(account.usage_at - now, half_life_s))
    used = account.usage * _fade(now - account.usage_at, half_life_s) + usage
    return msgspec.structs.replace(account, usage=used, usage_at=now)


def accrued(demand: Resources, run_us: int, half_life_s: float = HALF_LIFE_S) -> float:
    """What an attempt that ran the last `run_us` microseconds has used as of their end: the integral of its fading usage.

    Charge it at the end of the attempt.
    """
    rate = count_cores(demand) + GPU_CORES * count_gpus(demand)
    faded = half_life_s / math.log(2)
    return rate * faded * -math.expm1(-max(0, run_us) / 1e6 / faded)


def run_time_us(job: Job, now: int) -> int:
    """How long its attempt has run, without the time in which it was frozen: frozen, it uses no cores."""
    if job.started_at is None:
        return 0
    end = now if job.ended_at is None else job.ended_at
    frozen = round(job.suspended_s * 1e6) + (0 if job.suspended_at is None else max(0, end - job.suspended_at))
    return max(0, end - job.started_at - frozen)


def _fade(age_us: int, half_life_s: float) -> float:
    return 0.5 ** (age_us / 1e6 / half_life_s)


def _build(
    accounts: Iterable[Account], holdings: Iterable[Holding], now: int, names: Iterable[str], half_life_s: float
) -> list[_Node]:
    """The ranked tree's roots."""
    nodes: dict[str, _Node] = {}
    roots: list[_Node] = []
    made = sorted(accounts, key=lambda account: (account.name, account.project))
    running = [holding for holding in holdings if holding.job is not None]
    with_jobs = {*names, *(holding.job.account for holding in running if holding.job is not None)}
    for name in sorted({*with_jobs, *(account.name for account in made)}):
        _add(name, nodes, roots)
    for account in made:
        nodes[account.name].shares = account.shares
        nodes[account.name].used.append(account.usage * _fade(max(0, now - account.usage_at), half_life_s))
    for holding in running:
        if holding.job is not None:
            used = accrued(holding.job.spec.total, run_time_us(holding.job, now), half_life_s)
            nodes[holding.job.account].used.append(used)
    for name, node in nodes.items():
        if node.children and (name in with_jobs or any(node.used)):
            itself = _Node(name, itself=True)
            itself.used = node.used
            node.used = []
            node.children.insert(0, itself)
    _weigh(roots)
    _rank(roots, 0, 0)
    return roots


def _add(name: str, nodes: dict[str, _Node], roots: list[_Node]) -> None:
    """With all accounts above it."""
    siblings, place = roots, -1
    while place < len(name):
        place = name.find("/", place + 1)
        place = len(name) if place < 0 else place
        node = nodes.get(name[:place])
        if node is None:
            node = nodes[name[:place]] = _Node(name[:place])
            siblings.append(node)
        siblings = node.children


def _weigh(siblings: Sequence[_Node]) -> None:
    for node in siblings:
        _weigh(node.children)
        # fsum: the same sum in whatever order, so that equal accounts are equal
        node.usage = math.fsum([*node.used, *(child.usage for child in node.children)])
    shares = math.fsum(node.shares for node in siblings)
    usage = math.fsum(node.usage for node in siblings)
    for node in siblings:
        node.norm_shares = node.shares / shares
        node.norm_usage = node.usage / usage if usage > 0 else 0.0
        node.level_fs = node.norm_shares / node.norm_usage if node.norm_usage > 0 else math.inf


def _rank(siblings: Sequence[_Node], ranked: int, first: int) -> int:
    """Ranks all accounts below; `ranked` is how many are already, and the first ones here get the rank `first`. Returns how many
    are ranked then."""
    ordered = sorted(siblings, key=lambda node: -node.level_fs)
    for _, group in groupby(ordered, key=lambda node: node.level_fs):
        equal = list(group)
        for node in equal:
            if not node.children:
                node.rank = first
                ranked += 1
        ranked = _rank([child for node in equal for child in node.children], ranked, first)
        first = ranked
    return ranked


def _walk(siblings: Sequence[_Node]) -> Iterator[_Node]:
    for node in siblings:
        yield node
        yield from _walk(node.children)
