"""`scontrol show hostnames | hostlist | job`: what scripts ask it for. The rest is refused by name."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from .client import Api, Failed, parse_id, show_id
from .names import expand_hosts, join_hosts
from .squeue import describe, state_of

_INSTEAD = {
    "requeue": "a job that exits with an error is started again when its retries say so; `sbatch` submits it anew",
    "hold": "use `steelyard hold ID`",
    "release": "use `steelyard release ID`",
    "update": "a job stays as it was submitted: cancel it and submit it anew",
    "suspend": "use `steelyard stop ID`",
    "resume": "use `steelyard release ID`",
}


def main(words: list[str]) -> int:
    one_line = any(word in ("-o", "--oneliner") for word in words)
    words = [word for word in words if not word.startswith("-")]
    verb, noun = (*words, "", "")[:2]
    rest = words[2:]
    if verb != "show":
        raise Failed(f"{verb or 'nothing'} can't be done here: {_INSTEAD.get(verb, 'only `show` is known')}. Nothing was done.")
    if noun in ("hostnames", "hostname"):
        print("\n".join(_expand(rest[0] if rest else os.environ.get("SLURM_JOB_NODELIST", ""))))
        return 0
    if noun in ("hostlist", "hostlistsorted"):
        names = _expand(rest[0] if rest else "")
        print(join_hosts(sorted(names) if noun.endswith("sorted") else names))
        return 0
    noun, _, given = noun.partition("=")
    if noun in ("job", "jobs", "jobid"):
        return _show_job(given or (rest[0] if rest else os.environ.get("SLURM_JOB_ID", "")), one_line)
    raise Failed(f"show {noun} can't be done here: hostnames, hostlist and job can. Nothing was done.")


def _expand(text: str) -> list[str]:
    if not text:
        raise Failed("no list of hosts was given, and SLURM_JOB_NODELIST is not set")
    try:
        return expand_hosts(text)
    except ValueError as err:
        raise Failed(str(err)) from None


def _show_job(text: str, one_line: bool) -> int:
    try:
        job = Api().job(parse_id(text))
    except Failed as err:
        if err.status == 404:
            raise Failed("slurm_load_jobs error: Invalid job id specified") from None
        raise
    values = describe(job, datetime.now(timezone.utc))
    code = job.get("exit_code")
    signal = code - 128 if code is not None and code > 128 else 0
    lines = [
        f"JobId={show_id(job['id'])} JobName={values['j']}",
        f"UserId={values['u']} Account={values['a']} QOS=normal",
        f"JobState={state_of(job)[1]} Reason={values['r']} Dependency=(null)",
        f"ExitCode={0 if signal else code or 0}:{signal} RunTime={values['M']}",
        f"SubmitTime={values['V']} StartTime={values['S']} EndTime={values['e']}",
        f"Partition=steelyard NodeList={values['N'] or '(null)'} NumNodes=1 NumCPUs={values['C']}",
        f"Command={values['o']}",
    ]
    print((" " if one_line else "\n   ").join(lines))
    return 0
