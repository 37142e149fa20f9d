"""Does `steelyard place` answer as scripts expect, for recorded files as for fabrics, and refuse what it can't take?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from steelyard.cli.place import place
from steelyard.cli.topo import topo
from steelyard.errors import Refused

MATRIX = """\tGPU0\tGPU1\tGPU2\tGPU3\tmlx5_0\tCPU Affinity\tNUMA Affinity
GPU0\t X \tPIX\tSYS\tSYS\tSYS\t0-3\t0
GPU1\tPIX\t X \tSYS\tSYS\tSYS\t0-3\t0
GPU2\tSYS\tSYS\t X \tNV2\tPHB\t4-7\t1
GPU3\tSYS\tSYS\tNV2\t X \tPHB\t4-7\t1
mlx5_0\tSYS\tSYS\tPHB\tPHB\t X \t\t
"""
FABRIC = "BlockName=a Nodes=n[1-4]\nBlockName=b Nodes=n[5-8]\nBlockSizes=4\n"


@pytest.fixture
def matrix(tmp_path: Path) -> str:
    (tmp_path / "matrix.txt").write_text(MATRIX)
    return str(tmp_path / "matrix.txt")


def run(*words: str) -> tuple[int, Any]:
    done = CliRunner().invoke(place, [*words, "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def test_gpus_card_cores_and_memory_stay_together(matrix: str) -> None:
    code, plan = run("--from", matrix, "--gpus", "2", "--nics", "1", "--cores", "2")
    assert code == 0
    assert (plan["gpus"], plan["nics"], plan["memory_nodes"]) == (["GPU2", "GPU3"], ["mlx5_0"], [1])
    assert plan["bottleneck"] == {"class": "NV2", "gbps": None}
    assert len(plan["cores"]) == 2 and set(plan["cores"]) <= {4, 5, 6, 7}


def test_what_is_occupied_is_not_given(matrix: str) -> None:
    assert run("--from", matrix, "--gpus", "2", "--occupied", "GPU2")[1]["gpus"] == ["GPU0", "GPU1"]
    code, cores = run("--from", matrix, "--cores", "4", "--occupied", "cpu:0-3")
    assert (code, cores["cores"]) == (0, [4, 5, 6, 7])


def test_no_place_is_an_answer_with_every_reason_and_the_largest(matrix: str) -> None:
    code, answer = run("--from", matrix, "--gpus", "5", "--nics", "2", "--cores", "99")
    assert code == 1
    assert answer["refused"] == ["gpus-beyond-machine", "nics-beyond-machine", "cores-beyond-machine"]
    assert answer["largest_possible"]["gpus"] == 4 and answer["largest_possible"]["cores"] == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpus", "2", "--occupied", "GPU9"), "no GPU or network card 'GPU9'"),
        (("--gpus", "2", "--occupied", "cpu:99"), "offline"),
        (("--gpus", "H100:0"), "count"),
        ((), "Nothing was asked for"),
        (("--gpus", "1", "--level", "leaf"), "--fabric"),
    ],
)
def test_what_makes_no_sense_is_refused(matrix: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(Refused, match=said):
        run("--from", matrix, *words)


def test_a_gang_finds_its_machines_on_a_fabric(tmp_path: Path) -> None:
    (tmp_path / "topology.conf").write_text(FABRIC)
    code, plan = run("--fabric", str(tmp_path / "topology.conf"), "--nodes", "3", "--gpus", "8", "--occupied", "n1,n2")
    assert (code, plan["nodes"], plan["common_level"]) == (0, ["n5", "n6", "n7"], "block")
    code, answer = run("--fabric", str(tmp_path / "topology.conf"), "--nodes", "5", "--gpus", "8", "--level", "block")
    assert (code, answer["largest_possible"]) == (1, {"nodes": 4})
    with pytest.raises(Refused, match="no machine 'n99'"):
        run("--fabric", str(tmp_path / "topology.conf"), "--nodes", "1", "--occupied", "n99")


def test_several_files_may_follow_one_from(matrix: str, tmp_path: Path) -> None:
    again = tmp_path / "again.txt"
    again.write_text(MATRIX)
    done = CliRunner().invoke(topo, ["--from", matrix, str(again), "--json"], catch_exceptions=False)
    shown = json.loads(done.stdout)
    assert len(shown["sources"]) == 2 and len(shown["gpus"]) == 4
    with pytest.raises(Refused, match=r"no file 'gone\.txt'"):
        CliRunner().invoke(topo, ["--from", matrix, "gone.txt"], catch_exceptions=False)
