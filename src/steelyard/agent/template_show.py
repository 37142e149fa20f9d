"""What does `steelyard template NAME` show? Asks each living template of the line and reads its memory; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from steelyard.agent.template import TemplateKeeper
from steelyard.agent.template_process import BASE, ENVIRONMENT, REVISION, TemplateProcess
from steelyard.agent.template_tree import TemplateTree
from steelyard.errors import SteelyardError
from steelyard.host.proc import observe_memory, observe_walls
from steelyard.model.image import Image
from steelyard.model.reason import Reason
from steelyard.model.template import PackageSeen, TemplateSeen
from steelyard.runtime.template import TemplateStatus

#: one that does not answer by then imports just now, or hangs
SHOW_S = 2.0
READY = "ready"


async def show_templates(keeper: TemplateKeeper, tree: TemplateTree, children: Mapping[str, int]) -> tuple[TemplateSeen, ...]:
    """From the base to the revision. An ancestor that ended meanwhile is shown as what would be made again."""
    base_key = tree.base_key(keeper.wanted)
    # one taken over from an earlier agent has not looked at its packages, but its living template says where it came from
    grown_from = tree.find(keeper.process.parent) if keeper.process is not None else None
    key = grown_from.key if grown_from is not None else keeper.parent_key or base_key
    left_out = tuple(sorted(tree.left_out.get(base_key, {}).items()))
    line = [await _show(BASE, tree.nodes.get(base_key), children)]
    if key != base_key:
        line.append(await _show(ENVIRONMENT, tree.nodes.get(key), children, left_out=left_out))
    state = READY if keeper.ready else str(keeper.reason)
    line.append(await _show(REVISION, keeper.process, children, keeper.status, state))
    return tuple(_show_walls(each, keeper.wanted.image) for each in line)


def _show_walls(seen: TemplateSeen, image: Image | None) -> TemplateSeen:
    if image is None:
        return seen
    walls = {} if seen.pid is None else observe_walls([seen.pid])
    return msgspec.structs.replace(seen, image=image.reference, walls=walls)


async def _show(
    role: str,
    process: TemplateProcess | None,
    children: Mapping[str, int],
    status: TemplateStatus | None = None,
    state: str = "",
    left_out: tuple[tuple[str, str], ...] = (),
) -> TemplateSeen:
    """`status`: what it said when it was ready last; of one that is gone nothing newer is known."""
    memory = None
    if process is not None and process.client is not None and process.pid is not None:
        state, memory = state or READY, observe_memory(process.pid)
        try:
            status = await process.client.show(SHOW_S)
        except (SteelyardError, OSError):
            state = str(Reason.TEMPLATE_NOT_READY)
    status = status or TemplateStatus(state="")
    packages = [PackageSeen(each.name, each.ms, each.bytes) for each in status.packages]
    return TemplateSeen(
        role=role,
        state=state or str(Reason.TEMPLATE_NOT_READY),
        pid=process.pid if process else None,
        since=process.since_us if process else None,
        forks=status.forks,
        children=children.get(process.workload, 0) if process else 0,
        resident_bytes=memory.resident if memory else 0,
        private_bytes=memory.private if memory else 0,
        shared_bytes=memory.shared if memory else 0,
        modules=status.modules,
        top_level=status.top_level,
        packages=tuple(sorted(packages, key=lambda each: (-each.ms, each.name))),
        import_ms=status.import_ms,
        enter_ms=status.enter_ms,
        threads=tuple(str(thread["name"]) for thread in status.threads),
        unsafe=tuple((each["name"], each["fix"]) for each in status.unsafe),
        left_out=left_out,
    )
