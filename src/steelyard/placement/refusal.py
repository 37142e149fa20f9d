"""Why does a workload not go on a machine, and what would? The answer "no" of placement; never raised."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model.machine import Machine
from steelyard.model.reason import Reason


class Largest(msgspec.Struct, frozen=True):
    """The most that one demand may ask for (now, or of an empty machine when the refusal says never)."""

    #: share of the common cores
    cpus: float
    exclusive_cores: int
    memory_bytes: int
    #: whole GPUs, shares or MIG instances, of the kind that was asked
    gpus: int = 0
    nics: int = 0


class Refusal(msgspec.Struct, frozen=True):
    """No, with every blocking reason. `never`: even an empty machine could not hold it."""

    reasons: tuple[Reason, ...]
    never: bool
    #: a sentence per reason
    detail: str
    largest: Largest


def make_refusal(blocks: Sequence[tuple[Reason, str]], never: bool, largest: Largest) -> Refusal:
    return Refusal(
        reasons=tuple(reason for reason, _ in blocks),
        never=never,
        detail="; ".join(sentence for _, sentence in blocks),
        largest=largest,
    )


def say_what_is_out(machine: Machine, blocks: Sequence[tuple[Reason, str]]) -> list[tuple[Reason, str]]:
    """The blocks; the last one names what is out of use, where anything is."""
    sick = [*machine.blocked, *(f"{a} with {b}" for a, b in machine.blocked_pairs)]
    if not sick:
        return list(blocks)
    *before, (reason, sentence) = blocks
    return [*before, (reason, f"{sentence} (out of use: {', '.join(sick)}; `steelyard check` says why)")]
