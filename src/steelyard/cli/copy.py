"""`steelyard cp`: files and folders between here and inside a job or a function. `runtime/copying.py` is both ends of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from steelyard.cli.inside import check_which, find_inside, inside_options
from steelyard.cli.output import Progress
from steelyard.cli.patience import make_patience
from steelyard.cli.quantities import render_bytes
from steelyard.cli.session import home_option, open_client
from steelyard.clock import Clock, SystemClock
from steelyard.errors import EdgeFailed, Refused
from steelyard.runtime.copying import CopyFailed, land, send
from steelyard.wire.http import ApiClient
from steelyard.wire.streams import StreamLost, carry

#: progress is shown that often at most
SHOW_S = 0.1
_INSIDE = re.compile(r"((?:j-)?[0-9]+(?:[_.][0-9]+)?|[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):(.+)", re.DOTALL)

COPY_HELP = """Copy files and folders into a running job or a function, or out of it.

One of SRC and DST is JOB:PATH or FUNCTION:PATH; relative paths there are meant from its folder. A path here with a colon in it is
written ./a:b. A function that sleeps is woken, and the copy is in one replica. The copy is read and written as the job's
user, and every path means what it means inside, in its container and with its volumes. Into a folder that is there it goes under
its own name. Modes and times are kept, links stay links; devices, sockets and pipes are refused. A file is there whole or
not at all, so that a copy that is broken off leaves the old one; so is a folder that is new.

\b
Examples:
  steelyard cp j-000012:out/model.pt .
  steelyard cp data.csv j-000012:/tmp/
  steelyard cp -q src j-000012:/app/src
  steelyard cp hello:/tmp/profile.json .
"""


class Inside(NamedTuple):
    #: of a job or a function
    name: str
    path: str


def parse_place(text: str) -> Inside | str:
    """ "j-000012:/tmp/x" -> inside; anything else is a path here, `./1:2` too. Raises Refused."""
    if not text or "\0" in text:
        raise Refused("An empty path names no file. Nothing was copied.", code="bad-path")
    found = _INSIDE.fullmatch(text)
    return text if found is None else Inside(found[1], found[2])


@click.command("cp", help=COPY_HELP, short_help="Copy files into a running job or a function, or out of it.")
@inside_options
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@home_option
@click.argument("src")
@click.argument("dst")
def copy(rank: int | None, replica: str, quiet: bool, home: Path | None, src: str, dst: str) -> None:
    source, target = parse_place(src), parse_place(dst)
    if isinstance(source, str) is isinstance(target, str):
        text = "One of both has to be JOB:PATH or FUNCTION:PATH, and the other a path here. Nothing was copied."
        raise Refused(text, code="bad-path")
    name = next(each.name for each in (source, target) if isinstance(each, Inside))
    check_which(name, rank, replica)
    clock = SystemClock()
    with open_client(home) as client:
        path = find_inside(client, make_patience(home, clock), name, replica)
        copying = _Copying(client, path, {} if rank is None else {"rank": rank}, None if quiet else _Shown(clock))
        if isinstance(target, Inside):
            assert isinstance(source, str)
            asyncio.run(copying.into(source, target))
        else:
            assert isinstance(source, Inside)
            asyncio.run(copying.out(source, target))


class _Shown:
    """Progress on a terminal."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._progress = clock, Progress(quiet=True)
        self._began_ns, self._next_ns = clock.mono_ns(), 0

    def show(self, done: int, total: int) -> None:
        now_ns = self._clock.mono_ns()
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + int(SHOW_S * 1e9)
        rate = round(done / max(1e-3, (now_ns - self._began_ns) / 1e9))
        share = f"{100 * done // total:3d} %" if total else ""
        self._progress.show(f"{share} {render_bytes(done)} of {render_bytes(total)}, {render_bytes(rate)}/s")

    def clear(self) -> None:
        self._progress.clear()


class _Copying:
    def __init__(self, client: ApiClient, path: str, params: dict[str, str | int], shown: _Shown | None) -> None:
        """`path`: of the job or replica."""
        self._client, self._path, self._params, self._shown = client, path, params, shown

    async def into(self, source: str, target: Inside) -> None:
        name = os.path.basename(os.path.abspath(source))
        if not os.path.exists(source):
            raise Refused(f"There is no file {source}. Nothing was copied.", code="no-file")
        if name in ("", ".", ".."):
            raise Refused(f"{source} has no name that it could have there. Nothing was copied.", code="bad-path")

        def work(end: socket.socket) -> str:
            with end.makefile("wb") as out:
                send(source, out, None if self._shown is None else self._shown.show)
            end.shutdown(socket.SHUT_WR)
            with end.makefile("rb") as answers:
                answer = answers.readline(65_536).decode(errors="replace")
            return answer.rstrip("\n") if answer.endswith("\n") else "The copy broke off before its end"

        await self._carry(target, {"name": name}, work)

    async def out(self, source: Inside, target: str) -> None:
        name = os.path.basename(source.path.rstrip("/")) or source.name

        def work(end: socket.socket) -> str:
            end.shutdown(socket.SHUT_WR)
            with end.makefile("rb") as arriving:
                land(arriving, target, name, None if self._shown is None else self._shown.show)
            return ""

        await self._carry(source, {}, work)

    async def _carry(self, inside: Inside, more: dict[str, str], work: Callable[[socket.socket], str]) -> None:
        """`work` is done on a thread, on one end of a pair of sockets; the words it returns say what went wrong. Raises
        EdgeFailed."""
        params = {"path": inside.path, **more, **self._params}
        stream = await self._client.dial(f"{self._path}/files", params)
        ours, theirs = socket.socketpair()
        words: list[str] = []

        def run() -> None:
            try:
                with theirs:
                    words.append(work(theirs))
            except CopyFailed as err:
                words.append(str(err))
            except OSError:
                words.append("The copy broke off before its end")

        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            async with stream:
                with contextlib.suppress(StreamLost, OSError):
                    await carry(stream, reader, writer)
        finally:
            # whoever interrupts us ends the stream, and so the thread, which then leaves nothing behind
            writer.close()
            await asyncio.to_thread(thread.join)
            if self._shown is not None:
                self._shown.clear()
        if words != [""]:
            raise EdgeFailed(f"{words[0] if words else 'The copy broke off'}. No half file is left.", code="copy-failed")
