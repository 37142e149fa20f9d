"""Fifty small jobs that depend on one another as the targets of a makefile do, for `steelyard apply` or one `run` each.

python chain.py | steelyard apply -y -f -      all at once, from YAML, where `after` names jobs of the same file
python chain.py --run                          one `steelyard run --detach --after ok:ID,...` per job

Prepare, 40 parts in 8 chains of 5, a summary for each chain, and a report of all.
"""

from __future__ import annotations

import subprocess
import sys

CHAINS, LINKS = 8, 5
#: cores that each asks for: all 50 are small
CPUS = "0.1"


def make_rules() -> dict[str, tuple[str, ...]]:
    """Target -> what has to be made before, in an order in which they can be made."""
    rules: dict[str, tuple[str, ...]] = {"prepare": ()}
    for chain in range(CHAINS):
        before = "prepare"
        for link in range(LINKS):
            rules[f"part-{chain}-{link}"] = (before,)
            before = f"part-{chain}-{link}"
        rules[f"summary-{chain}"] = (before,)
    rules["report"] = tuple(f"summary-{chain}" for chain in range(CHAINS))
    return rules


def render_yaml(rules: dict[str, tuple[str, ...]]) -> str:
    documents: list[str] = []
    for target, before in rules.items():
        lines = ["type: job", f"name: {target}", f"resources: {{cpu: {CPUS}}}", f"commands: [echo made {target}]"]
        if before:
            lines.append(f"after: {','.join(f'ok:{each}' for each in before)}")
        documents.append("\n".join(lines) + "\n")
    return "---\n".join(documents)


def run_each(rules: dict[str, tuple[str, ...]]) -> None:
    ids: dict[str, str] = {}
    for target, before in rules.items():
        after = ("--after", ",".join(f"ok:{ids[each]}" for each in before)) if before else ()
        command = ("steelyard", "run", "--detach", "--name", target, "--cpus", CPUS, *after, "--", "echo", "made", target)
        ids[target] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(ids[target], target)


if __name__ == "__main__":
    if "--run" in sys.argv[1:]:
        run_each(make_rules())
    else:
        print(render_yaml(make_rules()), end="")
