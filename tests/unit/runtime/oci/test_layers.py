"""What a layer would unpack to, counted as tarfile counts it, however the bytes come."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_images import entry, folder, link, make_tar
from steelyard.runtime.oci import Limits
from steelyard.runtime.oci.layers import BadLayer, LayerCheck

LIMITS = Limits(bytes_max=1 << 20, entries_max=100, depth_max=10)


def check(data: bytes, limits: Limits = LIMITS) -> LayerCheck:
    made = LayerCheck(limits)
    made.check(io.BytesIO(data), hashlib.sha256(data).hexdigest())
    return made


names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/"), min_size=1, max_size=200)
files = st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=8)


@given(files, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 700))
def test_entries_and_bytes_are_those_that_tarfile_sees(content: list[tuple[str, bytes]], form: int, step: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    made = LayerCheck(LIMITS)
    for at in range(0, len(out.getvalue()), step):
        made.feed(out.getvalue()[at : at + step])
    assert (made.entries, made.file_bytes) == (len(content), sum(len(data) for _, data in content))


@given(st.binary(max_size=3000))
def test_any_bytes_are_counted_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadLayer):  # and nothing else
        check(data)


@given(st.integers(1, 4000), st.integers(0, 255))
def test_a_changed_byte_is_counted_or_refused(at: int, value: int) -> None:
    whole = bytearray(make_tar([folder("a"), entry("a/b", b"x" * 700), link("l", "a/b")]))
    whole[at % len(whole)] = value
    with contextlib.suppress(BadLayer):
        check(bytes(whole))


def test_a_gzip_of_several_members_is_one_layer() -> None:
    tar = make_tar([entry("a", b"1"), entry("b", b"2")])
    assert check(gzip.compress(tar[:700]) + gzip.compress(tar[700:])).entries == 2


def test_the_last_padding_and_the_end_may_be_missing_as_umoci_leaves_them_out() -> None:
    tar = make_tar([entry("a", b"x" * 5000)])
    assert check(tar[: 512 + 5000]).file_bytes == 5000
    with pytest.raises(BadLayer, match="ends in the middle"):
        check(tar[: 512 + 4999])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (make_tar([entry("a", bytes(2 << 20))]), "more than 1048576 bytes"),
        (make_tar([entry(f"{n}") for n in range(101)]), "more than 100 files"),
        (make_tar([entry("/".join("x" * 12))]), "deep"),
        (make_tar([entry("a", b"x" * 5000)])[:3000], "ends in the middle"),
        (gzip.compress(make_tar([entry("a", b"x" * 5000)]))[:-9], "ends in the middle|damaged"),
        (b"\x28\xb5\x2f\xfd rest", "zstd"),
        (b"no tar" * 100, "no tar"),
    ],
    ids=["too large", "too many", "too deep", "cut short", "packed and cut short", "zstd", "no tar"],
)
def test_what_is_over_a_limit_or_damaged_is_said_so(data: bytes, words: str) -> None:
    with pytest.raises(BadLayer, match=words):
        check(data)


def test_zeros_that_inflate_a_thousandfold_are_stopped_early() -> None:
    with pytest.raises(BadLayer, match="times its size"):
        check(gzip.compress(bytes(66 << 20), 1), Limits(ratio_max=50))


def test_the_digest_of_the_compressed_bytes_is_what_counts() -> None:
    data = gzip.compress(make_tar([entry("a")]))
    with pytest.raises(BadLayer, match="not what its digest"):
        LayerCheck(LIMITS).check(io.BytesIO(data), "0" * 64)


def test_a_sparse_file_counts_with_its_holes() -> None:
    info, _ = entry("sparse")
    info.pax_headers = {"GNU.sparse.realsize": str(2 << 20)}
    with pytest.raises(BadLayer, match="more than"):
        check(make_tar([(info, b"")]))


def test_a_size_in_a_pax_header_is_the_one_that_is_skipped() -> None:
    inner = make_tar([entry("hidden")])
    info, _ = entry("outer", inner)
    info.pax_headers = {"size": str(len(inner))}
    assert check(make_tar([(info, inner)])).entries == 1
