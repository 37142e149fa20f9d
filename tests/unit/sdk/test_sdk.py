"""What users import: small, quiet outside of Steelyard, and honest about time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest

import steelyard as sy
from steelyard import sdk


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    sdk.hooks.clear()
    sdk.recorded.clear()
    sdk.recording = True


def test_hooks_are_kept_in_order_and_functions_stay_what_they_are() -> None:
    @sy.enter
    def one() -> int:
        return 1

    @sy.enter(shared=True)
    def two() -> int:
        return 2

    assert (one(), two()) == (1, 2)
    assert sdk.hooks == [(False, one), (True, two)]
    with pytest.raises(TypeError, match="decorates a function"):
        sy.enter(3)  # type: ignore[call-overload]


def test_phases_add_up_by_name_and_survive_exceptions() -> None:
    with sy.phase("a"), sy.phase("b"):
        pass
    first = sdk.recorded["a"]
    with pytest.raises(ValueError), sy.phase("a"):
        raise ValueError
    assert list(sdk.recorded) == ["b", "a"]
    assert sdk.recorded["a"] > first >= sdk.recorded["b"] > 0


def test_names_made_from_requests_cannot_grow_memory() -> None:
    for number in range(1000):
        with sy.phase(f"request {number}"):
            pass
    assert len(sdk.recorded) == sdk.PHASES_MAX
    sdk.recording = False
    with sy.phase("request 0"):
        before = dict(sdk.recorded)
    assert sdk.recorded == before


def test_the_package_offers_no_more_than_it_says() -> None:
    assert sy.__version__ == version("steelyard")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sy.nothing  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'Retries': write how often"):
        _ = sy.Retries  # type: ignore[attr-defined]


def test_importing_it_loads_the_standard_library_only() -> None:
    look = "import sys; before = set(sys.modules); import steelyard as sy; sy.phase; print(*(set(sys.modules) - before))"
    names = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names} == {"steelyard", "steelyard.sdk"}
    assert len(names) < 40, names  # under 10 ms: nothing heavy of the standard library either
