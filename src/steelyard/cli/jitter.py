"""`steelyard jitter`: how late do timers wake up on this machine, class by class, with and without a noisy neighbour?

Works without a running Steelyard. Rounds of all that is compared are interleaved, so that a machine that drifts does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import click

from steelyard.cli.attend import Interrupts
from steelyard.cli.output import Progress, print_json, print_table, say
from steelyard.cli.session import json_option
from steelyard.errors import Refused
from steelyard.lifecycle.jitter import Jitter, add_late, make_jitter, render_bars
from steelyard.model.timing import Timing
from steelyard.placement.machine import Refusal

ROUNDS = 3
SECONDS_MAX = 3600

JITTER_HELP = """Measure how late timers wake up here, class by class, and what a noisy neighbour does to them.

A timer loop (cyclictest where it is installed) runs inside the timing class: its own cores, priority and machine settings, all
put back afterwards. --noise measures everything twice: alone, and beside a neighbour in the common cores that burns every core
it may and the memory (stress-ng where it is installed). Without --timing all classes are compared, in turns. Needs no running
Steelyard; root, for more than best-effort.

\b
Examples:
  steelyard jitter --noise
  steelyard jitter --timing realtime --seconds 60 --json
"""


@click.command(help=JITTER_HELP, short_help="Measure how late timers wake up, class by class.")
@click.option(
    "--timing", "timings", multiple=True, type=click.Choice([timing.value for timing in Timing]), help="Only this class."
)
@click.option(
    "--seconds", type=click.FloatRange(1, SECONDS_MAX), default=9.0, show_default=True, help="For each figure, in all rounds."
)
@click.option("--noise", is_flag=True, help="Also beside a neighbour that burns cores and memory.")
@json_option
def jitter(timings: tuple[str, ...], seconds: float, noise: bool, as_json: bool) -> None:
    chosen = [Timing(name) for name in dict.fromkeys(timings)] or list(Timing)
    if not math.isfinite(seconds):
        raise Refused("--seconds must be a number of seconds.", code="bad-seconds")
    found = measure(chosen, seconds, [False, True] if noise else [False])
    if as_json:
        print_json([row for row, _ in found])
        return
    print_table(
        ("timing", "neighbour", "samples", "p50", "p99", "p99.9", "max"),
        [(row.timing, "noisy" if row.with_noise else "none", str(row.samples), *map(_us, _figures(row))) for row, _ in found],
        "Nothing was measured.",
    )
    for row, late in found:
        if late:
            beside = "noisy neighbour" if row.with_noise else "no neighbour"
            click.echo(f"\n{row.timing}, {beside} ({row.engine})\n{render_bars(late)}")
    click.echo()
    for sentence in _compare([row for row, _ in found]):
        click.echo(sentence)
    for sentence in dict.fromkeys(sentence for row, _ in found for sentence in row.could_not):
        say(sentence)


def measure(timings: Sequence[Timing], seconds: float, noises: Sequence[bool]) -> list[tuple[Jitter, dict[int, int]]]:
    """Every class with every kind of neighbour, in turns; with the histogram behind each figure."""
    from steelyard.cli.jitter_rounds import Rounds

    interrupts = Interrupts(_give_up)
    rounds, progress = Rounds(interrupts), Progress()
    late: dict[tuple[Timing, bool], dict[int, int]] = {(timing, noise): {} for noise in noises for timing in timings}
    could_not: dict[Timing, dict[str, None]] = {timing: {} for timing in timings}
    try:
        rounds.sweep()
        each = max(1.0, seconds / ROUNDS)
        count = max(1, round(seconds / each))
        for number in range(count):
            for timing, noise in late if number % 2 == 0 else reversed(late):
                progress.show(f"round {number + 1} of {count}: {timing.value}{', noisy' if noise else ''}")
                plan = rounds.plan(timing)
                if isinstance(plan, Refusal):
                    could_not[timing][f"{timing.value} can't be had here: {plan.detail}."] = None
                    continue
                more, words = rounds.measure(plan, each, noise)
                late[timing, noise] = add_late(late[timing, noise], more)
                could_not[timing] |= dict.fromkeys(words)
        engine = rounds.engine
    finally:
        progress.clear()
        rounds.close()
        interrupts.restore()
    if not any(late.values()):
        raise Refused(" ".join(word for words in could_not.values() for word in words), code="not-measured")
    return [
        (make_jitter(timing.value, noise, engine, found, tuple(could_not[timing])), found)
        for (timing, noise), found in late.items()
    ]


def _give_up(_signum: int, _told: int) -> None:
    raise KeyboardInterrupt


def _figures(row: Jitter) -> tuple[int | None, ...]:
    return (row.p50_us, row.p99_us, row.p999_us, row.max_us)


def _us(value: int | None) -> str:
    return "-" if value is None else f"{value} us" if value < 1000 else f"{value / 1000:.3g} ms"


def _compare(rows: Sequence[Jitter]) -> list[str]:
    """Beside best-effort, of the same run."""
    sentences: list[str] = []
    for noise in (False, True):
        p999 = {row.timing: row.p999_us for row in rows if row.with_noise is noise}
        common = p999.get(Timing.BEST_EFFORT.value)
        for timing, value in p999.items():
            if common and value and timing != Timing.BEST_EFFORT.value:
                beside = "beside a noisy neighbour" if noise else "alone"
                ratio = f"{common / value:.1f} x better" if value <= common else f"{value / common:.1f} x worse"
                sentences.append(f"p99.9 of {timing} {beside}: {ratio} than best-effort.")
    return sentences
