"""`steelyard check`: is this machine, or a recorded one, healthy?

Observed directly, so that it works before and without any Steelyard.

Exit codes say the worst that was found: 0 nothing above INFO and UNKNOWN, 1 a WARNING, 2 something CRITICAL (also what is
refused), 3 Steelyard is not reachable (only `--readmit` and `--keep` need one).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steelyard.cli.output import COLOURS, person_looks, print_json
from steelyard.cli.session import home_option, json_option
from steelyard.lifecycle.node import NodeState
from steelyard.model.health import Severity

if TYPE_CHECKING:
    from steelyard.model.health import Finding, Health

CHECK_HELP = """Look for what is wrong with this machine, and say what to do.

Works without a running Steelyard. Each finding is PASS, INFO, UNKNOWN (it could not
be looked at), WARNING or CRITICAL. The exit code is 0 when nothing is worse than
UNKNOWN, 1 for a WARNING, 2 for something CRITICAL.

--from reads recorded files instead: kernel logs, ibstat, ibstatus, perfquery, the
management log, lsblk, dmidecode, folders with /proc and /sys.

What is CRITICAL is taken out of use by the agent. It comes back only after a passed
active check: --readmit. A change of the hardware that is meant becomes the kept
state with --keep.

\b
Examples:
  steelyard check
  steelyard check --json | jq '.findings[] | select(.severity == "CRITICAL")'
  steelyard check --from dmesg.txt --from ibstat.txt
  steelyard check --readmit 0000:0f:00.0
"""


@click.command(help=CHECK_HELP, short_help="Look for what is wrong with this machine.")
@click.option(
    "--from", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="A recorded file; may be repeated."
)
@click.option("--expect", type=click.Path(path_type=Path), metavar="FILE", help="JSON with the hardware that should be there.")
@click.option("--readmit", metavar="SUBJECT", help="Ask the agent for an active check, and take it back into use if it passes.")
@click.option("--keep", is_flag=True, help="Take the hardware as it is now as the state to compare with.")
@home_option
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    files: tuple[Path, ...],
    expect: Path | None,
    readmit: str | None,
    keep: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    health = _ask_agent(home, readmit) if readmit is not None or keep else _look(files, expect, home)
    if as_json:
        print_json({"worst": health.worst, "findings": health.worst_first()})
    else:
        show(health)
    ctx.exit({"WARNING": 1, "CRITICAL": 2}.get(health.worst.value, 0))


def _look(files: tuple[Path, ...], expect: Path | None, home: Path | None) -> Health:
    import msgspec

    from steelyard.errors import Refused
    from steelyard.host.health.observe import observe_health
    from steelyard.host.health.recorded import read_recorded, read_text
    from steelyard.lifecycle.expectation import Expectation, check_expectation
    from steelyard.lifecycle.health import judge_health
    from steelyard.model.health import Health
    from steelyard.model.health_facts import HealthFacts

    facts = HealthFacts() if files else observe_health()
    for file in files:
        facts = facts + read_recorded(file)
    health = judge_health(facts)
    if not files:
        health = _join_held(Health((*health.findings, *_look_inside())), home)
    if expect is None:
        return health
    try:
        expected = msgspec.json.decode(read_text(expect), type=Expectation)
    except msgspec.MsgspecError as err:
        raise Refused(f"{expect} is no list of expected hardware ({err}).", code="damaged") from err
    if not expected.pci and not expected.eth and not expected.ib.interfaces:
        raise Refused(f"{expect} expects nothing: it has neither `pci`, `eth` nor `ib`.", code="damaged")
    return Health((*health.findings, *check_expectation(expected, facts)))


def _look_inside() -> list[Finding]:
    """What containers would get of this machine's GPUs."""
    from steelyard.errors import SteelyardError
    from steelyard.host.cdi import CdiReader
    from steelyard.host.topology.observe import observe_topology
    from steelyard.lifecycle.health_inside import CHECK, judge_inside
    from steelyard.model.health import NODE, Finding

    try:
        return judge_inside(observe_topology(), CdiReader().observe())
    except (SteelyardError, OSError, ValueError) as err:
        return [Finding(CHECK, NODE, Severity.UNKNOWN, f"How this machine is wired could not be read ({err}).")]


