"""How does an image that a file or a command line describes become one that is there? Its files are captured and sent, the server
is asked for it, and what its build says is shown until it has ended.

Asking for an image that is there costs one request.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from steelyard.cli.app_deploy import find_login, send_bundle
from steelyard.cli.app_file import AppFile
from steelyard.cli.attend import START, cursor_after
from steelyard.cli.bundle import Bundle, capture_files, capture_folder
from steelyard.cli.container_image import fetch_ahead, login_among, pull_image
from steelyard.cli.follow import Lines
from steelyard.cli.job_logs import poll_job
from steelyard.cli.job_options import name_image
from steelyard.cli.output import Progress
from steelyard.cli.patience import Patience
from steelyard.cli.session import new_key, quote
from steelyard.clock import SystemClock
from steelyard.errors import Refused
from steelyard.lifecycle.build_failure import explain_inside, explain_step
from steelyard.model.built_image import DebianBase, ImageSpec, ImageState, Step
from steelyard.model.secret import SecretUse, merge_uses
from steelyard.runtime.uv import find_uv
from steelyard.wire.api import JobView, LogChunk
from steelyard.wire.http import ApiClient
from steelyard.wire.images import ContainerStep, ContainerStepView, ImageBuild, ImageView

#: one long poll of the log, and of the image once its build has ended
POLL_S = 5.0
#: what a failure quotes
LINES_QUOTED = 15
#: options in a requirements file that lead to other files, which are not sent
_ELSEWHERE = re.compile(r"^\s*(-r|--requirement|-c|--constraint|-e|--editable)\b|^\s*(\.{0,2}/|file:)")


def ensure_app_images(
    client: ApiClient, app: AppFile, progress: Progress, patience: Patience, override: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Ids of the images that its functions ask for, by the function's name in the file; built before this returns, each once. A
    container image without steps is named as it was written, and fetched by the machine that runs it. With an `image` or `python`
    in `override` those in the file do not count. Raises Refused when one can't be built."""
    if {"image", "python"} & set(override or {}):
        return {}
    made: dict[str, str] = {}
    ids: dict[str, str] = {}
    for declared in app.description.functions:
        if declared.image is None:
            continue
        key = json.dumps(declared.image, sort_keys=True)
        if key not in made and is_container(declared.image):
            own = msgspec.convert(declared.options.get("secrets", ()), tuple[SecretUse, ...])
            uses = merge_uses(own, (override or {}).get("secrets", ()))
            login = find_login(declared.image) or login_among(uses)
            made[key] = ensure_container(client, declared.image, app.file.parent, progress, patience, login)
            fetch_ahead(client, made[key], login, SystemClock())
        elif key not in made:
            spec = make_image_spec(client, declared.image, app.file.parent, progress)
            made[key] = ensure_image(client, spec, progress, patience).id
        ids[declared.fn] = made[key]
    return ids


def find_image_id(client: ApiClient, text: str) -> str:
    """Of a name, or the beginning of an id; "" for "". Raises NotFound."""
    return client.fetch(ImageView, "GET", f"/v1/images/{quote(text)}").id if text else ""


def make_image_spec(client: ApiClient, asked: Mapping[str, Any], folder: Path, progress: Progress) -> ImageSpec:
    """`asked`: as `sdk.image.Image.as_json` tells it. Its files, relative to `folder`, are sent. Raises Refused."""
    return msgspec.convert({"base": asked["base"], "steps": send_files(client, asked, folder, progress)}, ImageSpec)


def is_container(asked: Mapping[str, Any]) -> bool:
    return asked["base"]["kind"] != "python"


