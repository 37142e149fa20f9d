"""What must be true of a Steelyard that goes on running after a fault, looked up in its own records, the store and the kernel.

`test_kill_each_program.py` watches from outside, as users do. Here the living system is looked into: no control group, record,
page or socket of anything that has ended (I6; `down` would hide it), each job ended once in the history (I7), ends with the code
and at the time that they happened, and programs back within the promised times.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from apps import MANY, Load, deploy, write_app
from steelyard_cluster import Cluster, wait_until

from steelyard.config import make_paths
from steelyard.runtime.runner.page import Page

pytestmark = pytest.mark.alone

JOBS = 12
#: a job that notes each of its starts, and ends with the code that is written into its fifo
JOB = 'echo "$STEELYARD_ATTEMPT_ID" >>"$NOTES/$STEELYARD_JOB_ID"; read code <"$NOTES/$GATE.fifo"; exit "$code"'
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
FUNCTIONS = ("warm", "sleepy")


@dataclass
class World:
    cluster: Cluster
    notes: Path
    #: every job that was ever acknowledged -> the name of its gate
    jobs: dict[str, str]

    def submit(self, gate: str) -> str:
        fifo = self.notes / f"{gate}.fifo"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        spec = {"name": gate, "argv": ["sh", "-c", JOB], "cwd": "/", "env": {"NOTES": str(self.notes), "GATE": gate},
                "resources": {"cpus": 0.01}}  # fmt: skip
        answer = self.cluster.api("POST", "/v1/jobs", {"spec": spec})
        assert answer.status == 201, answer
        self.jobs[answer.json()["id"]] = gate
        return answer.json()["id"]

    def end(self, job: str, code: int) -> None:
        with open(self.notes / f"{self.jobs[job]}.fifo", "w") as gate:
            gate.write(f"{code}\n")

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.cluster.api("GET", "/v1/jobs?limit=1000").json()}

    def alive(self) -> dict[str, int]:
        """Job -> pid of its first process, by the agent's handles and the kernel."""
        found: dict[str, int] = {}
        for path in self.records("handles"):
            try:
                handle = json.loads(path.read_bytes())
            except FileNotFoundError:
                continue  # it ended while we looked
            job = handle["workload"].rpartition(".")[0]
            if job in self.jobs and start_time(handle["pid"]) == handle["start_time"]:
                found[job] = handle["pid"]
        return found

    def records(self, kind: str, pattern: str = "*") -> list[Path]:
        return sorted((self.cluster.home / "agent" / kind).glob(f"{pattern}.json"))

    def wait_terminal(self, jobs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """All rows, once these jobs have ended."""
        wanted = set(jobs)

        def ended() -> dict[str, dict[str, Any]] | None:
            rows = self.rows()
            return rows if all(rows[job]["state"] in TERMINAL for job in wanted) else None

        return wait_until(ended, 30, f"{wanted} to end")

    def wait_running(self) -> None:
        for job in self.jobs:
            if self.cluster.job(job)["state"] not in TERMINAL:
                self.cluster.wait_job(job, "RUNNING")

    def check(self, before: dict[str, int], ended: dict[str, int | None]) -> None:
        """`before`: who lived before the fault. `ended`: who was told to end meanwhile, and the code that must be known of it."""
        rows = self.wait_terminal(ended)
        assert set(self.jobs) <= set(rows), "I1"
        assert {job: (self.notes / job).read_text().split() for job in before} == {job: [f"{job}.1"] for job in before}, "I2"
        survivors = {job: pid for job, pid in before.items() if job not in ended}
        assert {job: pid for job, pid in self.alive().items() if job in before} == survivors, "I3"
        assert all(rows[job]["state"] == "RUNNING" for job in survivors), rows
        assert {job: rows[job]["exit_code"] for job in ended} == ended
        self.check_quiet()
        self.check_history(rows)

    def check_quiet(self) -> None:
        """I6."""
        wait_until(lambda: not self.orphans(), 20, f"nothing of what has ended to be left: {self.orphans()}")

    def check_history(self, rows: dict[str, dict[str, Any]]) -> None:
        """I7: into a terminal state exactly once, and never out of it; nothing illegal was tried (R7)."""
        import pysqlite3  # type: ignore[import-untyped]

        store = pysqlite3.connect(f"file:{self.cluster.home}/server/steelyard.db?mode=ro", uri=True)
        try:
            events = store.execute("SELECT subject, text FROM event WHERE kind = 'job' ORDER BY seq").fetchall()
        finally:
            store.close()
        ends = Counter(subject for subject, text in events if any(f"-> {state}" in text for state in TERMINAL))
        assert ends == {job: 1 for job, row in rows.items() if row["state"] in TERMINAL}, "I7"
        assert not [text for _, text in events if "illegal" in text], "R7"

    def orphans(self) -> list[str]:
        """Control groups, records, pages and sockets of nothing that lives or is prepared."""
        rows, run = self.rows(), make_paths(self.cluster.home, dict(os.environ), os.getuid()).run
        known = {path.stem for path in self.records("intents")}
        groups = {path for path in Path("/sys/fs/cgroup").glob(f"*/steelyard-{self.cluster.tag}/*") if path.is_dir()}
        found = [f"control group {path}" for path in groups if path.name not in {*known, "shared"}]
        found += [f"page {path.name}" for path in (run / "pages").iterdir() if path.name not in known]
        workloads = {path.stem for kind in ("intents", "handles", "exits") for path in self.records(kind)}
        for workload in sorted(workloads):
            row = rows.get(workload.rpartition(".")[0])
            if row is not None and row["state"] in TERMINAL:
                found.append(f"record of {workload}, which has ended")
        detail = {each: [kind for kind in ("intents", "handles", "exits") if self.records(kind, each)] for each in workloads}
        for name in FUNCTIONS:
            templates = [workload for workload in workloads if workload.startswith(f"tmpl.{name}.")]
            others = [workload for workload in workloads if workload.startswith(f"{name}.")]
            # one replica and one prepared slot at most
            found += [f"templates {templates}"] * (len(templates) > 1)
            found += [f"replicas {[(workload, detail[workload]) for workload in others]}"] * (len(others) > 2)
        sockets = sorted(path.name for folder in ("fn", "tmpl") for path in (run / folder).iterdir())
        # of each function its own and its template's, and the base's that the templates came from
        return found + [f"sockets {sockets}"] * (len(sockets) > 2 * len(FUNCTIONS) + 1)


def start_time(pid: int) -> int | None:
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])


