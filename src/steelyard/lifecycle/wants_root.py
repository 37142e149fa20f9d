"""Did a program in a container end because it expected to be root, and at which step? By what it said last. Pure.

Root of a container is its owner outside, without any capability; the kernel tells a program so with the same EPERM or EACCES that
has many other reasons. So a line counts only when it names, beside the refusal, something that root alone may do. What is not
recognised is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: a step that is quoted is cut there
LINE_MAX = 200
#: a traceback names the call in a line before the refusal
_BEFORE = 2
_REFUSED = re.compile(r"operation not permitted|permission denied|\bEPERM\b|must be superuser", re.I)
_ROOTS = re.compile(
    r"\bl?f?chown\w*\b|\bchgrp\b|changing (?:ownership|group)|\bset(?:re|res|e)?[ug]id\b|\b(?:set|init)groups\b|set groups"
    r"|set (?:user|group) id|failed switching to|\bu?mount\b|\bmknod\b|\bchroot\b|\bpivot_root\b|\bunshare\b|\bsethostname\b"
    r"|\bsysctl\b|\bmodprobe\b|\biptables\b",
    re.I,
)
_LISTENS = re.compile(r"\bbind\b|\blisten\b|make_sock", re.I)
_SAYS_SO = re.compile(
    r"are you root\b|(?:must|needs?|has) to be (?:run )?(?:as |by )?root\b"
    r"|must be (?:run |started |executed )?(?:as |by )?(?:the )?root\b|requires? (?:to be )?root\b"
    r"|(?:not running|please run|only run) as root\b|only root (?:can|may)\b",
    re.I,
)


_LISTEN_HIGHER = (
    "Ports below 1024 are the machine's root's alone: have it listen on one above, such as 8080, or give it a network of its own "
    "(--network none), in which a function is reached all the same."
)
_BE_A_USER = (
    "Root of a container may not change owners, become other users, mount or make devices here. Do that when the image is made "
    "(.run(...) and .user(...) upon sy.Image.from_registry(...); RUN and USER in a Dockerfile), or name an image that runs as a "
    "user, such as docker://nginxinc/nginx-unprivileged."
)


def explain_root(said: str) -> str:
    """What it wanted as root, in its own words, and what to do; "" where nothing says so. `said`: the end of its output."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for at in range(len(lines) - 1, -1, -1):
        if step := _find_step(lines, at):
            quoted = step if len(step) <= LINE_MAX else f"{step[:LINE_MAX]}..."
            advice = _LISTEN_HIGHER if _LISTENS.search(step) and not _ROOTS.search(step) else _BE_A_USER
            return f"It expects to be root, at this step: {quoted!r}. {advice}"
    return ""


def _find_step(lines: Sequence[str], at: int) -> str:
    line = lines[at]
    if _SAYS_SO.search(line):
        return line
    if not _REFUSED.search(line):
        return ""
    if _ROOTS.search(line) or _LISTENS.search(line):
        return line
    if line.startswith("PermissionError"):  # Python's: the call stands in the line before, or above what points at it
        for before in reversed(lines[max(0, at - _BEFORE) : at]):
            if _ROOTS.search(before):
                return f"{before}: {line}"
    return ""
