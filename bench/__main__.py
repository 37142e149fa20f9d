"""Which figures are measured, and where do they go? Progress on stderr; on stdout one JSON line per figure, then the table.

A full run (no --quick) also writes docs/benchmarks.md. Figures that this call did not measure are kept from earlier calls
(.bench/figures.json), each with the time it was measured at.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable

import msgspec

from bench.crowd import measure_burst, measure_takeover
from bench.figures import Figure, environment, render_page, render_table
from bench.idle import measure_idle
from bench.jobs import measure_true
from bench.moment import measure_idle_moment
from bench.peers import ENVIRONMENT, Peers
from bench.session import ROOT, Session
from bench.tax import measure_tax
from bench.wake import measure_embedding, measure_hello
from bench.warm import measure_warm

#: in the order in which they are shown
GROUPS: dict[str, Callable[[Session], list[Figure]]] = {
    "wake_hello": measure_hello,
    "wake_embedding": measure_embedding,
    "warm": measure_warm,
    "burst": measure_burst,
    "tax": measure_tax,
    "takeover": measure_takeover,
    "idle_moment": measure_idle_moment,
    "idle": measure_idle,
    "run_true": measure_true,
}
PAGE = ROOT / "docs" / "benchmarks.md"
KEPT = ENVIRONMENT / "figures.json"


class Measured(msgspec.Struct, frozen=True):
    """What one group gave, and when."""

    at: str
    #: load average of the machine (1 minute) just before: what others did at the time
    load_before: float
    figures: list[Figure]


def main() -> int:
    options = _parse()
    session = Session(Peers(), options.quick)
    names = [name for name in GROUPS if not options.only or name in options.only]
    found: dict[str, Measured] = {}
    failed: list[str] = []
    for name in names:
        session.say(f"{name} ...")
        load = os.getloadavg()[0]
        try:
            figures = GROUPS[name](session)
        except Exception:
            # the other figures are still worth having; the exit code says that one is missing
            traceback.print_exc()
            failed.append(name)
            continue
        at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        found[name] = Measured(at, round(load, 2), figures)
        for figure in figures:
            sys.stdout.buffer.write(msgspec.json.encode(figure) + b"\n")
            sys.stdout.flush()
        if not options.quick:
            _keep(found)
    if found:
        print(render_table([figure for measured in found.values() for figure in measured.figures]))
    if found and not options.quick:
        _write_page(session.peers)
        session.say(f"wrote {PAGE}")
    for name in failed:
        session.say(f"{name} broke off and was not measured")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that everything works, writes nothing")
    return parser.parse_args()


def _kept() -> dict[str, Measured]:
    try:
        return msgspec.json.decode(KEPT.read_bytes(), type=dict[str, Measured])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def _keep(found: dict[str, Measured]) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_bytes(msgspec.json.encode(_kept() | found))


def _write_page(peers: Peers) -> None:
    kept = _kept()
    order = [kept[name] for name in GROUPS if name in kept]
    figures = [
        msgspec.structs.replace(
            figure,
            detail=f"{figure.detail} Measured {measured.at}; load average just before: {measured.load_before:g}.",
        )
        for measured in order
        for figure in measured.figures
    ]
    machine = environment() | {"envoy": _envoy_version(), "load by": _wrk_version()} | peers.versions()
    date = max(measured.at for measured in order).split()[0]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render_page(figures, machine, date).rstrip() + "\n")


def _envoy_version() -> str:
    from steelyard.gateway.envoy import envoy_binary

    text = _first_line([str(envoy_binary()), "--version"])
    found = re.search(r"/(\d+\.\d+\.\d+)", text)
    return found[1] if found else text


def _wrk_version() -> str:
    # it answers -v with its version and exit code 1
    return _first_line(["wrk", "-v"]).partition(" Copyright")[0] if shutil.which("wrk") else "bench/load.py"


def _first_line(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0].strip() if lines else "unknown"


if __name__ == "__main__":
    sys.exit(main())
