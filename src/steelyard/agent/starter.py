"""How is a replica started without a template? The plain road: fork + exec by the spawner, either of the runner in the user's
interpreter (ASGI apps) or of the relay with the user's program behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from steelyard.agent.replica import LISTEN_FD, PAGE_FD, Slot
from steelyard.agent.template import make_load
from steelyard.runtime.records import Handle
from steelyard.runtime.relay import relay_command
from steelyard.runtime.template import replica_command, server_command

if TYPE_CHECKING:
    from steelyard.agent.revision import RevisionHost


async def start_plain(host: RevisionHost, slot: Slot, listen_fd: int, private: bool, given: Mapping[str, str]) -> Handle:
    """`given`: variables over the revision's own. Raises EdgeFailed (code start-failed) with the step that failed."""
    spec = host.function.spec
    load = make_load(host.function.name, spec, host.code, host.env)
    if spec.served_by_runner:
        argv, env = replica_command(
            spec.python, load, lib_dir=host.edges.lib_dir, listen_fd=LISTEN_FD, page_fd=PAGE_FD, private=private
        )
    else:
        folder = host.edges.cleanup.relay_folder(slot.workload)
        folder.mkdir(mode=0o700)
        if host.ids is not None:
            os.chown(folder, *host.ids)
        program, more = list(spec.argv), dict[str, str]()
        if spec.attr is not None:
            program, more = server_command(spec.python, load, lib_dir=host.edges.lib_dir)
        argv, env = relay_command(
            sys.executable,
            program,
            port=spec.port,
            concurrency=spec.concurrency,
            readiness=spec.readiness,
            metrics=[each.metric for each in spec.scale_on],
            folder=str(folder),
        )
        env |= more
    uid = host.ids[0] if host.ids else os.geteuid()
    mounts = await host.edges.volumes.mounts(host.function.volumes, uid, (spec.python, spec.cwd or str(host.code)))
    return await host.edges.runtime.launch(
        slot.workload,
        argv=argv,
        env=env | host.env | dict(given),
        cwd=spec.cwd or str(host.code),
        uid=host.ids[0] if host.ids else None,
        gid=host.ids[1] if host.ids else None,
        fds=(listen_fd, slot.page_fd),
        fd_numbers=(LISTEN_FD, PAGE_FD),
        logs=host.logs,
        mounts=mounts,
    )
