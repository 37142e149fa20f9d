"""Did we write this file, and is it as we left it? Every file of ours begins with who wrote it and a digest of all below. Pure.

So a file that somebody else wrote, or changed by hand, is known from its text alone, wherever it lies, and never touched.
"""

from __future__ import annotations

import hashlib
import re

from steelyard.model.cluster import Written

_WHO = "Written by `steelyard cluster up` from what it saw of the machines. Change hosts.yaml and run it again rather than"
_RULE = "edit this: an edited file is left alone, and its host with it."
_DIGEST = re.compile(r"(?:#!/bin/sh\n)?# .*\n# .*\n# digest of all below: ([0-9a-f]{64})\n", re.ASCII)


def sign(body: str) -> str:
    """The whole file. A script keeps its first line."""
    first, rest = ("#!/bin/sh\n", body.removeprefix("#!/bin/sh\n")) if body.startswith("#!/bin/sh\n") else ("", body)
    return f"{first}# {_WHO}\n# {_RULE}\n# digest of all below: {_digest(rest)}\n{rest}"


def whose(content: str | None) -> Written:
    if content is None:
        return Written.ABSENT
    match = _DIGEST.match(content)
    if match is None:
        return Written.FOREIGN
    return Written.OURS if match[1] == _digest(content[match.end() :]) else Written.EDITED


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
