"""Scripts as people have them: what each becomes, what is named as ignored, what is refused and where."""

from __future__ import annotations

import contextlib
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.api.sbatch_options import OPTION_TABLE, render_option_table
from steelyard.api.sbatch_script import Submission, parse_script, read_script
from steelyard.api.sbatch_text import SCRIPT_MAX_BYTES
from steelyard.errors import Refused
from steelyard.model.batch import Dependency, DependencyKind, RetryOn, Warn
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import JobId
from steelyard.wire.api import ScriptSubmit

SCRIPTS = Path(__file__).parent / "sbatch_scripts"
NOW = 1_700_000_000_000_000
ENV = {
    "PATH": "/bin",
    "TERM": "xterm",
    "SLURM_JOB_ID": "4",
    "SBATCH_TIMELIMIT": "1",
    "STEELYARD_TOKEN": "secret",
    "BASH_FUNC_ml%%": "() {}",
}
OK, ANY = DependencyKind.OK, DependencyKind.ANY
GIB = 1 << 30


def read(
    text: str, *options: str, arguments: tuple[str, ...] = (), env: dict[str, str] = ENV, name: str = "sbatch"
) -> Submission:
    return parse_script(text, arguments, options, "/home/eve", env, name=name, now=NOW, zone=UTC)


def lines(*options: str) -> str:
    return "#!/bin/bash\n" + "".join(f"#SBATCH {option}\n" for option in options) + "true\n"


def read_file(name: str, *options: str) -> Submission:
    return read((SCRIPTS / f"{name}.sh").read_text(), *options, name=f"{name}.sh")


#: script -> what it asks for
CORPUS: dict[str, dict[str, Any]] = {
    "ddp": {
        "name": "ddp-resnet", "cpus": 16, "memory_bytes": 64 * GIB, "gpus": GpuDemand("a100", 2), "max_duration_s": 172800,
        "stdout": "/home/eve/logs/%x-%j.out", "stderr": "/home/eve/logs/%x-%j.err", "NTASKS": "2", "NTASKS_PER_NODE": "2",
        "CPUS_PER_TASK": "8",
    },
    "torchrun": {
        "name": "llm", "cpus": 16, "memory_bytes": 256 * GIB, "gpus": GpuDemand("h100", 4), "account": "nlp-lab",
        "max_duration_s": 43200, "warn": Warn(10, 300.0, steps_only=True), "truncate_output": False, "NTASKS": "1",
    },
    "mpi": {"cpus": 8, "memory_bytes": 8 * 2000 << 20, "max_duration_s": 1800, "MEM_PER_CPU": "2000", "TASKS_PER_NODE": "8"},
    "hybrid": {"cpus": 16, "exclusive": True, "max_duration_s": 5400, "NTASKS": "4", "CPUS_PER_TASK": "4"},
    "gromacs": {"name": "gmx md", "cpus": 8, "account": "chem/bob", "max_duration_s": 86400, "NTASKS": "4"},
    "array": {"array": "0-99%8", "stdout": "/home/eve/out/%A_%4a.txt", "max_duration_s": 600},
    "sweep": {"array": "1-9:2%4", "cpus": 2, "env": {}, "stdout": "/home/eve/slurm-%A_%a.out"},
    "signal": {"max_duration_s": 600, "warn": Warn(10, 60.0)},
    "chain": {
        "after": (Dependency(JobId("j-000012"), OK), Dependency(JobId("j-000013"), OK), Dependency(JobId("j-000014_3"), ANY)),
        "cwd": "/home/eve/results", "stdout": "/home/eve/results/step-%j.log", "stderr": "/home/eve/results/step-%j.log",
    },
    "packing": {"cpus": 4, "begin_at": NOW + 3600 * 1_000_000},
    "jupyter": {
        "memory_bytes": 40 * GIB, "gpus": GpuDemand(), "cpus": 6, "stdout": "/dev/null",
        "env": {"PATH": "/bin", "TERM": "xterm", "PORT": "8888", "NAME": "a,b"},
    },
    "python": {"name": "py", "retry": (), "memory_bytes": None, "max_duration_s": 300},
    "abbreviated": {
        "name": "short", "stdout": "/home/eve/o.txt", "stderr": "/home/eve/e.txt", "cpus": 2, "priority": 49,
        "max_duration_s": None,
    },
    "held": {"held": True, "priority": 80, "cpus": 2},
    "tight": {"cpus": 18, "gpus": GpuDemand(count=6), "memory_bytes": None, "max_duration_s": 5400, "GPUS_PER_TASK": "1"},
}  # fmt: skip


