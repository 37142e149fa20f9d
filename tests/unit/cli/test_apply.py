"""The plan as it is printed, the order of applying, and what is done when something is refused in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli import apply as apply_command
from steelyard.cli.apply_plan import find_changes, order_documents
from steelyard.cli.documents import Document
from steelyard.errors import NotFound, Refused
from steelyard.model.batch import Dependency
from steelyard.model.ids import JobId
from steelyard.model.job import JobSpec
from steelyard.wire.api import JobForecast, JobView, ScheduleView


class FakeServer:
    """Answers like the API; keeps what it was told."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.schedules: dict[str, Any] = {}
        self.refuse: Callable[[str, str], Exception | None] = lambda method, path: None
        self.forecast: JobForecast | None = JobForecast(True, None, None, "", cpus=(2, 3), gpus=("GPU0",))

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def fetch(self, kind: Any, method: str, path: str, *, body: Any = None, key: str | None = None, **_: Any) -> Any:
        if (refused := self.refuse(method, path)) is not None:
            raise refused
        if path == "/v1/plan":
            if self.forecast is None:
                raise NotFound("no such route")
            return self.forecast
        if path == "/v1/jobs":
            self.jobs.append(msgspec.to_builtins(body))
            spec = body.spec
            id_ = f"j-{len(self.jobs):06d}"
            return JobView(
                id_, spec.name, "default", "ann", 1, "QUEUED", None, "", None, "", None, None, spec.argv, (), None
            )  # fmt: skip
        name = path.rsplit("/", 1)[1]
        if method == "PUT":
            self.schedules[name] = body
        if name not in self.schedules:
            raise NotFound(f"There is no {name}.")
        put = self.schedules[name]
        return ScheduleView(name, "default", "ann", 1, put.cron, put.timezone, False, None, None, None, put.spec)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    made = FakeServer()
    monkeypatch.setattr(apply_command, "open_client", lambda home: made)
    for name in ("PATH", "LANG", "LC_ALL", "TZ", "TERM"):
        monkeypatch.setenv(name, "x")
    return made


def run(folder: Path, text: str, *args: str) -> Result:
    file = folder / "f.yaml"
    file.write_text(text)
    return CliRunner().invoke(apply_command.apply, ["-f", str(file), *args])


CHAIN = """\
type: job
name: train
resources: {cpu: 2, memory: 4GB}
commands: [make data, python train.py]
env: {TOKEN: secret}
after: ok:prepare
---
type: job
name: prepare
command: make data
---
type: schedule
name: nightly
schedule: 0 3 * * *
command: make report
"""


def test_the_plan_reads_like_this(tmp_path: Path, server: FakeServer) -> None:
    done = run(tmp_path, CHAIN, "-y")
    assert done.exit_code == 0, done.output
    assert (
        done.output.replace(str(tmp_path), "DIR")
        == """\
+ job prepare: new
    command: make data
    cwd: DIR
    it would start now on CPUs 2,3 and GPUs GPU0
+ job train: new
    command: /bin/sh -c 'set -e; make data; python train.py'
    cwd: DIR
    resources.cpus: 2.0
    resources.memory_bytes: 4000000000
    env.TOKEN: (hidden)
    after: prepare (ok)
    when these are done, it would start now on CPUs 2,3 and GPUs GPU0
+ schedule nightly: new
    command: make report
    cron: 0 3 * * *
    timezone: UTC
    cwd: DIR
job prepare j-000001
job train j-000002
schedule nightly create
"""
    )
    assert [job["spec"]["name"] for job in server.jobs] == ["prepare", "train"]
    assert list(server.jobs[1]["spec"]["after"]) == [{"job": "j-000001", "kind": "ok"}]


def test_a_second_apply_changes_only_what_changed(tmp_path: Path, server: FakeServer) -> None:
    text = CHAIN[CHAIN.rindex("---") :]
    assert run(tmp_path, text, "-y").exit_code == 0
    assert run(tmp_path, text, "-y").output == "= schedule nightly: as it is\nschedule nightly unchanged\n"
    changed = run(tmp_path, text.replace("0 3", "0 4") + "priority: 70\n", "-y").output
    assert changed == (
        "~ schedule nightly: changed in place\n    cron: 0 3 * * * -> 0 4 * * *\n    spec.priority: 50 -> 70\n"
        "schedule nightly update\n"
    )


def test_where_and_when_are_said_as_far_as_the_server_knows(tmp_path: Path, server: FakeServer) -> None:
    text = "type: job\nname: x\ncommand: a\n"
    server.forecast = JobForecast(False, "2026-05-01T14:20:00.000000Z", "no-cores-left", "8 cores are asked for", cpus=(0,))
    assert (
        "it would start about 2026-05-01 14:20Z on CPUs 0 (no-cores-left: 8 cores are asked for)"
        in run(tmp_path, text, "-y").output
    )
    server.forecast = JobForecast(False, None, "held", "somebody holds it")
    assert "it would wait (held: somebody holds it)" in run(tmp_path, text, "-y").output
    server.forecast = None
    assert "where and when: this server does not tell" in run(tmp_path, text, "-y").output


