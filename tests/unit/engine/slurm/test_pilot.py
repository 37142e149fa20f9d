from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from steelyard.engine.slurm.pilot import make_pilot_options, read_words, render_pilot_script
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.model.job import Owner
from steelyard.model.pool import NodeShape, Pilot, PilotState, Pool, PoolSpec, make_pilot_id
from steelyard.model.slurm import Attachment

AT = Attachment(partition="gpu", account="lab", folder="/nfs/sy", env={"SLURM_CONF": "/etc/here.conf"})
OWNER = Owner("ada", 1000)
PILOT = Pilot(make_pilot_id("train", 3), "train", DEFAULT_PROJECT, OWNER, 1, PilotState.SUBMITTED, 0)


def options(spec: PoolSpec) -> dict[str, str]:
    words = make_pilot_options(Pool(spec, DEFAULT_PROJECT, OWNER, 1, 0), PILOT, AT, "0123abcd", "/nfs/1%/train-3")
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def test_what_a_pool_asks_of_each_node_becomes_slurms_options() -> None:
    node = NodeShape(cpus=16, memory_bytes=3 << 30, gpus=4, gpu_model="H100")
    found = options(PoolSpec("train", 0, 4, node, qos="low", max_duration_s=3590.0, drain_s=90.0))
    assert (found["cpus-per-task"], found["mem"], found["gres"]) == ("16", f"{3 << 10}M", "gpu:h100:4")
    assert (found["time"], found["signal"], found["qos"]) == ("60", "B:USR1@90", "low")
    assert (found["comment"], found["partition"], found["account"]) == ("steelyard:0123abcd:train-3", "gpu", "lab")
    assert found["output"] == "/nfs/1%%/train-3/log"
    assert "no-requeue" in found and "exclusive" not in found


def test_a_pool_without_cpus_has_whole_nodes_and_its_own_queue_comes_first() -> None:
    found = options(PoolSpec("train", partition="main", account="mine"))
    assert (found["exclusive"], found["mem"]) == ("", "0")
    assert (found["partition"], found["account"]) == ("main", "mine")
    assert not {"cpus-per-task", "gres", "time", "qos"} & found.keys()


def test_the_script_runs_the_installation_of_the_node_and_says_so_where_there_is_none(tmp_path: Path) -> None:
    place = tmp_path / "it's here"
    place.mkdir()
    python = place / "python"
    done = subprocess.run(["sh"], input=render_pilot_script(PILOT, AT, str(python), "/x y"), capture_output=True, text=True)
    assert (done.returncode, f"There is no {python} on this node" in done.stdout) == (127, True)
    python.write_text('#!/bin/sh\necho "$@" "${SLURM_CONF-none}"\n')
    python.chmod(0o755)
    text = render_pilot_script(PILOT, AT, str(python), "/x y")
    done = subprocess.run(["sh"], input=text, capture_output=True, text=True, env={"SLURM_CONF": "/etc/here.conf"})
    assert done.stdout == "-P -m steelyard pilot /x y none\n"
    assert shlex.split(text.splitlines()[-1])[-1] == "/x y"


def test_the_last_words_are_the_programs_own() -> None:
    text = "a\n\nb\nc\n d \nslurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026 ***\n"
    assert read_words(text) == "b; c; d"
    assert read_words("") == ""
    assert len(read_words("x" * 1000)) == 400