def test_every_script_of_the_corpus_is_looked_at() -> None:
    assert {file.stem for file in SCRIPTS.glob("*.sh")} == set(CORPUS)


@pytest.mark.parametrize("name", CORPUS)
def test_a_real_script_asks_for_what_its_author_meant(name: str) -> None:
    submission = read_file(name)
    spec = submission.spec
    for key, value in CORPUS[name].items():
        if key.isupper():
            found: object = spec.slurm[f"SLURM_{key}"]
        elif key == "array":
            found = submission.array
        else:
            found = getattr(spec.resources if key in ("cpus", "memory_bytes", "gpus", "exclusive") else spec, key)
        assert (key, found) == (key, value)
    assert spec.script == (SCRIPTS / f"{name}.sh").read_text() and spec.argv == (f"{name}.sh",)
    assert spec.gang is None and not spec.resources.preemptible and submission.nodes == 1


def test_what_is_ignored_is_named_with_its_line_and_reason() -> None:
    ignored = read_file("ddp").ignored
    assert ignored[0] == "line 9: --partition=gpu is not acted on: there are no partitions: every job waits in one queue"
    assert [sentence.partition(" is not")[0] for sentence in ignored[1:3]] == [
        "line 12: --mail-type=END,FAIL",
        "line 12: --mail-user=alice@example.org",
    ]


def test_lines_that_slurm_does_not_read_are_pointed_out() -> None:
    assert any("line 9" in sentence and "after the first command" in sentence for sentence in read_file("python").ignored)
    assert any(
        "line 5" in sentence and "does not begin with #SBATCH" in sentence for sentence in read_file("abbreviated").ignored
    )
    assert not any("commented-out" in sentence for sentence in read_file("python").ignored)


def test_the_command_line_wins_over_the_script() -> None:
    spec = read_file("mpi", "--time=5", "--mem", "1G", "-Jother", "-n2", "--no-requeue").spec
    assert (spec.max_duration_s, spec.resources.memory_bytes, spec.name, spec.resources.cpus, spec.retry) == (
        300,
        GIB,
        "other",
        2,
        (),
    )


def test_of_several_the_last_counts() -> None:
    assert read(lines("-t 5", "--time=10", "--no-requeue --requeue")).spec.max_duration_s == 600
    assert read(lines("--no-requeue", "--requeue")).spec.retry[0].on is RetryOn.NODE_LOST


def test_the_environment_of_sbatch_itself_is_not_the_jobs() -> None:
    submission = read(lines())
    assert submission.spec.env == {"PATH": "/bin", "TERM": "xterm"}
    assert any("BASH_FUNC_ml%%" in sentence for sentence in submission.ignored)
    assert any("SBATCH_TIMELIMIT is not read" in sentence for sentence in submission.ignored)


@pytest.mark.parametrize(
    ("value", "env"),
    [
        ("NONE", {}),
        ("ALL", {"PATH": "/bin", "TERM": "xterm"}),
        ("TERM", {"TERM": "xterm"}),
        ("TERM,GONE", {"TERM": "xterm"}),
        ("ALL,A=1", {"PATH": "/bin", "TERM": "xterm", "A": "1"}),
        ("NONE,A=", {"A": ""}),
        ("A=b=c", {"A": "b=c"}),
    ],
)
def test_export_chooses(value: str, env: dict[str, str]) -> None:
    assert read(lines(), f"--export={value}").spec.env == env


def test_wrap_is_a_script_of_one_line() -> None:
    spec = read("", "--wrap", "hostname; date", "-n", "2").spec
    assert (spec.script, spec.name, spec.argv) == ("#!/bin/sh\nhostname; date\n", "wrap", ("wrap",))


