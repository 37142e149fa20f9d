"""Real templates that are forked from each other: what an environment imports, what user code sees, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runner_bed import Bed, on_base, on_template
from test_template import HELLO, looking, seen

from steelyard.runtime.template import SINGLE_THREAD_ENV, ForkRefused

MakeBed = Callable[..., Bed]

#: a package that says what it cost to import, once per process that imported it
COUNTED = "import os\nwith open({log!r}, 'a') as file: file.write(f'{{os.getpid()}}\\n')\nVALUE = 7\n"
THREADED = "import threading\nthreading.Thread(target=threading.Event().wait, name='poller', daemon=True).start()\n"


@pytest.fixture
def make_bed(home: Path) -> MakeBed:
    def make(code: str = HELLO, concurrency: int = 8) -> Bed:
        return Bed(home, code, concurrency)

    return make


def site(bed: Bed) -> dict[str, str]:
    """Variables that put the bed's own site-packages on the path."""
    return {"PYTHONPATH": str(bed.folder / "site-packages")}


def on_site(bed: Bed, story: Callable[[], object]) -> None:
    on_base(bed, story, env=site(bed))  # type: ignore[arg-type]


def test_packages_are_imported_once_by_the_environment_and_found_by_what_comes_from_it(make_bed: MakeBed) -> None:
    bed = make_bed(looking("return {'value': counted.VALUE, 'own': os.environ['OWN'], 'cwd': os.getcwd()}", "import counted"))
    log = bed.folder / "imports"
    bed.write("../site-packages/counted.py", COUNTED.format(log=str(log)))

    async def story() -> None:
        load = bed.make_load({**site(bed), "OWN": "mine"})
        scanned = await bed.base_client.scan(load, 10)
        assert (scanned.names, bool(scanned.stamp)) == (("counted",), True)
        environment = await bed.grow(bed.base_client, "environment", env=site(bed), packages=scanned.names)
        assert [cost.name for cost in (await environment.status(10)).packages] == ["counted"]
        maker = bed.template_pid
        bed.client = await bed.grow(environment, "revision", load=load)
        assert (await bed.ready()).state == "ready"
        assert await bed.client.learn(10) == ["counted"]
        replica = await bed.wake()  # from the revision
        assert seen(bed) == {"value": 7, "own": "mine", "cwd": str(bed.code)}
        replica.retire()
        assert replica.exit_code() == 0
        bed.client.close()
        bed.client = environment  # as when the revision's template was evicted
        replica = await bed.wake(load=load)
        assert seen(bed) == {"value": 7, "own": "mine", "cwd": str(bed.code)}
        assert replica.page.joined_ns < replica.page.imported_ns
        assert log.read_text().split() == [str(maker)]
        shown = await environment.show(10)
        assert (shown.forks, shown.top_level["counted"]) == (2, 1)
        environment.close()

    on_site(bed, story)


def test_what_a_package_loads_on_first_use_is_learned_and_stays_known(make_bed: MakeBed) -> None:
    bed = make_bed(looking("return {'value': VALUE}", "import lazy\n    VALUE = lazy.late()"))
    bed.write("../site-packages/lazy/__init__.py", "def late():\n    from lazy.part import VALUE\n    return VALUE\n")
    bed.write("../site-packages/lazy/part.py", "VALUE = 7\n")

    async def story() -> None:
        load = bed.make_load(site(bed))
        names = list((await bed.base_client.scan(load, 10)).names)
        assert names == ["lazy"]
        for _ in range(3):  # the second environment has the part, so that no revision loads it any more
            environment = await bed.grow(bed.base_client, "environment", env=site(bed), packages=names)
            assert (await environment.status(20)).state == "ready"
            bed.client = await bed.grow(environment, "revision", load=load)
            assert (await bed.ready()).state == "ready"
            names = await bed.client.learn(10)
            assert names == ["lazy", "lazy.part"]
            bed.client.close()
            environment.close()

    on_site(bed, story)


