from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.host.topology.notation import (
    CPUS_MAX,
    read_cpus,
    read_gigatransfers,
    read_mask,
    read_pci,
    read_size,
    read_whole,
    told,
)


def test_addresses_sizes_and_speeds_are_read_in_every_spelling() -> None:
    assert read_pci("00000000:0F:00.0") == read_pci("0000:0f:00.0") == read_pci("0F:00.0") == "0000:0f:00.0"
    assert read_pci("10000:01:00.0") == "10000:01:00.0" and read_pci("0f:00") is None and read_pci(None) is None
    assert read_size("81559 MiB") == 81559 << 20 and read_size("1.5 GB") == 3 << 29 and read_size("many MiB") is None
    assert [read_gigatransfers(word) for word in ("16 GT/s", "32.0 GT/s PCIe", "8.0GT/s", "fast")] == [16.0, 32.0, 8.0, None]
    assert read_whole("16x") == 16 and read_whole("²") is None and read_whole("-1") is None
    assert told("[Not Supported]") is None and told(" Enabled ") == "Enabled"


def test_lists_and_masks_of_cpus() -> None:
    assert (
        read_cpus("0-2,8") == (0, 1, 2, 8)
        and read_cpus("3-1") is None
        and read_cpus("0-999999") is None
        and read_cpus("") is None
    )
    assert read_mask("1,80000001") == (0, 31, 32) and read_mask("ff,f") is None and read_mask("") is None
    assert read_mask("f" * 8 + ",ffffffff" * CPUS_MAX) is None


@given(st.sets(st.integers(0, 500), min_size=1))
@settings(max_examples=50)
def test_a_mask_tells_the_cpus_it_was_made_of(cpus: set[int]) -> None:
    bits = f"{sum(1 << cpu for cpu in cpus):0128x}"
    assert read_mask(",".join(bits[place : place + 8] for place in range(0, 128, 8))) == tuple(sorted(cpus))


@given(st.text(max_size=30))
@settings(max_examples=200)
def test_no_word_makes_a_reading_fail(word: str) -> None:
    for read in (read_pci, read_whole, read_size, read_cpus, read_mask, read_gigatransfers, told):
        read(word)
