"""Where a batch goes on after whatever happened to it: the files alone, no function."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.batch_files import STATE_VERSION, Answer, Input, Output, Source, State, make_files
from steelyard.errors import Conflict, NotFound, Refused


def make_state(rows: int, sha256: str = "a") -> State:
    return State(STATE_VERSION, "f", "/", Source(sha256, rows, (0, 0, 0, 0)))


def read_all(file: Path, done: int = 0) -> list[tuple[int, bytes, str]]:
    with contextlib.closing(Input(file)) as rows:
        return [tuple(row) for row in rows.rows(rows.identify(None), done)]


def begin(files_at: Path, rows: int, *, anew: bool = False) -> Output:
    output = Output(make_files(files_at))
    output.begin(make_state(rows), anew=anew)
    return output


def test_each_line_is_a_row_and_bad_ones_are_named_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n[2\n\n "three" \nnul\n4')
    found = read_all(file)
    assert [row[0] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row[1] for row in found] == [b'{"a": 1}', b"", b"", b'"three"', b"", b"4"]
    assert [bool(row[2]) for row in found] == [False, True, True, False, True, False]
    assert "empty" in found[2][2] and "not JSON" in found[1][2]


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"1\n\n2\n\n \n\n")
    assert [row[0] for row in read_all(file)] == [1, 2, 3]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"")
    assert read_all(file) == []


@given(
    lines=st.lists(st.sampled_from([b"1", b'"two"', b"", b" ", b"[3", b"\xff", b"\r"]), max_size=12),
    last=st.booleans(),
    done=st.integers(0, 12),
)
def test_rows_are_the_lines_up_to_the_last_that_says_something(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], last: bool, done: int
) -> None:
    file = tmp_path_factory.mktemp("rows") / "in.jsonl"
    file.write_bytes(b"\n".join(lines) + (b"\n" if last else b""))
    said = [number for number, line in enumerate(lines, 1) if line.strip()]
    assert [row[0] for row in read_all(file, done)] == list(range(done + 1, (said[-1] if said else 0) + 1))


def test_a_line_that_is_too_long_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.cli.batch_files.LINE_MAX", 10)
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'1\n"' + b"x" * 35 + b'"\n3\n')
    found = read_all(file)
    assert [row[0] for row in found] == [1, 2, 3]
    assert "longer than" in found[1][2]
    assert found[2][1] == b"3"


def test_a_pipe_a_folder_and_nothing_are_refused_as_input(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no regular file"):
        Input(Path("/dev/null"))
    with pytest.raises(Refused):
        Input(tmp_path)
    with pytest.raises(NotFound):
        Input(tmp_path / "none")


def test_an_input_that_changes_while_it_is_read_stops_the_batch(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"1\n2\n3\n")
    with contextlib.closing(Input(file)) as rows:
        found = rows.rows(rows.identify(None), 0)
        assert next(found).number == 1
        file.write_bytes(b"1\n2\n3\n4\n")
        with pytest.raises(Refused, match="changed while"):
            next(found)


def test_the_stamp_spares_reading_and_the_hash_decides(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"1\n2\n")
    with contextlib.closing(Input(file)) as rows:
        first = rows.identify(None)
        assert rows.identify(first) is first
    file.touch()
    with contextlib.closing(Input(file)) as rows:
        assert rows.identify(first).sha256 == first.sha256
    file.write_bytes(b"1\n3\n")
    with contextlib.closing(Input(file)) as rows:
        assert rows.identify(first).sha256 != first.sha256


def test_errors_and_answers_lie_apart_and_keep_their_places(tmp_path: Path) -> None:
    output = begin(tmp_path / "out.jsonl", 3, anew=True)
    output.append([Answer(1, b"1", 200), Answer(2, None, 500, "no")])
    output.append([Answer(3, b"3", 200)])
    output.close()
    assert (tmp_path / "out.jsonl").read_bytes() == b"1\nnull\n3\n"
    assert (tmp_path / "out.errors.jsonl").read_bytes() == b'{"row":2,"status":500,"message":"no"}\n'
    again = begin(tmp_path / "out.jsonl", 3)
    assert (again.done, again.failed) == (3, 1)
    again.close()


@given(cut=st.integers(0, 80), cut_errors=st.integers(0, 200))
def test_whatever_a_crash_tore_off_the_next_run_goes_on_after_the_last_whole_row(
    tmp_path_factory: pytest.TempPathFactory, cut: int, cut_errors: int
) -> None:
    """Errors are written before their row's line: a crash may lose lines, or lines and then errors, never errors alone."""
    folder = tmp_path_factory.mktemp("torn")
    output = begin(folder / "out.jsonl", 8, anew=True)
    for number in range(1, 9):
        output.append([Answer(number, None if number % 3 == 0 else b'"%d"' % number, 500, f"no {number}")])
    output.close()
    files = make_files(folder / "out.jsonl")
    whole = files.output.read_bytes()
    files.output.write_bytes(whole[: len(whole) - cut] if cut < len(whole) else b"")
    lines = files.output.read_bytes().count(b"\n")
    errors = files.errors.read_bytes()
    # of errors, only what belongs to rows without a line can be torn
    needed = sum(len(line) for line in errors.splitlines(keepends=True) if msgspec.json.decode(line)["row"] <= lines)
    files.errors.write_bytes(errors[: max(needed, len(errors) - cut_errors)])
    again = begin(folder / "out.jsonl", 8)
    assert (again.done, again.failed) == (lines, sum(number % 3 == 0 for number in range(1, lines + 1)))
    for number in range(again.done + 1, 9):
        again.append([Answer(number, None if number % 3 == 0 else b'"%d"' % number, 500, f"no {number}")])
    again.close()
    assert files.output.read_bytes() == whole
    assert files.errors.read_bytes() == errors


def test_one_batch_at_a_time_writes_an_output(tmp_path: Path) -> None:
    first = begin(tmp_path / "out.jsonl", 1, anew=True)
    with pytest.raises(Conflict, match="Another"):
        Output(make_files(tmp_path / "out.jsonl"))
    first.close()
    begin(tmp_path / "out.jsonl", 1).close()


def test_a_file_that_no_batch_wrote_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine\n")
    output = Output(make_files(tmp_path / "out.jsonl"))
    with pytest.raises(Refused, match="not written by"):
        output.load_state()
    output.close()
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"
    assert not (tmp_path / "out.batch.json").exists()


def test_a_damaged_state_and_foreign_lines_are_refused_until_restart(tmp_path: Path) -> None:
    begin(tmp_path / "out.jsonl", 1, anew=True).close()
    (tmp_path / "out.jsonl").write_text("1\n2\n")
    output = Output(make_files(tmp_path / "out.jsonl"))
    with pytest.raises(Refused, match="somebody else"):
        output.begin(make_state(1), anew=False)
    (tmp_path / "out.batch.json").write_text("{")
    with pytest.raises(Refused, match="damaged"):
        output.load_state()
    output.begin(make_state(1), anew=True)
    assert output.load_state() == make_state(1)
    output.close()


def test_where_nothing_can_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can't be written"):
        Output(make_files(tmp_path / "none" / "out.jsonl"))
    with pytest.raises(Refused, match="can't be written"):
        Output(make_files(Path("/proc/out.jsonl")))
