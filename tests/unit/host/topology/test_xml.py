"""XML that wants memory, files or patience gets none of them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.host.topology.xml import PARTS_MAX, PIECE_MAX, parse_xml


def refusal(text: str, **bounds: int) -> str:
    with pytest.raises(Refused) as caught:
        parse_xml(text, "box.xml", **bounds)
    assert caught.value.public.startswith("box.xml")
    assert caught.value.public.count("\n") == 0
    return caught.value.public


def test_elements_attributes_and_text_are_read() -> None:
    root = parse_xml('<?xml version="1.0"?>\n<a x="1"><b>3 &lt; 4</b><b/>tail</a>\n', "box.xml")
    assert (root.tag, root.get("x"), [b.text for b in root], root[1].tail) == ("a", "1", ["3 < 4", None], "tail")


def test_an_outside_doctype_is_passed_over_and_never_fetched(tmp_path: Path) -> None:
    missing = tmp_path / "never.dtd"
    root = parse_xml(f'<!DOCTYPE topology SYSTEM "{missing.as_uri()}"><topology version="2.0"/>', "box.xml")
    assert root.get("version") == "2.0"
    assert parse_xml('<!DOCTYPE a PUBLIC "-//X//Y" "http://example.invalid/a.dtd"><a/>', "box.xml").tag == "a"


def test_the_declared_encoding_is_not_applied_to_decoded_text() -> None:
    assert parse_xml('<?xml version="1.0" encoding="UTF-16"?><a>ä</a>', "box.xml").text == "ä"


def test_billion_laughs_are_refused_in_no_time() -> None:
    laughs = '<!ENTITY l0 "ha">' + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))
    began = time.monotonic()
    assert "DTD" in refusal(f"<!DOCTYPE a [{laughs}]>\n<a>&l29;</a>")
    assert time.monotonic() - began < 1


def test_quadratic_blowup_is_refused() -> None:
    assert "DTD" in refusal(f'<!DOCTYPE a [<!ENTITY x "{"x" * 50_000}">]><a>{"&x;" * 50_000}</a>')


def test_default_attributes_cannot_be_declared() -> None:
    assert "DTD" in refusal(f'<!DOCTYPE a [<!ATTLIST b c CDATA "{"x" * 100}">]><a>{"<b/>" * 10}</a>')


def test_files_are_not_pulled_in(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("S3CR3T")
    assert "S3CR3T" not in refusal(f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><a>&x;</a>')
    assert "S3CR3T" not in refusal(f'<!DOCTYPE a [<!ENTITY % x SYSTEM "{secret.as_uri()}"> %x;]><a/>')


def test_unknown_entities_are_refused_also_where_an_outside_dtd_could_define_them() -> None:
    assert "&x;" in refusal('<!DOCTYPE a SYSTEM "a.dtd">\n<a>&x;</a>')
    assert "line 1" in refusal("<a>&x;</a>")


def test_deep_nesting_is_refused() -> None:
    assert "deep" in refusal("<a>" * 100_000 + "</a>" * 100_000)
    assert parse_xml("<a>" * 150 + "</a>" * 150, "box.xml").tag == "a"


def test_too_many_elements_or_attributes_are_refused() -> None:
    assert "elements" in refusal("<a>" + "<b/>" * (PARTS_MAX + 1) + "</a>")


def test_a_tag_or_text_without_end_is_refused() -> None:
    assert "line 2" in refusal("<a>\n<b " + " " * (PIECE_MAX + 1) + "/></a>")


def test_size_is_bounded_in_bytes() -> None:
    assert "larger" in refusal("<a>" + "x" * 100 + "</a>", text_bytes_max=100)
    assert "larger" in refusal("<a>" + "ä" * 60 + "</a>", text_bytes_max=100)
    assert "larger than 32 MiB" in refusal(" " * (32 * 1024**2 + 1))


def test_a_cut_off_file_is_named_with_its_line() -> None:
    text = "<a>\n<b>\n<c x='1'/>\n</b>\n</a>\n"
    for end in range(text.rindex(">")):
        assert "cut off" in refusal(text[:end])
    assert "line 3" in refusal(text[:14])


@pytest.mark.parametrize(
    "text", ["<a></b>", "<a x=1/>", "<a/><b/>", "<a x='1' x='2'/>", "<a>\x00</a>", "\udcff", "GPU0 GPU1\nX NV12"]
)
def test_what_is_no_xml_is_refused(text: str) -> None:
    refusal(text)


@settings(max_examples=300)
@given(st.text(alphabet="<>/&;!ab[]\"'= %-?\x00ä\n", max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        parse_xml(text, "box.xml")
