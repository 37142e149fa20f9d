"""Functions declared with the SDK, called from programs, from each other and from notebooks' objects, on a real Steelyard."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from steelyard_cluster import Cluster, wait_until

import steelyard as sy
from steelyard.sdk import address, transport
from steelyard.sdk.describe import find_app

SHOP = '''
import asyncio, os, sys, time
import steelyard as sy

app = sy.App("shop")

class Odd(Exception):
    """Of this file, so that callers know it."""

class Point:
    def __init__(self, x): self.x = x

@app.function(idle_timeout="30s")
def echo(x=None, *, plus=0): return x if not plus else x + plus

@app.function
def fail(kind):
    if kind == "odd": raise Odd("of the file", 3)
    if kind == "exit": sys.exit(3)
    if kind == "unpicklable": return (x for x in ()) and __import__("threading").Lock()
    raise ValueError(f"no {kind}")

@app.function
async def later(x, s=0.0):
    await asyncio.sleep(s)
    return x

@app.function
def count(n, s=0.0):
    for number in range(n):
        time.sleep(s)
        yield number

@app.function(max_replicas=2, retries=3)
def dies_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return "the second time"
    os._exit(9)

@app.function(max_replicas=1)
def dies(x):
    if x == "die": os._exit(9)
    time.sleep(0.02)
    return x

@app.function(timeout="400ms", max_replicas=2)
def sleeps(s):
    time.sleep(s)
    return s, os.getpid()

@app.function(memory="200MB", max_replicas=1)
def eats(n): return len(bytearray(n))

@app.function
def point(p): return Point(p.x + 1)

@app.function
def calls_others(n): return sum(echo.map(range(n))) + Model().ids.remote(1)[2]

@app.function
def who(): return os.environ["STEELYARD_FUNCTION"], echo.name

@app.cls(idle_timeout="400ms")
class Model:
    @sy.enter(shared=True)
    def load(self): self.loaded_by = os.getpid()
    @sy.enter
    async def connect(self): self.connected_by = os.getpid()
    @sy.exit
    async def leave(self): print("left", self.connected_by, flush=True)
    @sy.method
    def ids(self, x): return self.loaded_by, self.connected_by, x, os.getpid()

@app.cls(max_replicas=1)
class Sized:
    size: int = sy.parameter(default=3)
    @sy.enter
    async def connect(self): self.loop = asyncio.get_running_loop()
    @sy.exit
    def leave(self): print("left", self.size, flush=True)
    @sy.method
    async def get(self, x): return self.size, x, self.loop is asyncio.get_running_loop()
    @sy.method
    def times(self, n):
        for number in range(n): yield self.size * number
    @sy.method
    def inside(self): return self.get.remote(0)[0]
    @sy.endpoint
    def twice(self) -> int: return 2 * self.size

if __name__ == "__main__":
    found = point.remote(Point(3))
    assert type(found) is Point and found.x == 4
    try:
        fail.remote("odd")
    except Odd as err:
        assert err.args == ("of the file", 3)
        print("fine")
'''


@pytest.fixture(scope="module")
def shop(shared: Cluster) -> Iterator[ModuleType]:
    """The module as this program has it, deployed."""
    folder = shared.folder / "shop"
    folder.mkdir()
    file = folder / "shop_sdk.py"
    file.write_text(SHOP)
    shared.ok("deploy", str(file), "--python", sys.executable)
    sys.path.insert(0, str(folder))
    before = os.environ.get("STEELYARD_HOME")
    os.environ["STEELYARD_HOME"] = str(shared.home)
    address.forget()
    import shop_sdk  # type: ignore[import-not-found]

    yield shop_sdk
    transport.pool.forget()
    address.forget()
    sys.path.remove(str(folder))
    del sys.modules["shop_sdk"]
    if before is None:
        del os.environ["STEELYARD_HOME"]
    else:
        os.environ["STEELYARD_HOME"] = before


def test_results_and_exceptions_come_back_as_themselves(shop: Any) -> None:
    assert shop.echo.remote({"a": [1, 2.5, b"x"]}) == {"a": [1, 2.5, b"x"]}
    assert shop.echo.remote(2, plus=3) == 5
    with pytest.raises(ValueError, match=r"no way") as caught:
        shop.fail.remote("way")
    assert "in fail" in str(caught.value.__cause__) and "shop_sdk.py" in str(caught.value.__cause__)
    with pytest.raises(shop.Odd) as odd:
        shop.fail.remote("odd")
    assert odd.value.args == ("of the file", 3)
    with pytest.raises(sy.RemoteError, match=r"SystemExit: 3"):
        shop.fail.remote("exit")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'z'"):
        shop.echo.remote(z=1)


def test_large_arrays_go_both_ways_unharmed(shop: Any) -> None:
    sent = np.random.default_rng(0).random(8_000_000)
    back = shop.echo.remote({"array": sent, "name": "big"})
    assert (back["array"] == sent).all() and back["array"].flags.writeable


def test_coroutines_and_their_twins(shop: Any) -> None:
    async def story() -> None:
        began = time.perf_counter()
        assert await asyncio.gather(*[shop.later.remote.aio(n, 0.1) for n in range(4)]) == [0, 1, 2, 3]
        assert time.perf_counter() - began < 20
        assert [item async for item in shop.count.remote.aio(3)] == [0, 1, 2]
        assert [item async for item in shop.echo.map.aio(range(300))] == list(range(300))
        with pytest.raises(ValueError, match=r"no aio"):
            await shop.fail.remote.aio("aio")
        await shop.echo.for_each.aio(range(3))
        assert [item async for item in shop.echo.starmap.aio([(1,), (2,)])] == [1, 2]

    asyncio.run(story())


def test_generators_stream_while_they_run_and_end_when_nobody_listens(shared: Cluster, shop: Any) -> None:
    items = shop.count.remote(5, 0.05)
    assert [next(items), next(items)] == [0, 1]
    assert list(items) == [2, 3, 4]
    endless = shop.count.remote(10**9, 0.01)
    assert next(endless) == 0
    endless.close()
    wait_until(lambda: shop.count.remote(1).__next__() == 0, 20, "a replica that is free again")


def test_maps_keep_order_or_hand_out_what_is_ready(shop: Any) -> None:
    assert list(shop.echo.map(range(5000))) == list(range(5000))
    assert sorted(shop.echo.map(range(1000), order_outputs=False)) == list(range(1000))
    assert list(shop.echo.map([1, 2], kwargs={"plus": 10})) == [11, 12]
    assert list(shop.later.map([3, 2, 1], [0.2, 0.1, 0.0])) == [3, 2, 1]
    assert list(shop.later.map(["slow", "fast"], [0.5, 0.0], order_outputs=False)) == ["fast", "slow"]
    assert list(shop.count.map([1, 3])) == [[0], [0, 1, 2]]
    assert list(shop.echo.map([])) == []
    mixed = list(shop.fail.map(["a", "odd"], return_exceptions=True))
    assert [type(one).__name__ for one in mixed] == ["ValueError", "Odd"]
    with pytest.raises(ValueError, match=r"no a"):
        list(shop.fail.map(["a"] * 10))


def test_a_map_pulls_its_inputs_as_results_are_consumed(shop: Any) -> None:
    pulled: list[int] = []

    def inputs() -> Iterator[int]:
        for number in range(1_000_000):
            pulled.append(number)
            yield number

    results = shop.echo.map(inputs())
    assert [next(results) for _ in range(10)] == list(range(10))
    results.close()
    assert len(pulled) < 50_000


def test_a_lost_replica_is_an_error_of_its_own_or_a_retry(shared: Cluster, shop: Any, tmp_path: Path) -> None:
    with pytest.raises(sy.ReplicaLost, match=r"Whether it took effect is not known"):
        shop.dies.remote("die")
    outcomes = list(shop.dies.map([1, 2, 3, "die", 5, 6, 7, 8], return_exceptions=True))
    assert isinstance(outcomes[3], sy.ReplicaLost)
    assert [one for one in outcomes if not isinstance(one, Exception)] == [1, 2, 3, 5, 6, 7, 8]
    with pytest.raises(sy.ReplicaLost, match="exit code 9"):
        shop.dies.remote("die")
    marks = shared.folder / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    assert shop.dies_once.remote(str(marks / "one")) == "the second time"
    # of three that begin together each loss costs all of them a retry
    assert list(shop.dies_once.map([str(marks / f"many{n}") for n in range(3)])) == ["the second time"] * 3


def test_one_that_eats_memory_ends_alone_and_says_what_it_had(shared: Cluster, shop: Any) -> None:
    assert shop.eats.remote(1000) == 1000
    if shared.function("shop-eats") and os.getuid() != 0:
        pytest.skip("limits need control groups")
    with pytest.raises(sy.OutOfMemory, match=r"memory limit of 200000000 bytes.* It had \d+ MB at most"):
        shop.eats.remote(10**9)
    assert shop.echo.remote(1) == 1
    assert "oom-killed" in shared.cli("logs", "shop-eats").stderr.decode()
    assert shop.eats.remote(1000) == 1000


def test_what_never_returns_is_given_up_and_its_replica_replaced(shop: Any) -> None:
    _, first = shop.sleeps.remote(0)
    began = time.perf_counter()
    with pytest.raises(sy.CallTimeout, match=r"longer than its timeout of 0.4 s"):
        shop.sleeps.remote(3600)
    assert time.perf_counter() - began < 10
    _, second = shop.sleeps.remote(0)
    assert second != first
    outcomes = list(shop.sleeps.map([0.0, 3600, 0.01], return_exceptions=True))
    assert [type(one) for one in outcomes] == [tuple, sy.CallTimeout, tuple]


def test_what_cannot_travel_is_refused_with_its_name(shop: Any) -> None:
    lock = threading.Lock()
    with pytest.raises(sy.PayloadError, match=r"Argument 0 of shop-echo can't travel: the variable 'lock' .* is a lock"):
        shop.echo.remote(lambda: lock)
    with pytest.raises(sy.PayloadError, match=r"The result of fail\(\) can't travel: it is a lock .* Give back"):
        shop.fail.remote("unpicklable")
    assert shop.echo.remote(lambda x: x + 1)(2) == 3


def test_classes_live_once_per_replica_between_enter_and_exit(shared: Cluster, shop: Any) -> None:
    template, connected, x, here = shop.Model().ids.remote(7)
    assert (connected, x) == (here, 7) and template != here
    assert sy.Cls.from_name("shop-model")().ids.remote(8)[2] == 8
    wait_until(lambda: f"left {here}" in shared.ok("logs", "shop-model"), 20, "the exit hook")


def test_functions_call_functions_and_know_their_names(shop: Any) -> None:
    assert shop.calls_others.remote(10) == 46
    assert shop.who.remote() == ("shop-who", "shop-echo")
    handle = shop.echo.remote(shop.echo)
    assert isinstance(handle, sy.Function) and handle.remote(5) == 5
    assert sy.Function.from_name("shop", "echo").remote(6) == 6


def test_a_program_may_be_the_file_that_declares_the_function(shared: Cluster, shop: Any) -> None:
    done = subprocess.run([sys.executable, shop.__file__], capture_output=True, env=shared.environ(), timeout=60, text=True)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_spawned_calls_outlive_the_server(shared: Cluster, shop: Any) -> None:
    call = shop.later.spawn("kept", 0.3)
    with pytest.raises(sy.ResultPending):
        call.get(timeout=0)
    assert sy.FunctionCall.from_id(call.object_id).get(timeout=30) == "kept"
    failed = shop.fail.spawn("odd")
    with pytest.raises(shop.Odd):
        failed.get(timeout=30)
    assert failed.state == "FAILED"
    endless = shop.later.spawn("never", 3600)
    endless.cancel()
    with pytest.raises(sy.CallCancelled):
        endless.get(timeout=30)
    assert pickle.loads(pickle.dumps(call)).object_id == call.object_id


def test_what_is_not_there_is_said(shared: Cluster, shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sy.NotDeployed, match=r"shop-nothing"):
        sy.Function.from_name("shop-nothing").remote()
    with pytest.raises(sy.NotDeployed, match=r"no method 'nothing'. Methods: ids"):
        sy.Cls.from_name("shop-model")().nothing.remote()
    monkeypatch.setenv("STEELYARD_GATEWAY_URL", shared.gateway_url)
    monkeypatch.setenv("STEELYARD_KEY", "sk-wrong")
    address.forget()
    with pytest.raises(sy.NotAllowed, match=r"private"):
        shop.echo.remote(1)
    monkeypatch.setenv("STEELYARD_GATEWAY_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("steelyard.sdk.outcome.PATIENCE_S", 0.1)
    address.forget()
    with pytest.raises(sy.NotReachable, match=r"Nobody answers at 127.0.0.1:9"):
        shop.echo.remote(1)
    monkeypatch.delenv("STEELYARD_GATEWAY_URL")
    monkeypatch.setenv("STEELYARD_HOME", str(shared.folder / "nowhere"))
    address.forget()
    with pytest.raises(sy.NotReachable, match=r"There is no Steelyard at"):
        shop.echo.remote(1)
    address.forget()


def test_many_threads_share_the_connections(shop: Any) -> None:
    wrong: list[object] = []

    def use(seed: int) -> None:
        for number in range(50):
            if shop.echo.remote((seed, number)) != (seed, number):
                wrong.append((seed, number))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_the_app_of_the_module_is_found(shop: Any) -> None:
    assert find_app(shop) is shop.app
    gc.collect()  # a socket that was forgotten would warn here


def test_callers_choose_an_instance_by_its_parameters(shop: Any, shared: Cluster) -> None:
    assert shop.Sized(size=4).get.remote(1) == (4, 1, True)
    assert shop.Sized().get.remote(2) == (3, 2, True)
    assert list(shop.Sized(size=5).get.map([1, 2])) == [(5, 1, True), (5, 2, True)]
    assert list(shop.Sized(size=6).times.remote_gen(3)) == [0, 6, 12]
    assert shop.Sized(size=7).get.spawn(1).get(timeout=60) == (7, 1, True)
    assert shop.Sized(size=8).inside.remote() == 8
    assert shop.echo.remote(shop.Sized(size=9).get).remote(1) == (9, 1, True)  # it travels as a handle
    named = sy.Cls.from_name("shop-sized")
    assert named(size=4).get.remote(3) == (4, 3, True)
    with pytest.raises(sy.DeclarationError, match="no parameter 'sise'"):
        named(sise=4).get.remote(3)
    assert shared.ok("call", "shop-sized.twice") == "6\n"
