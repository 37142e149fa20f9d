"""What a queue can't do is refused at the door, by name."""

from __future__ import annotations

import msgspec
import pytest

from machines import make_machine
from steelyard.api.door_jobs import check_pool, check_queueing
from steelyard.model.batch import Dependency, Gang, Launcher, Preemption, PreemptMode, RetryOn, RetryRule, Warn
from steelyard.model.cores import Core
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import JobSpec, Owner, Resources
from steelyard.model.mount import VolumeMount
from steelyard.model.pool import NodeShape, Pool, PoolSpec
from steelyard.model.secret import SecretUse

NOW = 1_700_000_000_000_000
JOB = JobSpec("x", ("true",), "/")

REFUSED: list[tuple[dict[str, object], str]] = [
    ({"priority": -1}, "bad-priority"),
    ({"priority": 101}, "bad-priority"),
    ({"account": "a b"}, "bad-account"),
    ({"account": "/a"}, "bad-account"),
    ({"account": "a//b"}, "bad-account"),
    ({"account": "/".join("abcdefghi")}, "bad-account"),
    ({"begin_at": NOW + 11 * 365 * 86_400_000_000}, "bad-begin"),
    ({"begin_at": -1}, "bad-begin"),
    ({"begin_at": -(2**63)}, "bad-begin"),
    ({"after": tuple(Dependency(JobId(f"j-{n}")) for n in range(1001))}, "too-many-dependencies"),
    ({"gang": Gang(0, 1)}, "bad-gang"),
    ({"gang": Gang(1, 0)}, "bad-gang"),
    ({"gang": Gang(4096, 2)}, "bad-gang"),
    ({"gang": Gang(1, 2), "script": "#!/bin/sh\n"}, "bad-gang"),
    ({"max_duration_s": 0.0}, "bad-duration"),
    ({"max_duration_s": float("nan")}, "bad-duration"),
    ({"start_timeout_s": -1.0}, "bad-duration"),
    ({"heartbeat_timeout_s": float("inf")}, "bad-duration"),
    ({"warn": Warn(10, 5.0)}, "bad-warning"),
    ({"warn": Warn(10, 50.0), "max_duration_s": 10.0}, "bad-warning"),
    ({"warn": Warn(0, 5.0), "max_duration_s": 10.0}, "bad-signal"),
    ({"retry": (RetryRule(RetryOn.ERROR, 1), RetryRule(RetryOn.ERROR, 2))}, "bad-retry"),
    ({"retry": (RetryRule(RetryOn.ERROR, 1001),)}, "bad-retry"),
    ({"retry": (RetryRule(RetryOn.ERROR, 1, -1.0),)}, "bad-retry"),
    ({"preemption": Preemption(signal=65)}, "bad-signal"),
    ({"preemption": Preemption(grace_s=3601.0)}, "bad-preemption"),
    ({"preemption": Preemption(PreemptMode.SUSPEND), "resources": Resources(gpus=GpuDemand())}, "bad-preemption"),
    ({"stdout": "out.txt"}, "bad-path"),
    ({"checkpoint_dir": "ckpt"}, "bad-path"),
    ({"script": "echo\n"}, "no-shebang"),
    ({"script": "#!/bin/sh\n" + "x" * 300_000}, "bad-script"),
    ({"resources": Resources(scratch_bytes=5)}, "bad-scratch"),
    ({"resources": Resources(io_max_bytes_s=5)}, "bad-io-max"),
]


@pytest.mark.parametrize(("fields", "code"), REFUSED)
def test_what_is_refused(fields: dict[str, object], code: str) -> None:
    assert [finding.code for finding in check_queueing(msgspec.structs.replace(JOB, **fields), NOW)] == [code]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"priority": 0, "account": "lab/ann.b@x", "begin_at": 5, "held": True},
        {"gang": Gang(2, 8), "max_duration_s": 60.0, "warn": Warn(10, 60.0)},
        {"retry": tuple(RetryRule(on, 3) for on in RetryOn), "stdout": "/tmp/%j", "script": None},
        {"script": "#!/bin/sh\n", "argv": ()},
    ],
)
def test_what_is_taken(fields: dict[str, object]) -> None:
    assert check_queueing(msgspec.structs.replace(JOB, **fields), NOW) == []


