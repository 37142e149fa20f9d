"""A proof says MATCH only for what was read back and fits."""

from __future__ import annotations

import pytest

from steelyard.lifecycle.proof import check_proof, explain_tier, judge_tier, merge_proofs
from steelyard.model.proof import ProofState

ASKED: dict[str, object] = {"cpus": [2, 3], "memory_bytes": 1 << 30, "share": 0.5, "uid": 64000, "no_new_privs": True}


@pytest.mark.parametrize(
    ("got", "before", "state", "keys"),
    [
        ({}, False, ProofState.MATCH, []),
        ({"cpus": (3, 2)}, False, ProofState.MATCH, []),
        ({"share": 512 / 1024 + 0.0005}, False, ProofState.MATCH, []),
        ({"memory_bytes": (1 << 30) - 4096}, False, ProofState.MATCH, []),
        ({"cgroup": "/extra"}, False, ProofState.MATCH, []),
        ({"cpus": [0, 1, 2, 3]}, True, ProofState.DRIFTED, ["cpus"]),
        ({"cpus": [0, 1, 2, 3]}, False, ProofState.PARTIAL, ["cpus"]),
        ({"memory_bytes": None}, True, ProofState.PARTIAL, ["memory_bytes"]),
        ({"memory_bytes": None, "uid": 0}, True, ProofState.DRIFTED, ["uid", "memory_bytes"]),
        ({"no_new_privs": False}, True, ProofState.DRIFTED, ["no_new_privs"]),
        ({"no_new_privs": 1}, False, ProofState.PARTIAL, ["no_new_privs"]),
        ({"memory_bytes": 1 << 29}, True, ProofState.DRIFTED, ["memory_bytes"]),
        ({"share": 0.25}, True, ProofState.DRIFTED, ["share"]),
        (dict.fromkeys(ASKED), True, ProofState.UNKNOWN, list(ASKED)),
    ],
)
def test_asked_beside_got(got: dict[str, object], before: bool, state: ProofState, keys: list[str]) -> None:
    proof = check_proof(ASKED, {**ASKED, **got}, before, checked_at=5)
    assert proof.state is state
    assert [text.partition(":")[0] for text in proof.differences] == keys
    assert proof.checked_at == 5


def test_what_was_not_asked_is_not_compared() -> None:
    assert check_proof({"cpus": None, "uid": 1}, {"cpus": [0], "uid": 1}, False).state is ProofState.MATCH


def test_a_missing_key_is_not_a_match() -> None:
    proof = check_proof({"cpus": [0], "uid": 1}, {"uid": 1}, False)
    assert proof.state is ProofState.PARTIAL
    assert "could not be read" in proof.differences[0]


def test_a_gangs_proof_says_once_what_is_the_same_of_all_ranks_and_is_as_bad_as_its_worst():
    good = check_proof({"uid": 5, "cpus": [0]}, {"uid": 5, "cpus": [0], "threads": 1}, False, 7, (), ("note",))
    bad = check_proof({"uid": 5, "cpus": [1]}, {"uid": 5, "cpus": [0, 1], "threads": 1}, False, 9, (), ("note",))
    merged = merge_proofs({1: bad, 0: good})
    assert merged.asked == {"uid": 5, "cpus[0]": [0], "cpus[1]": [1], "threads": None}
    assert merged.got == {"uid": 5, "cpus[0]": [0], "cpus[1]": [0, 1], "threads": 1}
    assert (merged.state, merged.checked_at, merged.notes) == (ProofState.PARTIAL, 9, ("note",))
    assert merged.differences == ("rank 1: cpus: asked 1, got 0,1",)
    assert merge_proofs({0: good}) == good


BEHIND_WALLS: dict[str, object] = {
    "uid": 64000, "no_new_privs": True, "seccomp": "filter", "capabilities": "none",
    "namespaces": ["cgroup", "ipc", "mnt", "pid", "user", "uts"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("got", "tier"),
    [
        ({}, "T1"),
        ({"namespaces": ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]}, "T1"),
        ({"namespaces": ["ipc", "mnt", "pid", "user", "uts"]}, "T0"),
        # two processes of it differ
        ({"namespaces": ["", "cgroup ipc mnt pid user uts"]}, "T0"),
        ({"seccomp": "none"}, "T0"),
        ({"capabilities": "200000"}, "T0"),
        ({"capabilities": ["200000", "none"]}, "T0"),
        ({"namespaces": None, "seccomp": None, "capabilities": None}, "T0"),
        ({"no_new_privs": False}, "none"),
        ({"uid": 0}, "none"),
        ({"uid": [0, 64000]}, "none"),
        ({"uid": [64000, 64001]}, "T1"),
        ({"uid": None}, None),
        ({"no_new_privs": None}, None),
    ],
)
def test_the_tier_is_what_the_kernel_shows_and_not_what_was_asked_for(got: dict[str, object], tier: str | None) -> None:
    assert judge_tier(BEHIND_WALLS | got) == tier


def test_less_than_the_claimed_tier_is_said_with_what_was_seen() -> None:
    def explain(asked: str | None, got: dict[str, object]) -> str:
        seen = BEHIND_WALLS | got
        return explain_tier(check_proof({"tier": asked}, seen | {"tier": judge_tier(seen)}, False))

    assert explain("T1", {}) == "" and explain("T0", {"seccomp": "none"}) == "" and explain(None, {"uid": 0}) == ""
    assert "tier T1 is claimed, and the kernel shows T0" in explain("T1", {"seccomp": "none"})
    assert "seccomp none" in explain("T1", {"seccomp": "none"})
    assert "none that could be read" in explain("T0", {"uid": None})