def agent_attached(cluster: Cluster) -> bool:
    try:
        answer = cluster.api("GET", "/v1/status", timeout=2)
    except OSError:
        return False
    return answer.status == 200 and answer.json()["agent"] == "connected"


def forgive_deaths(cluster: Cluster) -> None:
    """A program that dies again and again is started ever later; a new supervisor knows nothing of the earlier deaths."""
    cluster.kill("up")
    cluster.up()
    wait_until(lambda: agent_attached(cluster), 20, "the agent to be back")


def called(cluster: Cluster, name: str) -> Callable[[], int]:
    return lambda: cluster.call(f"/{name}/pid", timeout=30).status


def microseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


@pytest.fixture(scope="module")
def world(shared: Cluster) -> World:
    notes = shared.folder / "notes"
    notes.mkdir()
    notes.chmod(0o777)
    made = World(shared, notes, {})
    deploy(shared, "warm", MANY, "--min-replicas", "1")
    deploy(shared, "sleepy", MANY, "--idle-timeout", "300ms")
    for number in range(JOBS):
        made.submit(f"first-{number}")
    made.wait_running()
    return made


def test_before_any_fault_all_is_as_it_should_be(world: World) -> None:
    before = world.alive()
    assert len(before) == JOBS
    victim = next(iter(before))
    world.end(victim, 2)
    world.check(before, {victim: 2})


