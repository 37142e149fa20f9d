"""What do the hosts of a cluster say of themselves? Asks all at once over SSH; the readers of `host/` understand the answers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from steelyard.clock import Clock
from steelyard.engine.bringup.seen import Answer, make_script, read_answer
from steelyard.engine.bringup.ssh import Shell
from steelyard.errors import EdgeFailed, Refused
from steelyard.host.fabric.domains import read_domains
from steelyard.host.fabric.ibnetdiscover import read_ibnetdiscover
from steelyard.host.fabric.read import join_fabrics
from steelyard.host.topology.read import read_topology
from steelyard.model.cluster import HostEntry, SeenHost
from steelyard.model.fabric import Fabric


class Look(msgspec.Struct):
    """All hosts at one moment. `shells` stay open as long as `look` is entered."""

    seen: dict[str, SeenHost]
    #: host -> why, a sentence without its end
    unreachable: dict[str, str]
    shells: dict[str, Shell]


@contextlib.asynccontextmanager
async def look(entries: Sequence[HostEntry], config: Path | None, clock: Clock) -> AsyncIterator[Look]:
    found = Look({}, {}, {})
    async with contextlib.AsyncExitStack() as stack:
        answers = await asyncio.gather(*(_ask(entry, config, clock, stack, found) for entry in entries))
        for entry, answer in zip(entries, answers, strict=True):
            if isinstance(answer, str):
                found.unreachable[entry.name] = answer
            else:
                found.seen[entry.name] = answer
        yield found


async def _ask(
    entry: HostEntry, config: Path | None, clock: Clock, stack: contextlib.AsyncExitStack, found: Look
) -> SeenHost | str:
    try:
        shell = await stack.enter_async_context(Shell(entry, config))
        asked = clock.now_us()
        said = await shell.run(make_script(_own_program()))
        answer = read_answer(said.out, entry.name, shell.address, asked / 1e6, clock.now_us() / 1e6)
    except EdgeFailed as err:
        return err.public
    if isinstance(answer, str):
        return answer
    found.shells[entry.name] = shell
    return await asyncio.to_thread(_understand, answer)


def _own_program() -> str:
    """Where this very Steelyard is: often the same place on every machine of a site."""
    beside = Path(sys.executable).parent / "steelyard"
    return str(beside) if beside.exists() else shutil.which("steelyard") or ""


def _understand(answer: Answer) -> SeenHost:
    with tempfile.TemporaryDirectory(prefix="steelyard-cluster-") as folder:
        texts = {"tree.ttar": answer.tree, "nvidia-smi.xml": answer.nvidia, "matrix.txt": answer.matrix}
        paths: list[Path] = []
        for name, text in texts.items():
            if text:
                paths.append(Path(folder) / name)
                paths[-1].write_text(text)
        try:
            return msgspec.structs.replace(answer.seen, topology=read_topology(paths))
        except Refused as err:
            return msgspec.structs.replace(answer.seen, unread=err.public.rstrip("."))


async def discover_fabric(found: Look) -> Fabric | None:
    """What the machines know themselves: the InfiniBand subnet of the first that can ask it, and NVLink domains. None: none."""
    fabrics: list[Fabric] = []
    for name, host in found.seen.items():
        ports = [port for nic in (host.topology.nics if host.topology else ()) for port in nic.ports if nic.rdma]
        if host.root and any(port.link == "InfiniBand" and port.up is not False for port in ports):
            with contextlib.suppress(EdgeFailed, Refused):
                said = await found.shells[name].run("PATH=$PATH:/usr/sbin ibnetdiscover", as_root=True)
                fabrics.append(read_ibnetdiscover(said.out, f"ibnetdiscover on {name}"))
                break
    lines = [f"{name}: {host.domain.replace('.', ' ')}" for name, host in found.seen.items() if host.domain]
    if lines:
        fabrics.append(read_domains("\n".join(lines), "the drivers"))
    return join_fabrics(fabrics) if fabrics else None
