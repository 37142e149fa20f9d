"""What uv says becomes a reason and what to do; what is not known is left to the quote."""

from __future__ import annotations

import pytest

from steelyard.lifecycle.build_failure import explain_inside, explain_step


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("error: failed to write: No space left on device (os error 28)", "the disk is full"),
        ("  cause: dns error: failed to lookup address information", "the package index could not be reached"),
        ("  cause: Failed to download `https://x/python-build-standalone/3.9`\n  cause: dns error", "no such Python"),
        ("error: No interpreter found for Python 3.7 in managed installations or search path", "no such Python"),
        ("error: The lockfile at `uv.lock` needs to be updated, but `--locked` was provided.", "uv.lock does not fit"),
        ("  cause: Because nope was not found in the package registry and you require nope, we can", "there is no such package"),
        ("error: Because there is no version of six==99 and you require six==99", "there is no such package"),
        ("error: Hash mismatch for `six==1.0`", "not the one whose hash"),
        (
            "error: Failed to build `broken==1.0`\n  cause: The build backend returned an error",
            "could not be built from its source",
        ),
    ],
)
def test_a_known_failure_has_a_reason_and_advice(said: str, reason: str) -> None:
    told = explain_step("Step 1 of 2, pip_install x", 2, said.splitlines())
    assert told.startswith("Step 1 of 2, pip_install x: ") and reason in told and told.endswith(".")


def test_an_unknown_failure_is_not_guessed_at() -> None:
    assert explain_step("Step 2 of 2, run false", 1, ["something odd"]) == "Step 2 of 2, run false: exit code 1."


def test_a_step_that_was_killed_may_have_met_the_limit() -> None:
    assert "memory limit" in explain_step("Step 1", -9, [])
    assert "signal 15" in explain_step("Step 1", -15, [])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("E: Unable to locate package nope", "there is no such package"),
        ("/bin/sh: 2: python3: not found", "no python3 with pip"),
        ("/usr/bin/python3: No module named pip", "no python3 with pip"),
        ("sh: 1: apt-get: not found", "the image has no apt"),
        ("E: The repository 'http://deb.debian.org/debian nope Release' does not have a Release file.", "no such release"),
        ("E: Failed to fetch http://x/dists/nope/main/binary-amd64/Packages  404  Not Found", "no such release"),
        ("  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)", "could not be reached"),
        ("  Temporary failure resolving 'deb.debian.org'", "could not be reached"),
        ("E: The repository 'http://x bookworm InRelease' is not signed.", "signature can't be checked"),
        ("ERROR: No matching distribution found for nope==9", "there is no such package"),
        ("mount: /mnt: permission denied.", "more than root of a container may"),
        ("mknod: /dev/x: Operation not permitted", "more than root of a container may"),
        ("cp: write error: No space left on device", "the disk is full"),
    ],
)
def test_a_failure_inside_of_a_container_has_a_reason_and_advice(said: str, reason: str) -> None:
    told = explain_inside(["before", said, "after"])
    assert reason in told and told.endswith(".")


def test_an_unknown_failure_inside_is_not_guessed_at() -> None:
    assert explain_inside(["something odd"]) == ""