def test_a_deploy_that_fails_is_tried_once_and_leaves_nothing(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    tries = world.notes / "tries"
    tries.touch()
    tries.chmod(0o666)
    app = write_app(cluster, "broken", f"open({str(tries)!r}, 'a').write('x')\nraise ValueError('no such weights')\n")
    done = cluster.cli("deploy", f"{app}:app", "--name", "broken", "--public")
    assert (done.returncode, b"no such weights" in done.stderr) == (2, True)
    for _ in range(3):  # each brings the agent a new assignment that names the broken function again
        world.end(world.submit(f"poke-{len(world.jobs)}"), 0)
        world.wait_terminal(list(world.jobs)[-1:])
    assert (tries.read_text(), cluster.function("broken")["state"]) == ("x", "FAILED")
    assert not [path for kind in ("intents", "handles", "exits") for path in world.records(kind, "*broken*")]
    cluster.ok("delete", "broken")
    world.check(before, {})


def test_a_minimum_that_is_busy_never_grows_beyond_the_maximum(world: World) -> None:
    cluster = world.cluster
    blocking = MANY.replace("await asyncio.sleep(", "__import__('time').sleep(")  # meanwhile connections wait in the socket
    deploy(cluster, "lone", blocking, "--min-replicas", "1", "--max-replicas", "1", "--concurrency", "4")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: cluster.call("/lone/sleep/0.05"), range(24)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1, "the requests that waited woke a second replica"
    assert cluster.function("lone")["replicas"] == 1
    cluster.ok("delete", "lone")


def test_server_is_back_in_time_with_what_ended_meanwhile(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    victim = next(iter(before))
    with Load(called(cluster, "warm")) as warm:
        begun = time.monotonic()
        cluster.kill("server")
        world.end(victim, 3)

        def answers() -> bool:
            try:
                return cluster.api("GET", "/v1/jobs?limit=1", timeout=2).status == 200
            except OSError:
                return False

        wait_until(answers, 10, "the API")
        back_s = time.monotonic() - begun
        wait_until(lambda: agent_attached(cluster), 10, "the agent to attach")
        attached_s = time.monotonic() - begun - back_s
        assert set(warm.stop()) == {200}
    assert back_s < 2, "RELIABILITY: API back < 2 s"
    assert attached_s < 2, "RELIABILITY: agents re-attached < 2 s later"
    world.check(before, {victim: 3})


def test_agent_adopts_in_time_and_knows_when_what_ended_meanwhile_ended(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    victims = list(before)[:3]
    cluster.wait_function("sleepy", "SLEEPING")
    cluster.kill("up", signal.SIGSTOP)  # nobody starts the agent again until the gap was long enough
    try:
        killed = cluster.kill("agent")
        for code, victim in enumerate(victims, 40):
            world.end(victim, code)
        recorded = wait_until(
            lambda: found if len(found := [path for path in world.records("exits") if path.stem[:-2] in victims]) == 3 else None,
            10,
            "the spawner to record three exits",
        )
        true_ends = {path.stem[:-2]: json.loads(path.read_bytes())["ended_at"] for path in recorded}
        with ThreadPoolExecutor(5) as pool:
            waiting: list[Future[int]] = [pool.submit(called(cluster, "sleepy")) for _ in range(5)]
            assert called(cluster, "warm")() == 200
            assert not any(item.done() for item in waiting)
            cluster.kill("up", signal.SIGCONT)
            begun = time.monotonic()
            assert [item.result(30) for item in waiting] == [200] * 5
    finally:
        cluster.kill("up", signal.SIGCONT)
    cluster.wait_replaced("agent", killed)
    wait_until(lambda: agent_attached(cluster), 10, "the agent to attach")
    assert time.monotonic() - begun < 2, "RELIABILITY: all adopted < 2 s"
    world.check(before, {victim: code for code, victim in enumerate(victims, 40)})
    rows = world.rows()
    assert {victim: microseconds(rows[victim]["ended_at"]) for victim in victims} == true_ends
    assert {rows[victim]["reason"] for victim in victims} == {"exited-nonzero"}


def test_gateway_is_back_in_time(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    cluster.kill("envoy")
    begun = time.monotonic()

    def answers() -> bool:
        try:
            return called(cluster, "warm")() == 200
        except OSError:
            return False

    wait_until(answers, 10, "the gateway")
    assert time.monotonic() - begun < 1, "RELIABILITY: back < 1 s from disk"
    assert called(cluster, "sleepy")() == 200
    world.check(before, {})


def test_template_that_dies_leaves_nothing_and_is_rebuilt_once(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    cluster.wait_function("sleepy", "SLEEPING")
    (record,) = world.records("handles", "tmpl.sleepy.*")
    os.kill(json.loads(record.read_bytes())["pid"], signal.SIGKILL)
    assert called(cluster, "sleepy")() == 200
    wait_until(lambda: len(found := world.records("handles", "tmpl.sleepy.*")) == 1 and found[0] != record, 20, "a new template")
    world.check(before, {})


def test_server_agent_and_gateway_killed_at_once(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    victim = next(iter(before))
    for program in ("server", "agent", "envoy"):
        cluster.kill(program)
    world.end(victim, 9)
    wait_until(lambda: agent_attached(cluster), 20, "all to be back")
    world.check(before, {victim: 9})
    assert called(cluster, "sleepy")() == called(cluster, "warm")() == 200


def test_requests_that_an_old_revision_holds_outlive_the_agent(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    deploy(cluster, "warm", MANY.replace("VERSION", "holding"), "--min-replicas", "1")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(cluster.call, "/warm/sleep/6", timeout=30)
        wait_until(lambda: busy(world, "warm"), 5, "the request to be held")
        deploy(cluster, "warm", MANY.replace("VERSION", "next"), "--min-replicas", "1")
        assert cluster.call("/warm/pid").body.startswith(b"next ")
        cluster.wait_replaced("agent", cluster.kill("agent"))
        wait_until(lambda: agent_attached(cluster), 20, "the agent to be back")
        assert not held.done()
        answer = held.result(30)
    assert (answer.status, answer.body[:8]) == (200, b"holding ")
    world.check(before, {})


def busy(world: World, name: str) -> bool:
    run = make_paths(world.cluster.home, dict(os.environ), os.getuid()).run
    pages = [Page.open(str(path)) for path in (run / "pages").glob(f"{name}.*")]
    try:
        return any(page.busy for page in pages)
    finally:
        for page in pages:
            page.close()


def test_agent_killed_while_revisions_take_over(world: World) -> None:
    """Whatever step a roll-out was at: it is finished by the next agent, nothing doubles, nothing is left, no request fails."""
    before, cluster = world.alive(), world.cluster
    with Load(called(cluster, "warm")) as warm:
        for number in range(4):
            text = MANY.replace("VERSION", f"take-over-{number}")
            rolling = threading.Thread(target=deploy, args=(cluster, "warm", text, "--min-replicas", "1"))
            forgive_deaths(cluster)
            revision = cluster.function("warm")["revision"]
            rolling.start()
            wait_until(lambda seen=revision: cluster.function("warm")["revision"] > seen, 10, "the new revision")
            threading.Event().wait(number * 0.15)  # a different step each time
            cluster.kill("agent")
            forgive_deaths(cluster)
            rolling.join(60)
            assert cluster.function("warm")["state"] == "RUNNING", cluster.function("warm")
            assert cluster.call("/warm/pid").body.startswith(f"take-over-{number} ".encode())
        assert set(warm.stop()) == {200}
    world.check(before, {})


def test_spawner_killed_leaves_replicas_serving_and_replaces_them_when_they_die(world: World) -> None:
    before, cluster = world.alive(), world.cluster
    victim = next(iter(before))
    killed = cluster.kill("spawner")
    cluster.wait_replaced("spawner", killed)
    world.end(victim, 5)
    world.check(before, {victim: None})
    assert world.rows()[victim]["reason"] == "exit-unknown"
    body = cluster.call("/warm/pid").body
    os.kill(int(body.split()[1]), signal.SIGKILL)

    def another() -> bool:
        answer = cluster.call("/warm/pid", timeout=10)
        return answer.status == 200 and answer.body != body

    wait_until(another, 15, "another replica")
    assert called(cluster, "sleepy")() == 200
    # ends of the old spawner's children are still unknown to a restarted agent, and are not taken for failures of the new one
    later = next(job for job in before if job != victim)
    forgive_deaths(cluster)
    cluster.wait_replaced("agent", cluster.kill("agent"))
    world.end(later, 6)
    world.check({job: pid for job, pid in before.items() if job != victim}, {later: None})


def test_in_the_end_each_job_has_ended_once(world: World) -> None:
    cluster = world.cluster
    running = [job for job, row in world.rows().items() if row["state"] == "RUNNING"]
    assert running
    for job in running:
        assert cluster.api("POST", f"/v1/jobs/{job}/stop", {"signal": 15, "grace_s": 5}).status == 202
    rows = world.wait_terminal(world.jobs)
    assert {rows[job]["state"] for job in running} == {"STOPPED"}
    assert world.alive() == {}
    world.check_quiet()
    world.check_history(rows)


def test_after_the_last_delete_nothing_is_left_but_the_programs_and_a_base_for_the_next(world: World) -> None:
    cluster = world.cluster
    for name in FUNCTIONS:
        cluster.ok("delete", name)
    run = make_paths(cluster.home, dict(os.environ), os.getuid()).run

    def left() -> list[str]:
        records = [path for kind in ("intents", "handles", "exits") for path in world.records(kind)]
        files = [path for folder in ("fn", "pages") for path in (run / folder).iterdir()]
        groups = [path for path in Path("/sys/fs/cgroup").glob(f"*/steelyard-{cluster.tag}/*") if path.is_dir()]
        kept = [path for path in (*records, *files, *groups) if path.name != "shared" and not path.name.startswith("tmpl-base.")]
        return [str(path) for path in (*kept, *[*(run / "tmpl").iterdir()][1:])]

    wait_until(lambda: not left(), 20, f"all to be gone: {left()}")
    assert json.loads((cluster.home / "agent" / "routed.json").read_bytes()) == {}
    assert json.loads((cluster.home / "agent" / "draining.json").read_bytes()) == []
