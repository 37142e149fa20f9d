"""What does Steelyard cost while nothing happens? Memory and CPU of its programs beside functions that sleep."""

from __future__ import annotations

import os
from pathlib import Path

from bench.figures import Figure
from bench.installation import PROGRAM_NAMES, Installation, cpu_s, pause, rss_mb
from bench.session import EXAMPLES, Session

FUNCTIONS_ASLEEP = 3
OURS = ("server", "agent", "spawner")
#: what a start still has to do (adopting, building templates) is over by then
SETTLE_S = 10.0


def measure_idle(session: Session) -> list[Figure]:
    seconds = session.rounds(30, 5)
    names = [f"asleep-{at}" for at in range(FUNCTIONS_ASLEEP)]
    with Installation() as place:
        for name in names:
            place.deploy(EXAMPLES / "hello" / "app.py", name, "--idle-timeout", "1s", "--public")
        place.restart()
        for name in names:
            place.wait_asleep(name)
        pause(SETTLE_S)
        pids = {name: place.pid(name) for name in PROGRAM_NAMES}
        templates = [pid for pid in _below(pids["spawner"]) if pid != pids["spawner"]]
        session.say(f"idle: {seconds} s of quiet")
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        templates_before_s = sum(map(cpu_s, templates))
        pause(seconds)
        used = {name: (cpu_s(pid) - before[name]) / seconds * 100 for name, pid in pids.items()}
        templates_used = (sum(map(cpu_s, templates)) - templates_before_s) / seconds * 100
        rss = {name: rss_mb(pid) for name, pid in pids.items()}
        templates_mb = sum(map(rss_mb, templates))
    ours, envoy = sum(rss[name] for name in OURS), rss["envoy"]
    total = sum(used.values()) + templates_used
    more = {f"{name}, MB": rss[name] for name in PROGRAM_NAMES} | {f"{len(templates)} templates, MB": templates_mb}
    cpu = {f"{name}, % of a core": used[name] for name in PROGRAM_NAMES} | {"templates, % of a core": templates_used}
    detail = (
        f"{FUNCTIONS_ASLEEP} sleeping functions, after one `down` and `up` of this home and {SETTLE_S:.0f} s of quiet. Resident memory "
        "of each program, shared pages counted in each; `up` is the supervisor. Templates belong to the functions' own memory."
    )
    quiet = f"All programs of Steelyard and the templates together, over {seconds} s; the clock ticks at {os.sysconf('SC_CLK_TCK')} Hz."
    return [
        Figure(
            "idle_memory", "idle: server, agent and spawner, resident memory", ours, "MB", "<= 180 MB", ours <= 180, detail, more
        ),
        Figure("idle_envoy", "idle: Envoy, resident memory", envoy, "MB", "<= 80 MB", envoy <= 80, "At the same moment."),
        Figure("idle_cpu", "idle: CPU", total, "% of a core", "< 1 % of a core", total < 1, quiet, cpu),
    ]


def _below(root: int) -> list[int]:
    """The process and everything below it."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(word) for word in task.read_text().split()]
    return found
