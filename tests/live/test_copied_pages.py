"""What a process writes after its fork is its own: as little of it as can be, seen by what the kernel says of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runner_bed import Bed, on_base, read_answer
from test_template import HELLO, looking, seen

from steelyard.host.proc import observe_memory
from steelyard.runtime.template import SINGLE_THREAD_ENV

#: leaves holes everywhere, forks, and says how many KB of pages a child writes to for 2,000 objects of its own (128 KB)
HOLED = """
import os, sys
from steelyard.runtime.runner.holes import fill_holes
def dirty():
    with open('/proc/self/smaps_rollup') as file:
        return int(file.read().partition('Private_Dirty:')[2].split()[0])
kept = [bytes(20 + at % 40) for at in range(40_000)]
del kept[::3]
if sys.argv[1] == 'fill':
    fill_holes()
reader, writer = os.pipe()
if not os.fork():
    before = dirty()
    mine = [bytes(20 + at % 40) for at in range(2000)]
    os.write(writer, str(dirty() - before).encode())
    os._exit(0)
os.wait()
print(os.read(reader, 100).decode())
"""


@pytest.fixture
def make_bed(home: Path) -> Callable[..., Bed]:
    def make(code: str = HELLO) -> Bed:
        return Bed(home, code)

    return make


def test_what_a_child_allocates_after_the_holes_were_filled_lies_together() -> None:
    def written_kb(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", HOLED, how], capture_output=True, text=True, check=True, timeout=30)
        return int(done.stdout)

    # whatever else a process writes to meanwhile is more, never less
    filled = min(written_kb("fill") for _ in range(5))
    assert filled < 400
    assert written_kb("leave") > 2 * filled


def test_a_revision_costs_little_beyond_its_environment(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed()

    async def story() -> None:
        env = SINGLE_THREAD_ENV | {"OWN": "mine"}
        environment = await bed.grow(bed.base_client, "environment", env=env, packages=[])
        await environment.status(20)
        bed.client = await bed.grow(environment, "revision", load=bed.make_load(env))
        assert (await bed.ready()).state == "ready"
        revision = bed.template_pid
        other = await bed.grow(environment, "revision", load=bed.make_load(env))
        await other.status(20)  # the environment has been at work since
        memory = observe_memory(revision)
        assert memory is not None and memory.private < 1_700_000, memory
        other.close()
        environment.close()

    on_base(bed, story)


#: by the SDK: what people declare
DECLARED = """
    import steelyard as sy
    app = sy.App("shop")

    @app.function(cpu=0.5, idle_timeout=60, memory="512MB")
    def score(items: list[float], weight: float = 1.0) -> float:
        return sum(items) * weight

    @app.function(public=True)
    @sy.endpoint()
    def answer(question: str, number: int = 3) -> dict[str, list[str]]:
        import os, sys
        import steelyard.sdk as sdk
        return {
            "hooks": [repr(hook) for hook in [*sdk.hooks, *sdk.exits, *sdk.recorded]],
            "modules": [name for name in sys.modules if "rehearsed" in name],
            "ours": [name for name in os.environ if "STEELYARD" in name],
            "path": [entry for entry in getattr(sys, "path") if "rehears" in entry],  # spelled so that packages are looked for
        }
