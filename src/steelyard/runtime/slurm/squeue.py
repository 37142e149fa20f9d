"""`squeue`: which jobs wait or run? Steelyard's list in Slurm's columns."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from typing import Any

from .client import Api, Failed, parse_id, show_id
from .getopt import NONE, Option, read_options

OPTIONS = (
    Option("jobs", "j"),
    Option("user", "u"),
    Option("me", "", NONE),
    Option("name", "n"),
    Option("states", "t"),
    Option("format", "o"),
    Option("noheader", "h", NONE),
    Option("array", "r", NONE),
    Option("long", "l", NONE),
    Option("sort", "S"),
    Option("partition", "p"),
    Option("account", "A"),
    Option("all", "a", NONE),
    Option("start", "", NONE),
    Option("help", "", NONE),
)
HELP = "squeue [-j IDS] [-u USER | --me] [-n NAMES] [-t STATES] [-h] [-o FORMAT]: jobs that wait or run.\n"
FORMAT = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
LONG = "%.18i %.9P %.8j %.8u %.8T %.10M %.9l %.6D %R"
#: Steelyard's state -> Slurm's, short and long
STATES = {
    "QUEUED": ("PD", "PENDING"),
    "STARTING": ("CF", "CONFIGURING"),
    "RUNNING": ("R", "RUNNING"),
    "STOPPING": ("CG", "COMPLETING"),
    "SUSPENDED": ("S", "SUSPENDED"),
    "SUCCEEDED": ("CD", "COMPLETED"),
    "FAILED": ("F", "FAILED"),
    "STOPPED": ("CA", "CANCELLED"),
    "UNKNOWN": ("UN", "UNKNOWN"),
}
#: a failed job's reason tells more
_BY_REASON = {"max-duration": ("TO", "TIMEOUT"), "oom-killed": ("OOM", "OUT_OF_MEMORY"), "node-lost": ("NF", "NODE_FAIL")}
#: why a job waits, in Slurm's words
_WAITS = {
    "held": "JobHeldUser",
    "begins-later": "BeginTime",
    "dependency": "Dependency",
    "array-limit": "JobArrayTaskLimit",
    "quota": "AssocMaxJobsLimit",
    "behind-earlier-job": "Priority",
    "reserved": "Priority",
}
_FIELD = re.compile(r"%(\.?)(\d*)([A-Za-z])")
HEADERS = {
    "i": "JOBID", "A": "JOBID", "F": "ARRAY_JOB_ID", "K": "ARRAY_TASK_ID", "P": "PARTITION", "j": "NAME", "u": "USER", "t": "ST",
    "T": "STATE", "M": "TIME", "l": "TIME_LIMIT", "D": "NODES", "R": "NODELIST(REASON)", "N": "NODELIST", "r": "REASON",
    "C": "CPUS", "a": "ACCOUNT", "V": "SUBMIT_TIME", "S": "START_TIME", "e": "END_TIME", "o": "COMMAND", "Z": "WORK_DIR",
    "q": "QOS",
}  # fmt: skip


def main(words: list[str]) -> int:
    given, at = read_options(OPTIONS, words)
    if at < len(words):
        raise Failed(f"{words[at]!r} is no option of squeue. Nothing was done.")
    asked = {each.option.name: each.value for each in given}
    if "help" in asked:
        print(HELP, end="")
        return 0
    form = asked.get("format") or (LONG if "long" in asked else FORMAT)
    check_format(form)
    jobs = [job for job in _find(Api(), asked) if _wanted(job, asked)]
    if "noheader" not in asked:
        print(_line(form, HEADERS))
    now = datetime.now(timezone.utc)
    for job in jobs:
        print(_line(form, describe(job, now)))
    return 0


def check_format(form: str) -> None:
    for match in _FIELD.finditer(form):
        if match[3] not in HEADERS:
            raise Failed(f"the format {match[0]} is not known here; known are {' '.join('%' + name for name in HEADERS)}")


def _find(api: Api, asked: dict[str, str | None]) -> list[dict[str, Any]]:
    if not asked.get("jobs"):
        return api.jobs()
    wanted = [parse_id(text) for text in (asked["jobs"] or "").split(",") if text.strip()]
    jobs = api.jobs()
    found = [job for job in jobs if job["id"] in wanted or job["id"].partition("_")[0] in wanted]
    known = {job["id"] for job in found} | {job["id"].partition("_")[0] for job in found}
    for job in wanted:
        if job not in known:
            try:
                found.append(api.job(job))
            except Failed as err:
                if err.status == 404:
                    raise Failed("slurm_load_jobs error: Invalid job id specified") from None
                raise
    return found


def _wanted(job: dict[str, Any], asked: dict[str, str | None]) -> bool:
    short, long = state_of(job)
    if (states := asked.get("states")) is not None:
        names = {name.strip().upper() for name in states.split(",")}
        if "ALL" not in names and not names & {short, long}:
            return False
    elif job["state"] in ("SUCCEEDED", "FAILED", "STOPPED"):
        return False
    user = os.environ.get("SLURM_JOB_USER") or os.environ.get("USER", "") if "me" in asked else asked.get("user")
    if user is not None and job.get("owner") not in user.split(","):
        return False
    name = asked.get("name")
    return name is None or job.get("name") in name.split(",")


def state_of(job: dict[str, Any]) -> tuple[str, str]:
    if job["state"] == "FAILED" and job.get("reason") in _BY_REASON:
        return _BY_REASON[job["reason"]]
    return STATES.get(job["state"], ("UN", "UNKNOWN"))


def describe(job: dict[str, Any], now: datetime) -> dict[str, str]:
    """The value of each field."""
    short, long = state_of(job)
    number, _, element = job["id"].partition("_")
    waits = job["state"] == "QUEUED"
    reason = _WAITS.get(job.get("reason") or "", "Resources") if waits else "None"
    node = os.environ.get("SLURMD_NODENAME", "localhost")
    return {
        "i": show_id(job["id"]), "A": show_id(job["id"]), "F": show_id(number), "K": element or "N/A",
        "P": "steelyard", "j": str(job.get("name")), "u": str(job.get("owner")), "t": short, "T": long,
        "M": _elapsed(job, now), "l": "N/A", "D": "1", "R": f"({reason})" if waits else node, "N": "" if waits else node,
        "r": reason, "C": str(len(job.get("cpus") or ()) or 1), "a": str(job.get("account") or job.get("owner")),
        "V": _time(job.get("submitted_at")), "S": _time(job.get("started_at")), "e": _time(job.get("ended_at")),
        "o": " ".join(job.get("argv") or ()), "Z": "", "q": "normal",
    }  # fmt: skip


def _line(form: str, values: dict[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        text = values[match[3]]
        if not match[2]:
            return text
        width = int(match[2])
        return text[:width].rjust(width) if match[1] else text[:width].ljust(width)

    return _FIELD.sub(fill, form).rstrip()


def _elapsed(job: dict[str, Any], now: datetime) -> str:
    if not job.get("started_at"):
        return "0:00"
    end = _parse(job["ended_at"]) if job.get("ended_at") else now
    seconds = max(0, int((end - _parse(job["started_at"])).total_seconds()))
    hours, rest = divmod(seconds, 3600)
    days, hours = divmod(hours, 24)
    clock = f"{rest // 60}:{rest % 60:02}" if not (days or hours) else f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return f"{days}-{clock.rjust(8, '0')}" if days else clock


def _time(text: str | None) -> str:
    return "N/A" if not text else _parse(text).astimezone().strftime("%Y-%m-%dT%H:%M:%S")


def _parse(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
