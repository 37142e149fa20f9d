"""Is every rank told its place, whoever starts it?"""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.launch import (
    PORT_FIRST,
    PORT_LAST,
    Facts,
    Steps,
    count_processes,
    list_ports,
    make_launches,
    ports_wanted,
    render_hostfile,
)
from steelyard.model.batch import ArrayPlace, Gang, Launcher
from steelyard.model.ids import AttemptId, JobId
from steelyard.model.job import JobSpec

FACTS = Facts(JobId("j-1"), AttemptId("j-1.2"), ("a",), ("127.0.0.1",), 20_100, "http://127.0.0.1:1")
TORCH_OPTIONS = (
    "--nnodes=1",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=127.0.0.1:20100",
    "--rdzv-id=j-1.2",
)


def make_spec(*argv: str, gang: Gang | None = None) -> JobSpec:
    return JobSpec(name="a", argv=argv, cwd="/", gang=gang)


def with_facts(**fields: object) -> Facts:
    return Facts(**{**{name: getattr(FACTS, name) for name in FACTS.__struct_fields__}, **fields})  # type: ignore[arg-type]


def test_a_job_that_is_no_gang_is_one_process_that_knows_who_it_is_and_nothing_of_ranks():
    (launch,) = make_launches(make_spec("true"), FACTS)
    assert launch.argv == ("true",)
    assert launch.env == {
        "STEELYARD_JOB_ID": "j-1",
        "STEELYARD_ATTEMPT_ID": "j-1.2",
        "STEELYARD_RESTART_COUNT": "0",
        "STEELYARD_CHECKPOINT": "",
        "STEELYARD_API_URL": "http://127.0.0.1:1",
    }


def test_what_was_found_out_for_the_attempt_is_told():
    place = ArrayPlace(JobId("j-9"), 7, 4, 1, 7, 2)
    facts = with_facts(restarts=2, checkpoint="/c/step-9", token="t", array=place, heartbeat="/w/beat/heartbeat")
    (launch,) = make_launches(make_spec("true"), facts)
    told = {
        "STEELYARD_RESTART_COUNT": "2",
        "STEELYARD_CHECKPOINT": "/c/step-9",
        "STEELYARD_TOKEN": "t",
        "STEELYARD_ARRAY_ID": "j-9",
        "STEELYARD_ARRAY_INDEX": "7",
        "STEELYARD_HEARTBEAT": "/w/beat/heartbeat",
    }
    assert told.items() <= launch.env.items()


def test_a_script_takes_the_place_of_the_program_and_gets_the_arguments():
    (launch,) = make_launches(make_spec("train.sh", "one", "two"), with_facts(script="/w/script"))
    assert launch.argv == ("/w/script", "one", "two")


def test_each_rank_of_two_nodes_knows_its_place():
    facts = with_facts(hosts=("a", "b"), addresses=("10.0.0.1", "10.0.0.2"), hostfile="/w/hostfile")
    launches = make_launches(make_spec("train", gang=Gang(nodes=2, tasks_per_node=2)), facts)
    assert [launch.argv for launch in launches] == [("train",)] * 4
    places = [
        tuple(launch.env[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"))
        for launch in launches
    ]
    assert places == [("0", "4", "0", "2", "0"), ("1", "4", "1", "2", "0"), ("2", "4", "0", "2", "1"), ("3", "4", "1", "2", "1")]
    last = launches[3].env
    assert (last["MASTER_ADDR"], last["MASTER_PORT"], last["STEELYARD_NODELIST"]) == ("10.0.0.1", "20100", "a,b")
    assert last["STEELYARD_HOSTFILE"] == "/w/hostfile"
    workers = ["10.0.0.1:20101", "10.0.0.1:20102", "10.0.0.2:20103", "10.0.0.2:20104"]
    assert json.loads(last["TF_CONFIG"]) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 3}}
    jax = (last["JAX_COORDINATOR_ADDRESS"], last["JAX_NUM_PROCESSES"], last["JAX_PROCESS_ID"])
    assert jax == ("10.0.0.1:20100", "4", "3")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("python3", "train.py", "--x"), ("python3", "-m", "torch.distributed.run", *TORCH_OPTIONS, "train.py", "--x")),
        (("/v/python3.12", "-m", "pkg", "a"), ("/v/python3.12", "-m", "torch.distributed.run", *TORCH_OPTIONS, "-m", "pkg", "a")),
        (
            ("python", "-u", "-X", "dev", "t.py"),
            ("python", "-u", "-X", "dev", "-m", "torch.distributed.run", *TORCH_OPTIONS, "t.py"),
        ),
        (("train.py", "-v"), ("torchrun", *TORCH_OPTIONS, "train.py", "-v")),
        (("python", "-c", "pass"), ("torchrun", *TORCH_OPTIONS, "--no-python", "python", "-c", "pass")),
        (("python", "-"), ("python", "-m", "torch.distributed.run", *TORCH_OPTIONS, "-")),
        (("python",), ("torchrun", *TORCH_OPTIONS, "--no-python", "python")),
        (("./train.sh",), ("torchrun", *TORCH_OPTIONS, "--no-python", "./train.sh")),
    ],
)  # fmt: skip
def test_torchrun_is_put_before_the_program(argv, wanted):
    (launch,) = make_launches(make_spec(*argv, gang=Gang(tasks_per_node=2, launcher=Launcher.TORCHRUN)), FACTS)
    assert launch.argv == wanted
    assert "RANK" not in launch.env, "torchrun's to give"


