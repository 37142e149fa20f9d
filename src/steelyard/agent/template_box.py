"""Where do the templates of functions in containers live, and all that is forked from them? In a box: a container for each base,
whose first process does nothing.

Only what is not the first process of a pid namespace may fork children that are its parent's. So the base is brought in beside an
idle first process, as a child of the spawner, and what it forks are children of the spawner too, behind the same walls. The first
process ends, and with it the container, when nobody holds the pipe any more that the base and all that came of it were given.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from steelyard.agent.edges import Edges
from steelyard.agent.identity import PATH
from steelyard.agent.job_container import find_binds
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.mount import Bind
from steelyard.runtime.container import Wanted
from steelyard.runtime.lib_dir import make_lib_dir
from steelyard.runtime.process import Adopted

if TYPE_CHECKING:
    from steelyard.agent.template_tree import Wanted as TemplateWanted

BOX = "box"
#: inside: unpacked bundles, and the runner with what it brings along
CODE, LIB = "/run/steelyard/code", "/run/steelyard/lib"
#: what ends while its parent is gone is reaped by the kernel; `cat` is a tenth of an interpreter, where the image has one
_FIRST = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.dup2(3, 0)
os.close(3)
for path in ("/bin/cat", "/usr/bin/cat"):
    try: os.execv(path, ["cat"])
    except OSError: pass
while os.read(0, 1): pass
"""


def is_box(found: Adopted) -> bool:
    return found.intent is not None and found.intent.labels.get("role") == BOX


async def bind_runner(edges: Edges) -> Bind:
    """The runner's folder. Raises EdgeFailed."""
    folder = await asyncio.to_thread(make_lib_dir, edges.paths.home / "runner", copied=True)
    return Bind(str(folder), LIB, True)


async def open_box(edges: Edges, wanted: TemplateWanted, key: str, kind: str, logs: str) -> tuple[WorkloadId, int]:
    """A container for the base of that key, and the descriptor that it lives as long as. Raises SteelyardError."""
    assert wanted.image is not None and wanted.owner is not None and wanted.ids is not None
    workload = WorkloadId(f"{BOX}.{key}.{edges.clock.now_us():x}")
    binds = [await bind_runner(edges), Bind(str(edges.paths.unpacked), CODE, True)]
    if wanted.secret_files:  # of all revisions that will be in it; each is readable by its owner alone
        folder = os.path.realpath(edges.paths.secrets)
        binds.append(Bind(folder, folder, True))
    ends, alive = os.pipe2(os.O_CLOEXEC)
    try:
        argv, rootfs = edges.containers.make(
            workload,
            wanted.image,
            Wanted(
                argv=(wanted.python, "-ISc", _FIRST),
                env={},
                cwd="/",
                interpreter=wanted.python,
                own_network=wanted.own_network,
                binds=(*binds, *find_binds((), [edges.settings.tls_cert or ""], wanted.volumes)),
                fds=1,
                detached=True,
                edits=await edges.grants.edits(wanted.devices),
            ),
            wanted.owner,
        )
        await edges.runtime.start(
            workload,
            kind=kind,
            argv=argv,
            env={"PATH": PATH},
            cwd="/",
            uid=wanted.ids[0],
            gid=wanted.ids[1],
            plan=Plan(),
            fds=(ends,),
            fd_numbers=(3,),
            logs=logs,
            rootfs=rootfs,
            labels={"role": BOX},
        )
    except BaseException:
        os.close(alive)
        edges.cleanup.remove(workload)
        raise
    finally:
        os.close(ends)
    return workload, alive
