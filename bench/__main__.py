"""`python -m bench [--only NAME ...] [--quick]`: JSON lines on stdout, a table on stderr, the page docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import (
    arrivals,
    bringup,
    bursts,
    calls,
    container_functions,
    containers,
    decision,
    direct,
    idle,
    images,
    jitter,
    jobs,
    many,
    neighbours,
    peers,
    placement,
    pool,
    slurm_many,
    submits,
    tax,
    wakes,
    warm,
    weights,
)
from bench.figures import Figure, environment, make_entry, merge_entries, processor, read_page, render_page, render_table

Measure = Callable[[Callable[[str], None], bool], list[Figure]]

#: in the order of the page
GROUPS: dict[str, Measure] = {
    "wake": wakes.measure_hello,
    "embedding": wakes.measure_embedding,
    "warm": warm.measure_warm,
    "crowd": bursts.measure_crowd,
    "placement": placement.measure_placement,
    "decision": decision.measure_decision,
    "neighbours": neighbours.measure_neighbours,
    "tax": tax.measure_tax,
    "takeover": bursts.measure_takeover,
    "idle-moment": bursts.measure_idle_moment,
    "idle": idle.measure_idle,
    "job": wakes.measure_jobs,
    "queue": jobs.measure_queue,
    "throughput": jobs.measure_throughput,
    "submits": submits.measure_submits,
    "idle-queue": submits.measure_idle_queue,
    "arrivals": arrivals.measure_arrivals,
    "container": containers.measure_containers,
    "container-function": container_functions.measure_container_functions,
    "jitter": jitter.measure_jitter,
    "many": many.measure_many,
    "calls": calls.measure_calls,
    "first-call": calls.measure_first,
    "reload": calls.measure_reload,
    "weights": weights.measure_weights,
    "image-build": images.measure_build,
    "direct": direct.measure_direct,
    "array": slurm_many.measure_arrays,
    "watching": slurm_many.measure_watching,
    "cluster-up": bringup.measure_bring_up,
    "pool": pool.measure_pool,
}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Measure every promised figure on this machine.")
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=list(GROUPS), help="groups to measure")
    parser.add_argument("--quick", action="store_true", help="few rounds, no page: to see that it works")
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.only:
        try:
            found = GROUPS[name](lambda text, group=name: _progress(f"{group}: {text}"), options.quick)
        except Exception as err:  # one broken group must not cost the others their figures
            traceback.print_exc()
            found = [Figure(name, name, None, "", "", None, f"The measurement failed: {err}")]
        _progress("")
        for figure in found:
            print(msgspec.json.encode(figure).decode(), flush=True)
        figures += found
    print(render_table(figures), file=sys.stderr)
    if not options.quick:
        _write_page(figures)
    return 0 if all(figure.held is not False for figure in figures) else 1


def _write_page(figures: list[Figure]) -> None:
    """What was measured takes its place on the page; everything else stays as it was, with its own day."""
    before, entries = read_page(PAGE.read_text()) if PAGE.exists() else ({}, [])
    peer_versions = {
        f"peer: {name}": peers.version(name)
        for name in ("ray", "distributed", "parsl", "gunicorn", "uvicorn")
        if peers.PYTHON.exists()
    }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    newer = [make_entry(figure, today, processor()) for figure in figures]
    PAGE.write_text(render_page(merge_entries(entries, newer), before | environment() | peer_versions))
    print(f"written: {PAGE}", file=sys.stderr)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