def test_a_name_that_cannot_be_is_changed_and_named() -> None:
    submission = read(lines("--job-name=a/b"))
    assert submission.spec.name == "a_b" and "line 2: the job's name is written 'a_b'" in submission.ignored[-1]
    assert len(read(lines(f"--job-name={'x' * 300}")).spec.name) == 100


def test_arguments_are_the_scripts() -> None:
    assert read(lines(), arguments=("-n", "9"), name="a.sh").spec.argv == ("a.sh", "-n", "9")


@pytest.mark.parametrize(
    ("options", "nodes", "cores"),
    [
        (("-N", "2"), 2, 1),
        (("--nodes=1-4",), 1, 1),
        (("-N2", "--ntasks-per-node=4"), 2, 4),
        (("-n8", "--ntasks-per-node=4"), 2, 4),
        (("-N4", "-n2"), 2, 1),
        (("-N2", "-n3", "-c2"), 2, 4),
        (("-n8", "-O"), 1, 1),
        (("-n2", "--mincpus=6"), 1, 6),
        (("-G2", "--ntasks-per-gpu=3"), 1, 6),
    ],
)
def test_nodes_tasks_and_cores_are_counted_as_slurm_counts(options: tuple[str, ...], nodes: int, cores: float) -> None:
    submission = read(lines(), *options)
    assert (submission.nodes, submission.spec.resources.cpus) == (nodes, cores)


def test_gpus_in_all_are_divided_among_nodes_and_those_per_node_are_not() -> None:
    assert read(lines("-N2", "--gpus=5")).spec.resources.gpus == GpuDemand(count=3)
    assert read(lines("-N2", "--gpus-per-node=5")).spec.resources.gpus == GpuDemand(count=5)


def test_a_time_limit_is_whole_minutes_as_in_slurm() -> None:
    limits = {"0:30": 60, "1:00": 60, "1:01": 120, "0": None, "UNLIMITED": None}
    assert {text: read(lines(f"--time={text}")).spec.max_duration_s for text in limits} == limits


def test_more_nodes_than_there_are_is_refused_with_what_to_ask_for() -> None:
    with pytest.raises(Refused, match="--nodes=1 --ntasks=8") as refused:
        read_script(ScriptSubmit(lines("-N2", "--ntasks-per-node=4"), "/"), NOW)
    assert refused.value.code == "one-machine"


@pytest.mark.parametrize(
    ("gpus", "demand"),
    [
        ("--gres=gpu", GpuDemand()),
        ("--gres=gpu:2", GpuDemand(count=2)),
        ("--gres=gpu:tesla_v100:2(S:0-1)", GpuDemand("v100", 2)),
        ("--gres=none", None),
        ("--gpus=0", None),
        ("-G nvidia_a100_80gb:1", GpuDemand("a100", 1, 80 * 10**9, 80 * 10**9)),
        ("--gpus=a100_1g.10gb:2", GpuDemand("a100", 2, mig_profile="1g.10gb")),
        ("--gpus=rtx_4090", GpuDemand("rtx 4090")),
    ],
)
def test_gpus_are_asked_for_by_model(gpus: str, demand: GpuDemand | None) -> None:
    assert read(lines(gpus)).spec.resources.gpus == demand


