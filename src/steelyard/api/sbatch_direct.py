"""Of a script that goes on to a cluster's own queue: which options are kept by Steelyard, and which are Slurm's as they were
written? Pure.

Ours is what a job has in any queue: its array, when it may begin, its name, files, variables and limits. All else, and whatever
says how large it is, Slurm understands better than we do.
"""

from __future__ import annotations

from collections.abc import Mapping

from steelyard.api.sbatch_text import HINT, Setting
from steelyard.errors import Refused

OURS = frozenset({
    "array", "begin", "dependency", "hold", "kill-on-invalid-dep", "requeue", "no-requeue", "job-name", "output", "error",
    "open-mode", "chdir", "export", "account", "input", "wrap", "time", "signal", "comment", "ignore-pbs",
})  # fmt: skip
_REFUSED = {
    "clusters": "`cluster attach` says which cluster it is",
    "uid": "a job runs as who submits it",
    "gid": "a job runs as who submits it",
    "export-file": "write the variables into the script, or --export=NAME=VALUE",
}


def divide(chosen: Mapping[str, Setting]) -> tuple[dict[str, Setting], tuple[str, ...]]:
    """(ours, options for Slurm's `sbatch`). Raises Refused for what can be neither."""
    for name, why in _REFUSED.items():
        if name in chosen:
            raise Refused(f"{chosen[name].where}: --{name} can't be done: {why}{HINT}", code="refused-option")
    ours = {name: each for name, each in chosen.items() if name in OURS or each.given.option.does == "client"}
    theirs = tuple(each.given.text for name, each in chosen.items() if name not in ours)
    if bad := next((text for text in theirs if "\0" in text or "\n" in text), None):
        raise Refused(f"the value of {bad.partition('=')[0]} holds a line break or NUL{HINT}", code="bad-value")
    return ours, theirs
