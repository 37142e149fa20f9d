"""Files of `apply`: what is understood, what is refused with its line, and that nothing else happens."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steelyard.cli.documents import BYTES_MAX, Document, read_documents
from steelyard.errors import Refused
from steelyard.model.batch import Dependency, DependencyKind, Gang, Launcher, RetryOn
from steelyard.model.function import ScaleOn
from steelyard.model.ids import JobId
from steelyard.model.timing import Timing

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read(text: str) -> list[Document]:
    return read_documents(text.encode(), "f.yaml", "/srv", NOW)


def job(text: str) -> Document:
    (document,) = read(f"type: job\nname: x\n{text}")
    return document


def test_a_job_is_read_as_the_command_line_reads_its_options() -> None:
    document = job(
        """\
resources: {cpu: 2.5, memory: 4GB, gpu: H100:2, timing: dedicated, nics: 1, scratch: 20GB, exclusive: true}
nodes: 2
tasks_per_node: 4
launcher: torchrun
command: python train.py --name "two words"
env: {YES: no, NUMBER: 0190}
workdir: sub/../code
priority: 70
account: lab/ann
max_duration: 1h30m
retry: [error:3@30s, oom:1]
preemptible: true
array: 0-9%2
after: [ok:prepare, any:17]
"""
    )
    spec = document.spec
    assert spec is not None
    assert spec.argv == ("python", "train.py", "--name", "two words")
    assert (spec.resources.cpus, spec.resources.memory_bytes, spec.resources.nics) == (2.5, 4_000_000_000, 1)
    assert spec.resources.gpus is not None and (spec.resources.gpus.model, spec.resources.gpus.count) == ("H100", 2)
    assert (spec.resources.timing, spec.resources.exclusive, spec.resources.preemptible) == (Timing.DEDICATED, True, True)
    assert spec.gang == Gang(2, 4, Launcher.TORCHRUN)
    assert (spec.env["YES"], spec.env["NUMBER"]) == ("no", "0190")
    assert (spec.cwd, spec.priority, spec.account, spec.max_duration_s) == ("/srv/code", 70, "lab/ann", 5400)
    assert [(rule.on, rule.times, rule.backoff_s) for rule in spec.retry] == [(RetryOn.ERROR, 3, 30), (RetryOn.OOM, 1, 10)]
    assert spec.after == (Dependency(JobId("prepare")), Dependency(JobId("17"), DependencyKind.ANY))
    assert document.array == "0-9%2"


def test_commands_are_one_script_that_stops_at_the_first_error() -> None:
    spec = job("commands:\n  - make\n  - ./a.out | tee log\n").spec
    assert spec is not None
    assert spec.argv == ("/bin/sh", "-c", "set -e\nmake\n./a.out | tee log")
    assert (spec.name, spec.cwd) == ("x", "/srv")


def test_a_plain_number_of_retries_is_for_errors() -> None:
    spec = job("command: a\nretry: 4\n").spec
    assert spec is not None and [(rule.on, rule.times) for rule in spec.retry] == [(RetryOn.ERROR, 4)]


def test_several_documents_of_all_kinds() -> None:
    found = read(
        """\
