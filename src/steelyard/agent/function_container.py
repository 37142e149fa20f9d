"""What becomes of a function that names a container image? Its image is fetched when a revision is made ready and kept for as
long as that lives, and each of its programs is started inside a container, behind a relay that is outside.

Code and our own package are seen inside at places of their own, read-only. Never waits for a registry in the agent's loop, nor
when a function is taken over: what an earlier agent routed has its image here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.agent.container_images import find_login
from steelyard.agent.edges import Edges
from steelyard.agent.identity import PATH, choose_ids
from steelyard.agent.job_container import find_binds
from steelyard.agent.replica import Slot
from steelyard.agent.secrets import SecretKeeper
from steelyard.errors import Refused
from steelyard.lifecycle.launch import PORT_FIRST
from steelyard.model.image import Image, choose_argv, parse_image
from steelyard.model.mount import Bind
from steelyard.runtime.container import Wanted
from steelyard.runtime.program import choose_port, name_port
from steelyard.runtime.records import Handle
from steelyard.runtime.relay import Contained, relay_command
from steelyard.wire.agent import AssignedFunction

if TYPE_CHECKING:
    from steelyard.agent.revision import RevisionHost

Ids = tuple[int, int]
LISTEN_FD, PAGE_FD = 3, 4
#: inside: unpacked bundles, and the runner with what it brings along
CODE, LIB = "/run/steelyard/code", "/run/steelyard/lib"


async def find_image(edges: Edges, function: AssignedFunction, secrets: SecretKeeper | None) -> Image | None:
    """None: it names none. `secrets`: where its login may be; None: only what is here already. Raises SteelyardError."""
    if not function.spec.contained:
        return None
    owner = owner_of(edges, function)
    if owner is None:
        edges.containers.check()  # which refuses: only root makes containers
        raise Refused("Containers need root. Nothing was started.", code="no-containers-here")
    reference = parse_image(function.spec.image)
    if secrets is None:
        return await asyncio.to_thread(edges.containers.find, reference, str(function.owner.uid))
    login = await find_login(secrets, function.owner, function.spec.secrets)
    return await asyncio.to_thread(edges.images.fetch, reference, function.owner, owner, login)


def owner_of(edges: Edges, function: AssignedFunction) -> Ids | None:
    """Whom root inside is outside."""
    return choose_ids(function.owner, False, edges.settings, os.geteuid())


def find_code(function: AssignedFunction, image: Image) -> Path:
    """Where its code, or else its program, is inside."""
    spec = function.spec
    return Path(f"{CODE}/{spec.bundle}" if spec.bundle is not None else spec.cwd or image.cwd or "/")


async def start_program(host: RevisionHost, image: Image, slot: Slot, listen_fd: int, given: Mapping[str, str]) -> Handle:
    """A relay as root, which starts the container and then goes on as its user. Raises SteelyardError; nothing runs then."""
    edges, spec, owner = host.edges, host.function.spec, owner_of(host.edges, host.function)
    assert owner is not None and host.ids is not None  # else there would be no image
    env = host.env | dict(given)
    argv: tuple[str, ...] = spec.argv
    port = spec.port
    if port is None:
        env |= {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "http"}  # the first process is the program
    else:
        # of those that start at the same time each begins to look elsewhere; in a network of its own any will do
        port = port or (PORT_FIRST if spec.own_network else choose_port(zlib.crc32(slot.workload.encode())))
        env["PORT"] = str(port)
        argv = tuple(name_port(argv, port))
    edits = await edges.grants.edits(host.plan)
    code_binds = [Bind(str(edges.paths.unpacked / spec.bundle), str(host.code), True)] if spec.bundle is not None else []
    wanted = Wanted(
        argv=argv,
        env=env,
        cwd=spec.cwd or (str(host.code) if spec.bundle is not None else ""),
        own_network=spec.own_network,
        in_network=spec.own_network,
        binds=(*code_binds, *find_binds([host.secrets.path], [edges.settings.tls_cert or ""], host.function.volumes)),
        fds=1 if port is None else 0,
        edits=edits,
    )
    command, rootfs = edges.containers.make(slot.workload, image, wanted, owner)
    folder = edges.cleanup.relay_folder(slot.workload)
    folder.mkdir(mode=0o700)
    os.chown(folder, *host.ids)
    relay, relay_env = relay_command(
        sys.executable,
        command,
        port=port,
        concurrency=spec.concurrency,
        readiness=spec.readiness,
        metrics=[each.metric for each in spec.scale_on],
        folder=str(folder),
        container=Contained(choose_argv(image, argv)[0], *host.ids, spec.own_network),
    )
    return await edges.runtime.launch(
        slot.workload,
        argv=relay,
        env={"PATH": PATH, **relay_env},  # nothing of the user's or the image's: it begins as root
        cwd="/",
        uid=host.ids[0],
        gid=host.ids[1],
        fds=(listen_fd, slot.page_fd),
        fd_numbers=(LISTEN_FD, PAGE_FD),
        logs=host.logs,
        rootfs=rootfs,
    )
