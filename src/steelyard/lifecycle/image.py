"""How is an image named, what is wrong with one, and what becomes of it? Pure.

The name of a step is the sha256 of its canonical form and of the name of what is below it, so that images which begin alike share
their beginning, and a change of one step changes it and all above. The version that was asked for counts, not the one found: a
patch release of the interpreter leaves an environment as it is.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

import msgspec

from steelyard.model.built_image import (
    AptInstall,
    Base,
    Copy,
    DebianBase,
    Image,
    ImageSeen,
    ImageSpec,
    ImageState,
    PipInstall,
    Run,
    SetCommand,
    SetEnv,
    SetUser,
    Step,
    UvSync,
)
from steelyard.model.ids import ImageId
from steelyard.model.job import Job, JobState

#: goes up when the same steps would make something else
_FORMAT = 1
#: Python that the runner, and uv, work with
PYTHON_MIN = (3, 8)
#: what replicas of functions need
FUNCTION_PYTHON_MIN = (3, 10)
STEPS_MAX = 100
#: the row is read at every look; files travel as bundles
SPEC_BYTES_MAX = 64 << 10
#: below this an abbreviation could mean many
PREFIX_MIN = 6
#: `used_at` need not be written more often
USED_STEP_US = 3600 * 1_000_000
#: what was just built is about to be used
NEW_US = 60 * 1_000_000
LATE_US = 60 * 1_000_000

_VERSION = re.compile(r"3\.\d{1,2}(\.\d{1,3})?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{1,63}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: with a version or a release behind it
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~-]+)?", re.ASCII)
#: one name or number, or two
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)


@lru_cache(maxsize=512)
def _layers(encoded: bytes) -> tuple[ImageId, ...]:
    spec = msgspec.json.decode(encoded, type=ImageSpec)
    names: list[ImageId] = []
    below = f"steelyard image {_FORMAT}"
    for part in (spec.base, *spec.steps):
        below = hashlib.sha256(below.encode() + b"\n" + canonical(part)).hexdigest()
        names.append(ImageId(below))
    return tuple(names)


def name_layers(spec: ImageSpec) -> tuple[ImageId, ...]:
    """Of the base and after each step; the last one names the image."""
    return _layers(msgspec.json.encode(spec))


def canonical(part: Base | DebianBase | Step) -> bytes:
    """The same bytes for what means the same: packages and variables in any order, each once."""
    if isinstance(part, PipInstall | AptInstall):
        part = msgspec.structs.replace(part, packages=tuple(sorted({" ".join(each.split()) for each in part.packages})))
    elif isinstance(part, UvSync):
        part = msgspec.structs.replace(part, extras=tuple(sorted(set(part.extras))), groups=tuple(sorted(set(part.groups))))
    elif isinstance(part, Copy):
        part = msgspec.structs.replace(part, to=part.to.strip("/"))
    return msgspec.json.encode(part, order="deterministic")


def describe_part(part: Base | DebianBase | Step) -> str:
    """For people, on one line."""
    match part:
        case PipInstall():
            words = [*part.packages, *(["-r requirements.txt"] if part.files else [])]
            return f"pip_install {' '.join(words)}"
        case DebianBase():
            return f"debian {part.suite}"
        case AptInstall():
            return f"apt_install {' '.join(part.packages)}"
        case UvSync():
            options = [*(f"--extra {each}" for each in part.extras), *(f"--group {each}" for each in part.groups)]
            return " ".join(["uv_sync", *options])
        case SetEnv():
            return f"env {' '.join(sorted(part.env))}"
        case SetUser():
            return f"user {part.user}"
        case SetCommand():
            return f"command {shlex.join(part.argv)}"
        case Copy():
            return f"copy to {part.to or '.'}"
        case Run():
            return f"run {' '.join(part.command.split())}"
        case _:
            return f"python {part.version}"


def python_of(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def check_spec(spec: ImageSpec) -> list[str]:
    """What is wrong with it, a sentence each."""
    found: list[str] = []
    version = spec.base.version
    if not _VERSION.fullmatch(version) or python_of(version) < PYTHON_MIN:
        least = ".".join(map(str, PYTHON_MIN))
        found.append(f"{version[:20]!r} is no version of Python: write for example 3.11, at least {least}")
    if len(spec.steps) > STEPS_MAX:
        found.append(f"an image has at most {STEPS_MAX} steps")
    if len(msgspec.json.encode(spec)) > SPEC_BYTES_MAX:
        found.append(f"the steps are longer than {SPEC_BYTES_MAX >> 10} KiB: put packages into a requirements file")
    for number, step in enumerate(spec.steps, 1):
        found += [f"step {number}: {wrong}" for wrong in check_step(step)]
    return found


def check_step(step: Step, *, contained: bool = False) -> Iterable[str]:
    """`contained`: upon an image of a container."""
    files = getattr(step, "files", "")
    if files and not _SHA256.fullmatch(files):
        yield "files are named by the sha256 of their bundle"
    match step:
        case PipInstall():
            if not step.packages and not step.files:
                yield "pip_install names no package"
            for each in step.packages:
                if not each.strip() or each.strip()[0] in "-./" or not each.isprintable():
                    yield f"{each[:80]!r} is no package: write for example 'numpy>=2'; a file of your own is brought by copy"
            for address in (step.index_url, *step.extra_index_urls, step.find_links):
                if not address.isprintable() or address.startswith("-"):
                    yield f"{address[:80]!r} is no address"
        case AptInstall():
            if not contained:
                yield "apt_install is for images of containers: begin with Image.from_registry(...)"
            for each in step.packages:
                if not _PACKAGE.fullmatch(each):
                    yield f"{each[:80]!r} is no package of Debian's"
            if not step.packages:
                yield "apt_install names no package"
        case UvSync():
            if not step.files:
                yield "uv_sync needs a bundle with uv.lock and pyproject.toml"
            for word in (*step.extras, *step.groups):
                if not _WORD.fullmatch(word):
                    yield f"{word[:80]!r} is no extra or group"
        case SetEnv():
            for name, value in step.env.items():
                if not _VARIABLE.fullmatch(name) or "\0" in value:
                    yield f"{name[:80]!r} can't be a variable"
        case SetUser():
            if not contained:
                yield "user is for images of containers: work in an environment runs as whoever submits it"
            if not _USER.fullmatch(step.user):
                yield f"{step.user[:80]!r} is no user: write user or user:group, names or numbers"
        case SetCommand():
            if not contained:
                yield "command is for images of containers: say what to run in an environment where it is run"
            if not step.argv or not step.argv[0] or any("\0" in word for word in step.argv):
                yield "command needs a program"
        case Copy():
            if not step.files:
                yield "copy needs a bundle"
            if wrong := check_inside(step.to.lstrip("/") if contained else step.to):
                yield wrong
        case Run():
            if not step.command.strip() or "\0" in step.command:
                yield "run needs a command"


def check_inside(path: str) -> str | None:
    """What is wrong with a place inside an image."""
    if path.startswith("/"):
        return f"{path[:80]!r} is absolute: write a path in the image's own folder, which its processes find in STEELYARD_IMAGE"
    if ".." in path.split("/") or "\0" in path or len(path) > 1024:
        return f"{path[:80]!r} leads out of the image"
    return None


def find_image(images: Iterable[Image], uid: int, text: str) -> Image | None:
    """By name, id, or the beginning of an id that only one has."""
    own = [image for image in images if image.owner.uid == uid]
    for image in own:
        if text in (image.name, image.id):
            return image
    if len(text) < PREFIX_MIN or not _PREFIX.fullmatch(text):
        return None
    fit = [image for image in own if image.id.startswith(text)]
    return fit[0] if len(fit) == 1 else None


def judge(image: Image, job: Job | None, seen: ImageSeen | None, now: int) -> Image:
    """What it is now, by what its job and its machine say. `job` None: it is not known any more. Given back as it was where
    nothing has changed; else of the next generation."""
    if seen is not None:
        after = msgspec.structs.replace(
            image,
            state=ImageState.READY,
            detail="",
            python=seen.python,
            size_bytes=seen.size_bytes,
            added_bytes=seen.added_bytes,
            built_at=seen.built_at,
        )
    elif image.state is ImageState.READY:
        detail = "Its machine does not have it any more, or not the interpreter that it was made with. Build it again."
        after = msgspec.structs.replace(image, state=ImageState.MISSING, detail=detail)
    elif image.state is ImageState.BUILDING and (why := _explain_end(job, now)):
        detail = f"Its build {image.job} came to nothing: {why} `steelyard logs {image.job}` has more."
        after = msgspec.structs.replace(image, state=ImageState.FAILED, detail=detail)
    else:
        return image
    return image if after == image else msgspec.structs.replace(after, generation=image.generation + 1)


def _explain_end(job: Job | None, now: int) -> str:
    """Why a build that is not there is not going to be; "" while it may be."""
    if job is None:
        return "the job is not known any more."
    if job.state is JobState.SUCCEEDED:
        # its machine tells of it in a report that may come after that of the job's end
        late = now - (job.ended_at or now) > LATE_US
        return "it ended well, but its machine does not have the image." if late else ""
    if not job.state.terminal:
        return ""
    return job.detail or ("it was stopped." if job.state is JobState.STOPPED else f"it ended with exit code {job.exit_code}.")


def choose_evictions(
    images: Sequence[Image],
    seen: Collection[ImageSeen],
    pinned: Collection[tuple[int, ImageId]],
    budget_bytes: int,
    now: int,
) -> list[Image]:
    """The least recently used that must go, so that what lies on the disk fits. What is built, new or pinned stays; a step that
    several images share goes with the last of them. 1. least recently used 2. the oldest."""
    own = {(each.uid, each.id): each.added_bytes for each in seen}
    layers: Mapping[int, tuple[tuple[int, ImageId], ...]] = {
        at: tuple((image.owner.uid, name) for name in name_layers(image.spec)) for at, image in enumerate(images)
    }
    kept = dict(layers)
    chosen: list[Image] = []
    for at in sorted(layers, key=lambda at: (images[at].used_at, images[at].created_at, at)):
        if sum(own.get(name, 0) for name in {name for names in kept.values() for name in names}) <= budget_bytes:
            break
        image = images[at]
        new = now - max(image.used_at, image.built_at or 0) < NEW_US
        if image.state is not ImageState.BUILDING and not new and (image.owner.uid, image.id) not in pinned:
            del kept[at]
            chosen.append(image)
    return chosen


def image_environment(folder: str, env: Mapping[str, str], path: str, own: Mapping[str, str]) -> dict[str, str]:
    """Variables of a process in an image: the image's, over them the workload's `own`. `path`: where programs are looked for
    besides."""
    programs = f"{folder}/venv/bin"
    path = own.get("PATH", path)
    return {
        **env,
        **own,
        "PATH": path if path.startswith(f"{programs}:") else f"{programs}:{path}",
        "VIRTUAL_ENV": f"{folder}/venv",
        "STEELYARD_IMAGE": f"{folder}/files",
    }