def test_options_that_agree_may_stand_side_by_side() -> None:
    assert read(lines("--gres=gpu:a100:4 --gpus-per-task=2 --ntasks=2")).spec.resources.gpus == GpuDemand("a100", 4)


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("--bogus=1", "unknown-option", "line 2: there is no option --bogus"),
        ("-Z", "unknown-option", "line 2: there is no option -Z"),
        ("--mem-=1", "unknown-option", "may mean --mem-per-cpu"),
        ("word", "unknown-option", "line 2: 'word' is no option"),
        ("--time", "unknown-option", "line 2: --time needs a value"),
        ("--hold=1", "unknown-option", "takes no value"),
        ("-n=4", "unknown-option", "write -n VALUE"),
        ("--time='7 days'", "bad-time", "line 2: '7 days' is no time"),
        ("--time=7days", "bad-time", "days-hours"),
        ("--array=0-9999999", "bad-array", "line 2:"),
        ("--ntasks=0", "bad-number", "line 2: --ntasks"),
        ("--ntasks=9999999", "bad-number", "more than"),
        ("--nodes=2-1", "bad-number", "line 2: --nodes"),
        ("--mem=1.5G", "bad-memory", "line 2: --mem"),
        ("--mem=1G --mem-per-cpu=1G", "bad-memory", "exclude each other"),
        ("--mem-per-gpu=1G", "bad-memory", "needs GPUs"),
        ("--gres=fpga:1", "bad-gres", "line 2: --gres=fpga:1"),
        ("--gpus=a100:1,v100:1", "bad-gpus", "several types"),
        ("--gpus=2 --gres=gpu:3", "bad-gpus", "contradict"),
        ("--gpus=a100:1 --gres=gpu:v100:1", "bad-gpus", "contradict"),
        ("--dependency=afterok:1?afterok:2", "bad-dependency", "any of them"),
        ("--dependency=singleton", "bad-dependency", "singleton"),
        ("--dependency=aftercorr:1", "bad-dependency", "aftercorr"),
        ("--dependency=after:1+5", "bad-dependency", "minutes"),
        ("--dependency=afterok", "bad-dependency", "no job's id"),
        ("--dependency=afterok:x", "bad-dependency", "'x' is no job's id"),
        ("--signal=BOGUS@1", "bad-signal", "line 2: --signal"),
        ("--signal=USR1@99999", "bad-signal", "65535"),
        ("--begin=someday", "bad-begin", "line 2:"),
        ("--open-mode=x", "bad-value", "append or truncate"),
        ("--nice=much", "bad-number", "line 2: --nice"),
        ("--export=1A=2", "bad-env", "line 2: --export"),
        ("--input=file", "refused-option", "exec <FILE"),
        ("--container=x", "refused-option", "apptainer"),
        ("--uid=0", "refused-option", "who submits it"),
        ("--wrap=x", "refused-option", "for the command line"),
        ('--job-name="open', "bad-script", "line 2: a quote"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(option: str, code: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read(lines(option))
    assert (refused.value.code, words in refused.value.public) == (code, True), refused.value.public


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("echo hello\n", "#!/bin/bash"),
        ("\n#!/bin/bash\n", "first line"),
        ("#!/bin/bash\r\n#SBATCH -n1\r\n", "dos2unix"),
        ("#!/bin/bash\n\0", "no text"),
        ("#!/bin/bash\n\udcff", "no text"),
        ("#!/bin/bash\n" + "#" * SCRIPT_MAX_BYTES, "256 KiB"),
        ("#!/bin/bash\n" + "é" * (SCRIPT_MAX_BYTES // 2), "256 KiB"),
    ],
)
def test_what_is_no_script_is_refused_with_what_to_do(text: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read(text)
    assert refused.value.code == "bad-script" and words in refused.value.public


def test_an_unknown_option_of_the_command_line_is_said_to_be_there() -> None:
    with pytest.raises(Refused, match="the command line: there is no option --bogus"):
        read(lines(), "--bogus")


def test_a_warning_without_a_limit_is_named() -> None:
    submission = read(lines("--signal=USR1"))
    assert submission.spec.warn is None and "without a time limit" in submission.ignored[-1] + submission.ignored[0]


def test_test_only_says_what_each_option_became() -> None:
    rows = {row.option: (row.becomes, row.where) for row in read_file("array", "--mem=2G").understood}
    assert rows["--array"] == ("100 jobs, 8 at a time", "line 2")
    assert rows["--mem"] == ("at most 2 GiB in all", "the command line")
    assert rows["--time"] == ("ends after 10:00", "line 5")


ACTING = {
    "nodes": "1", "ntasks": "2", "ntasks-per-node": "2", "ntasks-per-gpu": "1", "cpus-per-task": "2",
    "cpus-per-gpu": "2", "mincpus": "2", "overcommit": None, "exclusive": None, "gpus": "1", "gpus-per-node": "1",
    "gpus-per-task": "1", "gres": "gpu:1",
    "mem": "1G", "mem-per-cpu": "1G", "mem-per-gpu": "1G", "time": "5", "begin": "now", "dependency": "after:1", "hold": None,
    "nice": "5", "priority": "9", "array": "1-3", "signal": "B:TERM", "requeue": None, "no-requeue": None, "job-name": "x",
    "output": "x", "error": "x", "open-mode": "append", "chdir": "/x", "export": "ALL", "account": "x", "input": "/dev/null",
}  # fmt: skip


@pytest.mark.parametrize("option", [option for option in OPTION_TABLE if option.name != "wrap"], ids=lambda option: option.name)
def test_every_option_of_the_table_does_what_its_row_says(option: Any) -> None:
    value = ACTING.get(option.name, None if option.value == "none" else "x")
    text = f"--{option.name}" + ("" if value is None else f"={value}")
    beside = ("-G1", "-t9", "-n1") if option.name not in ("ntasks", "time", "gpus", "ntasks-per-node") else ("-t5",)
    if option.does == "refused":
        with pytest.raises(Refused, match=f"--{option.name}"):
            read(lines(text))
        return
    submission = read(lines(*beside, text))
    assert any(f"--{option.name}" in sentence for sentence in submission.ignored) == (
        option.does in ("ignored", "client") or option.name == "exclusive"
    )
    assert any(row.option == f"--{option.name}" and row.becomes for row in submission.understood) == (option.does == "acts")


def test_the_table_can_be_printed() -> None:
    table = render_option_table()
    assert "| `--ntasks=…`, `-n` | the job gets" in table and "| `--exclusive[=…]` |" in table and "| `--hold`, `-H` |" in table
    missing = [option.name for option in OPTION_TABLE if f"`--{option.name}" not in table]
    assert missing == []


NAMES = [option.name for option in OPTION_TABLE]
VALUES = ["", "1", "a", "gpu:2", "1-2", "10:00", "afterok:1", "ALL", "x y", "'", '"', "\\", "%j", "0"]
WORDS = st.builds(
    lambda dashes, name, equals, value: f"{dashes}{name}{equals}{value}",
    st.sampled_from(["--", "-", "", "#"]),
    st.sampled_from([*NAMES, "n", "c", "N", "t", "bogus"]),
    st.sampled_from(["", "=", " "]),
    st.sampled_from(VALUES) | st.text(max_size=6),
)


@given(st.lists(WORDS, max_size=5))
def test_any_options_are_understood_or_refused(options: list[str]) -> None:
    with contextlib.suppress(Refused):
        submission = read(lines(*options))
        assert submission.spec.resources.cpus >= 1 and submission.spec.stdout


@given(st.text(max_size=200), st.lists(st.text(max_size=12), max_size=4))
def test_any_text_and_any_words_are_understood_or_refused(text: str, words: list[str]) -> None:
    for script in (text, "#!/bin/sh\n" + text, "#!/bin/sh\n#SBATCH " + text):
        with contextlib.suppress(Refused):
            read(script, *words)


@given(
    ntasks=st.integers(1, 64),
    cores=st.integers(1, 16),
    mem_mib=st.integers(1, 1 << 20),
    minutes=st.integers(1, 10_000),
    spelling=st.sampled_from(["--{}={}", "--{} {}"]),
)
def test_what_is_asked_for_is_what_comes_out(ntasks: int, cores: int, mem_mib: int, minutes: int, spelling: str) -> None:
    asked = {"ntasks": ntasks, "cpus-per-task": cores, "mem": f"{mem_mib}M", "time": minutes}
    spec = read(lines(*(spelling.format(name, value) for name, value in asked.items()))).spec
    assert spec.resources.cpus == ntasks * cores and spec.resources.memory_bytes == mem_mib << 20
    assert spec.max_duration_s == minutes * 60 and spec.slurm["SLURM_NTASKS"] == str(ntasks)


def test_a_script_in_a_container_gets_what_is_named_and_nothing_that_is_around_its_caller() -> None:
    script = "#!/bin/sh\n#SBATCH --export=ALL,MINE=1,HOME\n"
    env = {"HOME": "/home/eve", "PATH": "/opt/bin"}
    spec = parse_script(script, (), (), "/home/eve", env, contained=True).spec
    assert (spec.cwd, spec.env) == ("", {"MINE": "1", "HOME": "/home/eve"})
    assert spec.stdout == "/home/eve/slurm-%j.out"
    assert parse_script(script, (), ("--chdir=/data",), "/home/eve", env, contained=True).spec.cwd == "/data"
