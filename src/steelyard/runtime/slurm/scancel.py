"""`scancel`: end jobs, by id, name, state or user."""

from __future__ import annotations

import os
import signal
import sys

from .client import ENDED, Api, Failed, parse_id, show_id
from .getopt import NONE, Option, read_options
from .squeue import state_of

OPTIONS = (
    Option("signal", "s"),
    Option("name", "n"),
    Option("jobname", ""),
    Option("user", "u"),
    Option("me", "", NONE),
    Option("state", "t"),
    Option("batch", "b", NONE),
    Option("full", "f", NONE),
    Option("quiet", "Q", NONE),
    Option("verbose", "v", NONE),
    Option("help", "", NONE),
)
HELP = """scancel [-s SIGNAL] [-n NAME] [-u USER | --me] [-t STATE] [ID...]: end jobs.

SIGNAL is TERM (the default; KILL follows), INT, HUP, QUIT or KILL.
"""
#: from the signal to SIGKILL, as Slurm's KillWait
GRACE_S = 30.0
#: signals that ask a job to end; others only tell it something, which stopping is not
_ENDING = {"TERM", "INT", "HUP", "QUIT", "KILL"}


def main(words: list[str]) -> int:
    given, at = read_options(OPTIONS, words)
    asked = {each.option.name: each.value for each in given}
    if "help" in asked:
        print(HELP, end="")
        return 0
    signum = _find_signal(asked.get("signal"))
    # options may also stand behind the ids
    more, end = read_options(OPTIONS, words[at + 1 :]) if at < len(words) else ([], 0)
    if more:
        return main([*words[at + 1 : at + 1 + end], *words[:at], words[at], *words[at + 1 + end :]])
    ids = [parse_id(text) for word in words[at:] for text in word.split(",") if text]
    filters = {name for name in ("name", "jobname", "user", "me", "state") if name in asked}
    if not ids and not filters:
        raise Failed("No job identification provided")
    api = Api()
    if filters:
        ids = [job["id"] for job in api.jobs() if _matches(job, asked) and (not ids or job["id"] in ids)]
    code = 0
    for job in ids:
        try:
            grace_s = 0.0 if signum == signal.SIGKILL else GRACE_S
            api.post(f"/v1/jobs/{job}/stop", {"signal": signum, "grace_s": grace_s})
        except Failed as err:
            code = 1
            if err.status != 404:
                print(f"scancel: error: {show_id(job)}: {err}", file=sys.stderr)
            elif "quiet" not in asked:
                print(f"scancel: error: Kill job error on job id {show_id(job)}: Invalid job id specified", file=sys.stderr)
    return code


def _find_signal(text: str | None) -> int:
    if text is None:
        return signal.SIGTERM
    name = text.upper().removeprefix("SIG")
    if text.isdigit() and int(text) in signal.valid_signals():
        name = signal.Signals(int(text)).name.removeprefix("SIG")
    if name not in _ENDING:
        names = ", ".join(sorted(_ENDING))
        how = f"inside a job, `kill -{name} PID` sends any other"
        raise Failed(f"--signal={text}: only signals that end a job can be sent here ({names}); {how}. Nothing was done.")
    return int(signal.Signals[f"SIG{name}"])


def _matches(job: dict[str, object], asked: dict[str, str | None]) -> bool:
    if job["state"] in ENDED:
        return False
    name = asked.get("name") or asked.get("jobname")
    user = os.environ.get("SLURM_JOB_USER") or os.environ.get("USER", "") if "me" in asked else asked.get("user")
    state = asked.get("state")
    return (
        (name is None or job["name"] in name.split(","))
        and (user is None or job["owner"] == user)
        and (state is None or state.upper() in state_of(job))
    )