def test_user_code_from_an_environment_sees_what_it_would_see_by_a_plain_start(make_bed: MakeBed) -> None:
    look = (
        "return {'argv': sys.argv, 'main': sorted(vars(sys.modules['__main__'])), 'gc': [gc.isenabled(), *gc.get_threshold()],"
        " 'filters': [repr(each) for each in warnings.filters], 'path': sys.path, 'env': dict(os.environ), 'tz': time.tzname,"
        " 'int': signal.getsignal(signal.SIGINT) is signal.default_int_handler, 'cwd': os.getcwd(),"
        " 'pipe': str(signal.getsignal(signal.SIGPIPE)), 'mask': len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),"
        " 'modules': sorted(name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names"
        " and not name.startswith('steelyard_runner'))}"
    )
    bed = make_bed(looking(look, "import gc, signal, time, warnings, counted"))
    bed.write("../site-packages/counted.py", "import json\n")

    async def story() -> None:
        env = SINGLE_THREAD_ENV | site(bed) | {"TZ": "Asia/Tokyo"}
        load = bed.make_load(env)
        environment = await bed.grow(bed.base_client, "environment", env=env, packages=["counted"])
        bed.client = await bed.grow(environment, "revision", load=load)
        assert (await bed.ready()).state == "ready"
        found = []
        for wake in (lambda: bed.wake(), lambda: bed.wake(), None):
            replica = await wake() if wake is not None else bed.start_plain(env=env, python=sys.executable)
            if wake is None:
                replica.await_serving()
            found.append(seen(bed))
            replica.retire()
            assert replica.exit_code() == 0
        plain = found[-1]
        plain["env"].pop("PWD", None), plain["env"].pop("_", None)  # type: ignore[attr-defined]
        plain["cwd"] = str(bed.code)  # the bed starts it elsewhere; the agent in the code's folder
        assert found[0] == found[1] == plain
        environment.close()

    on_site(bed, story)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (THREADED, "its import starts a thread 'poller' from module threading"),
        ("raise RuntimeError('no licence')\n", "its import failed: RuntimeError: no licence"),
        ("raise SystemExit(3)\n", "its import failed: SystemExit: 3"),
    ],
)
def test_a_package_that_cannot_be_imported_before_a_fork_is_named(make_bed: MakeBed, source: str, why: str) -> None:
    bed = make_bed()
    bed.write("../site-packages/good.py", "")
    bed.write("../site-packages/bad.py", source)

    async def story() -> None:
        environment = await bed.grow(bed.base_client, "environment", env=site(bed), packages=["good", "bad"])
        status = await environment.status(10)
        assert (status.state, status.culprit, status.why) == ("failed", "bad", why)
        environment.close()
        again = await bed.grow(bed.base_client, "environment", env=site(bed), packages=["good"])
        assert (await again.status(10)).state == "ready"
        again.close()

    on_site(bed, story)


