"""When does each loop look at the world? When it is poked, and at least once per tick.

`poke` carries no input and many pokes become one activation (level-triggered): a lost poke costs time, never correctness. One
task per loop, so that a loop never runs beside itself. An error is logged and the next activation is the retry. An idle loop
sleeps on its event and costs nothing. Only a damaged store ends the driver: then nothing here can be trusted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from steelyard.clock import Clock
from steelyard.control import Loop
from steelyard.errors import Conflict, SteelyardError, StoreDamaged

_log = logging.getLogger("steelyard.control")

#: a loop that failed looks again after this, even if nobody pokes it
RETRY_S = 1.0
#: a loop that is poked all the time lets pokes gather for as long as its look took; at every further look for twice as long as
#: before, up to so many times, since a look at hundreds costs little more than one at ten; and never longer than this
REST_TIMES, REST_MAX_S = 8, 0.05


class Driver:
    def __init__(self, loops: Sequence[Loop], clock: Clock) -> None:
        self._clock = clock
        self._loops = {loop.name: loop for loop in loops}
        self._wanted = {name: asyncio.Event() for name in self._loops}

    def poke(self, *names: str) -> None:
        """Look again soon. Callable only from the event loop's thread; unknown names are a programming error."""
        for name in names:
            self._wanted[name].set()

    async def run(self) -> None:
        """Until cancelled. Raises StoreDamaged when the store can't be trusted any more."""
        tasks = [asyncio.create_task(self._drive(loop), name=f"loop-{name}") for name, loop in self._loops.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, loop: Loop) -> None:
        wanted = self._wanted[loop.name]
        times = 1
        while True:
            wanted.clear()
            began_ns = self._clock.mono_ns()
            wait_s = await self._activate(loop)
            ended_ns = self._clock.mono_ns()
            try:
                async with asyncio.timeout(wait_s):
                    await wanted.wait()
            except TimeoutError:
                times = 1
                continue  # the tick: look again without having been poked
            # Poked all the time, it leaves time to others: what comes meanwhile is one activation then.
            rest_s, times = choose_rest(times, ended_ns - began_ns, self._clock.mono_ns() - ended_ns)
            if rest_s:
                await asyncio.sleep(rest_s)

    async def _activate(self, loop: Loop) -> float:
        try:
            self.poke(*await loop.activate())
        except StoreDamaged:
            raise
        except Conflict:
            # somebody else's commit came between load and carry_out: what was read is old, so read again
            self.poke(loop.name)
        except SteelyardError as err:
            _log.error("loop %s: %s %s", loop.name, err.public, err.detail)
            return min(RETRY_S, loop.tick_s)
        except Exception:
            _log.exception("loop %s failed", loop.name)
            return min(RETRY_S, loop.tick_s)
        return loop.tick_s


def choose_rest(times: int, took_ns: int, quiet_ns: int) -> tuple[float, int]:
    """After a look that took `took_ns` and was followed by a poke `quiet_ns` later: (seconds to rest, `times` for the next)."""
    rest_s = min(REST_MAX_S, times * took_ns / 1e9) - quiet_ns / 1e9
    return (rest_s, min(REST_TIMES, 2 * times)) if rest_s > 0 else (0.0, 1)