def ensure_container(
    client: ApiClient, asked: Mapping[str, Any], folder: Path, progress: Progress, patience: Patience, secret: str = ""
) -> str:
    """What names the image then. Each step is carried out once, as a job, upon the image of those before. `secret`: the login at
    the registry of the first. Raises Refused."""
    steps: list[Step | DebianBase] = [msgspec.convert(step, Step) for step in send_files(client, asked, folder, progress)]
    reference = below = ""
    if asked["base"]["kind"] == "debian":
        steps.insert(0, msgspec.convert(asked["base"], DebianBase))
    else:
        reference = name_image(asked["base"]["reference"], str(folder))
        if not steps:
            return reference
        below = pull_image(client, reference, progress, patience, secret).digest
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}]"
        view = _take_step(client, ContainerStep(step, reference, below, secret), label, progress, patience)
        reference, below, secret = view.reference, view.id, ""
    progress.clear()
    return reference


def _take_step(client: ApiClient, step: ContainerStep, label: str, progress: Progress, patience: Patience) -> ContainerStepView:
    def ask() -> ContainerStepView:
        return client.fetch(ContainerStepView, "POST", "/v1/container-steps", body=step, wait_s=60.0)

    view = patience.call(ask, "the build")
    if view.ready:
        progress.show(f"Image {label} {view.text}: there already")
        return view
    progress.show(f"Image {label} {view.text}")
    said = _Said(progress, f"{label} {view.text}", whole=True)
    cursor, ended = START, False
    while not ended:
        chunk = patience.call(partial(poll_job, client, view.job, cursor, POLL_S), "the build")
        cursor, ended = cursor_after(chunk), chunk.ended
        said.note(chunk, view.job)
    progress.clear()
    after = patience.call(ask, "the build")
    if not after.ready:
        job = client.fetch(JobView, "GET", f"/v1/jobs/{view.job}")
        why = explain_inside(said.last) or job.detail or f"it ended with exit code {job.exit_code}."
        raise Refused(
            f"The image could not be built. Step {label[1:-1].replace('/', ' of ')}, {view.text}: {why}\n{said.quote()}Nothing "
            f"was deployed or started; `steelyard logs {view.job}` has all that was said.",
            code="image-failed",
        )
    return after


