"""Dividing a full machine between functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.scaling.share import Budget, Want, divide

GIB = 1 << 30
MACHINE = Budget(8.0, 16 * GIB)


@pytest.mark.parametrize(
    ("wants", "given_"),
    [
        ([Want("a", 4, 1, 0), Want("b", 4, 1, 0)], {"a": 4, "b": 4}),
        ([Want("a", 9, 1, 0), Want("b", 9, 1, 0)], {"a": 4, "b": 4}),
        ([Want("a", 2, 1, 0), Want("b", 90, 1, 0)], {"a": 2, "b": 6}),
        ([Want("a", 9, 1, 0), Want("b", 9, 1, 0), Want("c", 9, 1, 0)], {"a": 3, "b": 3, "c": 2}),
        ([Want("wide", 9, 2, 0), Want("thin", 9, 1, 0)], {"wide": 2, "thin": 4}),
        ([Want("memory", 9, 0.1, 4 * GIB), Want("cores", 9, 2, 0)], {"memory": 4, "cores": 3}),
        ([Want("a", 9, 1, 0, least=6), Want("b", 9, 1, 0)], {"a": 6, "b": 2}),
        ([Want(str(at), 2, 1, 0) for at in range(10)], {str(at): 1 for at in range(10)}),
        ([Want("huge", 2, 1, 32 * GIB), Want("b", 2, 1, GIB)], {"huge": 1, "b": 1}),
        ([], {}),
    ],
    ids=[
        "all fit",
        "equal shares",
        "who wants little gets it",
        "what is left over goes to the first by name",
        "shares are of cores, not of replicas",
        "the scarcest resource counts",
        "the least first",
        "nobody starves, even beyond the machine",
        "one too large for the machine has one",
        "nobody",
    ],
)
def test_case(wants: list[Want], given_: dict[str, int]) -> None:
    assert divide(MACHINE, wants) == given_


wants_drawn = st.lists(
    st.builds(
        Want,
        name=st.sampled_from("abcdefgh"),
        wanted=st.integers(1, 20),
        cpus=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        memory_bytes=st.sampled_from([0, GIB, 5 * GIB]),
        least=st.integers(0, 2),
    ),
    max_size=8,
    unique_by=lambda want: want.name,
)


@given(wants_drawn)
def test_shares_are_within_wants_and_the_machine_and_nobody_who_fits_is_left_out(wants: list[Want]) -> None:
    given_ = divide(MACHINE, wants)
    must = {want.name: min(want.wanted, max(1, want.least)) for want in wants}
    assert all(must[want.name] <= given_[want.name] <= want.wanted for want in wants)
    cpus = sum(want.cpus * given_[want.name] for want in wants)
    memory = sum(want.memory_bytes * given_[want.name] for want in wants)
    if any(given_[want.name] > must[want.name] for want in wants):
        # beyond what nobody can be denied, only what fits was given
        assert cpus <= MACHINE.cpus + 1e-6 or all(want.cpus == 0 for want in wants if given_[want.name] > must[want.name])
        assert memory <= MACHINE.memory_bytes or all(
            want.memory_bytes == 0 for want in wants if given_[want.name] > must[want.name]
        )
    for want in wants:
        if given_[want.name] < want.wanted:
            fits = cpus + want.cpus <= MACHINE.cpus + 1e-9 and memory + want.memory_bytes <= MACHINE.memory_bytes
            assert not fits, "room was left that it wanted"


@given(wants_drawn)
def test_the_order_of_the_question_is_no_matter(wants: list[Want]) -> None:
    assert divide(MACHINE, wants) == divide(MACHINE, list(reversed(wants)))
