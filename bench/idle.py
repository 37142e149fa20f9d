"""What does a Steelyard cost that has nothing to do? Memory and processor time with three sleeping functions deployed."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.figures import Figure
from bench.installation import EXAMPLES, installation
from bench.warm import cpu_seconds
from steelyard.host.proc import rss_bytes
from steelyard.runtime.launcher import find_launchers

OURS = ("server", "agent", "spawner", "launchers")


def measure_idle(say: Callable[[str], None], quick: bool) -> list[Figure]:
    watch_s = 5 if quick else 30
    with installation() as steelyard:
        for number in range(3):
            steelyard.deploy(EXAMPLES / "hello" / "app.py", f"hello{number}", "--idle-timeout", "1s", "--public")
        # once more from the start: the first one has made the store, which leaves its tools in memory
        steelyard.cli("down")
        steelyard.up()
        for number in range(3):
            steelyard.wait_asleep(f"hello{number}")
        say("settling")
        time.sleep(2 if quick else 10)
        before = steelyard.programs()
        begin = time.monotonic()
        spent = {name: cpu_seconds(int(program["pid"])) for name, program in before.items()}
        say(f"watching for {watch_s} s")
        time.sleep(watch_s)
        wall_s = time.monotonic() - begin
        used = {name: (cpu_seconds(int(program["pid"])) - spent[name]) / wall_s * 100 for name, program in before.items()}
        programs = steelyard.programs()
        rss = {name: float(program["rss_bytes"]) / 1e6 for name, program in programs.items()}
        rss["launchers"] = sum(rss_bytes(pid) or 0 for pid in find_launchers(int(programs["spawner"]["pid"]))) / 1e6
    ours, envoy, cpu = sum(rss[name] for name in OURS), rss["envoy"], sum(used.values())
    what = f"Three sleeping functions, a home that was started once before, {watch_s} s without a request. RSS summed as it is."
    return [
        Figure(
            "idle memory",
            "idle: server + agent + spawner (with its launchers) RSS",
            ours,
            "MB",
            "<= 180 MB",
            ours <= 180,
            what,
            {f"{name} (MB)": size for name, size in rss.items()},
        ),
        Figure("idle Envoy", "idle: Envoy RSS", envoy, "MB", "<= 80 MB", envoy <= 80, what),
        Figure(
            "idle CPU",
            "idle: all programs, share of a core",
            cpu,
            "%",
            "< 1 % of a core",
            cpu < 1,
            what,
            {f"{name} (%)": share for name, share in used.items()},
        ),
    ]
