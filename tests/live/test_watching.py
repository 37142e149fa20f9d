"""Watching jobs as a person does: ranks beside each other, attaching and letting go, arrays as one thing."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path

from steelyard_cluster import Cluster, wait_until

RANKS = 'for i in 1 2 3; do echo "rank $RANK line $i"; done; echo "trouble $RANK" >&2; printf "no end"'


def read_line(process: subprocess.Popen[bytes], stream: str = "stdout") -> bytes:
    """The next line, within ten seconds."""
    pipe = getattr(process, stream)
    assert select.select([pipe], [], [], 10)[0], f"nothing on {stream}"
    return pipe.readline()


def submit(cluster: Cluster, *args: str) -> str:
    return cluster.ok("run", "-d", "--cpus", "0.1", *args).strip()


def gated(cluster: Cluster, name: str, script: str) -> tuple[Path, str]:
    """A script that waits wherever it says GATE, until a line is written to the pipe."""
    gate = cluster.folder / name
    os.mkfifo(gate)
    gate.chmod(0o666)
    return gate, script.replace("GATE", f"read _ < {gate}")


def on_terminal(cluster: Cluster, *args: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code and what was seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(cluster.command()[0], cluster.command(*args), cluster.environ({"TERM": "xterm"}))
    seen = b""
    while True:
        assert select.select([terminal], [], [], 30)[0], seen
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the last one has closed it
            break
        seen += data
        if not data:
            break
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


def test_lines_of_ranks_stay_whole_behind_their_rank_and_one_rank_alone_is_as_it_was(shared: Cluster) -> None:
    done = shared.cli("run", "--cpus", "0.1", "--tasks-per-node", "3", "--", "sh", "-c", RANKS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    for rank in range(3):
        own = [line for line in lines if line.startswith(f"[{rank}] ")]
        assert own == [*(f"[{rank}] rank {rank} line {number}" for number in (1, 2, 3)), f"[{rank}] no end"]
    assert len(lines) == 12
    assert sorted(done.stderr.decode().splitlines()) == [f"[{rank}] trouble {rank}" for rank in range(3)]

    job = json.loads(shared.ok("ps", "--json"))[-1]["id"]
    for follow in ((), ("-f",)):
        assert sorted(shared.ok("logs", *follow, job).splitlines()) == sorted(lines)
        one = shared.cli("logs", *follow, "--rank", "1", job)
        assert one.stdout == b"rank 1 line 1\nrank 1 line 2\nrank 1 line 3\nno end"
        assert one.stderr == b"trouble 1\n"
    refused = shared.cli("logs", "--rank", "3", job)
    assert refused.returncode == 2
    assert b"ranks 0 to 2" in refused.stderr


def test_a_gang_that_fails_answers_with_the_code_and_says_which_rank(shared: Cluster) -> None:
    script = 'test "$RANK" = 1 && exit 7; exec sleep 1000'
    done = shared.cli("run", "--cpus", "0.1", "--tasks-per-node", "2", "--", "sh", "-c", script)
    assert done.returncode == 7
    assert b"rank 1 exited with code 7" in done.stderr
    job = json.loads(shared.ok("ps", "--json"))[-1]["id"]
    shown = shared.ok("job", job)
    assert re.search(r"^j-\d+ sh  FAILED after .*, exit code 7, exited-nonzero$", shown, re.MULTILINE)
    assert re.search(r"^  1 +7 +-$", shown, re.MULTILINE)


def test_attach_follows_from_now_on_forwards_ctrl_c_and_answers_with_the_code(shared: Cluster) -> None:
    listens = "trap 'echo caught; exit 9' INT"
    gate, script = gated(shared, "attach", f"{listens}; echo before; GATE; echo after; while :; do sleep 0.1; done")
    job = submit(shared, "--", "sh", "-c", script)
    wait_until(lambda: shared.ok("logs", job) == "before\n", 20, "it to have spoken")
    follower, whole = shared.start("attach", job), shared.start("attach", "--all", job)
    for each in (follower, whole):
        assert b"attached" in read_line(each, "stderr")
    gate.write_text("go\n")
    assert read_line(follower) == b"after\n"
    follower.send_signal(signal.SIGINT)
    out, words = follower.communicate(timeout=20)
    assert (follower.returncode, out) == (9, b"caught\n"), words
    assert (whole.communicate(timeout=20)[0], whole.returncode) == (b"before\nafter\ncaught\n", 9)
    late = shared.cli("attach", job)
    assert (late.returncode, late.stdout) == (9, b"")
    assert b"has ended already" in late.stderr


def test_letting_go_leaves_the_job_running(shared: Cluster) -> None:
    job = submit(shared, "--", "sleep", "1000")
    shared.wait_job(job, "RUNNING")
    follower = shared.start("attach", job)
    assert b"attached" in read_line(follower, "stderr")
    # Ctrl-\ is the terminal's word for it
    follower.send_signal(signal.SIGQUIT)
    _, words = follower.communicate(timeout=20)
    assert follower.returncode == 0
    assert b"which goes on" in words
    assert shared.job(job)["state"] == "RUNNING"
    shared.ok("stop", job)


def test_what_a_job_writes_is_followed_into_its_next_attempts(shared: Cluster) -> None:
    script = 'for i in 1 2 3 4 5; do echo "$STEELYARD_RESTART_COUNT.$i"; done; exit 3'
    done = shared.cli("run", "--cpus", "0.1", "--retry", "error:2@50ms", "--", "sh", "-c", script)
    assert done.returncode == 3
    expected = "".join(f"{attempt}.{line}\n" for attempt in range(3) for line in range(1, 6))
    assert done.stdout.decode() == expected
    job = json.loads(shared.ok("ps", "--json"))[-1]["id"]
    assert shared.ok("logs", job) == expected[-20:]
    assert shared.ok("logs", "--all-attempts", job) == expected
    shown = json.loads(shared.ok("job", job, "--json"))
    assert set(shown) == {"job", "events", "usage", "efficiency", "failed"}
    states = [event["state"] for event in shown["events"] if event["state"]]
    assert (states[0], states[-1], states.count("STARTING")) == ("QUEUED", "FAILED", 3)
    assert (shown["job"]["restarts"], shown["failed"]) == (2, [])


def test_an_array_is_one_thing_with_its_highest_exit_code(shared: Cluster) -> None:
    script = 'echo "I am $STEELYARD_ARRAY_INDEX"; test "$STEELYARD_ARRAY_INDEX" = 4 && exit 5; exit 0'
    done = shared.cli("run", "--cpus", "0.1", "--name", "sweep", "--array", "0-8:2", "--", "sh", "-c", script)
    assert done.returncode == 5
    rows = json.loads(shared.ok("ps", "--json"))
    row = rows[-1]
    array = row["id"]
    assert done.stderr.decode().splitlines() == [
        f"steelyard: {array}: 5 of 5 done, 1 failed",
        f"steelyard: {array}_4 FAILED: the command exited with code 5",
    ]
    assert (row["name"], row["state"], row["exit_code"]) == ("sweep", "FAILED", 5)
    assert row["elements"] == {"FAILED": 1, "SUCCEEDED": 4}
    elements = [row["id"] for row in json.loads(shared.ok("ps", "--json", "-e")) if row["array"] == array]
    assert elements == [f"{array}_{index}" for index in (0, 2, 4, 6, 8)]
    failed = json.loads(shared.ok("ps", "--json", "-e", "--state", "failed"))
    assert [row["id"] for row in failed if row["array"] == array] == [f"{array}_4"]
    expected = [f"[{index}] I am {index}" for index in (0, 2, 4, 6, 8)]
    assert shared.ok("logs", array).splitlines() == expected
    assert sorted(shared.ok("logs", "-f", array).splitlines()) == expected
    assert f"{array}_4  FAILED  5" in shared.ok("job", array)


def test_several_are_stopped_at_once_and_by_state_only_what_is_in_it(shared: Cluster) -> None:
    running, held = submit(shared, "--", "sleep", "1000"), submit(shared, "--hold", "--", "true")
    array = submit(shared, "--array", "0-2", "--hold", "--", "true")
    shared.wait_job(running, "RUNNING")
    asked = shared.cli("stop", "--state", "QUEUED")
    assert asked.returncode == 2
    assert b"say -y" in asked.stderr
    assert shared.job(held)["state"] == "QUEUED"
    assert shared.ok("stop", "--state", "QUEUED", running, held).splitlines() == [f"{running} RUNNING", f"{held} STOPPED"]
    assert shared.ok("stop", "--state", "QUEUED", "-y").splitlines() == [f"{array} STOPPED"]
    assert shared.cli("stop", "--state", "DONE", "-y").returncode == 2
    several = shared.cli("stop", running, "999999", held)
    assert several.returncode == 2
    assert several.stdout.decode().splitlines() == [f"{running} STOPPING", f"{held} STOPPED"]
    assert b"999999: There is no job" in several.stderr
    shared.wait_job(running, "STOPPED")


def test_a_person_sees_colours_progress_and_what_the_job_made_of_its_cores(shared: Cluster) -> None:
    script = 'echo "I am $RANK"; sleep 1.1'
    code, seen = on_terminal(shared, "run", "--cpus", "0.2", "--tasks-per-node", "2", "--", "sh", "-c", script)
    assert code == 0
    assert "\x1b[36m[0] \x1b[0mI am 0\r\n" in seen
    assert "\x1b[32m[1] \x1b[0mI am 1\r\n" in seen
    assert re.search(r"used [\d.]+ of 0\.4 cores", seen)
    code, seen = on_terminal(shared, "run", "--cpus", "0.1", "--array", "0-3", "--", "sleep", "0.5")
    assert code == 0
    assert "\r\x1b[2K" in seen
    assert re.search(r"[▓·].* of 4 done", seen)
    assert "4 of 4 done" in seen
    job = json.loads(shared.ok("ps", "--json"))[-1]["id"]
    assert "\x1b[32m" in on_terminal(shared, "job", job)[1]
    assert "\x1b" not in shared.ok("job", job)


def test_binary_output_comes_out_of_the_log_as_it_went_in(shared: Cluster) -> None:
    data = bytes(range(256)) * 3000 + b"\r\n\r"
    (shared.folder / "binary").write_bytes(data)
    job = submit(shared, "--", "cat", str(shared.folder / "binary"))
    shared.wait_job(job, "SUCCEEDED")
    for follow in ((), ("-f",)):
        assert shared.cli("logs", *follow, job).stdout == data