def test_random_numbers_differ_between_revisions_of_one_environment(make_bed: MakeBed) -> None:
    pytest.importorskip("numpy")
    bed = make_bed(
        looking("return {'numbers': NUMBERS}", "import numpy\n    NUMBERS = [random.random(), float(numpy.random.random())]")
    )

    async def story() -> None:
        env = SINGLE_THREAD_ENV
        environment = await bed.grow(bed.base_client, "environment", env=env, packages=["numpy"])
        found: list[float] = []
        for _ in range(2):
            bed.client = await bed.grow(environment, "revision", load=bed.make_load(env))
            assert (await bed.ready()).state == "ready"
            replica = await bed.wake()
            found += seen(bed)["numbers"]  # type: ignore[arg-type]
            replica.retire()
            assert replica.exit_code() == 0
            bed.client.close()
        assert len(set(found)) == 4
        environment.close()

    on_base(bed, story)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("HELD = open('/dev/nvidia-test')", "a GPU is in use (/dev/nvidia-test is open)"),
        (
            "import types\n    CUDA = types.SimpleNamespace(is_initialized=lambda: True)\n"
            "    sys.modules['torch'] = types.SimpleNamespace(cuda=CUDA)",
            "a GPU is in use (torch.cuda is initialized)",
        ),
        ("LOOP = asyncio.new_event_loop()", "an event loop is open ([eventpoll])"),
        ("import subprocess\n    CHILD = subprocess.Popen(['sleep', '60'])", "(sleep 60) was started before the fork"),
        (
            "from multiprocessing import shared_memory\n    S = shared_memory.SharedMemory(create=True, size=1)\n    S.close()\n"
            "    S.unlink()",
            "multiprocessing's resource tracker was started before the fork",
        ),
    ],
)
def test_what_a_fork_would_share_to_its_harm_is_refused_with_what_to_do(make_bed: MakeBed, before: str, expected: str) -> None:
    bed = make_bed(looking("return {}", before))
    device = Path("/dev/nvidia-test")
    if "nvidia" in before:
        if os.geteuid() != 0:
            pytest.skip("only root can make a file in /dev")
        device.touch()

    async def story() -> None:
        status = await bed.ready()
        assert (status.state, status.threads) == ("ready", ())
        (unsafe,) = status.unsafe
        assert expected in unsafe["name"] and "@sy.enter" in unsafe["fix"]
        refused = await bed.fork()
        assert refused == ForkRefused("template-unsafe", unsafe["name"])
        for pid in children(bed.template_pid):
            os.kill(pid, signal.SIGKILL)

    try:
        on_template(bed, story)
    finally:
        device.unlink(missing_ok=True)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_current_context_of_a_loaded_cuda_driver_is_seen(make_bed: MakeBed, tmp_path: Path) -> None:
    """A stand-in for the driver's library; on a GPU this is NOT VERIFIED."""
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text("int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }\n")
    if os.system(f"cc -shared -fPIC -o {library} {source} 2>/dev/null") != 0:
        pytest.skip("no C compiler")
    tmp_path.chmod(0o755)
    bed = make_bed(looking("return {}", f"import ctypes\n    CUDA = ctypes.CDLL({str(library)!r})"))

    async def story() -> None:
        (unsafe,) = (await bed.ready()).unsafe
        assert "the driver has a current context" in unsafe["name"]

    on_template(bed, story)


def test_a_spare_that_nobody_wants_goes_and_comes_back_with_the_next_order(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        for _ in range(2):
            replica = await bed.wake()
            spare = await_state(lambda: spares(bed), bool)
            replica.retire()
            assert replica.exit_code() == 0
            await_state(lambda: spares(bed), lambda found: not found)
            reap(spare)

    on_template(bed, story, spare_keep_s=0.3)


def spares(bed: Bed) -> list[int]:
    """Children of ours that run and are neither templates nor replicas."""
    assert bed.base is not None
    known = {bed.base.pid, *bed.grown, *(replica.pid for replica in bed.replicas)}
    return [pid for pid in children(os.getpid()) if pid not in known and Path(f"/proc/{pid}/cmdline").read_bytes()]


def reap(pids: list[int]) -> None:
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def await_state(look: Callable[[], list[int]], true: Callable[[list[int]], bool], timeout_s: float = 10.0) -> list[int]:
    """Processes that come and go tell nobody."""
    deadline = time.monotonic() + timeout_s
    while not true(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def test_what_is_left_in_a_buffer_at_import_is_written_once(make_bed: MakeBed) -> None:
    bed = make_bed(looking("return {}", "sys.stdout.write('no newline')"))

    async def story() -> None:
        await bed.ready()
        replica = await bed.wake()
        seen(bed)
        replica.retire()
        assert replica.exit_code() == 0
        assert (bed.template_log.read_text(), replica.log) == ("no newline", "")

    on_template(bed, story)


def test_wrong_orders_are_refused_by_a_base(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        refused = await bed.fork()
        assert isinstance(refused, ForkRefused) and refused.reason == "not-understood", "a base has no revision of its own"
        for asked in ({"op": "grow"}, {"op": "grow", "role": "forest", "cgroups": 0}, {"op": "scan"}, {"op": "learn"}):
            answer = await bed.base_client._ask(asked, (), 10)
            assert answer["refused"] == "not-understood", json.dumps(answer)

    on_base(bed, story)
