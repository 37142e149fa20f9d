"""What is a step upon a container image, and how is it carried out? Pure.

A step is a command in a container of the image below it, as root of that container; the files that it leaves become an image
of its own. The first one may have nothing below: it makes a Debian (`debian.py`). Its name is the sha256 of its owner, of what is
below and of its canonical form, so that images which begin alike share their beginning.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable

import msgspec

from steelyard.lifecycle.debian import check_debian, make_script
from steelyard.lifecycle.image import canonical, check_step
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

#: goes up when the same step would make something else
_FORMAT = 1
#: inside: what a step brings along, and where it notes that it ended well
FILES, DONE = "/run/steelyard/files", "/run/steelyard/done"
MARK = "ok"
#: what a step may do inside of its container, beyond what any process may; Docker's builds may the same, and make devices
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip


def name_step(uid: int, below: str, step: Step | DebianBase) -> str:
    """Hex. `below`: the digest of the image that it begins with; "" where it begins with none."""
    text = f"steelyard container step {_FORMAT}\n{uid}\n{below}\n".encode()
    return hashlib.sha256(text + canonical(step)).hexdigest()


def check_container_step(step: Step | DebianBase, below: str) -> Iterable[str]:
    """What is wrong with it, a sentence each."""
    if isinstance(step, DebianBase) != (not below):
        yield "the first step upon nothing is a debian, and every other one has an image below"
    if isinstance(step, DebianBase):
        yield from check_debian(step)
        return
    if isinstance(step, UvSync):
        yield "uv_sync makes an environment: begin with Image.python(...), or install with pip_install(...)"
        return
    yield from check_step(step, contained=True)


def make_command(step: Step | DebianBase) -> tuple[str, ...]:
    """What runs: a shell of the image (or, where there is none, of the machine), which notes at the end that all went well."""
    return ("/bin/sh", "-c", f'/bin/sh -ec "$0" && : > {DONE}/{MARK}', _script(step))


def make_image_step(id_: str, below: str, step: Step | DebianBase) -> ImageStep:
    """What the image says where that below says otherwise."""
    made = ImageStep(id_, below, files=getattr(step, "files", ""))
    match step:
        case SetEnv():
            return msgspec.structs.replace(made, env=dict(step.env))
        case SetUser():
            return msgspec.structs.replace(made, user=step.user)
        case SetCommand():
            return msgspec.structs.replace(made, command=step.argv)
        case _:
            return made


def _script(step: Step | DebianBase) -> str:
    match step:
        case DebianBase():
            return make_script(step)
        case Run():
            return step.command
        case AptInstall():
            names = " ".join(map(shlex.quote, sorted(set(step.packages))))
            return (
                "export DEBIAN_FRONTEND=noninteractive\napt-get update\n"
                f"apt-get install -y --no-install-recommends {names}\napt-get clean\nrm -rf /var/lib/apt/lists/*"
            )
        case PipInstall():
            options = [
                *(["--pre"] if step.pre else []),
                *(["--index-url", step.index_url] if step.index_url else []),
                *(word for url in step.extra_index_urls for word in ("--extra-index-url", url)),
                *(["--find-links", step.find_links] if step.find_links else []),
                *step.packages,
                *(["-r", f"{FILES}/requirements.txt"] if step.files else []),
            ]
            return (
                "export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1\n"
                f"python3 -B -m pip install --no-cache-dir {' '.join(map(shlex.quote, options))}"
            )
        case Copy():
            place = shlex.quote(f"/{step.to.strip('/')}")
            return f"mkdir -p {place}\ncp -R {FILES}/. {place}"
        case _:
            return ":"
