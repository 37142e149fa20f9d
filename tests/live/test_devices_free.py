"""A device with a process that its job left behind, for real: /dev/full stands in for a GPU, for nothing else has it open."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from steelyard.agent.devices import DeviceEdge, DeviceKeeper
from steelyard.model.ids import AttemptId
from steelyard.model.job import Plan

GPU, ATTEMPT = "0000:0f:00.0", AttemptId("j-000001.1")
HOLD = "import sys; f = open('/dev/full', 'rb'); print('open', flush=True); sys.stdin.read()"


class StandIn(DeviceEdge):
    """Everything is real but which file belongs to the GPU, and that its memory can be read."""

    def nodes(self) -> dict[str, tuple[str, ...]]:
        return {GPU: ("/dev/full",)}

    def memory(self) -> dict[str, int]:
        return {GPU: 0}


def hold(**environ: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environ}
    )
    assert process.stdout is not None and process.stdout.readline() == b"open\n"
    return process


def test_what_a_job_left_on_a_device_is_traced_to_it_and_ended_before_the_device_is_given_back(tmp_path: Path) -> None:
    async def life() -> None:
        said: list[str] = []
        keeper = DeviceKeeper(tmp_path, set, set, lambda: None, said.append, StandIn())
        with hold() as monitor:  # was there before the job: stays, and does not count
            await keeper.note_start(Plan(gpus=(GPU,)))
            with hold(STEELYARD_ATTEMPT_ID=ATTEMPT) as orphan:
                keeper.note_end([ATTEMPT], Plan(gpus=(GPU,)))
                assert keeper.waiting == (GPU,)
                async with asyncio.timeout(30):
                    while keeper.waiting:
                        await asyncio.sleep(0.01)
                assert await asyncio.to_thread(orphan.wait, 10) == -9
            assert monitor.poll() is None
            monitor.kill()
        assert f"(pid {orphan.pid}) of {ATTEMPT}" in said[0] and "is free" in said[-1]

    asyncio.run(life())


def test_a_process_that_steelyard_did_not_start_keeps_the_device_out_and_lives(tmp_path: Path) -> None:
    async def life() -> None:
        said: list[str] = []
        keeper = DeviceKeeper(tmp_path, set, set, lambda: None, said.append, StandIn())
        await keeper.note_start(Plan(gpus=(GPU,)))
        with hold() as stranger:
            keeper.note_end([ATTEMPT], Plan(gpus=(GPU,)))
            async with asyncio.timeout(30):
                while not said:
                    await asyncio.sleep(0.01)
            assert keeper.waiting == (GPU,) and f"pid {stranger.pid}" in said[0]
            assert stranger.poll() is None
            stranger.kill()
        async with asyncio.timeout(30):
            while keeper.waiting:
                await asyncio.sleep(0.01)

    asyncio.run(life())
