"""A program that calls functions elsewhere, with one of four systems: how long does a call take, and how many get through?

`calls.py SYSTEM TRIPS COUNT WORK_COUNT SPAWNS`, in an interpreter that has the system. Prints "first" at its first result, then
one JSON line. Every system has two workers of one core, and every figure but that of the first result is taken warm.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

WARM_TRIPS = 50


def echo(x: int) -> int:
    return x


def work(x: int) -> int:
    """1 ms of a core."""
    import time  # Parsl sends a function without what is around it

    end_s = time.thread_time() + 0.001
    while time.thread_time() < end_s:
        pass
    return x


class System(NamedTuple):
    #: ways of one call, by name
    trips: dict[str, Callable[[int], Any]]
    #: the results of many
    echoes: Callable[[range], list[int]]
    works: Callable[[range], list[int]]
    #: durable calls: hands one over, and waits for its result
    spawn: Callable[[int], Callable[[], Any]] | None = None


@contextlib.contextmanager
def steelyard() -> Iterator[System]:
    import steelyard as sy

    there: Any = sy.Function.from_name("calls-echo")
    busy: Any = sy.Function.from_name("calls-work")

    def spawn(x: int) -> Callable[[], Any]:
        return there.spawn(x).get

    yield System({"remote": there.remote}, lambda xs: list(there.map(xs)), lambda xs: list(busy.map(xs)), spawn)


@contextlib.contextmanager
def ray() -> Iterator[System]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

    class Echo:
        def echo(self, x: int) -> int:
            return x

    # no core of its own: both are left to the tasks
    actor: Any = ray.remote(num_cpus=0)(Echo).remote()
    there, busy = ray.remote(echo), ray.remote(work)
    try:
        yield System(
            {"actor": lambda x: ray.get(actor.echo.remote(x)), "task": lambda x: ray.get(there.remote(x))},
            lambda xs: ray.get([there.remote(x) for x in xs]),
            lambda xs: ray.get([busy.remote(x) for x in xs]),
        )
    finally:
        ray.shutdown()


@contextlib.contextmanager
def dask() -> Iterator[System]:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield System(
            {"submit": lambda x: client.submit(echo, x, pure=False).result()},
            lambda xs: client.gather(client.map(echo, xs, pure=False)),
            lambda xs: client.gather(client.map(work, xs, pure=False)),
        )


@contextlib.contextmanager
def parsl() -> Iterator[System]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    provider = LocalProvider(init_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(
        label="two", address="127.0.0.1", max_workers_per_node=2, cores_per_worker=1, provider=provider
    )
    with parsl.load(Config(executors=[executor], run_dir=os.getcwd())):
        there, busy = parsl.python_app(echo), parsl.python_app(work)
        yield System(
            {"app": lambda x: there(x).result()},
            lambda xs: [future.result() for future in [there(x) for x in xs]],
            lambda xs: [future.result() for future in [busy(x) for x in xs]],
        )


SYSTEMS = {"steelyard": steelyard, "ray": ray, "dask": dask, "parsl": parsl}


def measure(system: System, trips: int, count: int, work_count: int, spawns: int) -> dict[str, Any]:
    found: dict[str, Any] = {"trips_s": {name: _trips(call, trips) for name, call in system.trips.items()}}
    system.works(range(100))
    found["echoes_per_s"] = _rate(system.echoes, count)
    found["works_per_s"] = _rate(system.works, work_count)
    if system.spawn is not None and spawns:
        begin = time.monotonic()
        waiting = [system.spawn(x) for x in range(spawns)]
        found["spawns_per_s"] = spawns / (time.monotonic() - begin)
        assert [get() for get in waiting] == list(range(spawns))
        found["spawned_per_s"] = spawns / (time.monotonic() - begin)
    return found


def _trips(call: Callable[[int], Any], trips: int) -> list[float]:
    seen: list[float] = []
    for at in range(WARM_TRIPS + trips):
        begin = time.monotonic()
        assert call(at) == at
        seen.append(time.monotonic() - begin)
    return seen[WARM_TRIPS:]


def _rate(run: Callable[[range], list[int]], count: int) -> float:
    begin = time.monotonic()
    assert list(run(range(count))) == list(range(count))
    return count / (time.monotonic() - begin)


def main() -> None:
    name, *numbers = sys.argv[1:]
    with SYSTEMS[name]() as system:
        assert next(iter(system.trips.values()))(7) == 7
        print("first", flush=True)
        print(json.dumps(measure(system, *map(int, numbers))), flush=True)


if __name__ == "__main__":
    main()
