"""Gangs over several machines of a pool, on a real Slurm: all or none of them starts, and all of them end together."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until
from test_pool_jobs import WAIT_S, job, ready

PLACE = 'echo "$RANK of $WORLD_SIZE, $LOCAL_RANK on node $NODE_RANK $(hostname) $MASTER_ADDR:$MASTER_PORT"'


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        made.create("train", "--nodes", "2..2")
        wait_until(lambda: len(ready(made)) == 2 or None, WAIT_S, "two machines")
        yield made


def lines_of(cluster: PoolCluster, name: str, rank: int) -> str:
    return cluster.ok("logs", name, "--rank", str(rank))


def test_ranks_of_a_gang_are_on_two_machines_and_know_their_place(shared: PoolCluster) -> None:
    words = ("--nodes", "2", "--tasks-per-node", "2", "--cpus", "0.1")
    done = shared.cli("run", "--pool", "train", *words, "--", "sh", "-c", PLACE)
    assert done.returncode == 0, done.stderr
    name = json.loads(shared.ok("ps", "--json"))[-1]["id"]
    told = [lines_of(shared, name, rank).split() for rank in range(4)]
    assert [words[:3] for words in told] == [[str(rank), "of", "4,"] for rank in range(4)]
    assert [(words[3], words[6]) for words in told] == [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")]
    assert len({words[7] for words in told[:2]}) == len({words[7] for words in told[2:]}) == 1
    assert told[0][7] != told[2][7], "one machine for each node"
    assert len({words[8] for words in told}) == 1, "they meet at one place"
    row = job(shared, name)
    assert sorted(row["machine"].split(",")) == sorted(ready(shared))
    assert [end["exit_code"] for end in row["rank_ends"]] == [0] * 4
