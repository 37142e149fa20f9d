"""Who a certificate speaks for, and when the next one is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.certificate import Certificate, Identity, Role, parse_identity


@given(st.sampled_from(Role), st.text("abz09.-", min_size=1))
def test_an_identity_is_read_back_from_its_address(role: Role, name: str) -> None:
    identity = Identity(role, name)
    assert parse_identity(["https://example.org/", identity.address]) == identity


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["steelyard://king/n1"],
        ["steelyard://agent/"],
        ["steelyard:agent/n1"],
        ["steelyard://agent/n1", "steelyard://gateway/x"],
    ],
)
def test_what_does_not_name_just_one_role_and_name_speaks_for_nobody(addresses: list[str]) -> None:
    assert parse_identity(addresses) is None


def test_the_next_one_is_due_after_two_thirds_of_its_life_or_when_the_clock_went_back() -> None:
    certificate = Certificate(Identity(Role.AGENT, "n1"), b"", b"", 1_000, 4_000)
    assert [certificate.due(now) for now in (999, 1_000, 2_999, 3_000, 5_000)] == [True, False, False, True, True]
