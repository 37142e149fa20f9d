"""Live tests run real programs on this machine. Each one is checked: what it started must be gone when it ends (I6)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_rig import Server, standing_server
from steelyard_cluster import Cluster, started
from traces import Traces, observe_traces

from oci_images import Registry

#: folders of the Steelyards that `shared` keeps up beside tests with one of their own: their templates come and go
_kept_up: set[str] = set()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes, control groups, mounts and run folders that were not there before fail the test that made them. A `shared`
    Steelyard changes all the time and is looked at when its file is done."""
    if "shared" in request.fixturenames:
        yield
        return
    before = observe_traces()
    yield
    left = "\n".join(
        line for line in observe_traces().settled_minus(before).splitlines() if not any(folder in line for folder in _kept_up)
    )
    assert not left, f"left behind:\n{left}"


@pytest.fixture(scope="session", autouse=True)
def orphans_come_to_us() -> None:
    """As subreaper of all that tests start, we see (and reap) what would otherwise end up at pid 1."""
    Traces.become_subreaper()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user may go through. Those of pytest are one user's, whatever a test does: another run closes them."""
    with tempfile.TemporaryDirectory(prefix="steelyard-open-", ignore_cleanup_errors=True) as name:
        made = Path(name)
        made.chmod(0o711)
        yield made


@pytest.fixture
def cluster(nothing_left_behind: None) -> Iterator[Cluster]:
    """A Steelyard of its own, up and ready; down again afterwards, whatever the test did to it."""
    with started() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """One Steelyard for all tests of a file: each leaves it as it found it."""
    before = observe_traces()
    with started() as made:
        _kept_up.add(str(made.folder))
        yield made
        _kept_up.discard(str(made.folder))
    left = observe_traces().settled_minus(before)
    assert not left, f"left behind:\n{left}"


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with standing_server() as made:
        yield made


@pytest.fixture
def server(one_server: Server) -> Iterator[Server]:
    """The file's one: for tests that look at nothing but what they made themselves. It ends with them."""
    yield one_server
    one_server.clear()


@pytest.fixture
def fresh(home: Path) -> Iterator[Server]:
    """A test's own: to kill it, or to look at all that it has."""
    with Server(home) as made:
        yield made


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """A registry of a file's own."""
    made = Registry()
    yield made
    made.close()
