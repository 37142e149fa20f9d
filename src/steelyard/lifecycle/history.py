"""What does a line of a job's history say? Reads back what `job.py` (`move`) and those who submit write. Pure."""

from __future__ import annotations

import re

from steelyard.model.job import JobState

_MOVE = re.compile(r"([A-Z]+) -> ([A-Z]+)(?: \((.*)\))?", re.DOTALL)
_STATE = re.compile(r"([A-Z]+)(?: \((.*)\))?", re.DOTALL)
_SUBMITTED = "submitted"


def read_event(text: str) -> tuple[JobState | None, str]:
    """The state that the job was in from then on (None: it stayed in its state), and what is said beside it."""
    if text.startswith(_SUBMITTED):
        return JobState.QUEUED, text
    if (match := _MOVE.fullmatch(text)) and match[2] in JobState.__members__:
        return JobState[match[2]], match[3] or ""
    if (match := _STATE.fullmatch(text)) and match[1] in JobState.__members__:
        return None, match[2] or ""
    return None, text
