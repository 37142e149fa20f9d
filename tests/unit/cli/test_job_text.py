"""What a person sees of a job."""

from __future__ import annotations

from textwrap import dedent

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.api.views import array_view, job_view
from steelyard.cli.job_text import (
    FIRST_EVENTS,
    LAST_EVENTS,
    Look,
    render_array,
    render_bar,
    render_counts,
    render_job,
    render_span,
    render_used,
)
from steelyard.cli.ps import COLUMNS, make_cells, make_row
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.model.batch import Dependency, Gang, RankEnd
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.usage import Usage, UsageSample
from steelyard.wire.api import EventView, JobView

START_US = 1_700_000_000_000_000
NOW_US = START_US + 200_000_000
SPEC = JobSpec(
    "train",
    ("python", "train.py", "--name", "two words"),
    "/home/ann",
    resources=Resources(cpus=4, memory_bytes=8_000_000_000, exclusive=True),
    after=(Dependency(JobId("j-000011")),),
    max_duration_s=3600,
    stdout="/home/ann/out.txt",
)
JOB = Job(
    JobId("j-000017"),
    DEFAULT_PROJECT,
    Owner("ann", 1000),
    5,
    2,
    SPEC,
    JobState.RUNNING,
    START_US,
    plan=Plan((0, 1, 2, 3, 8), memory_nodes=(0,), gpus=("gpu-0",)),
    started_at=START_US + 10_000_000,
    restarts=1,
)
USAGE = Usage(
    cpu_s=228.0,
    memory_peak_bytes=3_100_000_000,
    samples=tuple(UsageSample(47.5 * (at + 1), at, (at + 1) * 10**9) for at in range(4)),
)
EVENTS = [
    EventView("2023-11-14T22:13:20.000000Z", "submitted", "QUEUED", "submitted"),
    EventView("2023-11-14T22:13:21.000000Z", "waits: no-cores-left", None, "waits: no-cores-left"),
    EventView("2023-11-14T22:13:29.500000Z", "QUEUED -> STARTING (placed)", "STARTING", "placed"),
    EventView("2023-11-14T22:13:30.000000Z", "STARTING -> RUNNING", "RUNNING", ""),
]


def array(**states: int) -> list[Job]:
    """So many elements in each state."""
    names = [JobState[name] for name, count in states.items() for _ in range(count)]
    places = make_places(JobId("j-000012"), parse_array(f"0-{len(names) - 1}"))
    return [
        msgspec.structs.replace(JOB, id=id_, array=place, state=state) for (id_, place), state in zip(places, names, strict=True)
    ]


def test_a_running_job_on_one_page() -> None:
    expected = """\
        j-000017 train  RUNNING for 3m10s
          command  python train.py --name 'two words'
          in       /home/ann
          asks     4 cores, whole cores, 8.0 GB of memory
          got      CPUs 0-3,8, GPUs gpu-0, memory of NUMA node 0
          queue    priority 50, account ann, project default, user ann
          attempt  2, after 1 restart
          after    ok:j-000011
          limit    1h00m, 56m50s left
          output   /home/ann/out.txt

        timeline
          2023-11-14 22:13:20Z  QUEUED            9.5s  submitted
          2023-11-14 22:13:21Z                          waits: no-cores-left
          2023-11-14 22:13:29Z  STARTING         0.50s  placed
          2023-11-14 22:13:30Z  RUNNING   3m10s so far

        use over time
          cores    ▁▂▄▆  3 now, 3 at most
          memory   ▁▂▃▄  4.0 GB now, 4.0 GB at most
          over 3m10s

        efficiency
          used 1.2 of 4 cores, 3.1 of 8 GB at most"""
    assert render_job(job_view(JOB), EVENTS, USAGE, NOW_US, Look()) == dedent(expected)


def test_what_a_gang_used_is_compared_with_what_all_its_machines_had() -> None:
    spec = msgspec.structs.replace(SPEC, gang=Gang(3, 2), pool="train")
    view = job_view(msgspec.structs.replace(JOB, spec=spec))
    used = render_used(view, Usage(cpu_s=12.0 * 190, memory_peak_bytes=24_000_000_000), NOW_US)
    assert "of 24 cores" in used and "24 of 48 GB" in used, "three nodes, two ranks on each, four cores and 8 GB for each rank"


def test_a_gang_that_failed_tells_each_ranks_end() -> None:
    gang = msgspec.structs.replace(
        JOB,
        spec=JobSpec("mpi", ("x",), "/", gang=Gang(1, 2)),
        state=JobState.FAILED,
        reason=Reason.EXITED_NONZERO,
        detail="rank 1 exited with code 3; the other rank was ended with it.",
        exit_code=3,
        ended_at=START_US + 10_020_000,
        ranks=(RankEnd(0, None, 15), RankEnd(1, 3)),
        restarts=0,
        attempt=1,
    )
    expected = """\
        j-000017 mpi  FAILED after 0.02s, exit code 3, exited-nonzero
          rank 1 exited with code 3; the other rank was ended with it.
          command  x
          in       /
          asks     2 cores, 2 ranks
          got      CPUs 0-3,8, GPUs gpu-0, memory of NUMA node 0
          queue    priority 50, account ann, project default, user ann

        ranks
          RANK  EXIT CODE  SIGNAL
          0     -          15
          1     3          -"""
    assert render_job(job_view(gang), [], None, NOW_US, Look()) == dedent(expected)


