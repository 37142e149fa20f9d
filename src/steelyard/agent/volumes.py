"""What does the server ask about volumes? Makes and deletes their folders, and tells how large they are.

Sizes are measured in the background when somebody asks, one volume at a time, at most `ENTRIES_MAX` files of each, and kept for
`REST` times as long as that took: an answer says how old they are. Nothing is measured while nobody asks. Disks are touched in
threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import msgspec

from steelyard.agent.identity import choose_ids
from steelyard.clock import Clock
from steelyard.config import Settings
from steelyard.errors import SteelyardError
from steelyard.host.scratch import observe_tree
from steelyard.host.volumes import LOOK_S, VolumeFolders, check_source, free_bytes
from steelyard.model.mount import MountedVolume
from steelyard.model.volume import VolumeSeen
from steelyard.wire.agent import Answer, Ask, VolumeMake

log = logging.getLogger(__name__)

ENTRIES_MAX = 1_000_000
#: so that whoever asks without end has the disk looked through for a twentieth of the time
REST = 20
#: small volumes are measured before the first answer
PATIENCE_S = 0.5


class VolumeKeeper:
    def __init__(self, folders: VolumeFolders, settings: Settings, clock: Clock) -> None:
        self._folders, self._settings, self._clock = folders, settings, clock
        self._sizes: dict[str, VolumeSeen] = {}
        #: when a size is worth another measurement (monotonic)
        self._stale_ns: dict[str, int] = {}
        self._wanted: dict[str, None] = {}
        self._measuring: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    def sweep(self) -> None:
        """In the background: what is left of deleted volumes."""
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(asyncio.to_thread(self._folders.sweep))

    async def answer(self, ask: Ask) -> Answer:
        try:
            if ask.what == "volume-make":
                wanted = msgspec.json.decode(ask.body, type=VolumeMake)
                path = await asyncio.wait_for(asyncio.to_thread(self._make, ask.workload, wanted), LOOK_S)
                return Answer(id=ask.id, data=path.encode())
            if ask.what == "volume-delete":
                await asyncio.to_thread(self._folders.retire, ask.workload)
                self.sweep()
                return Answer(id=ask.id)
            seen = await self._observe(msgspec.json.decode(ask.body, type=list[str]))
        except (SteelyardError, msgspec.MsgspecError) as err:
            return Answer(id=ask.id, error=err.public if isinstance(err, SteelyardError) else str(err))
        except TimeoutError:
            return Answer(id=ask.id, error="Its file system does not answer. Nothing was made. Look at it, then try again.")
        return Answer(id=ask.id, data=msgspec.json.encode(seen))

    def _make(self, name: str, wanted: VolumeMake) -> str:
        ids = choose_ids(wanted.owner, False, self._settings, os.geteuid())
        return self._folders.check_external(wanted.path, ids) if wanted.path else self._folders.make(name, ids)

    # -- sizes

    async def _observe(self, paths: list[str]) -> list[VolumeSeen]:
        """As they were measured last; those that are stale are measured anew, and waited for a little."""
        self._sizes = {path: self._sizes[path] for path in paths if path in self._sizes}
        now_ns = self._clock.mono_ns()
        self._wanted |= dict.fromkeys(path for path in paths if path not in self._sizes or now_ns > self._stale_ns[path])
        if self._wanted and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.get_running_loop().create_task(self._measure())
        if self._measuring is not None:
            await asyncio.wait([self._measuring], timeout=PATIENCE_S)
        return [await self._look(path) for path in paths]

    async def _look(self, path: str) -> VolumeSeen:
        """What is cheap to know is always fresh."""
        known = self._sizes.get(path, VolumeSeen(path))
        try:
            free, error = await asyncio.wait_for(asyncio.to_thread(lambda: (free_bytes(path), _explain(path))), LOOK_S)
        except TimeoutError:
            free, error = None, "its file system does not answer"
        return msgspec.structs.replace(known, free_bytes=free, error=error)

    async def _measure(self) -> None:
        while self._wanted:
            path = next(iter(self._wanted))
            del self._wanted[path]
            began_ns = self._clock.mono_ns()
            use = await asyncio.to_thread(observe_tree, Path(path), ENTRIES_MAX)
            now_ns = self._clock.mono_ns()
            self._stale_ns[path] = now_ns + REST * (now_ns - began_ns)
            self._sizes[path] = VolumeSeen(path, use.used_bytes, use.complete, self._clock.now_us())


def _explain(path: str) -> str:
    return "" if check_source(MountedVolume("", path, read_only=True)) is None else "its folder is not there"
