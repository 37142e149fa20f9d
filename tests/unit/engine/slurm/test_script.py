from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.engine.slurm import script
from steelyard.engine.slurm.arrays import Batch, make_batches
from steelyard.engine.slurm.read import QueueReader
from steelyard.engine.slurm.script import make_options, name_comment, render_script
from steelyard.model.batch import Gang, Launcher, Warn
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.slurm import Attachment, QueueEntry

AT = Attachment(partition="gpu", account="lab", folder="/nfs/sy", env={"SLURM_CONF": "/etc/here.conf"})


def make_job(**more: object) -> Job:
    spec = replace(JobSpec("train", ("python", "train.py"), "/home/ada", direct=True), **more)
    return Job(JobId("j-000007"), DEFAULT_PROJECT, Owner("ada", 1000), 2, 1, spec, JobState.STARTING, 0)


def only(job: Job) -> Batch:
    (batch,) = make_batches([job], 1001)
    return batch


def options(job: Job, attachment: Attachment = AT) -> dict[str, str]:
    words = make_options(only(job), attachment, "0123abcd", 1000)
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def test_what_was_asked_becomes_slurms_options() -> None:
    asked = Resources(cpus=1.5, memory_bytes=3 << 30, gpus=parse_gpu_demand("H100:2"))
    job = make_job(resources=asked, gang=Gang(2, 4), max_duration_s=90.0, warn=Warn(10, 30.0))
    found = options(job)
    assert found["comment"] == "steelyard:0123abcd:j-000007.1"
    assert (found["nodes"], found["ntasks-per-node"], found["cpus-per-task"]) == ("2", "4", "2")
    # what all ranks of a node need together
    assert (found["mem"], found["gres"]) == (f"{12 << 10}M", "gpu:h100:8")
    assert (found["time"], found["signal"]) == ("2", "10@30")
    # the batch script's process of a single task passes it on
    assert options(make_job(warn=Warn(10, 30.0)))["signal"] == "B:10@30"
    assert (found["partition"], found["account"], found["job-name"]) == ("gpu", "lab", "train")
    # Slurm must not try again by itself: whether there is another attempt is the job's rules' business
    assert "no-requeue" in found


def test_the_jobs_own_account_comes_first_and_what_was_not_asked_is_left_to_slurm() -> None:
    assert options(make_job(account="mine"))["account"] == "mine"
    assert not {"mem", "time", "gres", "partition", "account"} & options(make_job(), Attachment(folder="/x")).keys()


def test_ranks_are_started_by_srun_and_mpi_by_pmix() -> None:
    text = render_script(only(make_job(gang=Gang(3, 2, Launcher.MPI))), AT, 1000)
    line = text.strip().splitlines()[-1]
    assert line.startswith("exec $sy_srun --nodes=3 --ntasks=6 --cpus-per-task=1 --mpi=pmix --kill-on-bad-exit=1 ")
    assert line.endswith(' $sy_python -I -S -c "$sy_step" "$sy_prefix" ranks python train.py')
    assert "export STEELYARD_TASKS=6\n" in text


def test_the_table_of_the_docs_is_the_one_in_the_code() -> None:
    page = (Path(__file__).parents[4] / "docs" / "slurm.md").read_text()
    for ours, theirs in script.MAPPED:
        assert f"| {ours} | {theirs} |" in page, ours


def test_the_step_needs_nothing_but_an_old_python() -> None:
    source = Path(script.__file__).with_name("step.py").read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"_signal", "os", "pwd", "sys", "time"}


values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(words=st.lists(values, min_size=1, max_size=4), value=values)
def test_what_a_user_writes_is_text_to_the_shell(words: list[str], value: str) -> None:
    text = render_script(only(make_job(argv=tuple(words), env={"X": value})), AT, 1000)
    exported = text[text.index("export X=") :].removeprefix("export X=")
    assert exported.startswith(shlex.quote(value) + "\n")
    assert f"\nset -- {shlex.join(words)}\n" in text
    assert text.endswith('\nexec $sy_python -I -S -c "$sy_step" "$sy_prefix" task "$@"\n')


@given(values)
def test_no_script_ends_its_own_here_document(body: str) -> None:
    inner = f"#!/bin/sh\n{script._END}\n{body}\n{script._END}_\n"
    text = render_script(only(make_job(argv=("s",), script=inner)), AT, 1000)
    end = re.findall(r"cat >\"\$sy_script\" <<'(\w+)'", text)[-1]
    kept = text.split(f"<<'{end}'\n", 1)[1].split(f"\n{end}\n", 1)[0]
    assert kept == inner.rstrip("\n")


def test_only_our_own_attempts_are_read_from_the_queue() -> None:
    mine = name_comment("0123abcd", "j-000007.1")
    text = (
        f"12|RUNNING|None|1700000000|n[1-2]|1700000600|{mine}\n"
        "13|PENDING|Priority|N/A||N/A|steelyard:another0:j-000007.1\n"
        "14|PENDING|Priority|N/A||N/A|a | b\n"
        "nonsense\n"
        "15|PENDING|None|N/A||N/A|(null)\n"
    )
    assert QueueReader("0123abcd").read(text) == {
        "j-000007.1": QueueEntry("12", "RUNNING", "", 1_700_000_000_000_000, "n[1-2]", 1_700_000_600_000_000)
    }


def test_of_two_submissions_of_an_attempt_the_one_that_runs_counts() -> None:
    mine = name_comment("t", "a.1")
    lines = [f"12|PENDING|Priority|N/A||N/A|{mine}", f"13|RUNNING|None|1|n1|2|{mine}"]
    for order in (lines, lines[::-1]):
        assert QueueReader("t").read("\n".join(order))["a.1"].job == "13"


def test_a_later_look_tells_what_moved_what_came_and_what_is_gone() -> None:
    one, two, three = (name_comment("t", f"{name}.1") for name in "abc")
    reader = QueueReader("t")
    first = reader.read(f"1|PENDING|Priority|N/A||N/A|{one}\n2|PENDING|Priority|N/A||N/A|{two}\n")
    then = reader.read(f"1|PENDING|Priority|N/A||N/A|{one}\n3|PENDING|Priority|N/A||N/A|{three}\n")
    assert [entry.state for entry in first.values()] == ["PENDING", "PENDING"]
    assert then.keys() == {"a.1", "c.1"} and then["a.1"] is first["a.1"]
    assert reader.read(f"1|RUNNING|None|1|n1|2|{one}\n")["a.1"].state == "RUNNING"


@given(st.text(max_size=300))
def test_no_text_upsets_the_reader_of_the_queue(text: str) -> None:
    QueueReader("t").read(text)
