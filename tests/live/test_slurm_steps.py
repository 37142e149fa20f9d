"""What stands between Slurm and a single task is written twice, for perl and for python. Batch scripts as `sbatch` gets them, run
by `sh` with what Slurm would tell them: whichever of the two a node has, the task and its records are the same."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from steelyard.engine.slurm.arrays import make_batches
from steelyard.engine.slurm.script import render_script
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.model.slurm import Attachment, RankRecord

ATTEMPT = "j-000007.1"
WAIT_S = 60.0
#: leads to the python one, as on a node without perl
NO_PERL = {"PERL5OPT": ""}


class Node:
    def __init__(self, folder: Path, language: str) -> None:
        self.folder, self.language = folder, language
        self._started: list[subprocess.Popen[bytes]] = []
        (folder / str(os.getuid())).mkdir()

    def begin(self, *argv: str, job: str = "12", folder: Path | None = None, **env: str) -> subprocess.Popen[bytes]:
        spec = JobSpec("x", argv, "/", direct=True)
        row = Job(JobId("j-000007"), DEFAULT_PROJECT, Owner("ada", 1000), 2, 1, spec, JobState.STARTING, 0)
        (batch,) = make_batches([row], 1001)
        script = self.folder / "script"
        script.write_text(render_script(batch, Attachment(folder=str(folder or self.folder)), os.getuid()))
        told = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": job, "SLURM_CPUS_ON_NODE": "3", **env}
        told |= {} if self.language == "perl" else NO_PERL
        made = subprocess.Popen(["sh", str(script)], env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._started.append(made)
        return made

    def run(self, *argv: str, **more: Any) -> tuple[int, str, str]:
        made = self.begin(*argv, **more)
        out, err = made.communicate(timeout=WAIT_S)
        return made.returncode, out.decode(), err.decode()

    def record(self, name: str = "exit") -> dict[str, Any]:
        return json.loads((self.folder / str(os.getuid()) / f"{ATTEMPT}.0.{name}").read_text())

    def wait(self, name: str) -> None:
        wait_until((self.folder / name).exists)

    def end(self) -> None:
        for made in self._started:
            made.kill()
            made.communicate()


def wait_until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(params=["perl", "python"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    if shutil.which(f"/usr/bin/{request.param}{'3' if request.param == 'python' else ''}") is None:
        pytest.skip(f"NO /usr/bin/{request.param} HERE")
    made = Node(tmp_path, request.param)
    yield made
    made.end()


def test_what_a_task_got_and_used_is_written_down(node: Node) -> None:
    before = time.time_ns() // 1000
    assert node.run("sh", "-c", "echo out; echo err >&2; exit 7", SLURM_JOB_GPUS="1,3") == (7, "out\n", "err\n")
    record = node.record()
    known = msgspec.convert(record, RankRecord)
    assert (known.rank, known.exit_code, known.signal, known.uid) == (0, 7, None, os.getuid())
    assert (known.host, known.cpus, known.gpus) == (os.uname().nodename, tuple(sorted(os.sched_getaffinity(0))), ("1", "3"))
    assert (known.cpus_allotted, known.tasks_here) == (3, 1)
    assert before <= known.started_at <= known.ended_at <= time.time_ns() // 1000
    assert known.peak_memory_bytes is not None and 1 << 19 < known.peak_memory_bytes < 1 << 25 and known.cpu_ms is not None
    # what it began with is the same, and no more; and nothing is left of a file that was half written
    began = node.record("started")
    assert began == {name: record[name] for name in began} and "ended_at" not in began
    names = {path.name for path in (node.folder / str(os.getuid())).iterdir()}
    assert names == {f"{ATTEMPT}.claim", f"{ATTEMPT}.0.started", f"{ATTEMPT}.0.exit"}


def test_both_write_the_same_fields(tmp_path: Path) -> None:
    fields: list[dict[str, type]] = []
    for language in ("perl", "python"):
        (tmp_path / language).mkdir()
        node = Node(tmp_path / language, language)
        node.run("true")
        fields.append({name: type(value) for name, value in node.record().items()})
    assert fields[0] == fields[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, 40])
def test_a_signal_that_ended_the_task_ends_the_step_and_is_told(node: Node, number: int) -> None:
    code, _, _ = node.run("sh", "-c", f"ulimit -c 0; kill -{int(number)} $$")
    assert (code, node.record()["signal"], node.record()["exit_code"]) == (-number, number, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCONT, 36])
def test_signals_reach_the_task_which_says_how_it_ends(node: Node, number: int) -> None:
    waits = 'trap "exit 9" "$1"; touch "$0"; while :; do sleep 0.05; done'
    made = node.begin("sh", "-c", waits, str(node.folder / "up"), str(int(number)))
    node.wait("up")
    made.send_signal(number)
    assert made.wait(WAIT_S) == 9
    assert node.record()["exit_code"] == 9


def test_a_task_begins_with_signals_as_they_were(node: Node) -> None:
    _, out, _ = node.run("sed", "-nE", "/^Sig(Blk|Ign|Cgt)/p", "/proc/self/status")
    # but for two that are the C library's own
    assert [int(line.split()[1], 16) & ~(3 << 31) for line in out.splitlines()] == [0, 0, 0]


@pytest.mark.parametrize(("what", "code", "why"), [("nosuch", 127, "No such file"), ("/etc/passwd", 126, "Permission denied")])
def test_a_program_that_cannot_be_executed_is_named(node: Node, what: str, code: int, why: str) -> None:
    ended, _, err = node.run(what, LC_ALL="xx_YY.UTF-8")
    assert ended == code and err.startswith(f"steelyard-step: {what}: {why}") and err.count("\n") == 1
    assert node.record()["not_started"].startswith(why) and node.record()["exit_code"] == code


@pytest.mark.parametrize("again", ["13", "12"])
def test_an_attempt_runs_once_whichever_job_of_slurms_comes_again(node: Node, again: str) -> None:
    assert node.run("true", job="12")[0] == 0
    code, out, err = node.run("echo", "twice", job=again)
    assert (code, out) == (75, "") and "runs this attempt already" in err


def test_without_the_folder_it_is_said_and_the_task_runs(node: Node) -> None:
    code, out, err = node.run("echo", "hi", folder=node.folder / "elsewhere")
    assert (code, out) == (0, "hi\n") and "is the folder of `cluster attach` shared with this node?" in err


def test_words_and_variables_arrive_as_they_are(node: Node) -> None:
    words = ("-e", "--", "", "a b", "line\nbreak", "$HOME `x` 'q' \"d\"", "ünï", "%s\\n")
    asked = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    _, out, err = node.run("python3", "-c", asked, *words, LANG="xx_YY.UTF-8", PERL5LIB="/nowhere", PERL_UNICODE="SDA")
    told, env = json.loads(out)
    assert (told, err) == (list(words), "")
    user = pwd.getpwuid(os.getuid())
    assert (env["HOME"], env["USER"], env["LOGNAME"], env["SHELL"]) == (user.pw_dir, user.pw_name, user.pw_name, user.pw_shell)
    assert env["PERL_UNICODE"] == "SDA" and "PERL_BADLANG" not in env


def test_a_home_that_is_told_is_the_tasks(node: Node) -> None:
    assert node.run("sh", "-c", 'echo "$HOME"', HOME="/mine")[1] == "/mine\n"
