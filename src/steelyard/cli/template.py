"""`steelyard template`: what is imported and loaded before a function's replicas are forked, and what that costs."""

from __future__ import annotations

from pathlib import Path

import click

from steelyard.cli.job_text import render_span
from steelyard.cli.output import print_json, print_table, say
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, json_option, open_client, quote
from steelyard.clock import SystemClock
from steelyard.model.template import TemplateSeen

#: packages and module names in a table; all are in --json
SHOWN_MAX = 8

TEMPLATE_HELP = """Show what a function's replicas are forked from: the base (Python and the HTTP server), the environment
(installed packages) and the revision (your own module and what @sy.enter(shared=True) loaded).

PRIVATE is what only that template has; SHARED what it has in common with those around it.

\b
Examples:
  steelyard template hello
  steelyard template hello --json | jq '.[-1].unsafe'
"""


@click.command(help=TEMPLATE_HELP, short_help="Show what a function's replicas are forked from.")
@click.argument("name")
@home_option
@json_option
def template(name: str, home: Path | None, as_json: bool) -> None:
    with open_client(home) as client:
        line = client.fetch(list[TemplateSeen], "GET", f"/v1/functions/{quote(name)}/template")
    if as_json:
        print_json(line)
        return
    now_us = SystemClock().now_us()
    print_table(
        ("template", "state", "pid", "age", "forks", "children", "private", "shared", "modules", "import"),
        [
            (
                f"{'  ' * depth}{each.role}",
                each.state,
                str(each.pid or ""),
                "" if each.since is None else render_span((now_us - each.since) / 1e6),
                str(each.forks),
                str(each.children),
                render_bytes(each.private_bytes) if each.resident_bytes else "",
                render_bytes(each.shared_bytes) if each.resident_bytes else "",
                str(each.modules or ""),
                f"{each.import_ms:.0f} ms" if each.import_ms else "",
            )
            for depth, each in enumerate(line)
        ],
        "It has none: a command is started plainly.",
    )
    for each in line:
        explain(each)


def explain(seen: TemplateSeen) -> None:
    """What the table has no room for, a sentence each."""
    if seen.role == "base" and seen.image:
        apart = ", ".join(seen.walls.get("namespaces") or ["none"])
        told = (
            f"namespaces of its own: {apart}; system calls: {seen.walls.get('seccomp')}; rights: {seen.walls.get('capabilities')}"
        )
        say(f"Runs in a container of {seen.image}, and so does all that is forked from it.{f' {told}.' if seen.walls else ''}")
    if seen.packages:
        told = [f"{each.name} {each.ms:.0f} ms {render_bytes(each.bytes)}" for each in seen.packages[:SHOWN_MAX]]
        say(f"Imported by the {seen.role}: {', '.join(told)}.")
    if seen.role == "revision" and seen.top_level:
        most = sorted(seen.top_level.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_MAX]
        say(f"Modules in the revision: {', '.join(f'{name} {count}' for name, count in most)}.")
    for package, why in seen.left_out:
        say(f"Not imported before forks: {package}: {why}.")
    for thread in seen.threads:
        say(f"Can't be forked: {thread} runs. Start it in a function decorated with @sy.enter, which runs in each replica.")
    for what, fix in seen.unsafe:
        say(f"Can't be forked: {what}. {fix}")
