"""What can't work is refused at the door, with a stable code and before anything is stored."""

from __future__ import annotations

import msgspec
import pytest

from machines import make_machine
from steelyard.api.door import check_fields, check_function, check_job
from steelyard.model.function import FunctionSpec, ScaleOn
from steelyard.model.job import JobSpec, Resources
from steelyard.model.machine import Core
from steelyard.model.timing import Timing

GIB = 1 << 30
MACHINE = make_machine(cores=(Core((0,)), Core((1,))), memory_bytes=8 * GIB)
JOB = JobSpec("train", ("python", "x.py"), "/srv", {"PATH": "/bin"})
APP = FunctionSpec(file="app.py", attr="app", python="/usr/bin/python3", cwd="/srv")
PROGRAM = FunctionSpec(argv=("server",), cwd="/srv", port=8000)

JOBS: list[tuple[dict[str, object], str]] = [
    ({"name": ""}, "bad-name"),
    ({"name": "a/b"}, "bad-name"),
    ({"name": "a\nb"}, "bad-name"),
    ({"name": "x" * 101}, "bad-name"),
    ({"argv": ()}, "no-command"),
    ({"slurm": {"A": "\0"}}, "nul-byte"),
    ({"slurm": {"A=B": "c"}}, "bad-env"),
    ({"argv": ("",)}, "no-command"),
    ({"argv": ("a", "b\0c")}, "nul-byte"),
    ({"argv": ("a", "x" * 131_072)}, "command-too-long"),
    ({"argv": ("a",) * 30_000}, "command-too-long"),
    ({"env": {"A=B": "x"}}, "bad-env"),
    ({"env": {"": "x"}}, "bad-env"),
    ({"env": {"1A": "x"}}, "bad-env"),
    ({"env": {"A": "x\0"}}, "nul-byte"),
    ({"cwd": "srv"}, "bad-path"),
    ({"cwd": ""}, "bad-path"),
    ({"cwd": "/a\0"}, "bad-path"),
    ({"resources": Resources(0)}, "bad-cpus"),
    ({"resources": Resources(-1)}, "bad-cpus"),
    ({"resources": Resources(float("nan"))}, "bad-cpus"),
    ({"resources": Resources(float("inf"))}, "bad-cpus"),
    ({"resources": Resources(0.5, exclusive=True)}, "bad-cpus"),
    ({"resources": Resources(0.5, timing=Timing.REALTIME)}, "bad-cpus"),
    ({"resources": Resources(2, timing=Timing.DEDICATED)}, "cores-beyond-machine"),
    ({"resources": Resources(max_wakeup_us=0)}, "bad-max-wakeup"),
    ({"resources": Resources(max_wakeup_us=10_000_001)}, "bad-max-wakeup"),
    ({"resources": Resources(2.01)}, "cores-beyond-machine"),
    ({"resources": Resources(2, exclusive=True)}, "cores-beyond-machine"),
    ({"resources": Resources(1e300)}, "cores-beyond-machine"),
    ({"resources": Resources(1, 9 * GIB)}, "memory-beyond-machine"),
    ({"resources": Resources(1, 0)}, "bad-memory"),
    ({"resources": Resources(1, -5)}, "bad-memory"),
    ({"resources": Resources(1, 1 << 70)}, "bad-memory"),
    ({"as_root": True}, "not-root"),
]

LENDER = msgspec.structs.replace(APP, resources=Resources(1, timing=Timing.DEDICATED), wake_bound_s=2.0)

FUNCTIONS: list[tuple[FunctionSpec, dict[str, object], str]] = [
    (APP, {"file": None, "attr": None}, "no-program"),
    (APP, {"argv": ("x",)}, "no-program"),
    (APP, {"file": "../x.py"}, "bad-file"),
    (APP, {"file": "/etc/x.py"}, "bad-file"),
    (APP, {"attr": None}, "bad-attr"),
    (APP, {"attr": "a b"}, "bad-attr"),
    (APP, {"port": 80, "interface": "call"}, "bad-port"),
    (APP, {"port": 80, "replicas_max": 2}, "bad-port"),
    (APP, {"python": ""}, "bad-python"),
    (APP, {"python": "python3"}, "bad-python"),
    (APP, {"cwd": None}, "no-code"),
    (APP, {"bundle": "abc"}, "bad-bundle"),
    (APP, {"cwd": "relative"}, "bad-path"),
    (APP, {"env": {"A B": ""}}, "bad-env"),
    (APP, {"replicas_min": 2}, "bad-replicas"),
    (APP, {"replicas_min": -1}, "bad-replicas"),
    (APP, {"replicas_max": 0}, "bad-replicas"),
    (APP, {"replicas_max": 10_000}, "bad-replicas"),
    (APP, {"concurrency": 0}, "bad-concurrency"),
    (APP, {"concurrency": 5000}, "bad-concurrency"),
    (APP, {"idle_timeout_s": 0.0}, "bad-timeout"),
    (APP, {"idle_timeout_s": float("nan")}, "bad-timeout"),
    (APP, {"startup_deadline_s": -1.0}, "bad-timeout"),
    (APP, {"wake_bound_s": 2.0}, "wake-bound-without-place"),
    (LENDER, {"replicas_min": 1}, "wake-bound-never-asleep"),
    (LENDER, {"wake_bound_s": 0.0}, "bad-wake-bound"),
    (LENDER, {"wake_bound_s": float("nan")}, "bad-wake-bound"),
    (LENDER, {"wake_bound_s": 60.0}, "bad-wake-bound"),
    (APP, {"resources": Resources(3)}, "cores-beyond-machine"),
    (APP, {"resources": Resources(1, exclusive=True)}, "exclusive-function"),
    (APP, {"as_root": True}, "not-root"),
    (PROGRAM, {"port": -1}, "bad-port"),
    (PROGRAM, {"replicas_max": 2}, "bad-port"),
    (PROGRAM, {"scale_on": (ScaleOn("a b", 1.0),)}, "bad-scale-on"),
    (PROGRAM, {"scale_on": (ScaleOn("a", 0.0),)}, "bad-scale-on"),
    (PROGRAM, {"scale_on": (ScaleOn("a", float("nan")),)}, "bad-scale-on"),
    (PROGRAM, {"scale_on": (ScaleOn("a", 1.0), ScaleOn("a", 2.0))}, "bad-scale-on"),
    (PROGRAM, {"scale_on": tuple(ScaleOn(f"a{n}", 1.0) for n in range(9))}, "bad-scale-on"),
    (APP, {"scale_on": (ScaleOn("a", 1.0),)}, "bad-scale-on"),
    (PROGRAM, {"port": 65536}, "bad-port"),
    (PROGRAM, {"argv": ("a\0",)}, "nul-byte"),
    (PROGRAM, {"readiness": "health"}, "bad-readiness"),
    (PROGRAM, {"readiness": "/a b"}, "bad-readiness"),
    (PROGRAM, {"readiness": "/a\r\nx: y"}, "bad-readiness"),
    (APP, {"readiness": "/health"}, "bad-readiness"),
]