def test_torchrun_runs_once_on_each_node():
    facts = with_facts(hosts=("a", "b"), addresses=("x", "y"))
    launches = make_launches(make_spec("t.py", gang=Gang(nodes=2, tasks_per_node=4, launcher=Launcher.TORCHRUN)), facts)
    assert [launch.env["STEELYARD_NODE_RANK"] for launch in launches] == ["0", "1"]
    for node, (launch, address) in enumerate(zip(launches, ("x", "y"), strict=True)):
        assert launch.argv[6:8] == (f"--rdzv-conf=is_host={1 - node}", f"--local-addr={address}")
        assert launch.env["MASTER_ADDR"] == "x"


@pytest.mark.parametrize(
    ("own_cores", "root", "options"),
    [
        (2, False, ("-n", "2", "--map-by", "core", "--bind-to", "core")),
        (1, False, ("-n", "2", "--oversubscribe", "--bind-to", "none")),
        (0, True, ("--allow-run-as-root", "-n", "2", "--oversubscribe", "--bind-to", "none")),
    ],
)
def test_mpi_ranks_are_bound_where_the_cores_are_their_own(own_cores, root, options):
    spec = make_spec("./solve", "x", gang=Gang(tasks_per_node=2, launcher=Launcher.MPI))
    (launch,) = make_launches(spec, with_facts(own_cores=own_cores, root=root))
    assert launch.argv == ("mpirun", *options, "./solve", "x")
    assert launch.env["MASTER_PORT"] == "20100"


def test_in_an_allocation_of_slurms_its_step_starts_the_ranks_of_mpi_and_cores_are_ours():
    steps = Steps("/usr/bin/srun", "12", ("n1", "n2"), ((0, 1), ()), ("python3", "step.py", "/x/rank", "ranks"))
    spec = make_spec("./solve", "-n", gang=Gang(nodes=2, tasks_per_node=4, launcher=Launcher.MPI))
    (launch,) = make_launches(spec, with_facts(hosts=("n1", "n2"), addresses=("10.0.0.1", "10.0.0.2"), steps=steps))
    assert launch.argv[0] == "/usr/bin/srun" and launch.argv[-6:] == (*steps.before, "./solve", "-n")
    assert {"--jobid=12", "--job-name=j-1.2", "--overlap", "--mpi=pmix", "--ntasks=8", "--ntasks-per-node=4"} <= {*launch.argv}
    assert {"--nodelist=n1,n2", "--cpu-bind=none", "--kill-on-bad-exit=1"} <= {*launch.argv}
    assert (launch.env["STEELYARD_STEP_CPUS"], launch.env["MASTER_ADDR"]) == ("0,1;", "10.0.0.1")


def test_a_hostfile_names_each_machine_once():
    assert render_hostfile(Gang(nodes=3, tasks_per_node=4), ("a", "b", "a")) == "a slots=8\nb slots=4\n"


@given(
    st.none() | st.builds(Gang, nodes=st.integers(1, 4), tasks_per_node=st.integers(1, 8), launcher=st.sampled_from(Launcher)),
)
def test_there_are_as_many_launches_as_processes_and_they_differ_only_by_place(gang: Gang | None):
    nodes = gang.nodes if gang else 1
    facts = with_facts(hosts=("a",) * nodes, addresses=("127.0.0.1",) * nodes)
    launches = make_launches(make_spec("python", "t.py", gang=gang), facts)
    assert len(launches) == count_processes(gang)
    places = tuple(f"--rdzv-conf=is_host={host}" for host in (0, 1))
    assert len({tuple(word for word in launch.argv if word not in places) for launch in launches}) == 1
    assert len({tuple(sorted(launch.env.items())) for launch in launches}) == len(launches)


@given(st.text(min_size=1), st.integers(1, 500))
def test_runs_of_ports_stay_in_the_range_and_never_overlap(attempt: str, count: int):
    firsts = list(islice(list_ports(AttemptId(attempt), count), 10_000))
    assert firsts == list(islice(list_ports(AttemptId(attempt), count), 10_000))
    assert len(set(firsts)) == len(firsts)
    assert all(first in range(PORT_FIRST, PORT_LAST - count + 1) for first in firsts)
    assert all((first - PORT_FIRST) % count == 0 for first in firsts)


def test_only_gangs_need_ports():
    assert [ports_wanted(gang) for gang in (None, Gang(tasks_per_node=3), Gang(2, 4, Launcher.TORCHRUN))] == [0, 4, 1]
