"""A step upon a container image is named by all that it comes from, and carried out by a shell of the image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from steelyard.lifecycle import container_step
from steelyard.lifecycle.container_step import check_container_step, make_command, make_image_step, name_step
from steelyard.model.built_image import (
    AptInstall,
    Copy,
    DebianBase,
    PipInstall,
    Run,
    SetCommand,
    SetEnv,
    SetUser,
    Step,
    UvSync,
)
from steelyard.model.job import ImageStep

BELOW = "a" * 64


def test_what_means_the_same_has_one_name_and_anything_else_another() -> None:
    one = name_step(1000, BELOW, AptInstall(("git", "curl")))
    assert one == name_step(1000, BELOW, AptInstall(("curl", "git", "git")))
    others = {
        name_step(1001, BELOW, AptInstall(("git", "curl"))),
        name_step(1000, "b" * 64, AptInstall(("git", "curl"))),
        name_step(1000, BELOW, AptInstall(("git",))),
        name_step(1000, BELOW, Run("apt-get install git curl")),
    }
    assert len({one, *others}) == 5


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (AptInstall(("git;rm -rf /",)), "no package of Debian"),
        (AptInstall(("-o", "x")), "no package of Debian"),
        (AptInstall(()), "names no package"),
        (UvSync("a" * 64), "makes an environment"),
        (Copy("a" * 64, "../x"), "leads out"),
        (Run(" "), "needs a command"),
        (SetEnv({"A B": "x"}), "can't be a variable"),
        (SetUser("www data"), "is no user"),
        (SetUser("a:b:c"), "is no user"),
        (SetUser(""), "is no user"),
        (SetCommand(()), "needs a program"),
        (SetCommand(("", "x")), "needs a program"),
        (SetCommand(("a\0b",)), "needs a program"),
    ],
)
def test_what_no_step_can_be_is_said(step: Step, words: str) -> None:
    assert any(words in wrong for wrong in check_container_step(step, BELOW))


def test_a_debian_has_nothing_below_it_and_everything_else_has() -> None:
    honest = DebianBase("bookworm", ("http://deb.debian.org/debian", "deb [trusted=yes] http://127.0.0.1:8000 tiny main"))
    assert not [*check_container_step(honest, "")]
    assert [*check_container_step(honest, BELOW)] and [*check_container_step(Run("true"), "")]


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (DebianBase("bookworm; rm -rf /"), "no release"),
        (DebianBase("--help"), "no release"),
        (DebianBase("bookworm", ("deb.debian.org",)), "no mirror"),
        (DebianBase("bookworm", ("deb http://a b main\ndeb http://c d main",)), "no mirror"),
    ],
)
def test_what_no_debian_can_be_is_said(base: DebianBase, words: str) -> None:
    assert any(words in wrong for wrong in check_container_step(base, ""))


def test_honest_steps_are_taken() -> None:
    steps: list[Step] = [
        AptInstall(("git", "libc6:arm64", "g++-12", "curl=7.88.1-10+deb12u5", "nginx/bookworm")),
        Copy("a" * 64, "/srv/data"),
        PipInstall(("numpy",)),
        Run("true"),
        SetEnv({"A": "b"}),
        SetUser("www-data"),
        SetUser("1000:users"),
        SetCommand(("python3", "/srv/main.py", "--name=a b")),
    ]
    assert not [wrong for step in steps for wrong in check_container_step(step, BELOW)]


@pytest.mark.parametrize(
    ("command", "code", "marked"), [("true", 0, True), ("false; true", 1, False), ("exit 0", 0, True), ("exit 7", 7, False)]
)
def test_a_command_notes_its_good_end_and_fails_as_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, marked: bool
) -> None:
    monkeypatch.setattr(container_step, "DONE", str(tmp_path))
    assert subprocess.run(make_command(Run(command)), check=False).returncode == code
    assert (tmp_path / container_step.MARK).exists() == marked


def test_words_of_the_user_are_words_to_the_shell() -> None:
    script = make_command(PipInstall(("a; b", "$(c)"), index_url="http://x/?a&b"))[-1]
    assert "'a; b'" in script and "'$(c)'" in script and "'http://x/?a&b'" in script
    assert "'/srv/my data'" in make_command(Copy("a" * 64, "srv/my data"))[-1]


def test_what_an_image_says_stays_and_runs_nothing() -> None:
    said: dict[Step, ImageStep] = {}
    for step in (SetUser("web"), SetCommand(("serve", "a b")), Run("A=b")):
        said[step] = make_image_step("c" * 64, BELOW, step)
    bare = ImageStep("c" * 64, BELOW)
    assert list(said.values()) == [
        ImageStep("c" * 64, BELOW, user="web"), ImageStep("c" * 64, BELOW, command=("serve", "a b")), bare
    ]  # fmt: skip
    assert make_image_step("c" * 64, BELOW, SetEnv({"A": "b"})).env == {"A": "b"}
    assert make_image_step("c" * 64, BELOW, Copy("d" * 64, "/x")).files == "d" * 64
    for step in (SetEnv({"A": "b"}), SetUser("web"), SetCommand(("x",))):
        assert make_command(step)[-1] == ":"
