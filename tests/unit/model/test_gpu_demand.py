"""The grammar of demands for GPUs, and what a demand means of the GPUs that drivers report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.model.gpu_demand import GpuDemand, check_gpu_demand, format_gpu_demand, parse_gpu_demand

GB = 10**9
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "demand"),
    [
        ("H100", GpuDemand("H100")),
        ("H100:8", GpuDemand("H100", 8)),
        ("4", GpuDemand(count=4)),
        ("RTX 4090:2", GpuDemand("RTX 4090", 2)),
        ("A100-SXM4-80GB", GpuDemand("A100-SXM4-80GB")),
        ("A100:80GB:2", GpuDemand("A100", 2, 80 * GB, 80 * GB)),
        ("A100:2:80gb", GpuDemand("A100", 2, 80 * GB, 80 * GB)),
        ("24GB..40GB:2", GpuDemand(None, 2, 24 * GB, 40 * GB)),
        ("24GB..", GpuDemand(memory_min_bytes=24 * GB)),
        ("..40GB", GpuDemand(memory_max_bytes=40 * GB)),
        ("H100:0.5", GpuDemand("H100", fraction=0.5)),
        ("2:.25", GpuDemand(count=2, fraction=0.25)),
        ("A100:1g.10gb", GpuDemand("A100", mig_profile="1g.10gb")),
        ("1G.10GB+me:3", GpuDemand(count=3, mig_profile="1g.10gb+me")),
        ("1c.3g.40gb", GpuDemand(mig_profile="1c.3g.40gb")),
    ],
)
def test_a_demand_is_read_as_people_write_it(text: str, demand: GpuDemand) -> None:
    assert parse_gpu_demand(text) == demand
    assert parse_gpu_demand(f" {text.replace(':', ' : ')} ") == demand


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "H100:", ":2", "0", "-1", "1025", "H100:0", "H100:1.0", "H100:0.0", "H100:1.5", "0.0000001", "2:H100",
        "H100:A100", "H100:2:4",
        "H100:80GB:40GB", "0GB", "40GB..24GB", "..", "..:2", "8 0", "H100:80GiB", "1g.10gb:0.5", "0g.10gb",
        "1g.10gb:2g.20gb", "H100:0.5:0.25", "H100;2", "H100:²", "٣", "4090", "99999999GB", "H" * 200, "H100:1e3", "_", "0x4",
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(Refused, match=r"H100:8") as caught:
        parse_gpu_demand(text)
    assert len(caught.value.public) < 300 and "\n" not in caught.value.public


sizes = st.integers(1, 10**15)
demands = st.builds(
    GpuDemand,
    model=st.none() | st.from_regex(r"\A[A-Z]{1,3}[0-9]{2,4}X?(?: Ti)?\Z"),
    count=st.integers(1, 1024),
    memory_min_bytes=st.none() | sizes,
    memory_max_bytes=st.none() | sizes,
    fraction=st.none() | st.integers(1, 999_999).map(lambda parts: parts / 1_000_000),
).filter(lambda each: None in (each.memory_min_bytes, each.memory_max_bytes) or each.memory_min_bytes <= each.memory_max_bytes)  # type: ignore[operator]


@given(demand=demands)
def test_what_is_written_is_read_back(demand: GpuDemand) -> None:
    assert parse_gpu_demand(format_gpu_demand(demand)) == demand
    assert check_gpu_demand(demand) is None


@given(text=st.text(max_size=40) | st.text("H100GB.:5 g+", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        demand = parse_gpu_demand(text)
    except Refused:
        return
    assert parse_gpu_demand(format_gpu_demand(demand)) == demand


@pytest.mark.parametrize(
    "demand",
    [
        GpuDemand(count=0), GpuDemand(count=-3), GpuDemand(fraction=1.0), GpuDemand(fraction=float("nan")),
        GpuDemand(fraction=0.0),
        GpuDemand(model=""), GpuDemand(model="a:b"), GpuDemand(memory_min_bytes=-1),
        GpuDemand(memory_min_bytes=5, memory_max_bytes=4),
        GpuDemand(mig_profile="x"), GpuDemand(fraction=0.5, mig_profile="1g.10gb"),
        GpuDemand(count=5000), GpuDemand(model="80GB"),
    ],
)  # fmt: skip
def test_fields_that_no_text_could_give_are_found(demand: GpuDemand) -> None:
    assert check_gpu_demand(demand)


@pytest.mark.parametrize(
    ("model", "name", "matches"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("h100", "NVIDIA H100 80GB HBM3", True),
        ("H100", "NVIDIA GH1000", False),
        ("A100", "NVIDIA A1000", False),
        ("A100", "NVIDIA A100-SXM4-40GB", True),
        ("A100-SXM4", "NVIDIA A100-SXM4-40GB", True),
        ("V100", "Tesla V100-SXM3-32GB-H", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("4090 RTX", "NVIDIA GeForce RTX 4090", False),
        ("MI300X", "AMD Instinct MI300X OAM", True),
        ("H100", "", False),
    ],
)
def test_a_model_matches_whole_words(model: str, name: str, matches: bool) -> None:
    assert GpuDemand(model).matches_name(name) is matches


@pytest.mark.parametrize(
    ("text", "mib", "matches"),
    [
        ("80GB", 81559, True), ("40GB", 40536, True), ("40GB", 81559, False), ("141GB", 143771, True), ("24GB", 24564, True),
        ("24GB", 23028, True), ("16GB", 15360, True), ("32GB", 32510, True), ("94GB", 95830, True), ("80GB", 95830, False),
        ("192GB", 183359, True), ("48GB", 46068, True), ("40GB", 46068, False),
        ("24GB..40GB", 40536, True), ("24GB..40GB", 23028, True), ("24GB..40GB", 46068, False), ("24GB..40GB", 15360, False),
        ("80GB..", 81559, True), ("80GB..", 40536, False), ("..16GB", 16384, True), ("..16GB", 24564, False),
    ],
)  # fmt: skip
def test_memory_means_what_vendors_mean(text: str, mib: int, matches: bool) -> None:
    assert parse_gpu_demand(text).matches_memory(mib * MIB) is matches


def test_memory_that_nobody_told_matches_only_where_none_was_asked() -> None:
    assert parse_gpu_demand("H100").matches_memory(None)
    assert not parse_gpu_demand("80GB").matches_memory(None)
