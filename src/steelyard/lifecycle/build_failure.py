"""Why did a step of an image fail, in words for whoever wrote it? By what uv and the commands said. Pure.

Texts of uv change from release to release: what is not recognised is quoted, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: (what was said, the reason, what to do), the first that fits
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "Make room (`steelyard image rm`, or elsewhere on that disk); steps that are done are kept.",
    ),
    (
        r"python-build-standalone|No interpreter found|No download found|no interpreter found|python-downloads",
        "there is no such Python on the machine, and none could be downloaded",
        "Ask for one that is there, or install it.",
    ),
    (
        r"dns error|failed to lookup address|tcp connect error|Connection refused|error sending request|client error \(Connect\)"
        r"|Network is unreachable|operation timed out|network connectivity is disabled",
        "the package index could not be reached",
        "Look at the machine's network, or name an index that it reaches: pip_install(..., index_url=...), or index-url in "
        "/etc/uv/uv.toml.",
    ),
    (
        r"lockfile .*needs to be updated|lockfile .*outdated|Unable to find lockfile|Failed to parse `uv.lock`",
        "uv.lock does not fit its pyproject.toml",
        "Run `uv lock` beside it and build again.",
    ),
    (
        r"incompatible with the project's Python requirement|does not satisfy Python|requires-python|requires Python",
        "it asks for another Python",
        "Ask for that version in Image.python(...), or for a release of the package that has one for this Python.",
    ),
    (
        r"was not found in the package registry|was not found in the provided package locations|not found in the cache"
        r"|no versions? of|No solution found|only the following versions? of",
        "there is no such package, or no release of it that fits the others",
        "Check its name and its version.",
    ),
    (
        r"[Hh]ash mismatch",
        "a file that was downloaded is not the one whose hash is written down",
        "Write the hash of the file that the index has now, or use another index.",
    ),
    (
        r"Failed to build|build backend returned an error|error: command .* failed",
        "a package could not be built from its source",
        "Install what its build needs on the machine, or ask for a release that has a wheel.",
    ),
)


#: as `_KNOWN`, of what programs in a container say: apt, mmdebstrap, pip, the shell
_KNOWN_INSIDE: tuple[tuple[str, str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "Make room on the disk of the image cache; steps that are done are kept.",
    ),
    (
        r"does not have a Release file|/dists/\S+ +404",
        "the mirror has no such release",
        "Look at the name of the release, and name a mirror that has it: Image.debian(..., mirror=...).",
    ),
    (
        r"NO_PUBKEY|not signed|couldn't be verified",
        "the mirror's signature can't be checked",
        "Install the keyring of that distribution on the machine (debian-archive-keyring, ubuntu-keyring), or name it in a line: "
        "mirror='deb [signed-by=/usr/share/keyrings/...] ADDRESS RELEASE main'.",
    ),
    (
        r"Unable to fetch|Failed to fetch|Could not connect|Could not resolve|Temporary failure resolving",
        "the mirror could not be reached",
        "Look at the machine's network and at the address, and build again: steps that are done are kept.",
    ),
    (
        r"Unable to locate package|has no installation candidate",
        "there is no such package in the archives that the image knows",
        "Check its name, and its release.",
    ),
    (
        r"apt-get: not found|apt-get: No such file",
        "the image has no apt",
        "Begin with an image of Debian or Ubuntu, or write how it is installed there: run(...).",
    ),
    (
        r"python3: not found|No module named '?pip'?",
        "the image has no python3 with pip",
        "Begin with one that has, such as docker://python:3.12-slim; of Debian's packages they are "
        "apt_install('python3', 'python3-pip').",
    ),
    (
        r"No matching distribution found",
        "there is no such package, or no release of it that fits",
        "Check its name and its version, and that the package index is reached: pip_install(..., index_url=...).",
    ),
    (
        r"mount: .*(permission denied|Operation not permitted|must be superuser)|mknod: .*Operation not permitted",
        "it wants more than root of a container may",
        "Steps may own files as anybody, but not mount, make devices or touch the machine: leave that out.",
    ),
)


def explain_inside(said: Sequence[str]) -> str:
    """Why a step upon a container image failed, and what to do; "" where that is not recognised. `said`: its last lines."""
    text = "\n".join(said)
    return next((f"{reason}. {advice}" for pattern, reason, advice in _KNOWN_INSIDE if re.search(pattern, text, re.I)), "")


def explain_step(what: str, exit_code: int, said: Sequence[str]) -> str:
    """What failed, why, and what to do. `said`: its last lines."""
    if exit_code < 0:
        limit = " It may have met the memory limit of builds." if exit_code == -9 else ""
        return f"{what}: it was ended by signal {-exit_code}.{limit}"
    text = "\n".join(said)
    for pattern, reason, advice in _KNOWN:
        if re.search(pattern, text):
            return f"{what}: {reason}. {advice}"
    return f"{what}: exit code {exit_code}."
