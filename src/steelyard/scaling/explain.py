"""Why does a function have as many replicas as it has? The decision as one or two sentences, for `steelyard why`. Pure."""

from __future__ import annotations

from steelyard.model.function import FunctionSpec
from steelyard.scaling.replicas import Bound, ReplicasDecision, Rule


def render_decision(spec: FunctionSpec, told: ReplicasDecision) -> str:
    """What was seen, which rule decided, what bounds it."""
    return f"{_render_rule(spec, told)}{_render_bound(spec, told)}{_render_metrics(told)}"


def _render_rule(spec: FunctionSpec, told: ReplicasDecision) -> str:
    wait = count(told.waiting, "request") + (" waits" if told.waiting == 1 else " wait")
    places = f"{told.busy} of {told.present * spec.concurrency} places busy"
    match told.rule:
        case Rule.IDLE:
            return f"Nobody asks: {places}."
        case Rule.ENOUGH:
            return f"{places}, {wait}: enough."
        case Rule.MINIMUM:
            return f"{count(spec.replicas_min, 'replica')} at least are always kept (min-replicas)."
        case Rule.WAKE:
            return f"{wait} and nobody served: one replica wakes."
        case Rule.BACKLOG:
            return f"{wait} and {places}: {count(told.asked, 'replica')} take all of them at once."
        case Rule.TARGET_WAIT:
            places_now = max(1, told.present * spec.concurrency)
            last_ms = told.waiting * told.service_ms / places_now
            return (
                f"{wait}, and a request takes {told.service_ms:.0f} ms: the last would wait {last_ms:.0f} ms, with a target of "
                f"{spec.target_wait_ms or 0:.0f} ms: {count(told.asked, 'replica')}."
            )
        case Rule.TARGET_BUSY:
            return f"{places}, target {spec.target_busy:.0%}: {count(told.asked, 'replica')}."
        case Rule.METRIC:
            return f"{places}, {wait}: {count(told.asked, 'replica')} by what they say of themselves."
        case Rule.BUFFER:
            ready = f"{spec.buffer_replicas} kept ready beyond that (buffer-replicas)"
            return f"{places}, and {ready}: {count(told.asked, 'replica')}."
        case Rule.KEPT:
            if told.present == 1 and not told.busy:
                return f"Nobody asks; it sleeps {spec.idle_timeout_s:g} s after its last request (idle-timeout)."
            kept = "a panic a moment ago" if told.memory.panic_until_ns else f"the last {spec.idle_timeout_s:g} s (idle-timeout)"
            return f"{places}: fewer would do now, but more were needed in {kept}."
        case Rule.SURPLUS:
            return f"{places}, and fewer were enough for the last {spec.idle_timeout_s:g} s: one ends when it holds no request."


def _render_bound(spec: FunctionSpec, told: ReplicasDecision) -> str:
    match told.bound:
        case Bound.REPLICAS_MAX:
            return f" It has {told.wanted}, the most it may have (max-replicas {max(spec.replicas_min, spec.replicas_max)})."
        case Bound.FAIR_SHARE:
            return f" The machine is full, and {told.wanted} is its fair share."
        case Bound.NONE:
            return ""


def _render_metrics(told: ReplicasDecision) -> str:
    """What the replicas said, or that they did not; of those that nobody asks, nothing is wanted."""
    if not (told.busy or told.waiting):
        return ""
    return "".join(
        f" No replica tells {seen.metric}: requests alone decide."
        if seen.value is None
        else f" {seen.metric} is {seen.value:g} in {count(seen.replicas, 'replica')}, with a target of {seen.target:g} for each."
        for seen in told.metrics
    )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
