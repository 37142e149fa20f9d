"""How is a plan carried out? On all hosts at once: packages, munge's key from the controller, files and programs; then it waits
until Slurm says that the nodes take work. An edge; decides nothing.

A host that fails is told with its own words and the others go on; without the controller nothing more is done. Whatever ends this
in the middle, the same command again goes on from what it sees.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

import msgspec

from steelyard.engine.bringup.scripts import SHOW_KEY, make_waiting, render_script
from steelyard.engine.bringup.ssh import Shell
from steelyard.errors import EdgeFailed
from steelyard.model.cluster import BringUpPlan, Step, StepKind

T = TypeVar("T")
INSTALL_S, START_S, READY_S = 900.0, 180.0, 60


class Outcome(msgspec.Struct, frozen=True):
    #: host -> why it was not finished, a sentence without its end
    failed: dict[str, str]
    #: node -> Slurm's state, `idle`; {} where Slurm did not answer
    states: dict[str, str]
    #: node -> the reason that Slurm gives for its state
    reasons: dict[str, str] = {}


async def carry_out(plan: BringUpPlan, controller: str, shells: Mapping[str, Shell], tell: Callable[[str], None]) -> Outcome:
    """`shells`: of every host with a step, and of the controller. Raises EdgeFailed where the controller itself fails."""
    steps = {name: [step for step in plan.steps if step.host == name] for name in shells}
    failed: dict[str, str] = {}

    async def do_all(kinds: set[StepKind], timeout_s: float, key: str = "") -> None:
        wanted = {name: [step for step in of if step.kind in kinds] for name, of in steps.items() if name not in failed}
        found = await _each({name: _do(shells[name], of, key, timeout_s) for name, of in wanted.items() if of})
        failed.update({name: str(err) for name, err in found.items() if isinstance(err, EdgeFailed)})
        if controller in failed:
            raise EdgeFailed(
                f"{controller}, the controller: {failed[controller]}. What was done stays and is safe; run this again.",
                code="controller-failed",
            )

    if any(step.kind is StepKind.INSTALL for step in plan.steps):
        tell("installing packages")
        await do_all({StepKind.INSTALL}, INSTALL_S)
    key = ""
    if any(step.kind is StepKind.KEY for step in plan.steps):
        tell("giving every host the controller's munge key")
        key = await _read_key(shells[controller], controller)
    tell("writing files and starting programs")
    await do_all(set(StepKind) - {StepKind.INSTALL}, START_S, key)
    tell("waiting until the nodes take work")
    awaited = [name for name in plan.nodes if name not in failed and name not in plan.left_out]
    said = await shells[controller].run(make_waiting(awaited, READY_S), timeout_s=READY_S + START_S)
    found = [match.groups() for match in re.finditer(r"^(\S+) (\S+) (.*)$", said.out, re.MULTILINE) if match[1] in plan.nodes]
    return Outcome(failed, {name: state for name, state, _ in found}, {name: why for name, _, why in found if why != "none"})


async def _read_key(shell: Shell, controller: str) -> str:
    said = await shell.run(SHOW_KEY, as_root=True)
    if said.code != 0 or not re.fullmatch(r"[A-Za-z0-9+/=]{40,}", said.out.strip()):
        raise EdgeFailed(
            f"{controller}, the controller: munge's key can't be had ({_last(said.err)}). No other host was changed.",
            code="controller-failed",
        )
    return said.out.strip()


async def _do(shell: Shell, steps: Sequence[Step], key: str, timeout_s: float) -> None:
    said = await shell.run(render_script(steps, key), as_root=True, timeout_s=timeout_s)
    if said.code != 0:
        raise EdgeFailed(f"its commands ended with code {said.code} ({_last(said.err)})", code="step-failed")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was said"


async def _each(work: Mapping[str, Coroutine[object, object, T]]) -> dict[str, T | EdgeFailed]:
    """All at once; what an edge refused is its host's answer."""

    async def guard(task: Coroutine[object, object, T]) -> T | EdgeFailed:
        try:
            return await task
        except EdgeFailed as err:
            return err

    return dict(zip(work, await asyncio.gather(*map(guard, work.values())), strict=True))
