"""`POST /v1/scripts` and `steelyard submit`, against a real server with an agent made of one WebSocket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_rig import FakeAgent, Server, problem

from steelyard.model.ids import AttemptId
from steelyard.wire.agent import AttemptState

SCRIPT = "#!/bin/bash\n#SBATCH --job-name=x -c 2 --mem=1G -p gpu\n#SBATCH --time=10\n#SBATCH -o out/%x-%j.txt\nhostname\n"


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with Server(home) as made:
        yield made


def post(server: Server, key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return server.http.post("/v1/scripts", json={"script": SCRIPT, "cwd": "/srv", **body}, headers=headers)


def test_a_script_becomes_a_job_and_what_is_ignored_is_named(server: Server) -> None:
    with FakeAgent(server) as agent:
        agent.behave = lambda attempt: AttemptState(AttemptId(attempt), "running", started_at=1_700_000_000_000_000)
        answer = post(server, "once", arguments=["a", "b"], options=["--mem=2G"], env={"A": "1", "SLURM_X": "2"}, name="x.sh")
        assert answer.status_code == 201, answer.text
        assert answer.json() == {
            "id": "j-000001",
            "ignored": ["line 2: --partition=gpu is not acted on: there are no partitions: every job waits in one queue"],
            "array": None,
        }
        assert (
            post(server, "once", arguments=["a", "b"], options=["--mem=2G"], env={"A": "1", "SLURM_X": "2"}, name="x.sh").json()
            == answer.json()
        )
        agent.wait_for(lambda: bool(agent.assignments[-1].jobs))
        spec = agent.assignments[-1].jobs[0].spec
        assert (spec.argv, spec.cwd, spec.env, spec.script) == (("x.sh", "a", "b"), "/srv", {"A": "1"}, SCRIPT)
        assert (spec.resources.cpus, spec.resources.memory_bytes, spec.max_duration_s) == (2, 2 << 30, 600)
        assert (spec.stdout, spec.stderr) == ("/srv/out/x-1.txt", "/srv/out/x-1.txt")
        assert len(server.http.get("/v1/jobs").json()) == 1


def test_what_cannot_be_is_refused_and_nothing_is_stored(server: Server) -> None:
    with FakeAgent(server):
        assert problem(post(server, script="true\n")) == (422, "bad-script")
        assert problem(post(server, script=SCRIPT.replace("\n", "\r\n"))) == (422, "bad-script")
        assert problem(post(server, options=["--bogus"])) == (422, "unknown-option")
        assert problem(post(server, options=["--nodes=2"])) == (422, "one-machine")
        assert problem(post(server, options=["-n", "5000"])) == (422, "cores-beyond-machine")
        assert problem(post(server, options=["--time=7 days"])) == (422, "bad-time")
        assert problem(post(server, cwd="relative")) == (422, "bad-path")
        assert problem(post(server, script="#!/bin/sh\n" + "#" * 300_000)) == (422, "bad-script")
        assert problem(post(server, env={"A": "x" * 200_000})) == (422, "command-too-long")
        assert problem(post(server, unknown=1))[0] in (400, 422)
        assert server.http.get("/v1/jobs").json() == []


def cli(server: Server, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "steelyard", "submit", *words],
        input=input,
        capture_output=True,
        text=True,
        cwd=server.home,
        env={**os.environ, "STEELYARD_HOME": str(server.home)},
        timeout=60,
        check=False,
    )


def test_submit_passes_sbatchs_options_on(server: Server) -> None:
    (server.home / "job.sh").write_text(SCRIPT)
    with FakeAgent(server) as agent:
        done = cli(server, "-n2", "--time", "5", "job.sh", "a", "--b")
        assert (done.returncode, done.stdout) == (0, "Submitted batch job j-000001\n"), done.stderr
        assert "steelyard: line 2: --partition=gpu is not acted on" in done.stderr
        agent.wait_for(lambda: any(job.job == "j-000001" for each in agent.assignments for job in each.jobs))
        spec = next(job.spec for each in agent.assignments for job in each.jobs)
        assert (spec.argv, spec.resources.cpus, spec.max_duration_s) == (("job.sh", "a", "--b"), 4, 300)
        quiet = cli(server, "--parsable", "-Q", input=SCRIPT)
        assert (quiet.stdout, quiet.stderr) == ("j-000002\n", "")
        told = json.loads(cli(server, "--json", "--wrap", "true").stdout)
        assert told == {"id": "j-000003", "ignored": [], "array": None}


def test_submit_waits_for_the_end_and_takes_its_exit_code(server: Server) -> None:
    with FakeAgent(server) as agent:
        agent.behave = lambda attempt: AttemptState(
            AttemptId(attempt), "ended", exit_code=7, started_at=1_700_000_000_000_000, ended_at=1_700_000_000_500_000
        )
        assert cli(server, "--wait", "--wrap", "exit 7").returncode == 7


def test_test_only_submits_nothing_and_needs_no_server(home: Path) -> None:
    home.mkdir()
    (home / "job.sh").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "steelyard", "submit", "--test-only", "--mem=3G", "job.sh"],
        capture_output=True, text=True, cwd=home, env={**os.environ, "STEELYARD_HOME": str(home / "none")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert rows[0][0] == "OPTION"
    assert any("--mem" in row and "the command line" in row[-1] for row in rows)
    assert "at most 3 GiB in all" in done.stdout and "--partition=gpu is not acted on" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--bogus", "job.sh"), "there is no option --bogus"),
        (("missing.sh",), "missing.sh can't be read"),
        (("--wrap", "x", "job.sh"), "takes the place of a script"),
        (("/dev/zero",), "256 KiB"),
        (("/bin/true",), "no text"),
    ],
)
def test_submit_names_what_is_wrong(home: Path, words: tuple[str, ...], text: str) -> None:
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "steelyard", "submit", "--test-only", *words],
        capture_output=True, text=True, cwd=home, env={**os.environ, "STEELYARD_HOME": str(home)}, check=False,
    )  # fmt: skip
    assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
