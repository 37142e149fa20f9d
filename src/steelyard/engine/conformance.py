"""What does a job get alike, whoever's queue it goes through? The promises, and all differences. Data.

Each promise is a test of that name (`tests/live/test_conformance.py`), run on this machine's own engine, through the queue of a
real Slurm, and on the fake that tests play; docs/slurm.md has the table.
"""

from __future__ import annotations

from typing import NamedTuple

_PLAYED = "programs are played, not run"


class Promise(NamedTuple):
    #: the test's name behind `test_`
    key: str
    text: str
    #: what is different through Slurm, and on the fake; "": nothing
    slurm: str = ""
    fake: str = ""


PROMISES = (
    Promise(
        "environment_is_what_was_given",
        "`--env` arrives as it was written, with `STEELYARD_JOB_ID`, `STEELYARD_ATTEMPT_ID`, HOME and USER",
        "no `STEELYARD_API_URL` and `STEELYARD_TOKEN`; `SLURM_*` are Slurm's own, for every job",
        _PLAYED,
    ),
    Promise("working_folder_is_the_submitters", "It begins in the folder that it was submitted from", fake=_PLAYED),
    Promise("input_is_empty", "Standard input is empty", fake=_PLAYED),
    Promise("exit_codes_are_the_programs_own", "Exit codes are the program's own"),
    Promise("a_signal_that_ends_it_is_told", "A signal that ended it is told as 128 + its number, with the reason"),
    Promise(
        "a_program_that_is_not_there_is_named",
        "A program that is not there: FAILED, and its name",
        "found out on the node: exit code 127 as of a shell",
        _PLAYED,
    ),
    Promise(
        "outputs_are_kept_apart",
        "Both streams are logs of their own, and read while it runs",
        "Slurm's own words about a job stand in its error output",
        "standard output alone",
    ),
    Promise("output_files_are_written", "`--output` and `--error` are written instead of the logs", fake=_PLAYED),
    Promise("elements_of_an_array_are_jobs", "Elements of an array have their index and ends of their own"),
    Promise("an_array_keeps_its_limit", "`%N` elements of an array at a time", "the next one begins at the look after an end"),
    Promise(
        "ranks_know_their_place",
        "Ranks of a gang: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, and cores",
        "several machines; one log for all ranks",
        _PLAYED,
    ),
    Promise("one_bad_rank_ends_its_gang", "A rank that fails ends its gang, and is named", "by srun --kill-on-bad-exit"),
    Promise("dependencies_hold", "`--after`: begins after that end, or never"),
    Promise("a_held_job_waits_for_its_release", "`--hold`: waits until it is released"),
    Promise("stopping_is_a_signal_and_then_force", "`stop`: the signal, and force after the grace"),
    Promise("what_never_began_has_no_exit_code", "Stopped before it began: STOPPED, without an exit code"),
    Promise("a_retry_is_another_attempt", "`--retry`: another attempt, with a log of its own"),
    Promise(
        "proof_tells_what_it_got",
        "`proof`: asked beside got",
        "cores and GPUs as counts, and which ones Slurm chose",
        "as asked",
    ),
    Promise(
        "usage_is_told",
        "`job`: CPU time and peak of memory",
        "at the end alone, without samples; the peak is that of its largest process",
    ),
)  # fmt: skip


def render_promises() -> str:
    """Markdown, a row for each."""
    rows = ["| promise | this machine | through Slurm | fake engine of tests |", "| --- | --- | --- | --- |"]
    rows += [f"| {each.text} | yes | {_cell(each.slurm)} | {_cell(each.fake)} |" for each in PROMISES]
    return "\n".join([*rows, ""])


def _cell(difference: str) -> str:
    if difference == _PLAYED:
        return f"no: {difference}"
    return f"yes; {difference}" if difference else "yes"
