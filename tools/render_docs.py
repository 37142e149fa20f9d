"""Writes docs/cli.md from the commands' own help, the table of sbatch's options into docs/jobs.md, and that of what
is alike on each engine into docs/slurm.md. `--check` writes nothing and
exits 1 where a page says something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from steelyard.api.sbatch_options import render_option_table
from steelyard.cli.main import COMMANDS
from steelyard.engine.conformance import render_promises

DOCS = Path(__file__).resolve().parent.parent / "docs"
FILE, JOBS, SLURM = DOCS / "cli.md", DOCS / "jobs.md", DOCS / "slurm.md"

HEAD = """# The command line

Every listing takes `--json`, whose shapes are stable. Results go to stdout, progress and errors to stderr. Colours and boxes
appear only on a terminal. `--home DIR` or `STEELYARD_HOME` says which Steelyard is meant.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | it failed |
| 2 | refused: usage, bad input, or a state that forbids it; nothing was changed |
| 3 | Steelyard is not reachable |

`steelyard check` answers with the worst that it found: 0 for PASS, INFO and UNKNOWN, 1 for a WARNING, 2 for something CRITICAL.

`steelyard run` answers with the command's own code (128 + the signal's number when a signal ended it), and with 125 when
Steelyard itself refused or failed.

## Shapes of --json

Times are RFC 3339 in UTC with microseconds. A value that is not known, or not there yet, is `null`.

| command | shape |
| --- | --- |
| `status` | `{"state", "api_url", "gateway_url", "version", "programs": [{"name", "pid", "rss_bytes", "state"}]}` |
| `ps` | `[{"id", "name", "state", "reason", "exit_code", "submitted_at", "started_at", "ended_at", "detail", "project", "owner", "account", "priority", "cores", "memory_bytes", "gpus", "ranks", "restarts", "array", "array_index", "elements"}]`; `elements` is `{"RUNNING": 8, …}` of an array, which is one row unless `-e` |
| `job` | `{"job": {"id", "state", …}, "events": [{"at", "text", "state", "why"}], "usage": {"cpu_s", "memory_peak_bytes", "samples": [{"at_s", "cpus", "memory_bytes", …}], …}, "efficiency", "failed": []}`; `job` is the API's `JobView`, `failed` those of an array's elements that did not end well |
| `proof` | `{"state": "MATCH, DRIFTED, PARTIAL or UNKNOWN", "asked": {}, "got": {}, "differences": []}` |
| `functions` | `[{"name", "revision", "state", "url", "replicas", "waking", "queued", "public"}]` |
| `coldstarts` | `[{"function", "revision", "at", "road", "reason", "wall_ms", "platform_ms", "user_ms", "phases": {}}]` |
| `keys` | `[{"name", "owner", "created_at"}]` |
| `machine` | the inventory; see `src/steelyard/model/machine.py` |
| `topo` | `{"packages", "numa_nodes", "cores", "threads", "gpus": [], "nics": [], "nvme": [], "switches": [], "pairs": [{"a", "b", "class", "gbps"}], …}` |
| `place` | `{"gpus", "nics", "cores", "cpus", "memory_nodes", "bottleneck": {"class", "gbps"}, "remainder", "alternatives", …}`, or `{"refused", "never", "detail", "largest_possible"}` |
| `nodes` | `[{"name", "id", "state", "cores", "threads", "numa_nodes", "memory_bytes", "gpus", "nics", "virtualisation", "kernel"}]` |
| `devices` | `[{"node", "kind", "id", "name", "numa_node", "memory_bytes", "gbps", "state", "used_by"}]` |
| `cluster status` | `{"attachment": {"ssh", "partition", "account", "folder", …} or null, "cluster": {"name", "controller", "version", "partitions": [], "nodes": [{"name", "cpus", "memory_bytes", "gres", "state", "reason", …}], "settings", "topology", "accounts"}}`; `cluster attach` as well |
| `cluster up` | `{"steps": [{"host", "step", "what", "why"}], "nodes": [], "left_out": {"host": "why"}, "notes": [], "failed": {"host": "why"}, "states": {"node": "idle"}}`; without `-y` the plan alone, and exit code 2; `cluster add` and `cluster remove` as well |
| `pool ls` | `[{"spec": {"name", "nodes_min", "nodes_max", …}, "pilots": {"READY": 2}, "deleting", "complaint", …}]` |
| `pool status` | `{"pool": {}, "pilots": [{"id", "state", "slurm_job", "node", "detail", "submitted_at", "started_at", "ends_at", "ended_at"}]}` |
| `check` | `{"worst", "findings": [{"check", "subject", "severity", "sentence", "action", "remedy", "evidence", "blocks"}]}` |

`coldstarts` rows have `user_phases` as well when the function measured some of its own (`with sy.phase("weights"):`): parts of
the phases, not added to the sum.
"""


def render() -> str:
    lines = ["", *COMMANDS, "keys create", "keys delete"]
    return HEAD + "".join(f"\n## steelyard {line}".rstrip() + f"\n\n```text\n{help_of(line)}```\n" for line in lines)


def help_of(line: str) -> str:
    command = [sys.executable, "-P", "-m", "steelyard", *line.split(), "--help"]
    environ = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def put_table(file: Path, name: str, table: str) -> str:
    """The page with the table between its marks."""
    before, begin, rest = file.read_text().partition(f"<!-- {name}: written by make docs -->")
    _, end, after = rest.partition(f"<!-- {name} end -->")
    assert begin and end, f"{file} has lost its marks"
    return f"{before}{begin}\n{table}{end}{after}"


def main(arguments: list[str]) -> int:
    pages = {
        FILE: render(),
        JOBS: put_table(JOBS, "options", render_option_table()),
        SLURM: put_table(SLURM, "promises", render_promises()),
    }
    if "--check" in arguments:
        return 0 if all(file.read_text() == text for file, text in pages.items()) else 1
    for file, text in pages.items():
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
