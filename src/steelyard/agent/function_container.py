"""What becomes of a function that names a container image? Its image is fetched when a revision is made ready and kept for as
long as that lives. A program is started inside a container, behind a relay that is outside; a Python function is forked inside
one (`template_box.py`), or, where it can't be, started in one of its own.

Code and our own package are seen inside at places of their own, read-only. Never waits for a registry in the agent's loop, nor
when a function is taken over: what an earlier agent routed has its image here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from steelyard.agent.container_images import find_login
from steelyard.agent.edges import Edges
from steelyard.agent.identity import PATH, choose_ids
from steelyard.agent.job_container import find_binds
from steelyard.agent.replica import LISTEN_FD, PAGE_FD, Slot
from steelyard.agent.secrets import SecretKeeper
from steelyard.agent.template import make_load
from steelyard.agent.template_box import CODE, LIB, bind_runner
from steelyard.errors import Refused
from steelyard.lifecycle.launch import PORT_FIRST
from steelyard.model.image import Image, choose_argv, parse_image
from steelyard.model.mount import Bind
from steelyard.runtime.container import Wanted, variables
from steelyard.runtime.container_python import find_python
from steelyard.runtime.program import choose_port, name_port
from steelyard.runtime.records import Handle
from steelyard.runtime.relay import Contained, relay_command
from steelyard.runtime.template import replica_command, server_command
from steelyard.wire.agent import AssignedFunction

if TYPE_CHECKING:
    from steelyard.agent.revision import RevisionHost

Ids = tuple[int, int]


async def find_image(edges: Edges, function: AssignedFunction, secrets: SecretKeeper | None) -> Image | None:
    """None: it names none. `secrets`: where its login may be; None: only what is here already. Raises SteelyardError."""
    if not function.spec.contained:
        return None
    owner = choose_ids(function.owner, False, edges.settings, os.geteuid())
    if owner is None:
        edges.containers.check()  # which refuses: only root makes containers
        raise Refused("Containers need root. Nothing was started.", code="no-containers-here")
    reference = parse_image(function.spec.image)
    if secrets is None:
        return await asyncio.to_thread(edges.containers.find, reference, str(function.owner.uid))
    login = await find_login(secrets, function.owner, function.spec.secrets)
    return await edges.images.bring(reference, function.owner, owner, login)


def enter_image(edges: Edges, function: AssignedFunction, image: Image) -> tuple[AssignedFunction, Path]:
    """With the image's interpreter where it needs one; and where its code, or else its program, is inside. Raises Refused."""
    spec = function.spec
    if spec.attr is not None:
        path = variables(image, spec.env)["PATH"]
        python = find_python(edges.containers.store.root(image.digest), path, image.reference)
        # by which `image.imports()` knows that it is in one; of a container all folders are the image's
        spec = msgspec.structs.replace(spec, python=python, env={"STEELYARD_IMAGE": "/"} | spec.env)
    code = Path(f"{CODE}/{spec.bundle}" if spec.bundle is not None else spec.cwd or image.cwd or "/")
    return msgspec.structs.replace(function, spec=spec), code


async def start_contained(
    host: RevisionHost, image: Image, slot: Slot, listen_fd: int, private: bool, given: Mapping[str, str]
) -> Handle:
    """One replica in a container of its own. Raises SteelyardError; nothing runs then."""
    edges, spec = host.edges, host.function.spec
    owner = choose_ids(host.function.owner, False, edges.settings, os.geteuid())
    assert owner is not None and host.ids is not None  # else there would be no image
    argv, own, port = _choose_command(host, slot, private)
    relayed = not spec.served_by_runner
    wanted = Wanted(
        argv=argv,
        env=host.env | dict(given) | own,
        cwd=spec.cwd or (str(host.code) if spec.bundle is not None else ""),
        interpreter=spec.python,
        own_network=spec.own_network,
        in_network=spec.own_network and relayed,
        binds=await _find_binds(host),
        fds=2 if not relayed else 0 if port is not None else 1,
        detached=not relayed,
        edits=await edges.grants.edits(host.plan),
    )
    command, rootfs = edges.containers.make(slot.workload, image, wanted, owner)
    env = {"PATH": PATH}  # nothing of the user's or the image's: both, crun and the relay, begin as root
    if relayed:
        name = argv[0] if spec.python else choose_argv(image, argv)[0]
        command, more = _stand_before(host, slot, command, port, Contained(name, *host.ids, spec.own_network))
        env |= more
    return await edges.runtime.launch(
        slot.workload,
        argv=command,
        env=env,
        cwd="/",
        uid=host.ids[0],
        gid=host.ids[1],
        fds=(listen_fd, slot.page_fd),
        fd_numbers=(LISTEN_FD, PAGE_FD),
        logs=host.logs,
        rootfs=rootfs,
    )


def _choose_command(host: RevisionHost, slot: Slot, private: bool) -> tuple[tuple[str, ...], dict[str, str], int | None]:
    """What runs inside, with which variables beside the function's, and which port it opens. Empty: what the image says."""
    spec, lib = host.function.spec, Path(LIB)
    load = make_load(host.function.name, spec, host.code, host.env)
    if spec.served_by_runner:
        argv, env = replica_command(spec.python, load, lib_dir=lib, listen_fd=LISTEN_FD, page_fd=PAGE_FD, private=private)
        return tuple(argv), env, None
    argv, env = (spec.argv, {}) if spec.attr is None else server_command(spec.python, load, lib_dir=lib)
    if spec.port is None:
        # the container's first process is the program
        return tuple(argv), {**env, "LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "http"}, None
    # those that start at the same time begin to look in different places; in a network of its own any will do
    port = spec.port or (PORT_FIRST if spec.own_network else choose_port(zlib.crc32(slot.workload.encode())))
    return tuple(name_port(argv, port)), {**env, "PORT": str(port)}, port


async def _find_binds(host: RevisionHost) -> tuple[Bind, ...]:
    edges, spec = host.edges, host.function.spec
    return (
        *([Bind(str(edges.paths.unpacked / spec.bundle), str(host.code), True)] if spec.bundle is not None else []),
        *([await bind_runner(edges)] if spec.attr is not None else []),
        *find_binds([host.secrets.path], [edges.settings.tls_cert or ""], host.function.volumes),
    )


def _stand_before(
    host: RevisionHost, slot: Slot, command: Sequence[str], port: int | None, container: Contained
) -> tuple[list[str], dict[str, str]]:
    """The relay, which starts the container as root and then goes on as its user."""
    spec, folder = host.function.spec, host.edges.cleanup.relay_folder(slot.workload)
    folder.mkdir(mode=0o700)
    os.chown(folder, container.uid, container.gid)
    return relay_command(
        sys.executable,
        command,
        port=port,
        concurrency=spec.concurrency,
        readiness=spec.readiness,
        metrics=[each.metric for each in spec.scale_on],
        folder=str(folder),
        container=container,
    )