@pytest.mark.parametrize(("change", "code"), JOBS)
def test_a_bad_job_is_found_out(change: dict[str, object], code: str) -> None:
    findings = check_job(msgspec.structs.replace(JOB, **change), MACHINE, root=False)
    assert findings[0].code == code, findings


@pytest.mark.parametrize(("spec", "change", "code"), FUNCTIONS)
def test_a_bad_function_is_found_out(spec: FunctionSpec, change: dict[str, object], code: str) -> None:
    findings = check_function("hello", msgspec.structs.replace(spec, **change), MACHINE, root=False)
    assert findings[0].code == code, findings


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.b", "a/b", "x" * 64, "é"])
def test_a_function_name_is_a_host_name(name: str) -> None:
    assert check_function(name, APP, MACHINE, root=False)[0].code == "bad-name"


def test_good_requests_pass() -> None:
    assert check_job(JOB, MACHINE, root=False) == []
    assert check_job(msgspec.structs.replace(JOB, as_root=True), MACHINE, root=True) == []
    assert check_job(msgspec.structs.replace(JOB, resources=Resources(1, exclusive=True)), MACHINE, root=False) == []
    assert check_function("hello-2", APP, MACHINE, root=False) == []
    assert check_function("a", PROGRAM, MACHINE, root=False) == []


def test_without_a_machine_only_what_no_machine_could_do_is_refused() -> None:
    giant = msgspec.structs.replace(JOB, resources=Resources(500.0, 1 << 45))
    assert check_job(giant, None, root=False) == []


def test_the_refusal_says_what_is_there() -> None:
    [finding] = check_job(msgspec.structs.replace(JOB, resources=Resources(3)), MACHINE, root=False)
    assert finding.text == "this machine has 2 cores; 3 asked"


def test_misspelt_options_are_named() -> None:
    raw = b'{"spec":{"name":"x","argv":["a"],"cwd":"/","resources":{"cpu":1}, "memory":5}}'
    assert [finding.text for finding in check_fields(raw, JobSpec)] == [
        "spec has no field 'memory'",
        "spec has no field 'resources.cpu'",
    ]
    assert check_fields(b'{"spec":{"name":"x"}}', JobSpec) == []


def test_what_is_out_of_use_now_is_waited_for_and_not_refused() -> None:
    sick = msgspec.structs.replace(MACHINE, blocked=("cpu:1", "node", "numa:0"))
    assert check_job(msgspec.structs.replace(JOB, resources=Resources(1, exclusive=True)), sick, root=False) == []
    assert check_job(msgspec.structs.replace(JOB, resources=Resources(2)), sick, root=False) == []


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"preemption": {"mode": "suspend", "grace": 3}}, "preemption.grace"),
        ({"retry": [{"on": "error", "times": 1}, {"on": "oom", "times": 1, "backoff": 9}]}, "retry[1].backoff"),
        ({"resources": {"gpus": {"count": 1, "modle": "x"}}}, "resources.gpus.modle"),
        ({"gang": {"rank": 1}, "env": {"any": "name"}, "warn": None}, "gang.rank"),
        ({"after": [{"job": "j-1", "kinds": "ok"}]}, "after[0].kinds"),
    ],
)
def test_a_misspelt_option_is_named_however_deep_it_stands(spec: dict[str, object], named: str) -> None:
    findings = check_fields(msgspec.json.encode({"spec": spec}), JobSpec)
    assert [finding.text for finding in findings] == [f"spec has no field {named!r}"]
