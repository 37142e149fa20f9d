"""What `engine/conformance.py` promises of a job, asked of every engine: this machine's own, Slurm's, and the fake of tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from direct_cluster import attached
from steelyard_cluster import USER_UID, wait_until
from traces import observe_traces

from roads import WAIT_S, FakeRoad, RealRoad, Road
from slurm_bed import slurm
from steelyard.engine.conformance import PROMISES
from steelyard.engine.fake import Fate

_BY_TEST = {f"test_{promise.key}": promise for promise in PROMISES}
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, Road]]:
    with slurm() as bed:
        before = observe_traces()
        with attached(bed) as steelyard:
            yield {name: RealRoad(steelyard, name) for name in ("local", "slurm")}
        assert not (left := observe_traces().settled_minus(before)), f"left behind:\n{left}"


@pytest.fixture(params=["local", "slurm", "fake"])
def road(request: pytest.FixtureRequest, shared: dict[str, Road], tmp_path: Path) -> Road:
    if request.param in shared:
        return shared[request.param]
    difference = _BY_TEST[request.node.originalname].fake
    if difference.startswith("programs are played"):
        pytest.skip(difference)
    return FakeRoad(tmp_path)


def test_every_promise_is_tested_and_every_test_is_promised() -> None:
    named = {name for name in globals() if name.startswith("test_")} - {"test_every_promise_is_tested_and_every_test_is_promised"}
    assert named == _BY_TEST.keys()


def test_environment_is_what_was_given(road: Road) -> None:
    script = 'printf "%s\\n" "$COLOUR" "$STEELYARD_JOB_ID" "$STEELYARD_ATTEMPT_ID" "${HOME:+home}" "${USER:+user}"; env'
    job = road.begin("--env", 'COLOUR=it\'s "$RED"\\', "--", "sh", "-c", script)
    road.wait(job, "SUCCEEDED")
    lines = road.output(job)[0].splitlines()
    assert lines[:5] == ['it\'s "$RED"\\', job, f"{job}.1", "home", "user"]
    names = {line.partition("=")[0] for line in lines[5:]}
    assert ("STEELYARD_TOKEN" in names) == (road.name == "local")
    assert ("SLURM_JOB_ID" in names) == (road.name == "slurm")
    assert "STEELYARD_HOME" not in names


def test_working_folder_is_the_submitters(road: Road) -> None:
    job = road.begin("--", "pwd")
    road.wait(job, "SUCCEEDED")
    assert road.output(job)[0] == f"{road.folder}\n"


def test_input_is_empty(road: Road) -> None:
    job = road.begin("--", "wc", "-c")
    road.wait(job, "SUCCEEDED")
    assert road.output(job)[0].strip() == "0"


def test_exit_codes_are_the_programs_own(road: Road) -> None:
    good = road.begin("--", "true", fate=Fate(0))
    bad = road.begin("--", "sh", "-c", "exit 7", fate=Fate(7))
    assert road.wait(good, "SUCCEEDED")["exit_code"] == 0
    ended = road.wait(bad, "FAILED")
    assert (ended["exit_code"], ended["reason"], ended["detail"]) == (7, "exited-nonzero", "the command exited with code 7")


def test_a_signal_that_ends_it_is_told(road: Road) -> None:
    job = road.begin("--", "sh", "-c", "kill -10 $$", fate=Fate(killed_by=10))
    ended = road.wait(job, "FAILED")
    assert (ended["exit_code"], ended["reason"]) == (128 + 10, "killed-by-signal")


def test_a_program_that_is_not_there_is_named(road: Road) -> None:
    job = road.begin("--", "/no/such/program")
    ended = road.wait(job, "FAILED")
    assert ended["reason"] == "start-failed" and "/no/such/program" in ended["detail"], ended
    assert ended["exit_code"] == (127 if road.name == "slurm" else None)


def test_outputs_are_kept_apart(road: Road) -> None:
    job = road.begin("--", "sh", "-c", "echo said; echo err >&2; exec sleep 1000", fate=Fate(output=b"said\n", stays=True))
    road.wait_output(job, "said\n")
    assert road.output(job)[1] == ("" if road.name == "fake" else "err\n")
    road.stop(job)
    road.wait(job, "STOPPED")


def test_output_files_are_written(road: Road) -> None:
    out, err = road.folder / "100%.out", road.folder / "err"
    job = road.begin("--output", str(out).replace("%", "%%"), "--error", str(err), "--", "sh", "-c", "echo out; echo err >&2")
    road.wait(job, "SUCCEEDED")
    assert (out.read_text(), err.read_text()) == ("out\n", "err\n")


def test_elements_of_an_array_are_jobs(road: Road) -> None:
    script = "echo $STEELYARD_ARRAY_INDEX; exit $((STEELYARD_ARRAY_INDEX % 2))"
    job = road.begin("--array", "3-5", "--", "sh", "-c", script, fate=Fate(by_index=lambda index: index % 2))
    for index, state in ((3, "FAILED"), (4, "SUCCEEDED"), (5, "FAILED")):
        assert road.wait(f"{job}_{index}", state)["exit_code"] == index % 2
        if road.name != "fake":
            assert road.output(f"{job}_{index}")[0] == f"{index}\n"


def test_an_array_keeps_its_limit(road: Road) -> None:
    job = road.begin("--array", "0-1%1", "--", "sh", "-c", "exec sleep 1000", fate=Fate(stays=True))
    road.wait(f"{job}_0", "RUNNING")
    assert road.wait(f"{job}_1", "QUEUED")["reason"] == "array-limit"
    road.stop(f"{job}_0")
    road.wait(f"{job}_1", "RUNNING")
    road.stop(f"{job}_1")
    road.wait(f"{job}_1", "STOPPED")


def test_ranks_know_their_place(road: Road) -> None:
    ranks = min(2, os.cpu_count() or 1)
    shape = ("--nodes", "3") if road.name == "slurm" else ("--nodes", "1")
    job = road.begin(
        *shape, "--tasks-per-node", str(ranks), "--", "sh", "-c", "echo place $RANK/$WORLD_SIZE $LOCAL_RANK ${MASTER_ADDR:+known}"
    )  # fmt: skip
    road.wait(job, "SUCCEEDED")
    size = ranks * int(shape[1])
    found = sorted(re.findall(r"place (.*)", road.output(job)[0]))
    assert found == [f"{rank}/{size} {rank % ranks} known" for rank in range(size)]


def test_one_bad_rank_ends_its_gang(road: Road) -> None:
    shape = ("--tasks-per-node", "2") if road.name == "local" else ("--nodes", "2")
    script = "[ $RANK != 1 ] || exit 5; exec sleep 1000"
    ended = road.wait(road.begin(*shape, "--", "sh", "-c", script, fate=Fate(5, bad_rank=1)), "FAILED")
    assert ended["exit_code"] == 5
    assert {"rank": 1, "exit_code": 5, "signal": None} in ended["rank_ends"]


def test_dependencies_hold(road: Road) -> None:
    first = road.begin("--", "false", fate=Fate(1))
    never = road.begin("--after", f"ok:{first}", "--", "true", fate=Fate())
    after = road.begin("--after", f"not-ok:{first}", "--", "true", fate=Fate())
    road.wait(after, "SUCCEEDED")
    ended = road.wait(never, "FAILED")
    assert (ended["reason"], ended["started_at"]) == ("dependency-failed", None), ended


def test_a_held_job_waits_for_its_release(road: Road) -> None:
    job = road.begin("--hold", "--", "true", fate=Fate())
    assert road.wait(job, "QUEUED")["started_at"] is None
    road.release(job)
    road.wait(job, "SUCCEEDED")


def test_stopping_is_a_signal_and_then_force(road: Road) -> None:
    polite, deaf = (
        "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    )
    ready = Fate(output=b"ready\n", stays=True)
    jobs = [road.begin("--", "sh", "-c", polite, fate=Fate(3, b"ready\n", stays=True, traps=frozenset({15})))]
    jobs.append(road.begin("--", "sh", "-c", deaf, fate=Fate(output=ready.output, stays=True, ignores=frozenset({15}))))
    for job in jobs:
        road.wait_output(job, "ready\n")
    road.stop(jobs[0])
    road.stop(jobs[1], "1s")
    assert road.wait(jobs[0], "STOPPED")["exit_code"] == 3
    assert road.wait(jobs[1], "STOPPED")["exit_code"] == 128 + 9


def test_what_never_began_has_no_exit_code(road: Road) -> None:
    with road.closed():
        # this machine's own queue would begin it
        job = road.begin(*(("--hold",) if road.name == "local" else ()), "--", "true", fate=Fate())
        road.wait(job, "QUEUED" if road.name == "local" else "STARTING")
        road.stop(job)
        ended = road.wait(job, "STOPPED")
    assert (ended["exit_code"], ended["started_at"]) == (None, None)


def test_a_retry_is_another_attempt(road: Road) -> None:
    mark = road.folder / "once"
    script = f"[ -e {mark} ] || {{ touch {mark}; exit 9; }}; echo second"
    job = road.begin("--retry", "error:1@0s", "--", "sh", "-c", script, fate=Fate(9, by_attempt=True, output=b"second\n"))
    assert road.wait(job, "SUCCEEDED")["restarts"] == 1
    assert road.output(job)[0] == "second\n"


def test_proof_tells_what_it_got(road: Road) -> None:
    gate = road.folder / "gate"
    job = road.begin("--memory", "200MiB", "--", "sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done", fate=Fate())
    if road.name != "fake":
        wait_until(lambda: road.proof(job)["state"] != "UNKNOWN", WAIT_S, "a proof while it runs")
    gate.touch()
    road.wait(job, "SUCCEEDED")
    proof = road.proof(job)
    # an ordinary user's own machine may hold nothing to its memory, and says so
    assert proof["state"] == "MATCH" or (road.name == "local" and proof["state"] == "PARTIAL"), proof
    assert proof["asked"]["memory_bytes"] == 200 * MIB
    if road.name != "local":
        assert proof["got"]["memory_bytes"] == 200 * MIB and proof["got"]["cpu_count"] >= proof["asked"]["cpu_count"] == 1
    assert proof["got"]["uid"] == (1 if road.name == "fake" else USER_UID)


def test_usage_is_told(road: Road) -> None:
    job = road.begin("--", "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done", fate=Fate())
    road.wait(job, "SUCCEEDED")
    assert road.usage(job)["cpu_s"] > 0
    if road.name != "local":
        # (here it takes control groups)
        assert road.usage(job)["memory_peak_bytes"] > 0
