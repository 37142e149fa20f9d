"""Images of a file are asked for by what they are: a container's is named, nothing of it is built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from steelyard.cli.app_file import AppFile, Declared, Description
from steelyard.cli.image_ask import ensure_app_images
from steelyard.sdk.image import Image
from steelyard.wire.images import Pull, PullState, PullView

NOBODY: Any = None


def declare(fn: str, image: Image | None) -> Declared:
    return Declared(fn, fn, "app.py", fn, "call", None, {}, None, (), image=image and image.as_json())


class Machine:
    """Has every image."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fetch(self, kind: object, method: str, path: str, *, body: Pull) -> PullView:
        self.asked.append(f"{method} {path} {body.image}")
        return PullView("p1", body.image, PullState.READY)


def test_a_container_image_is_named_with_its_path_from_the_files_folder_and_fetched_once() -> None:
    machine = Machine()
    layout, hub = Image.from_registry("oci:./layout:1"), Image.from_registry("docker://python:3.12-slim")
    functions = (declare("one", layout), declare("two", hub), declare("three", None), declare("four", layout))
    app = AppFile(Path("/srv/app.py"), Path("/srv"), "python3", Description("app", functions))
    ids = ensure_app_images(cast("Any", machine), app, cast("Any", NOBODY), cast("Any", NOBODY))
    assert machine.asked == ["POST /v1/pulls oci:/srv/layout:1", "POST /v1/pulls docker.io/library/python:3.12-slim"]
    assert ids == {
        "one": "oci:/srv/layout:1",
        "two": "docker.io/library/python:3.12-slim",
        "four": "oci:/srv/layout:1",
    }
