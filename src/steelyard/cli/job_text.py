"""How is a job told to a person? What it is, what became of it when, what it used. Pure text: time and width are arguments."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import click

from steelyard.cli.batch_progress import render_duration
from steelyard.cli.output import COLOURS, render_plain, show_time
from steelyard.cli.quantities import render_bytes
from steelyard.lifecycle.usage_text import render_efficiency, render_sparkline
from steelyard.model.job import Resources
from steelyard.model.usage import Usage, UsageSample
from steelyard.wire.api import EventView, JobView

#: lines of a timeline: the first and the last ones, where there are more
FIRST_EVENTS, LAST_EVENTS = 10, 50
#: ranks that are listed; of more, only those that did not end well
RANKS_MAX = 32
#: of work that ran for less than that nobody wants to know what it made of its cores
USED_MIN_S = 1.0
SPARK_MAX = 60
BAR_MAX = 60
_INDENT = "  "
#: how an element of an array is drawn, in the order of the bar
_ELEMENTS = (
    (("SUCCEEDED",), "succeeded", "█", "green"),
    (("FAILED",), "failed", "✗", "red"),
    (("STOPPED",), "stopped", "▒", "cyan"),
    (("STARTING", "RUNNING", "STOPPING", "SUSPENDED", "UNKNOWN"), "running", "▓", "yellow"),
    (("QUEUED",), "waiting", "·", "bright_black"),
)


class Look(NamedTuple):
    """How it is shown: columns, and whether in colour."""

    width: int = 80
    colour: bool = False

    def paint(self, text: str, colour: str | None = None, *, bold: bool = False, dim: bool = False) -> str:
        return click.style(text, fg=colour, bold=bold or None, dim=dim or None) if self.colour else text


def render_job(job: JobView, events: Sequence[EventView], usage: Usage | None, now_us: int, look: Look) -> str:
    """All of a job that is no array."""
    parts = [
        _render_head(job, now_us, look),
        _render_facts(job, now_us, look),
        _section("timeline", _render_timeline(events, now_us, look), look),
        _section("ranks", _render_ranks(job), look),
    ]
    if usage is not None:
        parts.append(_section("use over time", _render_use(job, usage, look), look))
    parts.append(_section("efficiency", render_used(job, usage, now_us), look))
    return "\n".join(part for part in parts if part)


def render_array(job: JobView, failed: Sequence[JobView], now_us: int, look: Look) -> str:
    """An array as a whole, with those of its elements that did not end well."""
    elements = job.elements or {}
    rows = [(each.id, each.state, "" if each.exit_code is None else str(each.exit_code), each.detail) for each in failed]
    table = render_plain(("element", "state", "exit", "why"), rows) if rows else ""
    facts = _render_facts(job, now_us, look)
    counts = f"{render_bar(elements, min(BAR_MAX, look.width - 4), look)}\n{render_counts(elements)}"
    return "\n".join(
        part
        for part in (
            _render_head(job, now_us, look),
            facts,
            _section("elements", counts, look),
            _section("not well", table, look),
        )
        if part
    )


def render_counts(elements: Mapping[str, int]) -> str:
    """ "37 of 100 done, 8 running, 54 waiting, 1 failed"."""
    count = {name: sum(elements.get(state, 0) for state in states) for states, name, _, _ in _ELEMENTS}
    done = count["succeeded"] + count["failed"] + count["stopped"]
    parts = [f"{done} of {sum(elements.values())} done"]
    parts += [f"{count[name]} {name}" for name in ("running", "waiting", "failed", "stopped") if count[name]]
    return ", ".join(parts)


def render_bar(elements: Mapping[str, int], width: int, look: Look) -> str:
    """A cell at least for whatever there is, so that one failure among ten thousand is seen."""
    counts = [sum(elements.get(state, 0) for state in states) for states, _, _, _ in _ELEMENTS]
    total = sum(counts)
    if not total or width < len(counts):
        return ""
    cells = [max(1, round(count * width / total)) if count else 0 for count in counts]
    # what the smallest took too much, or rounding left over, is the largest's
    largest = max(range(len(cells)), key=lambda at: cells[at])
    cells[largest] += width - sum(cells)
    return "".join(look.paint(mark * cell, colour) for cell, (_, _, mark, colour) in zip(cells, _ELEMENTS, strict=True) if cell)


def render_asks(job: JobView) -> str:
    """ "2 cores, 4 GPUs, 6 ranks on 2 nodes"."""
    parts = [f"{job.cores:g} {'core' if job.cores == 1 else 'cores'}"]
    if job.gpus:
        parts.append(f"{job.gpus} {'GPU' if job.gpus == 1 else 'GPUs'}")
    if job.ranks > 1:
        parts.append(f"{job.ranks} ranks" if job.nodes == 1 else f"{job.ranks} ranks on {job.nodes} nodes")
    return ", ".join(parts) + ("" if job.elements is None else " each")


def render_used(job: JobView, usage: Usage | None, now_us: int | None = None) -> str:
    """What it made of what it had, so far or in all: "used 1.2 of 8 cores, ...". "" where nothing is known, or where it was too
    short for shares to mean anything."""
    run_s = (elapsed_s(job, now_us) or 0.0) - job.suspended_s
    if usage is None or run_s < USED_MIN_S:
        return ""
    # what all nodes used beside what all had: the view says what each has
    memory, scratch = (None if each is None else each * job.nodes for each in (job.memory_bytes, job.scratch_bytes))
    demand = Resources(job.cores * job.nodes, memory, exclusive=job.whole_cores, scratch_bytes=scratch)
    return render_efficiency(demand, usage, run_s)


def elapsed_s(job: JobView, now_us: int | None) -> float | None:
    """From its start to its end, or to now; None before its start."""
    if job.started_at is None:
        return None
    if job.ended_at is not None:
        return max(0.0, (_us(job.ended_at) - _us(job.started_at)) / 1e6)
    return None if now_us is None else age_s(job.started_at, now_us)


def age_s(at: str, now_us: int) -> float:
    return max(0.0, (now_us - _us(at)) / 1e6)


def render_span(seconds: float) -> str:
    """0.021 -> "0.02s", 7.3 -> "7.3s", 65 -> "1m05s"."""
    if seconds < 1:
        return f"{seconds:.2f}s"
    return f"{seconds:.1f}s" if seconds < 9.95 else render_duration(seconds)


def _render_head(job: JobView, now_us: int, look: Look) -> str:
    state = look.paint(job.state, COLOURS.get(job.state), bold=True)
    run_s = elapsed_s(job, now_us)
    span = "" if run_s is None else f" {'after' if job.ended_at else 'for'} {render_span(run_s)}"
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    why = f", {job.reason}" if job.reason and job.reason != "exited" else ""
    head = f"{look.paint(job.id, bold=True)} {job.name}  {state}{span}{code}{why}"
    return f"{head}\n{_INDENT}{job.detail}" if job.detail else head


def _render_facts(job: JobView, now_us: int, look: Look) -> str:
    facts = [
        ("command", shlex.join(job.argv)),
        ("in", job.cwd),
        ("asks", _render_demand(job)),
        ("got", _render_placement(job)),
        ("pool", job.pool),
        ("queue", f"priority {job.priority}, account {job.account}, project {job.project}, user {job.owner}"),
        ("attempt", _render_attempt(job)),
        ("array", "" if job.array is None else f"element {job.array_index} of {job.array}"),
        ("after", ", ".join(job.after)),
        ("starts", f"not before {show_time(job.not_before)}" if job.not_before and job.state == "QUEUED" else ""),
        ("limit", _render_limit(job, now_us)),
        ("output", job.stdout or ""),
        ("errors", "" if job.stderr == job.stdout else job.stderr or ""),
    ]
    shown = [(name, text) for name, text in facts if text]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{_INDENT}{look.paint(name.ljust(width), dim=True)}  {_clean(text)}" for name, text in shown)


def _render_demand(job: JobView) -> str:
    parts = [render_asks(job)]
    if job.whole_cores:
        parts.append("whole cores" if job.timing == "best-effort" else f"{job.timing} timing")
    if job.memory_bytes is not None:
        parts.append(f"{render_bytes(job.memory_bytes)} of memory")
    if job.scratch_bytes is not None:
        parts.append(f"{render_bytes(job.scratch_bytes)} of scratch")
    if job.preemptible:
        parts.append("preemptible")
    return ", ".join(parts)


def _render_placement(job: JobView) -> str:
    """ "" while it has no place, and for an array: each element has its own."""
    if not job.attempt or job.state == "QUEUED" or job.elements is not None:
        return ""
    if job.direct:
        return "what Slurm gave it"
    parts = [f"machine {job.machine}"] if job.machine else []
    parts += [f"CPUs {_runs(job.cpus)}" if job.cpus else "a share of the common cores"]
    parts += [f"{name} {', '.join(ids)}" for name, ids in (("GPUs", job.gpu_ids), ("cards", job.nic_ids)) if ids]
    if job.memory_nodes:
        parts.append(f"memory of NUMA node {_runs(job.memory_nodes)}")
    return ", ".join(parts)


def _render_attempt(job: JobView) -> str:
    if job.attempt <= 1 and not job.restarts:
        return ""
    return f"{job.attempt}, after {job.restarts} {'restart' if job.restarts == 1 else 'restarts'}"


def _render_limit(job: JobView, now_us: int) -> str:
    if job.max_duration_s is None:
        return ""
    run_s = elapsed_s(job, now_us)
    left = "" if run_s is None or job.ended_at else f", {render_duration(max(0.0, job.max_duration_s - run_s))} left"
    return f"{render_duration(job.max_duration_s)}{left}"


def _render_timeline(events: Sequence[EventView], now_us: int, look: Look) -> str:
    """A row per event: when, the state that it brought and how long that lasted, and why."""
    rows: list[tuple[str, str, str, str]] = []
    for at, event in enumerate(events):
        span = ""
        if event.state is not None:
            after = next((later.at for later in events[at + 1 :] if later.state is not None), None)
            if after is not None:
                span = render_span(age_s(event.at, _us(after)))
            elif event.state not in ("SUCCEEDED", "FAILED", "STOPPED"):
                span = f"{render_span(age_s(event.at, now_us))} so far"
        rows.append((show_time(event.at), event.state or "", span, _clean(event.why)))
    states, spans = (max((len(row[column]) for row in rows), default=0) for column in (1, 2))
    lines = [
        f"{time}  {look.paint(state.ljust(states), COLOURS.get(state))}  {span.rjust(spans)}  {why}".rstrip()
        for time, state, span, why in rows
    ]
    if len(lines) > FIRST_EVENTS + LAST_EVENTS:
        left = len(lines) - FIRST_EVENTS - LAST_EVENTS
        lines[FIRST_EVENTS:-LAST_EVENTS] = [f"... {left} more, which --json shows"]
    return "\n".join(lines)


def _render_ranks(job: JobView) -> str:
    if not job.rank_ends:
        return ""
    well = sum(1 for end in job.rank_ends if end.exit_code == 0)
    listed = [end for end in job.rank_ends if len(job.rank_ends) <= RANKS_MAX or end.exit_code != 0]
    rows = [
        (str(end.rank), "" if end.exit_code is None else str(end.exit_code), "" if end.signal is None else str(end.signal))
        for end in listed[:RANKS_MAX]
    ]
    told = [] if len(rows) == len(job.rank_ends) else [f"{well} of {len(job.rank_ends)} ended with exit code 0"]
    return "\n".join([*([render_plain(("rank", "exit code", "signal"), rows)] if rows else []), *told])


def _render_use(job: JobView, usage: Usage, look: Look) -> str:
    samples = usage.samples
    if not samples or samples[-1].at_s < USED_MIN_S:
        return ""
    width = min(SPARK_MAX, len(samples), max(10, look.width - 44))

    def line(name: str, read: Callable[[UsageSample], float | None], say: Callable[[float], str], top: float | None) -> str:
        values = [read(sample) for sample in samples]
        known = [value for value in values if value is not None]
        if not any(known):
            return ""
        most = max(known)
        spark = look.paint(render_sparkline(values, width, top), "cyan")
        # what is seen last of work that has ended is its end
        first = f"{say(known[-1])} now" if job.ended_at is None else f"{say(sum(known) / len(known))} on average"
        return f"{name:<7}  {spark}  {first}, {say(most)} at most"

    lines = [
        line("cores", lambda sample: sample.cpus, lambda cores: f"{cores:.2g}", max(job.cores, 0.001)),
        line("memory", lambda sample: sample.memory_bytes, _say_bytes, job.memory_bytes),
        line("reading", lambda sample: sample.read_bytes_s, _say_rate, None),
        line("writing", lambda sample: sample.written_bytes_s, _say_rate, None),
        line("GPUs", lambda sample: sample.gpu_percent, lambda percent: f"{percent:.0f} %", 100.0),
    ]
    shown = [text for text in lines if text]
    return "\n".join([*shown, f"over {render_span(samples[-1].at_s)}"]) if shown else ""


def _section(title: str, body: str, look: Look) -> str:
    if not body:
        return ""
    return "\n".join(["", look.paint(title, bold=True), *(f"{_INDENT}{line}".rstrip() for line in body.splitlines())])


def _say_bytes(size: float) -> str:
    return render_bytes(round(size))


def _say_rate(rate: float) -> str:
    return f"{render_bytes(round(rate))}/s"


def _runs(numbers: Sequence[int]) -> str:
    """ "0-3,8" of 0 1 2 3 8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _clean(text: str) -> str:
    """One line without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _us(at: str) -> int:
    moment = datetime.fromisoformat(at)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond
