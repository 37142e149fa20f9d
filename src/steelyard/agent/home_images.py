"""How does a machine of a pool come by images? From the home, each once, by the digest that the home tells: so a name means the
same on all machines, and nodes need no way to a registry or package index.

Environments are unpacked as their owner, containers by the cache of this machine. On the home's own machine nobody asks here.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from steelyard.agent.images import MISSING, make_image_folder
from steelyard.agent.server_files import download, open_answer
from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed, Refused
from steelyard.lifecycle.registry_login import Login
from steelyard.model.ids import ImageId
from steelyard.model.image import Image, ImageReference
from steelyard.model.job import Owner
from steelyard.runtime.image.layer import read_layer
from steelyard.runtime.oci.store import ImageStore
from steelyard.wire.agent import PullStart
from steelyard.wire.images import HomePull, PullState, PullView

Ids = tuple[int, int] | None
FAILED = "image-not-fetched"
#: the server packs it before it answers
PACK_S = 900.0


class HomeImages:
    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._paths, self._settings = paths, settings
        self._coming: dict[tuple[int, str], asyncio.Future[None]] = {}

    async def bring_environment(self, owner: Owner, image: str, ids: Ids) -> None:
        """Raises EdgeFailed."""
        if not self._settings.pilot:
            return
        key = (owner.uid, image)
        if key not in self._coming:
            coming = asyncio.ensure_future(asyncio.to_thread(self._land, owner, ImageId(image), ids))
            self._coming[key] = coming
            coming.add_done_callback(lambda _: self._coming.pop(key))
        await asyncio.shield(self._coming[key])  # who gives up does not end it for the others

    def _land(self, owner: Owner, image: ImageId, ids: Ids) -> None:
        folder = make_image_folder(self._paths.environments, owner, ids)
        if read_layer(folder, image) is not None:
            return
        what = f"The image {image[:12]}"
        with tempfile.TemporaryDirectory(prefix=".packed-", dir=self._paths.home) as temp:
            packed = Path(temp) / "packed.tar"
            self._fetch(f"/v1/packed-images/environment/{owner.uid}/{image}", packed, what)
            user = {"user": ids[0], "group": ids[1], "extra_groups": ()} if ids is not None and os.geteuid() == 0 else {}
            with open(packed, "rb") as file:
                done = subprocess.run(
                    (sys.executable, "-I", "-m", "steelyard.runtime.image.land", image),
                    stdin=file, capture_output=True, text=True, errors="replace", check=False, cwd="/",
                    env={"PATH": os.defpath, "STEELYARD_IMAGES": str(folder)}, **user,
                )  # fmt: skip
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"its program ended with {done.returncode}"]
            raise EdgeFailed(f"{what} can't be used on {os.uname().nodename}: {said[0]}", code=MISSING)

    def bring_container(self, reference: ImageReference, owner: Owner, login: Login | None, store: ImageStore) -> Image:
        """Blocks. The home fetches it first where it has to; it is that owner's alone here. Raises SteelyardError."""
        digest = self._resolve(reference, owner, login)
        whose = str(owner.uid)
        if (found := store.adopt(reference, digest, whose, None)) is not None:
            return found
        with tempfile.TemporaryDirectory(prefix=".packed-", dir=self._paths.home) as temp:
            packed = Path(temp) / "packed.tar"
            self._fetch(f"/v1/packed-images/container/{owner.uid}/{digest}", packed, f"The image {reference.text}")
            found = store.adopt(reference, digest, whose, packed)
        assert found is not None
        return found

    def _resolve(self, reference: ImageReference, owner: Owner, login: Login | None) -> str:
        """Its digest, once it lies at home."""
        asked = HomePull(PullStart(reference.text, owner, login))
        what = f"The image {reference.text}"
        while True:
            body, path = msgspec.json.encode(asked), f"/v1/pilots/{self._settings.pilot}/pulls"
            with open_answer(self._paths, self._settings, path, what, FAILED, body) as answer:
                said = answer.read()
            if answer.status != 200:
                raise _refuse(what, said)
            view = msgspec.json.decode(said, type=PullView)
            if view.state is PullState.READY:
                return view.digest
            if view.state is PullState.FAILED:
                raise Refused(view.detail, code=view.code)
            asked = msgspec.structs.replace(asked, pull=view.id)

    def _fetch(self, path: str, place: Path, what: str) -> None:
        with open_answer(self._paths, self._settings, path, what, FAILED, wait_s=PACK_S) as answer:
            if answer.status != 200:
                raise _refuse(what, answer.read())
            download(answer, place, what, FAILED)


def _refuse(what: str, said: bytes) -> EdgeFailed:
    """By what the server's problem says."""
    try:
        problem = msgspec.json.decode(said, type=dict[str, object])
    except msgspec.MsgspecError:
        problem = {}
    why, code = problem.get("detail", "the server gave an answer that can't be read"), problem.get("code")
    return EdgeFailed(f"{what}: {why}", code=MISSING if code == MISSING else FAILED)