type: job
name: a
command: [x, "y z"]
---
type: schedule
name: nightly
schedule: "0 3 * * *"
timezone: Europe/Berlin
commands: [make]
---
type: function
name: hello
target: app.py:app
replicas: 0..8
resources: {memory: 1GB}
env: {A: b}
idle_timeout: 5m
wake_bound: 2s
volumes: [data:/data, "models:/models:ro"]
secrets: [db]
traffic: 10
tag: next
rollback_errors: 2%
---
type: function
name: files
command: python3 -m http.server 8000
port: 8000
readiness: /health
replicas: 2
scale_on: [{metric: waiting, target: 4}, {metric: tokens_total, target: 0.5}]
"""
    )
    assert [(document.kind, document.name, document.where) for document in found] == [
        ("job", "a", "f.yaml:1"), ("schedule", "nightly", "f.yaml:5"), ("function", "hello", "f.yaml:11"),
        ("function", "files", "f.yaml:25"),
    ]  # fmt: skip
    assert (found[1].cron, found[1].timezone) == ("0 3 * * *", "Europe/Berlin")
    assert found[1].spec is not None and "TERM" not in found[1].spec.env
    hello, files = found[2].function, found[3].function
    assert hello is not None and files is not None
    assert (hello.target, hello.replicas, hello.env, hello.idle_timeout_s) == (("/srv/app.py:app",), (0, 8), {"A": "b"}, 300)
    assert hello.resources.memory_bytes == 1_000_000_000 and (hello.wake_bound_s, files.wake_bound_s) == (2.0, None)
    assert (files.target, files.port, files.replicas) == (("python3", "-m", "http.server", "8000"), 8000, (2, 2))
    assert files.scale_on == (ScaleOn("waiting", 4.0), ScaleOn("tokens_total", 0.5))
    assert [(each.name, each.path, each.read_only) for each in hello.volumes] == [
        ("data", "/data", False),
        ("models", "/models", True),
    ]
    assert [each.name for each in hello.secrets] == ["db"]
    assert (hello.traffic, hello.tag, hello.errors_max) == (10, "next", 0.02)
    assert (files.traffic, files.tag, files.errors_max, files.volumes) == (100, "", 0.05, ())
    assert (files.readiness, hello.readiness) == ("/health", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no document"),
        ("- a\n", "is a mapping"),
        ("name: x\n", "f.yaml:1: `type` must be one of"),
        ("name: x\ntype: jobb\n", "f.yaml:2: `type` must be"),
        ("type: pool\nname: p\n", "f.yaml:1: pools are not in this version"),
        ("type: job\n", "f.yaml:1: `name` must"),
        ("type: job\nname: A B\ncommand: x\n", "f.yaml:2: `name` must"),
        ("type: job\nname: x\n\ncomands: [a]\n", "f.yaml:4: a job has no 'comands'; did you mean 'commands'?"),
        ("type: job\nname: x\ncommand: a\nresources:\n  cpus: 1\n", "f.yaml:5: resources has no 'cpus'; did you mean 'cpu'?"),
        ("type: job\nname: x\ncommand: a\nschedule: 0 3 * * *\n", "f.yaml:4: a job has no 'schedule'"),
        ("type: schedule\nname: x\ncommand: a\n", "needs `schedule`"),
        ("type: schedule\nname: x\ncommand: a\nafter: ok:1\n", "f.yaml:4: a schedule has no 'after'"),
        ("type: job\nname: x\n", "exactly one of `commands`"),
        ("type: job\nname: x\ncommand: a\ncommands: [b]\n", "exactly one of"),
        ("type: job\nname: x\ncommands: a\n", "`commands` is a list of texts"),
        ("type: job\nname: x\ncommand: 'a \"b'\n", "f.yaml:3: `command` can't be split"),
        ("type: job\nname: x\ncommand: a\nresources: {memory: much}\n", "much"),
        ("type: job\nname: x\ncommand: a\nresources: {cpu: two}\n", "`cpu` is a number"),
        ("type: job\nname: x\ncommand: a\nresources: 4\n", "`resources` is a mapping"),
        ("type: job\nname: x\ncommand: a\nnodes: 1.5\n", "`nodes` is a whole number"),
        ("type: job\nname: x\ncommand: a\npreemptible: yes\n", "is true or false"),
        ("type: job\nname: x\ncommand: a\nlauncher: slurm\n", "one of none, torchrun, mpi"),
        ("type: job\nname: x\ncommand: a\nafter: maybe:1\n", "f.yaml:4"),
        ("type: job\nname: x\ncommand: a\nretry: often\n", "retry rule"),
        ("type: job\nname: x\ncommand: a\nenv: {A: [b]}\n", "`A` is text"),
        ("type: job\nname: x\nname: y\n", "stands twice"),
        ("type: function\nname: x\ntarget: a.py:app\nreplicas: many\n", "`replicas` is written"),
        ("type: function\nname: x\ncommand: a\nscale_on: [{metric: a}]\n", "`scale_on` is a list of metrics"),
        ("type: function\nname: x\ncommand: a\nscale_on: many\n", "`scale_on` is a list of metrics"),
        ("type: function\nname: x\ncommand: a\ntraffic: 101\n", "f.yaml:4: `traffic` is per cent"),
        ("type: function\nname: x\ncommand: a\nrollback_errors: much\n", "f.yaml:4: 'much' is no share"),
        ("type: function\nname: x\ncommand: a\nschedule: 0 3 * * *\n", "@app.function(schedule=...)"),
        ("type: function\nname: x\ncommand: a\nretries: 3\n", "`steelyard deploy FILE.py` reads"),
        ("type: function\nname: x\ntarget: a.py:app\npriority: 3\n", "a function has no 'priority'"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: !!python/object:os.system x\n", "tags"),
        ("[" * 100, "nested deeper"),
        ("a: [\n", "no YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read(text)
    assert words in refused.value.public


def test_size_and_encoding_are_looked_at_first() -> None:
    with pytest.raises(Refused, match="larger than"):
        read_documents(b" " * (BYTES_MAX + 1), "f", "/", NOW)
    with pytest.raises(Refused, match="no UTF-8"):
        read_documents(b"\xff", "f", "/", NOW)


_WORDS = st.sampled_from(
    ["type", "name", "job", "schedule", "function", "x", "command", "commands", "resources", "cpu", "memory", "4GB", "env",
     "after", "ok:x", "retry", "3", "1.5", "true", "array", "0-9", "replicas", "0..8", "target", "a.py:app", "nodes", "", "\0",
     "begin", "nan"]
)  # fmt: skip
_VALUES = st.recursive(
    _WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4), max_leaves=8
)


@given(st.dictionaries(_WORDS, _VALUES, max_size=8))
@example({"type": "job", "name": "x", "command": "a", "resources": {"cpu": "nan"}})
def test_any_document_is_read_or_refused_in_a_sentence(content: dict[str, object]) -> None:
    with contextlib.suppress(Refused):
        (document,) = read(json.dumps({"type": "job", "name": "x", **content}))
        assert document.name


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert read(text)