def _join_held(health: Health, home: Path | None) -> Health:
    """With what this machine's agent, where there is one, holds out of use; what its checks have answered is past."""
    import msgspec

    from steelyard.agent.health import FILE, read_kept
    from steelyard.cli.session import find_paths
    from steelyard.host.proc import boot_id
    from steelyard.lifecycle.health import forgive
    from steelyard.model.health import Finding, Health

    try:
        kept = read_kept(find_paths(home).agent / FILE)
    except (OSError, msgspec.MsgspecError) as err:
        unread = Finding("held", "node", Severity.UNKNOWN, f"What is out of use can't be read ({err}).")
        return Health((*health.findings, unread))
    if kept is None:
        return health
    answered = kept.node.answered if kept.node.boot_id == boot_id() else {}
    held = tuple(
        Finding(
            "held",
            hold.subject,
            Severity.CRITICAL,
            f"Out of use ({hold.state.value}): {hold.findings[-1].sentence}",
            f"Mend it, then: steelyard check --readmit {hold.subject}",
            evidence=tuple(f"{each.check}: {each.sentence}" for each in hold.checked),
            blocks=hold.blocks,
        )
        for hold in kept.node.holds
    )
    return Health((*held, *forgive(health, answered).findings))


#: between two looks at a check that runs, and how long one may take (a GPU's driver may need minutes to come up)
POLL_S, PATIENCE_S = 0.5, 300.0


def _ask_agent(home: Path | None, subject: str | None) -> Health:
    """`--readmit SUBJECT`, or `--keep` where that is None. Waits for the check's end and says how it went."""
    import threading

    from steelyard.cli.output import Progress
    from steelyard.cli.session import new_key, open_client
    from steelyard.model.health import Finding, Health
    from steelyard.wire.agent import MachineHealth
    from steelyard.wire.api import HealthRequest

    progress, pause = Progress(), threading.Event()
    with open_client(home) as client:
        body = HealthRequest(subject=subject, keep_hardware=subject is None)
        seen = client.fetch(MachineHealth, "POST", "/v1/machine/health", body=body, key=new_key())
        if subject is None:
            return Health((Finding("drift", "node", Severity.PASS, "The hardware as it is now is the state to compare with."),))
        for _ in range(round(PATIENCE_S / POLL_S)):
            hold = seen.node.hold(subject)
            if hold is None or hold.state is not NodeState.CHECKING:
                break
            progress.show(f"Checking {subject}.")
            pause.wait(POLL_S)
            seen = client.fetch(MachineHealth, "GET", "/v1/machine/health")
        hold = seen.node.hold(subject)
        progress.clear()
    if hold is None:
        return Health((Finding("readmit", subject, Severity.PASS, "The active check passed; it is in use again."),))
    sentence = f"The active check did not pass; it stays {hold.state.value}."
    if hold.state is NodeState.CHECKING:
        sentence = "The active check has not come to an end yet; it goes on."
    return Health((*hold.checked, Finding("readmit", subject, Severity.CRITICAL, sentence, blocks=hold.blocks)))


def show(health: Health) -> None:
    """Worst first; the action below what it mends."""
    import shutil

    width = max(60, min(140, shutil.get_terminal_size((100, 24)).columns))
    colours = person_looks()
    for line in render_findings(health.worst_first(), width):
        word = line[:10].strip()
        click.echo(click.style(line[:10], fg=COLOURS.get(word), bold=True) + line[10:] if colours and word else line)


def render_findings(findings: tuple[Finding, ...], width: int) -> list[str]:
    """`SEVERITY  check subjects: sentence`, wrapped, with the action indented. Subjects that share a sentence share a line."""
    if not findings:
        return ["UNKNOWN   Nothing was looked at."]
    groups: dict[tuple[str, ...], list[str]] = {}
    for each in findings:
        key = (each.severity.value, each.check, each.sentence, each.action if each.severity is not Severity.PASS else "")
        groups.setdefault(key, []).append(each.subject)
    lines: list[str] = []
    for (severity, name, sentence, action), subjects in groups.items():
        where = "" if subjects == ["node"] else " " + ", ".join(subjects)
        text = f"{name}{where}: {sentence}"
        lines += textwrap.wrap(text, width, initial_indent=f"{severity:<10}", subsequent_indent=" " * 10)
        if action:
            lines += textwrap.wrap(action, width, initial_indent=" " * 10 + "-> ", subsequent_indent=" " * 13)
    return lines