def test_an_array_counts_its_elements_and_names_those_that_failed() -> None:
    jobs = array(SUCCEEDED=5, FAILED=1, RUNNING=2, QUEUED=2)
    jobs[5] = msgspec.structs.replace(jobs[5], exit_code=4, detail="the command exited with code 4")
    text = render_array(array_view(jobs), [job_view(jobs[5])], NOW_US, Look(width=24))
    assert text.splitlines()[0] == "j-000012 train  RUNNING for 3m10s"
    assert "  asks     4 cores each, whole cores, 8.0 GB of memory" in text.splitlines()
    assert text[text.index("elements") :] == dedent("""\
        elements
          ██████████✗✗▓▓▓▓····
          6 of 10 done, 2 running, 2 waiting, 1 failed

        not well
          ELEMENT     STATE   EXIT  WHY
          j-000012_5  FAILED  4     the command exited with code 4""")


@given(
    st.dictionaries(st.sampled_from([state.value for state in JobState]), st.integers(0, 10_000)),
    st.integers(9, 100),
)
def test_a_bar_is_as_wide_as_asked_and_shows_whatever_there_is(elements: dict[str, int], width: int) -> None:
    bar = render_bar(elements, width, Look())
    assert len(bar) == (width if sum(elements.values()) else 0)
    assert ("✗" in bar) == bool(elements.get("FAILED"))
    assert ("█" in bar) == bool(elements.get("SUCCEEDED"))


def test_counts_leave_out_what_there_is_none_of() -> None:
    assert render_counts({"SUCCEEDED": 3}) == "3 of 3 done"
    assert render_counts({"SUCCEEDED": 36, "FAILED": 1, "RUNNING": 7, "STARTING": 1, "QUEUED": 55}) == (
        "37 of 100 done, 8 running, 55 waiting, 1 failed"
    )


def test_a_long_history_is_cut_in_the_middle() -> None:
    events = [EventView("2023-11-14T22:13:20.000000Z", f"n{at}", None, f"n{at}") for at in range(100)]
    text = render_job(job_view(JOB), events, None, NOW_US, Look())
    shown = [line.split()[-1] for line in text.splitlines() if line.strip().startswith("2023")]
    assert shown == [f"n{at}" for at in [*range(FIRST_EVENTS), *range(100 - LAST_EVENTS, 100)]]
    assert "... 40 more, which --json shows" in text


def test_nothing_of_a_job_moves_the_cursor_of_whoever_looks() -> None:
    job = msgspec.structs.replace(JOB, spec=msgspec.structs.replace(SPEC, argv=("a\x1b[2J\rb\n",)))
    text = render_job(job_view(job), [], None, NOW_US, Look())
    assert "\x1b" not in text
    assert "\r" not in text


def test_colours_are_for_a_person_alone() -> None:
    plain, coloured = (render_job(job_view(JOB), EVENTS, USAGE, NOW_US, Look(80, colour)) for colour in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[32m\x1b[1mRUNNING\x1b[0m" in coloured


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.00s"), (0.021, "0.02s"), (7.34, "7.3s"), (9.99, "10s"), (65, "1m05s"), (3725, "1h02m")]
)
def test_spans(seconds: float, text: str) -> None:
    assert render_span(seconds) == text


def test_the_list_of_jobs() -> None:
    queued = msgspec.structs.replace(
        JOB, id=JobId("j-000018"), state=JobState.QUEUED, started_at=None, reason=Reason.NO_CORES_LEFT, attempt=0
    )
    views = [job_view(JOB), job_view(queued), array_view(array(SUCCEEDED=1, QUEUED=3))]
    assert [dict(zip(COLUMNS, cells, strict=True)) for cells in make_cells(views, NOW_US)] == [
        row("j-000017", "RUNNING", "4 cores", "3m10s", ""),
        row("j-000018", "QUEUED", "4 cores", "", "no-cores-left"),
        row("j-000012", "QUEUED", "4 cores each", "3m10s", "1 of 4 done, 3 waiting"),
    ]


def row(id_: str, state: str, asks: str, elapsed: str, reason: str) -> dict[str, str]:
    known = {"id": id_, "name": "train", "state": state, "exit": "", "asks": asks}
    return {**known, "elapsed": elapsed, "age": "3m20s", "reason": reason}


def test_a_row_of_json_is_a_view_of_its_names() -> None:
    view: JobView = job_view(JOB)
    made = make_row(view)
    assert (made.id, made.cores, made.elements, made.submitted_at) == ("j-000017", 4.0, None, view.submitted_at)