def send_files(client: ApiClient, asked: Mapping[str, Any], folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """The steps as the API takes them, with what they bring along sent. Raises Refused."""
    steps: list[dict[str, Any]] = []
    for step in asked["steps"]:
        step = dict(step)
        match step["kind"]:
            case "pip":
                file = step.pop("requirements", "")
                if file:
                    step["files"] = send_bundle(client, _capture_requirements(folder / file), progress)
            case "uv-sync" if is_container(asked):  # whose own Python has pip, and no uv
                step = {"kind": "pip", "files": send_bundle(client, _export_lock(folder, step), progress)}
            case "uv-sync":
                step["files"] = send_bundle(client, _capture_lock(folder / step.pop("lock")), progress)
            case "copy":
                inside = step.pop("inside")
                step["to"], bundle = _capture_copy(folder / step.pop("local"), inside)
                step["files"] = send_bundle(client, bundle, progress)
            case _:
                pass
        steps.append(step)
    return steps


def ensure_image(client: ApiClient, spec: ImageSpec, progress: Progress, patience: Patience, name: str = "") -> ImageView:
    """There when this returns. Raises Refused, with the step that failed and what was said last."""
    key = new_key()
    body = ImageBuild(spec, name)
    view = patience.call(lambda: client.fetch(ImageView, "POST", "/v1/images", body=body, key=key), "asking for the image")
    if view.state == ImageState.READY:
        return view
    said = _Said(progress, name or view.id[:12])
    cursor, ended = START, False
    while view.state == ImageState.BUILDING:
        if not ended:
            chunk = patience.call(partial(poll_job, client, view.job, cursor, POLL_S), "the build")
            cursor, ended = cursor_after(chunk), chunk.ended
            said.note(chunk, view.job)
        view = patience.call(partial(_look, client, view.id, POLL_S if ended else 0.0), "the build")
    progress.clear()
    if view.state != ImageState.READY:
        quoted = said.quote()
        raise Refused(
            f"The image {name or view.id[:12]} could not be built. {said.failure or view.detail}\n{quoted}Nothing was deployed "
            f"or started; `steelyard logs {view.job}` has all that was said.",
            code="image-failed",
        )
    return view


def _look(client: ApiClient, image: str, wait_s: float) -> ImageView:
    return client.fetch(ImageView, "GET", f"/v1/images/{image}", params={"wait_s": wait_s}, wait_s=wait_s)


class _Said:
    """What a build has written so far."""

    def __init__(self, progress: Progress, label: str, *, whole: bool = False) -> None:
        """`whole`: what it says on either stream is quoted, and none of it is a sentence of ours."""
        self._whole = whole
        self._progress, self._label = progress, label
        self._out, self._err = Lines(), Lines()
        self._last: deque[str] = deque(maxlen=LINES_QUOTED)
        #: its last word: which step failed, why and what to do
        self.failure = ""

    def note(self, chunk: LogChunk, job: str) -> None:
        if not chunk.attempt and not chunk.ended:
            self._progress.show(f"Image {self._label}: {job} waits{f' ({chunk.detail})' if chunk.detail else ''}")
        for line in (raw.decode(errors="replace") for raw in self._out.feed(chunk.stdout)):
            self._last.append(line)
            if line.startswith("["):
                self._progress.show(f"Image {self._label}: {line}")
        for raw in self._err.feed(chunk.stderr):
            self.failure = raw.decode(errors="replace")
            if self._whole:
                self._last.append(self.failure)

    @property
    def last(self) -> list[str]:
        return list(self._last)

    def quote(self) -> str:
        return "".join(f"  | {line}\n" for line in self._last if line.strip())


def _capture_requirements(file: Path) -> Bundle:
    for number, line in enumerate(_read(file).decode(errors="replace").splitlines(), 1):
        if _ELSEWHERE.search(line):
            raise Refused(
                f"{file}, line {number}: {line.strip()!r} leads to other files, which are not sent. Nothing was built. Write "
                "what is in them here, or bring them with copy(...) and install them with run(...).",
                code="bad-requirements",
            )
    return capture_files({"requirements.txt": file})


def _capture_lock(file: Path) -> Bundle:
    lock = _find_lock(file)
    return capture_files({"uv.lock": lock, "pyproject.toml": lock.with_name("pyproject.toml")})


def _export_lock(folder: Path, step: Mapping[str, Any]) -> Bundle:
    """What the lock file says, as a requirements file with its hashes and its index. Raises Refused when it does not fit."""
    lock = _find_lock(folder / step["lock"])
    options = [*(f"--extra={each}" for each in step["extras"]), *(f"--group={each}" for each in step["groups"])]
    command = (
        *(find_uv(), "export", "--quiet", "--project", str(lock.parent), "--locked", "--no-python-downloads", "--no-header"),
        *("--no-emit-project", "--no-default-groups", "--no-annotate", "--emit-index-url", "--format=requirements-txt", *options),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Refused(
            f"{explain_step(f'uv_sync {lock}', done.returncode, said)} Nothing was built.\n{done.stderr}", code="bad-lock"
        )
    with tempfile.TemporaryDirectory() as name:
        made = Path(name, "requirements.txt")
        made.write_text(done.stdout)
        return _capture_requirements(made)


def _find_lock(file: Path) -> Path:
    """A folder stands for the uv.lock in it. Raises Refused when it, or the pyproject.toml beside it, can't be read."""
    lock = file / "uv.lock" if file.is_dir() else file
    for needed in (lock, lock.with_name("pyproject.toml")):
        _read(needed)
    return lock


def _capture_copy(local: Path, inside: str) -> tuple[str, Bundle]:
    """Where the bundle's content goes, and the bundle."""
    if local.is_dir():
        return inside.strip("/"), capture_folder(local, whole=True)
    _read(local)
    name = local.name if not inside or inside.endswith("/") else inside.rpartition("/")[2]
    folder = inside if inside.endswith("/") else inside.rpartition("/")[0]
    return folder.strip("/"), capture_files({name: local})


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as err:
        raise Refused(f"{file} can't be read ({err.strerror}). Nothing was built.", code="no-such-file") from err
