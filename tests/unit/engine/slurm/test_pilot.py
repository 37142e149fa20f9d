from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from steelyard.engine.slurm.pilot import make_pilot_options, read_words, render_pilot_script
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.model.job import Owner
from steelyard.model.pool import NodeShape, Pilot, PilotState, Pool, PoolSpec, make_pilot_id
from steelyard.model.slurm import Attachment

AT = Attachment(partition="gpu", account="lab", folder="/nfs/sy", env={"SLURM_CONF": "/etc/here.conf"})
OWNER = Owner("ada", 1000)
PILOT = Pilot(make_pilot_id("train", 3), "train", DEFAULT_PROJECT, OWNER, 1, PilotState.SUBMITTED, 0)


def options(spec: PoolSpec, pilots: Sequence[Pilot] = (PILOT,)) -> dict[str, str]:
    words = make_pilot_options(Pool(spec, DEFAULT_PROJECT, OWNER, 1, 0), pilots, AT, "0123abcd", "/nfs/1%/train-3")
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
    done = subprocess.run(["sh"], input=render_pilot_script([PILOT], AT, str(python), ["/x y"]), capture_output=True, text=True)
    assert (done.returncode, f"There is no {python} on this node" in done.stdout) == (127, True)
    python.write_text('#!/bin/sh\necho "$@" "${SLURM_CONF-none}"\n')
    python.chmod(0o755)
    text = render_pilot_script([PILOT], AT, str(python), ["/x y"])
    done = subprocess.run(["sh"], input=text, capture_output=True, text=True, env={"SLURM_CONF": "/etc/here.conf"})
    assert done.stdout == "-P -m steelyard pilot --kill-wait=30 /x y none\n"
    assert shlex.split(text.splitlines()[-1])[-1] == "/x y"


def test_several_machines_are_one_allocation_whose_step_starts_them_all_and_is_told_gently_to_end(tmp_path: Path) -> None:
    two = [replace(PILOT, allocation=PILOT.id), replace(PILOT, id=make_pilot_id("train", 4), allocation=PILOT.id, place=1)]
    found = options(PoolSpec("train", 0, 4, NodeShape(cpus=16), nodes_per_allocation=2), two)
    assert (found["nodes"], found["ntasks-per-node"], found["comment"]) == ("2", "1", "steelyard:0123abcd:train-3")
    assert "no-kill" in found
    tools = {
        "srun": 'trap "echo drains" USR1; echo "$@" >>said; touch runs; while [ ! -e end ]; do sleep 0.02; done; exit 3',
        "scancel": 'echo scancel "$@" >>said; touch end',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = render_pilot_script(two, AT, "/bin/sh", ["/x y/3", "/x/4"])
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    running = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "runs").exists():
        assert running.poll() is None
    running.send_signal(signal.SIGUSR1)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=30)
    assert (said, running.returncode) == ("drains\n", 3)
    command, told = (tmp_path / "said").read_text().splitlines()
    assert command.endswith("--nodes=2 --ntasks=2 --ntasks-per-node=1 /bin/sh -P -m steelyard pilot --kill-wait=30 /x y/3 /x/4")
    assert told == "scancel --signal=TERM 12"


def test_the_last_words_are_the_programs_own() -> None:
    text = "a\n\nb\nc\n d \nslurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026 ***\n"
    assert read_words(text) == "b; c; d"
    assert read_words("") == ""
    assert len(read_words("x" * 1000)) == 400