TRAIN = Pool(
    PoolSpec("train", nodes_max=2, node=NodeShape(cpus=4, memory_bytes=8 << 30, gpus=2)), DEFAULT_PROJECT, Owner("root", 0), 1, 0
)
PAIRS = msgspec.structs.replace(TRAIN, spec=PoolSpec("pairs", nodes_max=4, nodes_per_allocation=2))
GIVES_WAY, SUSPENDS = Resources(1, preemptible=True), Preemption(PreemptMode.SUSPEND)
BRIEF = msgspec.structs.replace(TRAIN, spec=PoolSpec("brief", max_duration_s=600.0))
GOING = msgspec.structs.replace(TRAIN, spec=PoolSpec("old"), deleting=True)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"pool": "train"}, None),
        ({"pool": "train", "gang": Gang(1, 4)}, None),
        ({"pool": "other"}, "no-such-pool"),
        ({"pool": "old"}, "no-such-pool"),
        ({"pool": "train", "direct": True}, "bad-pool"),
        ({"pool": "train", "image": "docker://alpine:3"}, "bad-pool"),
        ({"pool": "train", "image": "a" * 64}, None),
        ({"pool": "train", "image": "a" * 64, "gang": Gang(1, 4, Launcher.MPI)}, "bad-pool"),
        ({"pool": "train", "max_duration_s": 1e6}, None),
        ({"pool": "brief", "max_duration_s": 540.0}, None),
        ({"pool": "brief", "max_duration_s": 541.0}, "beyond-pool"),
        ({"pool": "train", "gang": Gang(2, 4)}, None),
        ({"pool": "train", "gang": Gang(3, 1)}, "beyond-pool"),
        ({"pool": "train", "gang": Gang(2, 5)}, "beyond-pool"),
        ({"pool": "train", "gang": Gang(2, 1, Launcher.MPI)}, "beyond-pool"),
        ({"pool": "pairs", "gang": Gang(2, 1, Launcher.MPI)}, None),
        ({"pool": "pairs", "gang": Gang(3, 1, Launcher.MPI)}, "beyond-pool"),
        ({"pool": "pairs", "gang": Gang(1, 2, Launcher.MPI), "volumes": (VolumeMount("v", "/v"),)}, "bad-pool"),
        ({"pool": "pairs", "gang": Gang(1, 2, Launcher.MPI), "secrets": (SecretUse("s"),)}, "bad-pool"),
        ({"pool": "pairs", "gang": Gang(1, 2, Launcher.MPI), "resources": GIVES_WAY, "preemption": SUSPENDS}, "bad-pool"),
        ({"pool": "pairs", "gang": Gang(2, 1, Launcher.MPI), "resources": Resources(1, scratch_bytes=1 << 20)}, "bad-pool"),
        ({"pool": "train", "resources": Resources(5)}, "beyond-pool"),
        ({"pool": "train", "gang": Gang(1, 5)}, "beyond-pool"),
        ({"pool": "train", "resources": Resources(1, 9 << 30)}, "beyond-pool"),
        ({"pool": "train", "resources": Resources(1, gpus=GpuDemand(count=3))}, "beyond-pool"),
    ],
)
def test_what_a_pool_can_not_do_is_refused_by_name(fields: dict[str, object], code: str | None) -> None:
    spec = msgspec.structs.replace(JOB, **fields)
    assert [finding.code for finding in check_pool(spec, [TRAIN, BRIEF, PAIRS, GOING], [], False)] == (
        [] if code is None else [code]
    )


def test_ranks_of_mpi_are_not_started_as_another_user_than_the_allocations() -> None:
    spec = msgspec.structs.replace(JOB, pool="pairs", gang=Gang(2, 1, Launcher.MPI))
    (finding,) = check_pool(spec, [PAIRS], [], True)
    assert finding.text.startswith("Slurm's PMIx serves an allocation's own user")
    assert check_pool(msgspec.structs.replace(spec, as_root=True), [PAIRS], [], True) == []
    assert check_pool(spec, [PAIRS], [], False) == []


def test_a_machine_of_the_pool_says_how_large_the_next_will_be() -> None:
    """Two threads of a core are two CPUs to Slurm."""
    machine = make_machine(cores=(Core((0, 1)), Core((2, 3))), memory_bytes=7 << 30, pool="train")
    spec = msgspec.structs.replace(JOB, pool="train", resources=Resources(3))
    (finding,) = check_pool(spec, [TRAIN], [machine], True)
    assert finding.text == "no machine of pool train can hold it: each has 2 cores, 0 GPUs, 7 GiB of memory"
