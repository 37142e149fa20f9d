"""How is a plan for a cluster shown? Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from steelyard.model.cluster import BringUpPlan, SeenHost, StepKind

_DONE = {"idle", "mix", "alloc", "comp", "drain", "drng"}


def plan_rows(plan: BringUpPlan) -> list[list[str]]:
    return [[step.host, step.kind.value, step.subject, step.why] for step in plan.steps]


def render_diff(plan: BringUpPlan, seen: Mapping[str, SeenHost]) -> str:
    """What would change in files, host by host, as unified diffs; "" for nothing."""
    parts: list[str] = []
    for step in plan.steps:
        if step.kind is StepKind.WRITE:
            before = seen[step.host].files.get(step.subject, "").splitlines(keepends=True)
            after = step.content.splitlines(keepends=True)
            parts += difflib.unified_diff(before, after, f"{step.host}:{step.subject}", f"{step.host}:{step.subject} (new)", n=1)
    return "".join(parts)


def not_ready(plan: BringUpPlan, states: Mapping[str, str], reasons: Mapping[str, str]) -> list[str]:
    """Sentences about nodes that take no work though they should."""
    return [
        f"{name}: Slurm says {states.get(name, 'nothing')}" + (f" ({reasons[name]})" if name in reasons else "") + "."
        for name in plan.nodes
        if name not in plan.left_out and states.get(name, "").rstrip("*") not in _DONE
    ]
