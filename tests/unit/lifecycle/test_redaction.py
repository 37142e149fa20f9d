"""Are secret values hidden wherever a log is cut, and is nothing else?"""

from __future__ import annotations

from hypothesis import assume, example, given
from hypothesis import strategies as st

from steelyard.lifecycle.redaction import VALUE_MIN, Redactor

#: few letters, so that values are found, repeat and overlap
TEXT = st.text("ab", max_size=60)
VALUES = st.lists(st.text("ab", min_size=VALUE_MIN, max_size=12), min_size=1, max_size=4, unique=True)


def make(*values: str) -> Redactor:
    return Redactor((f"s{at}", {"KEY": value}) for at, value in enumerate(values))


def read_in_pieces(redactor: Redactor, raw: bytes, sizes: list[int], arrivals: list[int]) -> bytes:
    """As a client that follows gets it: the file grows to each of `arrivals`, pieces have at most the next of `sizes` bytes."""
    shown, at, turn = b"", 0, 0
    for written in [*sorted(min(each, len(raw)) for each in arrivals), len(raw)]:
        over = written == len(raw)
        while at < written:
            size, turn = sizes[turn % len(sizes)], turn + 1
            first, last = max(0, at - redactor.margin), min(written, at + size + redactor.margin)
            begin, end = at - first, min(written, at + size) - first
            piece = redactor.show(raw[first:last], begin, end, over=over)
            shown += piece.data
            at += piece.used
            if not piece.used:
                break
    assert at == len(raw)
    return shown


def hide_plainly(raw: str, values: list[str]) -> str:
    """Byte by byte: each that lies in an occurrence is hidden; a mark stands where one begins that no other reaches over."""
    found = [(at, at + len(value)) for at in range(len(raw)) for value in values if raw.startswith(value, at)]
    shown = ""
    for at, letter in enumerate(raw):
        starting = [stop - start for start, stop in found if start == at]
        if starting and not any(start < at < stop for start, stop in found):
            number = values.index(raw[at : at + max(starting)])
            shown += f"[secret s{number}.KEY]"
        elif not any(start <= at < stop for start, stop in found):
            shown += letter
    return shown


@given(st.text("abc\n", max_size=80), st.text("abc", min_size=VALUE_MIN, max_size=9), st.data())
def test_pieces_of_any_size_show_what_replacing_in_the_whole_text_does(text: str, value: str, data: st.DataObject) -> None:
    assume(not any(value.endswith(value[:size]) for size in range(1, len(value))))  # it can't overlap itself
    raw = text.replace("c", value)
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    arrivals = data.draw(st.lists(st.integers(0, 200), max_size=5))
    shown = read_in_pieces(make(value), raw.encode(), sizes, arrivals)
    assert shown.decode() == raw.replace(value, "[secret s0.KEY]")


@given(TEXT, VALUES, st.lists(st.integers(1, 20), min_size=1, max_size=5), st.lists(st.integers(0, 60), max_size=5))
@example("abababababab", ["ababab", "bababababa"], [1], [5, 7])
@example("aaaaaaaa", ["aaaaaa", "aaaaaaaaa"], [3], [6])
def test_no_byte_of_any_value_is_shown_however_values_overlap(
    text: str, values: list[str], sizes: list[int], arrivals: list[int]
) -> None:
    redactor = make(*values)
    assert redactor.clean(text) == hide_plainly(text, values)
    assert read_in_pieces(redactor, text.encode(), sizes, arrivals).decode() == hide_plainly(text, values)


@given(TEXT, VALUES, st.integers(0, 60))
def test_reading_from_the_middle_shows_the_rest_of_no_value(text: str, values: list[str], start: int) -> None:
    assume(start < len(text))
    redactor, raw = make(*values), text.encode()
    first = max(0, start - redactor.margin)
    piece = redactor.show(raw[first:], start - first, len(raw) - first, over=True).data
    assert redactor.clean(text).encode().endswith(piece)
    assert not any(value.encode() in piece for value in values)


def test_short_values_and_white_space_around_values_are_left() -> None:
    redactor = Redactor([("db", {"PIN": "12345", "PASSWORD": "  correct horse\n"})])
    assert redactor.clean("12345: correct horse\n") == "12345: [secret db.PASSWORD]\n"
    assert not Redactor([("db", {"PIN": "12345"})])


def test_what_may_become_a_value_is_held_back_until_it_is_known() -> None:
    redactor = make("hunter22")
    window = b"password: hunter2"
    assert redactor.show(window, 0, len(window), over=False) == (b"password: ", 10)
    assert redactor.show(window, 0, len(window), over=True) == (window, 17)
    assert redactor.show(b"password: hunter3", 0, 17, over=False).used == 17


def test_bytes_that_are_no_text_come_through() -> None:
    assert make("hunter22").show(b"\xff\x00hunter22\xfe", 0, 11, over=True).data == b"\xff\x00[secret s0.KEY]\xfe"
    assert make("hunter22").clean("\udcff hunter22") == "\udcff [secret s0.KEY]"


def test_a_large_value_costs_no_more_than_its_size() -> None:
    value = "x" * 60_000
    window = ("y" * 200_000 + "x" * 59_000).encode()
    assert make(value).show(window, 0, len(window), over=False).used == 200_000
