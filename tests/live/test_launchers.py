"""Real launchers: what becomes of starts when the processes that fork for the spawner are killed at the worst moment."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.live.spawner_rig import (
    Rig,
    W,
    all_children_of,
    all_gone,
    open_descriptors,
    play,
    read_log,
    spawn_request,
    spawner_pid,
    until,
)

from steelyard.errors import EdgeFailed
from steelyard.runtime.launcher import find_launchers
from steelyard.runtime.procstat import observe_process, process_runs


async def stop(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        await until(lambda pid=pid: getattr(observe_process(pid), "state", "") == "T", "it stopped")


def start_times(pids: list[int]) -> list[tuple[int, int]]:
    return [(pid, seen.start_time) for pid in pids if (seen := observe_process(pid)) is not None]


def test_a_start_whose_launcher_is_killed_before_it_forked_never_ran_and_the_next_one_does() -> None:
    async def script(rig: Rig) -> None:
        runtime = rig.make_runtime()
        launchers = find_launchers(spawner_pid(rig))
        assert launchers
        before = open_descriptors(rig)
        await stop(launchers)
        starts = [
            asyncio.ensure_future(rig.client.spawn(spawn_request(rig, f"lost.{number}", "echo", "ran"))) for number in range(40)
        ]
        # a pipe for each, and the other end of those that are not handed out yet
        await until(lambda: open_descriptors(rig) > before + 40, "all asked for")
        for pid in launchers:
            os.kill(pid, signal.SIGKILL)
        told = await asyncio.gather(*starts, return_exceptions=True)
        failed = [number for number, each in enumerate(told) if isinstance(each, EdgeFailed)]
        # what had not been handed out yet went to those that came in their place
        assert 0 < len(failed) < 40
        for _ in range(40 - len(failed)):
            await rig.next_exit()
        wrote = [(rig.folder / "raw" / f"lost.{number}.out").exists() for number in range(40)]
        assert [number for number, seen in enumerate(wrote) if not seen] == failed
        await rig.run(runtime, W, "echo", "again")
        await rig.next_exit(W)
        assert read_log(rig, W) == "again\n"

    play(script)


def test_a_start_that_hangs_before_its_exec_holds_up_no_other_and_outlives_its_launcher() -> None:
    async def script(rig: Rig) -> None:
        launchers = find_launchers(spawner_pid(rig))  # later, what hangs looks like one
        fifo = rig.folder / "hangs"
        os.mkfifo(fifo)  # opening it to write waits for a reader
        request = spawn_request(rig, "hung", "echo", "ran")
        fields = {name: getattr(request, name) for name in request.__struct_fields__}
        hung = asyncio.ensure_future(rig.client.spawn(type(request)(**{**fields, "stdout": str(fifo)})))
        for number in range(20):
            await rig.client.spawn(spawn_request(rig, f"other.{number}", "true"))
            await rig.next_exit()
        assert not hung.done()
        for pid in launchers:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not set(launchers) & set(all_children_of(spawner_pid(rig))), "all reaped")
        await rig.client.spawn(spawn_request(rig, "after", "true"))
        await rig.next_exit("after")
        with open(fifo) as reader:
            spawned = await hung
            assert (await rig.next_exit("hung")).pid == spawned.pid
            assert reader.read() == "ran\n"

    play(script)


def test_launchers_end_with_their_spawner_however_it_ends() -> None:
    async def script(rig: Rig) -> None:
        assert rig.spawner is not None
        for number in (signal.SIGKILL, signal.SIGTERM):
            launchers = start_times(find_launchers(spawner_pid(rig)))
            assert launchers
            rig.spawner.send_signal(number)
            await asyncio.to_thread(rig.spawner.wait)
            await until(lambda launchers=launchers: all_gone(launchers), "no launcher left")
            await rig.start_spawner()

    play(script)


def test_a_launcher_that_is_asked_to_end_stays() -> None:
    """Whoever signals the whole group means the spawner."""

    async def script(rig: Rig) -> None:
        launchers = start_times(find_launchers(spawner_pid(rig)))
        for pid, _ in launchers:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        await rig.client.spawn(spawn_request(rig, W, "true"))
        assert (await rig.next_exit(W)).exit_code == 0
        assert all(process_runs(*launcher) for launcher in launchers)

    play(script)
