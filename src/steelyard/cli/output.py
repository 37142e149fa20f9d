"""How does a command speak? Results on stdout, progress and errors on stderr; tables with colour where a person looks, aligned
plain text in a pipe, JSON when asked. rich is imported only when a table goes to a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence

import click

#: how a state is coloured where a person looks
COLOURS = {
    "running": "green",
    "RUNNING": "green",
    "SUCCEEDED": "green",
    "MATCH": "green",
    "WAKING": "yellow",
    "QUEUED": "yellow",
    "STARTING": "yellow",
    "STOPPING": "yellow",
    "DEPLOYING": "yellow",
    "restarting": "yellow",
    "degraded": "yellow",
    "READY": "green",
    "DEGRADED": "yellow",
    "DRAINED": "red",
    "DRAINING": "yellow",
    "free": "green",
    "out of use": "red",
    "PARTIAL": "yellow",
    "UNKNOWN": "yellow",
    "PASS": "green",
    "INFO": "cyan",
    "WARNING": "yellow",
    "CRITICAL": "red",
    "STOPPED": "cyan",
    "SLEEPING": "cyan",
    "stopped": "red",
    "FAILED": "red",
    "DRIFTED": "red",
}


#: between columns, and what one that is folded needs to be read
GAP, WORD = 2, 10


def person_looks() -> bool:
    """Is stdout a terminal that takes colours?"""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """A line for the person, on stderr: never in the way of a pipe."""
    click.echo(text, err=True)


def show_time(at: str | None) -> str:
    """RFC 3339 with microseconds is for scripts; a person wants seconds. "" for None."""
    return at[:19].replace("T", " ") + "Z" if at else ""


def print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str, *, keep: Collection[str] = ()) -> None:
    """A listing. `empty` is said on stderr when there are no rows, so that a pipe gets nothing. Where a person looks and there is
    no room, cells are folded, but not those of the columns in `keep`: an id in two lines can't be copied."""
    if not rows:
        say(empty)
    elif person_looks():
        _print_rich(columns, rows, keep)
    else:
        click.echo(render_plain(columns, rows))


def render_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by blanks, at least two between them, no trailing blanks, no tabs. Pure."""
    cells = [[_one_line(cell) for cell in row] for row in ([name.upper() for name in columns], *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def _one_line(cell: str) -> str:
    return " ".join(cell.split()) or "-"


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], keep: Collection[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = {name: max(len(_one_line(cell)) for cell in (name, *(row[at] for row in rows))) for at, name in enumerate(columns)}
    kept = choose_kept(widths, keep, console.width)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, width in widths.items():
        # what may be folded gives way first; where that is not enough, rich would squeeze all alike
        table.add_column(name.upper(), overflow="fold", no_wrap=name in kept, min_width=width if name in kept else None)
    for row in rows:
        table.add_row(*(Text(_one_line(cell), style=COLOURS.get(cell, "")) for cell in row))
    console.print(table)


def choose_kept(widths: Mapping[str, int], keep: Collection[str], width: int) -> set[str]:
    """Which columns are not folded on a terminal of that width: as many of `keep` as leave each other one a word's room. Pure."""
    room = width - GAP * (len(widths) - 1) - sum(min(each, WORD) for name, each in widths.items() if name not in keep)
    kept: set[str] = set()
    for name in sorted(keep, key=lambda name: widths.get(name, 0)):
        others = sum(min(widths.get(other, 0), WORD) for other in keep if other not in kept and other != name)
        if widths.get(name, 0) + others <= room:
            kept.add(name)
            room -= widths.get(name, 0)
    return kept


class Progress:
    """One line that tells what is being waited for: rewritten in place on a terminal, a line per change otherwise."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: nothing is said where it can't be rewritten."""
        self._live = sys.stderr.isatty()
        self._quiet = quiet and not self._live
        self._last = ""

    def show(self, text: str) -> None:
        if text == self._last or self._quiet:
            return
        self._last = text
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
        else:
            say(text)

    def clear(self) -> None:
        if self._live and self._last:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._last = ""