def test_nothing_is_applied_when_nobody_agrees(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path, CHAIN)
    assert isinstance(done.exception, Refused) and "with -y" in done.exception.public
    monkeypatch.setattr(apply_command, "_agreed", lambda count, taken: False)
    done = run(tmp_path, CHAIN)
    assert (done.exit_code, "Nothing was applied" in done.output) == (1, True)
    shown = msgspec.json.decode(run(tmp_path, CHAIN, "--json").stdout)
    assert [(step["type"], step["name"], step["action"], step["id"]) for step in shown] == [
        ("job", "prepare", "create", None), ("job", "train", "create", None), ("schedule", "nightly", "create", None),
    ]  # fmt: skip
    assert (server.jobs, server.schedules) == ([], {})
    applied = msgspec.json.decode(run(tmp_path, CHAIN, "--json", "-y").stdout)
    assert [step["id"] for step in applied] == ["j-000001", "j-000002", None]


def test_a_refused_plan_applies_nothing_and_a_refusal_in_the_middle_says_what_is_done(tmp_path: Path, server: FakeServer) -> None:
    server.refuse = lambda method, path: Refused("too many cores") if path == "/v1/plan" else None
    done = run(tmp_path, CHAIN, "-y")
    assert isinstance(done.exception, Refused)
    assert "f.yaml:8 (prepare): too many cores" in done.exception.public
    assert (server.jobs, server.schedules) == ([], {})
    server.refuse = lambda method, path: Refused("the queue is full") if server.jobs and path == "/v1/jobs" else None
    done = run(tmp_path, CHAIN, "-y")
    assert isinstance(done.exception, Refused)
    assert done.exception.public.endswith("(train): the queue is full Applied before it: job prepare (j-000001).")


def test_a_bad_cron_line_is_found_before_anything_is_applied(tmp_path: Path, server: FakeServer) -> None:
    done = run(tmp_path, CHAIN.replace("0 3 * * *", "0 0 30 2 *"), "-y")
    assert isinstance(done.exception, Refused)
    assert server.jobs == []


# the order


def make(name: str, *after: str) -> Document:
    spec = JobSpec(name, ("x",), "/", after=tuple(Dependency(JobId(each)) for each in after))
    return Document("job", name, f"f:{name}", spec)


def test_a_cycle_is_named() -> None:
    with pytest.raises(Refused, match="b -> c -> d -> b"):
        order_documents([make("a", "b"), make("b", "c"), make("c", "d"), make("d", "b")])
    with pytest.raises(Refused, match="a -> a"):
        order_documents([make("a", "a")])


def test_names_twice_and_names_of_nothing_are_refused() -> None:
    with pytest.raises(Refused, match="another job a"):
        order_documents([make("a"), make("a")])
    with pytest.raises(Refused, match="neither a job in the file"):
        order_documents([make("a", "b")])
    assert [each.name for each in order_documents([make("a", "17", "j-000018", "19_3")])] == ["a"]


def test_a_chain_of_a_thousand_is_ordered() -> None:
    documents = [make(f"n{number}", f"n{number + 1}") for number in range(999)] + [make("n999")]
    assert [each.name for each in order_documents(documents)] == [f"n{number}" for number in range(999, -1, -1)]


@given(st.data())
def test_every_job_comes_after_what_it_waits_for_and_nothing_is_lost(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    names = [f"n{number}" for number in range(count)]
    documents = [make(name, *data.draw(st.sets(st.sampled_from(names), max_size=3))) for name in names]
    try:
        ordered = [each.name for each in order_documents(documents)]
    except Refused as err:
        told = err.public
    else:
        told = ""
    if told:
        assert "wait for each other" in told
        return
    assert sorted(ordered) == sorted(names)
    for document in documents:
        assert document.spec is not None
        assert all(ordered.index(after.job) < ordered.index(document.name) for after in document.spec.after)


def test_changes_are_told_by_field_and_variables_without_their_values() -> None:
    old = JobSpec("x", ("a",), "/", env={"A": "1", "B": "2"})
    new = msgspec.structs.replace(old, env={"A": "9", "C": "3"}, priority=60)
    assert [(change.field, change.old, change.new) for change in find_changes(old, new)] == [
        ("env.A", "(hidden)", "(hidden)"), ("env.B", "(hidden)", None), ("priority", 50, 60), ("env.C", None, "(hidden)"),
    ]  # fmt: skip
