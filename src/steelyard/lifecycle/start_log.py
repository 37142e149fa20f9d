"""How far is a model's server in its start? Lines of its log in, phases out; pure.

vLLM and llama.cpp tell of the same steps in words of their own: packages imported, the GPU's driver made ready, weights loaded,
graphs captured. A phase ends at the line that says so and begins where the one before ended, or as long before as the line itself
says it took; what lies between is `other`. Lines that are not known change nothing, and a log without a known line has no phases.
Replicas of a function share their log: of two that start at once each would be told the lines of both.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Mark(NamedTuple):
    """A line with these words ends the phase."""

    words: re.Pattern[str]
    phase: str


def _marks(*rows: tuple[str, str]) -> tuple[Mark, ...]:
    return tuple(Mark(re.compile(words, re.ASCII), phase) for words, phase in rows)


#: of each server in the order of its start; a later line of the same phase moves its end (each GPU's worker tells of its own)
SERVERS = (
    _marks(
        (r"Initializing an? (?:V\d )?LLM engine", "import"),
        (r"Starting to load model", "cuda_init"),
        (r"Loading weights took|Model loading took", "weights"),
        (r"torch\.compile (?:takes|took|and)", "compile"),
        (r"Graph capturing finished", "graph_capture"),
        (r"init engine \(profile, create kv cache, warmup model\) took", "warmup"),
    ),
    _marks(
        (r"load_model: loading model|llama_model_loader: loaded meta data", "import"),
        (r"load_tensors: loading model tensors", "cuda_init"),
        (r"llama_context: constructing llama_context|llama_new_context_with_model: n_ctx ", "weights"),
        (r"warming up the model with an empty run", "context"),
        (r"main: model loaded", "warmup"),
    ),
)
_TOLD_S = re.compile(r"\b(?:takes|took|in|and) (\d{1,7}(?:\.\d{1,9})?) ?s(?:ec(?:ond)?s?)?\b", re.ASCII)
#: a line is looked at no further than that
LINE_MAX = 4096
#: shorter gaps are between two lines, not between two phases
GAP_MIN_MS = 1.0


class StartLog:
    """Of one start; lines come with the time at which they were seen."""

    def __init__(self) -> None:
        self._marks: tuple[Mark, ...] = ()
        #: phase -> (place in its server's order, when it ended, how long it says that it took)
        self._ends: dict[str, tuple[int, int, float | None]] = {}

    def feed(self, at_ns: int, line: str) -> None:
        line = line[:LINE_MAX]
        for marks in (self._marks,) if self._marks else SERVERS:
            for place, mark in enumerate(marks):
                if mark.words.search(line) is None:
                    continue
                self._marks = marks
                if place >= max((each[0] for each in self._ends.values()), default=0):
                    told = _TOLD_S.search(line)
                    self._ends[mark.phase] = place, at_ns, None if told is None else float(told[1]) * 1000
                return

    def phases(self, begin_ns: int, ready_ns: int) -> dict[str, float]:
        """ms, by the names above, `other` and, from the last line until it was ready, `ready`; empty where nothing was told."""
        if not self._ends:
            return {}
        found, at_ns, other_ms = dict[str, float](), begin_ns, 0.0
        for phase, (_, end_ns, told_ms) in self._ends.items():
            passed_ms = (end_ns - at_ns) / 1e6
            found[phase] = passed_ms if told_ms is None else min(passed_ms, told_ms)
            other_ms += passed_ms - found[phase]
            at_ns = end_ns
        if other_ms >= GAP_MIN_MS:
            found["other"] = other_ms
        return {**found, "ready": (ready_ns - at_ns) / 1e6}
