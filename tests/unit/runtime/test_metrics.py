"""Prometheus pages: what is read of them, and that nothing in them breaks whoever reads."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.runtime.metrics import Meter, read_samples
from steelyard.runtime.runner.page import Page

S = 1_000_000_000
PAGE = b"""\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } \\" b"} 3.0
vllm:num_requests_waiting{engine="1",model_name="x"} 2.0 1700000000000
vllm:num_requests_waiting_by_reason{engine="0"} 40
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 1.5e+3
# TYPE fed counter
fed 7
plain 4
damaged{a="b"} four
endless +Inf
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vllm:num_requests_waiting", 5.0), ("vllm:generation_tokens_total", 1500.0), ("plain", 4.0), ("damaged", None),
        ("endless", None), ("absent", None), ("vllm:num_requests", None),
    ],
)  # fmt: skip
def test_a_page_is_read(name: str, value: float | None) -> None:
    assert read_samples(PAGE, [name])[0].get(name) == value


def test_counters_are_told_as_what_they_grow_by_each_second() -> None:
    meter = Meter(("plain", "fed"))
    assert meter.read(10 * S, PAGE) == (4.0, None)
    assert meter.read(12 * S, PAGE.replace(b"fed 7", b"fed 27")) == (4.0, 10.0)
    assert meter.read(13 * S, b"# TYPE fed counter\nfed 5\n") == (None, 5.0)  # it began anew
    assert meter.read(14 * S, b"") == (None, None)


@given(st.binary(max_size=300) | st.text(alphabet='plain{}"\\ \n#TYPE0.5', max_size=300).map(str.encode))
def test_no_page_breaks_the_reader(page: bytes) -> None:
    sums, _ = read_samples(page, ["plain"])
    assert all(math.isfinite(value) for value in sums.values())


@given(st.dictionaries(st.text(max_size=20), st.floats(-1e9, 1e9), min_size=1, max_size=5))
def test_labels_may_hold_anything(labels: dict[str, float]) -> None:
    def quote(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    page = "".join(f'm{{who="{quote(label)}"}} {value!r}\n' for label, value in labels.items())
    assert read_samples(page.encode(errors="replace"), ["m"])[0]["m"] == pytest.approx(sum(labels.values()), abs=1e-3)


def test_numbers_travel_through_a_replicas_page(tmp_path: object) -> None:
    page = Page.create(f"{tmp_path}/page")
    assert page.read_metrics(3) == (None, None, None)
    page.write_metrics(5, (2.5, None, -1e9))
    assert (page.metrics_ns, page.read_metrics(3)) == (5, (2.5, None, -1e9))
    page.write_metrics(6, (None, 0.0, None))
    assert page.read_metrics(3) == (None, 0.0, None)
    page.close()