"""


def test_a_revision_that_declares_with_the_sdk_costs_little_more_and_finds_nothing_of_its_rehearsal(
    make_bed: Callable[..., Bed],
) -> None:
    bed = make_bed(DECLARED)

    async def story() -> None:
        env = SINGLE_THREAD_ENV | {"OWN": "mine"}
        load = bed.make_load(env, attr="answer")
        packages = (await bed.base_client.scan(load, 10)).names
        environment = await bed.grow(bed.base_client, "environment", env=env, packages=packages)
        await environment.status(20)
        bed.client = await bed.grow(environment, "revision", load=load)
        assert (await bed.ready()).state == "ready"
        revision = bed.template_pid
        other = await bed.grow(environment, "revision", load=load)
        await other.status(20)
        memory = observe_memory(revision)
        assert memory is not None and memory.private < 2_000_000, memory
        assert "could not be rehearsed" not in bed.template_log.read_text()
        replica = await bed.wake()
        assert ask(bed, {"question": "?"}) == {"hooks": [], "modules": [], "ours": ["STEELYARD_FUNCTION"], "path": []}
        replica.retire()
        assert replica.exit_code() == 0
        other.close()
        environment.close()

    on_base(bed, story)


def ask(bed: Bed, arguments: dict[str, object]) -> object:
    body = json.dumps(arguments).encode()
    client = bed.connect()
    client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    status, _, answer = read_answer(client)
    client.close()
    assert status == 200, answer
    return json.loads(answer)


def test_of_a_rehearsal_nothing_is_left(make_bed: Callable[..., Bed]) -> None:
    look = (
        "{'cwd': os.getcwd(), 'name': __name__, 'ours': [name for name in os.environ if 'STEELYARD' in name], 'path': sys.path}"
    )
    bed = make_bed(looking(f"return {look}"))

    async def story() -> None:
        environment = await bed.grow(bed.base_client, "environment", env={"OWN": "mine"}, packages=[])
        await environment.status(20)
        assert os.readlink(f"/proc/{bed.template_pid}/cwd") == "/"
        bed.client = await bed.grow(environment, "revision", load=bed.make_load({"OWN": "mine"}))
        assert (await bed.ready()).state == "ready"
        replica = await bed.wake()
        found = seen(bed)
        assert (found["cwd"], found["name"], found["ours"]) == (str(bed.code), "app", ["STEELYARD_FUNCTION"])
        assert "rehearsal" not in str(found["path"])
        replica.retire()
        assert replica.exit_code() == 0
        environment.close()

    on_base(bed, story)


def test_code_of_any_size_comes_from_the_child_that_made_it(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(looking("return {'size': len(TEXT), 'file': app.__code__.co_filename}", f"TEXT = '{'x' * 300_000}'"))

    async def story() -> None:
        bed.client = await bed.grow(bed.base_client, "revision", load=bed.make_load())
        assert (await bed.ready()).state == "ready"
        replica = await bed.wake()
        assert seen(bed) == {"size": 300_000, "file": str(bed.code / "app.py")}
        replica.retire()
        assert replica.exit_code() == 0

    on_base(bed, story)


def test_what_a_package_sets_in_the_environment_stays_and_what_a_revision_is_not_given_goes(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(looking("return {name: os.environ.get(name) for name in ('BY_PACKAGE', 'TAKEN', 'GIVEN', 'OWN')}"))
    bed.write("../site-packages/setting.py", "import os\nos.environ['BY_PACKAGE'] = 'yes'\nos.environ.pop('TAKEN', None)\n")

    async def story() -> None:
        env = {"PYTHONPATH": str(bed.folder / "site-packages"), "TAKEN": "x", "GIVEN": "x"}
        environment = await bed.grow(bed.base_client, "environment", env=env, packages=["setting"])
        assert (await environment.status(20)).state == "ready"
        del env["GIVEN"]
        bed.client = await bed.grow(environment, "revision", load=bed.make_load({**env, "OWN": "mine"}))
        assert (await bed.ready()).state == "ready"
        replica = await bed.wake()
        assert seen(bed) == {"BY_PACKAGE": "yes", "TAKEN": None, "GIVEN": None, "OWN": "mine"}  # as after a plain start
        replica.retire()
        assert replica.exit_code() == 0
        environment.close()

    on_base(bed, story, env={"PYTHONPATH": str(bed.folder / "site-packages")})


def test_random_numbers_of_revisions_of_one_environment_differ(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(looking("return VALUE", "import random\n    VALUE = random.random()"))

    async def story() -> None:
        values = []
        for _ in range(2):
            bed.client = await bed.grow(bed.base_client, "revision", load=bed.make_load())
            assert (await bed.ready()).state == "ready"
            replica = await bed.wake()
            values.append(seen(bed))
            replica.retire()
            assert replica.exit_code() == 0
            bed.client.close()
        assert values[0] != values[1]

    on_base(bed, story)
