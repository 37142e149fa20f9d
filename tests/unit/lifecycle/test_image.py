"""Images are named by their content, checked in words, and judged by what their jobs and machines say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.lifecycle.image import (
    LATE_US,
    NEW_US,
    canonical,
    check_spec,
    choose_evictions,
    describe_part,
    find_image,
    image_environment,
    judge,
    name_layers,
)
from steelyard.model.built_image import (
    Copy,
    Image,
    ImageSeen,
    ImageSpec,
    ImageState,
    PipInstall,
    PythonBase,
    Run,
    SetEnv,
    Step,
    UvSync,
)
from steelyard.model.ids import DEFAULT_PROJECT, ImageId, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner

OWNER = Owner("ann", 1000)
BASE = PythonBase("3.11")
EMPTY = ImageSpec(BASE)
SHA = "ab" * 32

names = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(PipInstall, packages=st.lists(names, min_size=1, max_size=4).map(tuple)),
    st.builds(SetEnv, env=st.dictionaries(st.from_regex(r"[A-Z]{1,4}", fullmatch=True), names, min_size=1, max_size=4)),
    st.builds(Run, command=names),
    st.builds(Copy, files=st.just(SHA), to=names),
    st.builds(UvSync, files=st.just(SHA), groups=st.lists(names, max_size=3).map(tuple)),
)
specs = st.builds(ImageSpec, base=st.just(BASE), steps=st.lists(steps, max_size=5).map(tuple))


def make_image(spec: ImageSpec = EMPTY, **more: Any) -> Image:
    return replace(Image(name_layers(spec)[-1], DEFAULT_PROJECT, OWNER, 1, spec, JobId("j-000001"), 1, 1), **more)


def make_job(state: JobState, ended_at: int | None = None, detail: str = "") -> Job:
    spec = JobSpec("image", ("x",), "/")
    return Job(JobId("j-000001"), DEFAULT_PROJECT, OWNER, 1, 1, spec, state, 0, detail=detail, ended_at=ended_at, exit_code=1)


def seen(image: Image, added_bytes: int = 10) -> ImageSeen:
    return ImageSeen(image.id, image.owner.uid, "3.11.2", 100, added_bytes, 7)


@given(specs, steps)
def test_images_that_begin_alike_share_their_beginning(spec: ImageSpec, more: Step) -> None:
    longer = replace(spec, steps=(*spec.steps, more))
    assert name_layers(longer)[:-1] == name_layers(spec)
    assert len(set(name_layers(longer))) == len(longer.steps) + 1


@given(specs, st.randoms())
def test_the_order_of_packages_and_variables_does_not_matter(spec: ImageSpec, random: Any) -> None:
    def shuffle(step: Step) -> Step:
        if isinstance(step, PipInstall):
            return replace(step, packages=tuple(random.sample(step.packages * 2, len(step.packages) * 2)))
        if isinstance(step, SetEnv):
            return SetEnv(dict(random.sample(sorted(step.env.items()), len(step.env))))
        return step

    shuffled = replace(spec, steps=tuple(shuffle(step) for step in spec.steps))
    assert name_layers(shuffled) == name_layers(spec)


@given(steps, steps)
def test_different_steps_have_different_names(one: Step, other: Step) -> None:
    alike = canonical(one) == canonical(other)
    assert (name_layers(ImageSpec(BASE, (one,))) == name_layers(ImageSpec(BASE, (other,)))) is alike


@given(specs)
def test_names_survive_the_store(spec: ImageSpec) -> None:
    assert name_layers(msgspec.json.decode(msgspec.json.encode(spec), type=ImageSpec)) == name_layers(spec)
    assert check_spec(spec) == []


def test_the_order_of_steps_and_the_python_matter() -> None:
    a, b = PipInstall(("a",)), Run("true")
    assert name_layers(ImageSpec(BASE, (a, b)))[-1] != name_layers(ImageSpec(BASE, (b, a)))[-1]
    assert name_layers(ImageSpec(BASE)) != name_layers(ImageSpec(PythonBase("3.12")))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ImageSpec(PythonBase("3")), "no version of Python"),
        (ImageSpec(PythonBase("2.7")), "no version of Python"),
        (ImageSpec(PythonBase("/bin/sh")), "no version of Python"),
        (ImageSpec(BASE, (PipInstall(),)), "step 1: pip_install names no package"),
        (ImageSpec(BASE, (Run("true"), PipInstall(("--index-url=http://x",)))), "step 2: '--index-url=http://x' is no package"),
        (ImageSpec(BASE, (PipInstall(("./own",)),)), "brought by copy"),
        (ImageSpec(BASE, (PipInstall(("a\nb",)),)), "is no package"),
        (ImageSpec(BASE, (PipInstall(("a",), find_links="-x"),)), "is no address"),
        (ImageSpec(BASE, (Copy("nonsense"),)), "named by the sha256"),
        (ImageSpec(BASE, (Copy(SHA, "/etc"),)), "is absolute"),
        (ImageSpec(BASE, (Copy(SHA, "a/../.."),)), "leads out of the image"),
        (ImageSpec(BASE, (SetEnv({"A B": "x"}),)), "can't be a variable"),
        (ImageSpec(BASE, (Run(" "),)), "run needs a command"),
        (ImageSpec(BASE, (UvSync(SHA, groups=("--all-groups",)),)), "no extra or group"),
        (ImageSpec(BASE, (Run("x"),) * 101), "at most 100 steps"),
        (ImageSpec(BASE, (Run("x" * 70_000),)), "longer than 64 KiB"),
    ],
)
def test_what_is_wrong_with_a_step_is_said(spec: ImageSpec, text: str) -> None:
    assert any(text in found for found in check_spec(spec)), check_spec(spec)


def test_an_image_is_found_by_name_id_and_a_beginning_that_is_its_own() -> None:
    one = make_image(name="train")
    other = replace(make_image(), id=ImageId(one.id[:8] + "0" * 56))
    strangers = replace(one, owner=Owner("bob", 1001), name="theirs")
    images = [one, other, strangers]
    assert find_image(images, OWNER.uid, "train") is one
    assert find_image(images, OWNER.uid, one.id) is one
    assert find_image(images, OWNER.uid, one.id[:20]) is one
    assert find_image(images, OWNER.uid, one.id[:8]) is None  # two begin so
    assert find_image([one], OWNER.uid, one.id[:5]) is None
    assert find_image(images, OWNER.uid, "theirs") is None


def test_an_image_is_ready_once_its_machine_has_it() -> None:
    image = make_image()
    assert judge(image, make_job(JobState.RUNNING), None, 5) is image
    ready = judge(image, make_job(JobState.RUNNING), seen(image), 5)
    assert (ready.state, ready.python, ready.size_bytes, ready.generation) == (ImageState.READY, "3.11.2", 100, 2)
    assert judge(ready, None, seen(image), 6) is ready


def test_a_build_that_failed_says_where_to_look() -> None:
    failed = judge(make_image(), make_job(JobState.FAILED, detail="Out of memory."), None, 5)
    assert failed.state is ImageState.FAILED
    assert "Out of memory." in failed.detail and "steelyard logs j-000001" in failed.detail
    assert judge(make_image(), None, None, 5).state is ImageState.FAILED


def test_a_build_that_ended_well_is_waited_for_until_its_machine_tells() -> None:
    image, job = make_image(), make_job(JobState.SUCCEEDED, ended_at=100)
    assert judge(image, job, None, 100 + LATE_US) is image
    assert judge(image, job, None, 101 + LATE_US).state is ImageState.FAILED


def test_an_image_that_vanished_is_missing_and_may_come_back() -> None:
    ready = judge(make_image(), None, seen(make_image()), 5)
    missing = judge(ready, make_job(JobState.SUCCEEDED, ended_at=1), None, 6)
    assert missing.state is ImageState.MISSING and "Build it again" in missing.detail
    assert judge(missing, None, seen(ready), 7).state is ImageState.READY


def test_the_least_recently_used_makes_room() -> None:
    shared = ImageSpec(BASE, (PipInstall(("a",)),))
    old, new = (make_image(replace(shared, steps=(*shared.steps, Run(name))), used_at=at) for name, at in (("o", 1), ("n", 2)))
    there = [
        ImageSeen(name, OWNER.uid, "3.11", 0, size, 0)
        for name, size in zip(name_layers(old.spec), (5, 50, 20), strict=True)
    ] + [ImageSeen(new.id, OWNER.uid, "3.11", 0, 20, 0)]  # fmt: skip
    images = [replace(each, state=ImageState.READY) for each in (new, old)]
    assert choose_evictions(images, there, (), 95, NEW_US + 9) == []
    assert choose_evictions(images, there, (), 94, NEW_US + 9) == [images[1]]
    assert choose_evictions(images, there, {(OWNER.uid, old.id)}, 94, NEW_US + 9) == [images[0]]
    assert choose_evictions(images, there, {(OWNER.uid, old.id), (OWNER.uid, new.id)}, 1, NEW_US + 9) == []
    assert choose_evictions([replace(each, state=ImageState.BUILDING) for each in images], there, (), 1, NEW_US + 9) == []
    assert choose_evictions(images, there, (), 1, NEW_US) == []  # what was just built is about to be used


def test_variables_of_the_workload_win_and_its_programs_come_first_once() -> None:
    env = image_environment("/i", {"A": "image", "B": "image"}, "/bin", {"A": "own"})
    assert env["A"] == "own" and env["B"] == "image" and env["PATH"] == "/i/venv/bin:/bin"
    assert env["STEELYARD_IMAGE"] == "/i/files"
    assert image_environment("/i", {}, "/bin", env)["PATH"] == env["PATH"]


def test_steps_are_told_on_one_line() -> None:
    assert describe_part(PipInstall(("a", "b>=2"), files=SHA)) == "pip_install a b>=2 -r requirements.txt"
    assert describe_part(Run("one\n two")) == "run one two"
    assert describe_part(SetEnv({"TOKEN": "hidden"})) == "env TOKEN"
    assert describe_part(BASE) == "python 3.11"
