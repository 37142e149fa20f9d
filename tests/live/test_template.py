"""A real template in a real interpreter: what it imports, when it refuses, and what kind of process its replicas are."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runner_bed import Bed, Replica, on_template, other_pythons

from steelyard.errors import EdgeFailed
from steelyard.runtime.runner import page as pages
from steelyard.runtime.template import ForkRefused

HELLO = """
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
"""

#: answers with what `look` returns, as JSON
LOOKING = """
    import json, os, sys, threading, asyncio, random
    {before}
    def look():
        {look}
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        body = json.dumps(look()).encode()
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": body}})
"""

MakeBed = Callable[..., Bed]


@pytest.fixture
def make_bed(home: Path) -> MakeBed:
    def make(code: str = HELLO, concurrency: int = 8) -> Bed:
        return Bed(home, code, concurrency)

    return make


def looking(look: str, before: str = "") -> str:
    return LOOKING.format(look=look, before=before)


def seen(bed: Bed) -> dict[str, object]:
    status, _, body = bed.get()
    assert status == 200, bed.replicas[-1].log
    chunk = body.split(b"\r\n", 1)[1].rsplit(b"\r\n0\r\n", 1)[0]
    return json.loads(chunk)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("way", ["clone3", "twice"])
def test_a_replica_answers_and_is_a_child_of_the_templates_parent(make_bed: MakeBed, ahead: bool, way: str) -> None:
    bed = make_bed(looking("return {'ppid': os.getppid(), 'pid': os.getpid(), 'sid': os.getsid(0)}"))

    async def story() -> None:
        status = await bed.ready()
        assert (status.state, status.fork, status.threads) == ("ready", way, ())
        replica = await bed.wake()
        assert seen(bed) == {"ppid": os.getpid(), "pid": replica.pid, "sid": replica.pid}
        replica.retire()
        assert replica.exit_code() == 0

    on_template(bed, story, ahead=ahead, fork=way)


@pytest.mark.parametrize("ahead", [True, False])
def test_the_steps_of_a_wake_are_contiguous_and_monotonic(make_bed: MakeBed, ahead: bool) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        client = bed.connect()
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-steelyard-start: 1700000000.123456\r\n\r\n")
        before = time.monotonic_ns()
        replica = await bed.wake()
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.close()
        replica.await_page(lambda page: page.finished == 1)
        page = replica.page
        steps = [
            before,
            page.alive_ns,
            page.joined_ns,
            page.imported_ns,
            page.entered_ns,
            page.serving_ns,
            page.accepted_ns,
            page.first_byte_ns,
            time.monotonic_ns(),
        ]
        assert steps == sorted(steps)
        assert page.joined_ns == page.imported_ns  # nothing is imported on this road
        assert page.arrival_us == 1_700_000_000_123_456

    on_template(bed, story, ahead=ahead)


def test_each_replica_is_a_process_of_its_own(make_bed: MakeBed) -> None:
    bed = make_bed("""
        import ctypes, json, os, random, signal, threading

        def thread_of_its_own():
            found = []
            thread = threading.Thread(target=lambda: found.append(threading.get_native_id()))
            thread.start()
            thread.join()
            return found[0]

        def remembered_tid():
            PR_GET_TID_ADDRESS = 40
            at = ctypes.c_void_p()
            assert ctypes.CDLL(None).prctl(PR_GET_TID_ADDRESS, ctypes.byref(at), 0, 0, 0) == 0
            return ctypes.c_int.from_address(at.value).value

        async def app(scope, receive, send):
            assert scope["type"] == "http"
            body = json.dumps({
                "random": random.random(), "main": threading.get_native_id(), "tid": remembered_tid(),
                "thread": thread_of_its_own(), "affinity": sorted(os.sched_getaffinity(0)),
                "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            }).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
    """)

    async def story() -> None:
        await bed.ready()
        answers = []
        for _ in range(3):  # the first is the spare; the others may be forked on the spot
            replica = await bed.wake(cpus=[0])
            answers.append(seen(bed))
            assert answers[-1]["main"] == answers[-1]["tid"] == replica.pid  # the kernel's, and what the C library remembers
            assert answers[-1]["thread"] != replica.pid
            assert answers[-1]["affinity"] == [0]
            assert answers[-1]["interrupt"]
            replica.retire()
            assert replica.exit_code() == 0
        assert len({answer["random"] for answer in answers}) == 3

    on_template(bed, story)


@pytest.mark.parametrize("python", other_pythons())
def test_templates_of_other_python_versions_fork_too(make_bed: MakeBed, python: str) -> None:
    bed = make_bed(looking("return {'ppid': os.getppid(), 'random': random.random()}"))

    async def story() -> None:
        status = await bed.ready(30)
        assert (status.state, status.fork) == ("ready", "clone3"), status.traceback
        answers = []
        for _ in range(2):
            replica = await bed.wake()
            answers.append(seen(bed))
            replica.retire()
            assert replica.exit_code() == 0
        assert [answer["ppid"] for answer in answers] == [os.getpid()] * 2
        assert answers[0]["random"] != answers[1]["random"]

    on_template(bed, story, python=python)


def test_executors_work_after_the_fork(make_bed: MakeBed) -> None:
    bed = make_bed("""
        import asyncio
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            total = await asyncio.get_running_loop().run_in_executor(None, sum, [1, 2, 3])
            process = await asyncio.create_subprocess_exec("true")
            body = b"%d %d" % (total, await process.wait())
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})
    """)

    async def story() -> None:
        await bed.ready()
        replica = await bed.wake()
        assert bed.get()[2] == b"6 0"
        replica.retire()
        assert replica.exit_code() == 0

    on_template(bed, story)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_template_with_a_thread_refuses_and_names_it(make_bed: MakeBed, ahead: bool) -> None:
    bed = make_bed(
        HELLO + "\n    import threading\n    e = threading.Event()\n    def watch(): e.wait()\n"
        "    threading.Thread(target=watch, name='watcher', daemon=True).start()\n"
    )

    async def story() -> None:
        status = await bed.ready()
        assert status.state == "ready"
        assert [thread["name"] for thread in status.threads] == ["thread 'watcher' from module app"]
        refused = await bed.fork()
        assert refused == ForkRefused("template-has-threads", "thread 'watcher' from module app")

    on_template(bed, story, ahead=ahead)


def test_numpy_is_single_threaded_in_a_template_and_its_random_state_is_fresh(make_bed: MakeBed) -> None:
    pytest.importorskip("numpy")
    bed = make_bed(
        looking(
            "return {'random': float(numpy.random.random()), 'ones': float((numpy.ones((64, 64)) @ numpy.ones(64)).sum())}",
            before="import numpy, numpy.random",
        )
    )

    async def story() -> None:
        assert (await bed.ready()).threads == ()
        first = await bed.wake()
        one = seen(bed)
        first.retire()
        assert first.exit_code() == 0
        await bed.wake()
        two = seen(bed)
        assert one["ones"] == two["ones"] == 4096
        assert one["random"] != two["random"]

    on_template(bed, story)


def test_shared_hooks_run_once_before_the_fork_and_others_in_each_replica(make_bed: MakeBed) -> None:
    bed = make_bed(
        looking(
            "return {'shared': shared, 'own': own, 'pid': os.getpid()}",
            before="import steelyard as sy\n    shared, own = [], []\n"
            "    @sy.enter(shared=True)\n    def load():\n        with sy.phase('template-only'): shared.append(os.getpid())\n"
            "    @sy.enter\n    async def connect():\n        with sy.phase('connect'): own.append(os.getpid())\n",
        )
    )

    async def story() -> None:
        status = await bed.ready()
        for _ in range(2):
            replica = await bed.wake()
            assert seen(bed) == {"shared": [bed.template_pid], "own": [replica.pid], "pid": replica.pid}
            replica.await_page(lambda page: page.finished == 1)
            assert list(replica.page.user_phases) == ["connect"]
            replica.retire()
            assert replica.exit_code() == 0
        assert status.state == "ready"

    on_template(bed, story, python=sys.executable)


def test_user_output_goes_to_the_log_files(make_bed: MakeBed) -> None:
    bed = make_bed(looking("print('in a request'); print('to stderr', file=sys.stderr); return {}", before="print('at import')"))

    async def story() -> None:
        await bed.ready()
        assert bed.template_log.read_text() == "at import\n"
        replica = await bed.wake()
        seen(bed)
        assert replica.log == "in a request\nto stderr\n"

    on_template(bed, story)


@pytest.mark.parametrize(
    ("code", "attr", "expected"),
    [
        ("import helper\n", "app", ["in <module>", "helper.py", "ZeroDivisionError: division by zero"]),
        ("app = (\n", "app", ["SyntaxError", "app.py"]),
        ("raise SystemExit(3)\n", "app", ["SystemExit: 3"]),
        ("def make(): ...\n", "app", ["app.py has no attribute 'app'. Callables in it: make."]),
        ("app = 3\n", "app", ["app.py:app is not callable: it is of type int"]),
        ("def app(environ, start_response): ...\n", "app", ["can't be called as an ASGI app", "like a WSGI app"]),
        (
            "import steelyard as sy\n@sy.enter(shared=True)\nasync def load(): ...\ndef app(a, b, c): ...\n",
            "app",
            ["'load'", "it is a coroutine function"],
        ),
        (
            "import steelyard as sy\n@sy.enter(shared=True)\ndef load(): [][1]\ndef app(a, b, c): ...\n",
            "app",
            ["in load", "IndexError"],
        ),
    ],
)
def test_a_template_that_cannot_import_says_why_and_ends(make_bed: MakeBed, code: str, attr: str, expected: list[str]) -> None:
    bed = make_bed(code)
    bed.write("helper.py", "1 / 0\n")

    async def story() -> None:
        status = await bed.ready()
        assert status.state == "failed"
        for text in expected:
            assert text in status.traceback
        assert (
            "steelyard_runner" not in status.traceback and "runtime/runner" not in status.traceback
        )  # only the user's own frames
        assert bed.exit_of_template() == 1
        assert status.traceback.strip() in bed.template_log.read_text()

    on_template(bed, story, attr=attr)


def test_a_missing_file_is_named(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        assert (await bed.ready()).traceback == "There is no file nothing.py in the deployed code."

    on_template(bed, story, file="nothing.py")


def test_a_file_inside_a_package_finds_its_neighbours(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.write("pkg/__init__.py", "")
    bed.write("pkg/words.py", "WORD = b'neighbour'\n")
    bed.write("pkg/web-app.py", "")
    bed.write(
        "pkg/web.py",
        """
        from .words import WORD
        class Api:
            async def __call__(self, scope, receive, send):
                assert scope["type"] == "http"
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
                await send({"type": "http.response.body", "body": WORD})
        class Holder:
            app = Api()
    """,
    )

    async def story() -> None:
        await bed.ready()
        await bed.wake()
        assert bed.get()[2] == b"neighbour"

    on_template(bed, story, file="pkg/web.py", attr="Holder.app")


def test_conflicting_packages_of_the_user_are_neither_used_nor_hidden(make_bed: MakeBed) -> None:
    bed = make_bed("""
        import uvicorn, click
        try:
            import h11
        except RuntimeError as err:
            h11 = str(err)
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            body = f"{uvicorn.__version__} {uvicorn.WHERE} {click.ANCIENT} {h11}".encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})
    """)
    bed.write("uvicorn/__init__.py", "__version__ = '0.0.1'\nWHERE = 'mine'\n")
    bed.write("click.py", "ANCIENT = True\n")
    bed.write("h11.py", "raise RuntimeError('broken h11')\n")
    bed.write("websockets.py", "raise RuntimeError('broken websockets')\n")
    bed.write("typing_extensions.py", "raise RuntimeError('broken typing_extensions')\n")

    async def story() -> None:
        status = await bed.ready()
        assert status.state == "ready", status.traceback
        await bed.wake()
        assert bed.get()[2] == b"0.0.1 mine True broken h11"

    on_template(bed, story)


def test_broken_packages_in_the_users_environment_do_not_matter(make_bed: MakeBed) -> None:
    bed = make_bed()
    for name in ("uvicorn", "h11", "httptools", "uvloop", "websockets", "typing_extensions", "click"):
        bed.write(f"../site/{name}.py", "raise RuntimeError('ancient')\n")

    async def story() -> None:
        status = await bed.ready()
        assert status.state == "ready", status.traceback
        await bed.wake()
        assert bed.get()[0] == 200

    on_template(bed, story, env={"PYTHONPATH": str(bed.folder / "site")})


def test_the_users_own_httptools_and_uvloop_can_be_imported_beside_ours(make_bed: MakeBed) -> None:
    bed = make_bed(
        looking("import uvloop, httptools, uvicorn; return {'uvloop': uvloop.__version__, 'cli': hasattr(uvicorn, 'run')}")
    )

    async def story() -> None:
        status = await bed.ready()
        assert status.server == ("HttpToolsProtocol", "WebSocketsSansIOProtocol", "uvloop")
        replica = await bed.wake()
        answer = seen(bed)
        assert answer["uvloop"] and answer["cli"], replica.log

    on_template(bed, story)


@pytest.mark.parametrize("ahead", [True, False])
def test_replicas_live_on_without_their_template_and_the_spare_goes_with_it(make_bed: MakeBed, ahead: bool) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        replica = await bed.wake()
        os.kill(bed.template_pid, signal.SIGKILL)
        await bed.client.closed.wait()
        assert bed.get()[0] == 200
        with pytest.raises(EdgeFailed, match="has gone"):
            await bed.fork()
        replica.retire()
        assert replica.exit_code() == 0

    on_template(bed, story, ahead=ahead)


def test_the_next_spare_is_forked_when_it_is_quiet_and_used(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        await bed.wake()  # a spare is for those in use
        for _ in range(3):
            spare = await_spare(bed, {replica.pid for replica in bed.replicas})
            replica = await bed.wake()
            assert replica.pid == spare
            assert bed.get()[0] == 200

    on_template(bed, story)


def await_spare(bed: Bed, known: set[int]) -> int:
    """The child of ours that is neither the template nor a replica."""
    assert bed.base is not None
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        found = [int(pid) for pid in children if int(pid) not in known | {bed.base.pid, *bed.grown} and runs_runner(int(pid))]
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError("no spare came")


def runs_runner(pid: int) -> bool:
    return b"steelyard_runner" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_wrong_packets_are_refused_and_leak_nothing(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        raw.settimeout(10)
        raw.connect(str(bed.folder / "control-0"))
        raw.send(b'{"op": "status"}')  # makes the connection, and its descriptor there, before we count
        raw.recv(65536)
        before = sorted(os.listdir(f"/proc/{bed.template_pid}/fd"))
        for packet in (b"[]", b"not json", b'{"op": "dance"}', b'{"op": "fork"}', b'{"op": "fork", "cgroups": 7}', b"null"):
            socket.send_fds(raw, [packet], [0, 1, 2])
            assert json.loads(raw.recv(65536))["refused"] == "not-understood"
        assert sorted(os.listdir(f"/proc/{bed.template_pid}/fd")) == before
        await bed.wake()
        raw.close()

    on_template(bed, story)


def test_a_failing_enter_hook_leaves_its_traceback_in_the_page_and_ends_with_1(make_bed: MakeBed) -> None:
    bed = make_bed("""
        import steelyard as sy
        @sy.enter
        def connect():
            raise OSError("no database")
        async def app(scope, receive, send): ...
    """)

    async def story() -> None:
        await bed.ready()
        replica = await bed.fork()
        assert isinstance(replica, Replica)
        assert replica.exit_code() == 1
        assert replica.page.state == pages.FAILED
        assert "in connect" in replica.page.error and replica.page.error.endswith("OSError: no database\n")
        assert "OSError: no database" in replica.log

    on_template(bed, story)


def test_a_replica_that_cannot_join_says_so(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        reader, writer = os.pipe()
        os.close(reader)  # writing "0" to it fails like a cgroup that is gone
        replica = await bed.fork(cgroup_fds=[writer])
        os.close(writer)
        assert isinstance(replica, Replica)
        assert replica.exit_code() == 1
        assert "could not join" in replica.page.error

    on_template(bed, story)


def test_a_killed_replica_is_reaped_with_its_signal(make_bed: MakeBed) -> None:
    bed = make_bed()

    async def story() -> None:
        await bed.ready()
        replica = await bed.wake()
        os.kill(replica.pid, signal.SIGKILL)
        assert replica.exit_code() == -signal.SIGKILL

    on_template(bed, story)
