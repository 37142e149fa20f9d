"""How do container images come to this machine and go again, and what does the server hear of them? For jobs as they start, and
for whoever asks for one ahead of need.

Fetching is a thread's work: the agent's loop never waits for a registry. These threads are for nothing else, and one registry has
few of them, so that one that is slow makes those wait who want something of it, and nobody else. Whoever asks for an image that
is on its way already waits for the same one (`runtime/oci/store.py` holds the lock, over all processes).
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from steelyard.agent.home_images import HomeImages
from steelyard.agent.identity import choose_ids
from steelyard.agent.secrets import SecretKeeper
from steelyard.config import Settings
from steelyard.errors import EdgeFailed, Refused, SteelyardError
from steelyard.host.as_user import observe_file, read_small
from steelyard.lifecycle.registry_login import FILE_MAX, Login, choose_login, login_of_secret, render_login, user_files
from steelyard.model.image import Image, ImageReference, ImageSource, parse_image
from steelyard.model.job import Owner
from steelyard.model.secret import SecretUse
from steelyard.runtime.container import Containers
from steelyard.runtime.oci import Tell, say_nothing
from steelyard.runtime.oci.store import RegistryLogin
from steelyard.wire.agent import Answer, Ask, ContainerImageSeen, PullStart
from steelyard.wire.images import PullState, PullView

Ids = tuple[int, int]
#: fetches at a time, and those from one registry
FETCHES_MAX, FETCHES_OF_ONE = 16, 4
#: that have ended, and may still be asked about
KEPT_MAX = 64
#: an answer waits so long for the end of a pull: nobody need ask again for what is here
PATIENCE_S = 0.25


class ContainerImages:
    """`home`: of a machine of a pool, which has its images from there."""

    def __init__(self, containers: Containers, settings: Settings, home: HomeImages | None = None) -> None:
        self._containers, self._settings, self._home = containers, settings, home
        self._pulls: dict[str, _Pull] = {}
        self._count = 0
        self._pool = ThreadPoolExecutor(FETCHES_MAX, "images")
        self._rooms: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(FETCHES_OF_ONE))

    async def bring(
        self, reference: ImageReference, owner: Owner, ids: Ids, login: Login | None = None, tell: Tell = say_nothing
    ) -> Image:
        """As `fetch`, without blocking. What is here is found whatever is under way."""
        # a folder or archive must be looked at, with its owner's rights
        if not reference.file and (found := await asyncio.to_thread(self._find, reference, owner, login)) is not None:
            return found
        host = reference.name.partition("/")[0] if reference.source is ImageSource.REGISTRY else ""
        async with self._rooms[host]:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self.fetch, reference, owner, ids, login, tell)

    def _find(self, reference: ImageReference, owner: Owner, login: Login | None) -> Image | None:
        """Without asking anybody."""
        self._containers.check()
        mine = reference.source is ImageSource.BUILT or self._home is not None
        if not mine:
            login = login or _find_own_login(reference, owner)
            mine = login is not None and not login.helper
        return self._containers.store.find_here(reference, "", str(owner.uid) if mine else "")

    def fetch(
        self, reference: ImageReference, owner: Owner, ids: Ids, login: Login | None = None, tell: Tell = say_nothing
    ) -> Image:
        """Blocks. `ids`: of the machine, whom the work for `owner` runs as; a folder or archive must be theirs to read now, also
        when its image is here already. `login`: at the registry, instead of the owner's own. Raises SteelyardError; nothing is
        there then."""
        if self._home is not None:
            self._containers.check()
            return self._home.bring_container(reference, owner, login, self._containers.store)
        if reference.source is ImageSource.BUILT:
            self._containers.check()
            return self._containers.store.built(reference, str(owner.uid))
        try:
            stamp = observe_file(reference.file, ids) if reference.file else ""
        except EdgeFailed as err:
            raise Refused(f"The image {reference.text}: {err.public}. Nothing was started.", code="image-unreadable") from err
        login = login or _find_own_login(reference, owner)
        known = login if login is not None and not login.helper else None
        try:
            return self._containers.fetch(reference, ids, stamp, tell, known and _seal(known, reference, owner))
        except Refused as err:
            if login is None or not login.helper or err.code != "image-private":
                raise
            text = f"{err.public} Your login there is kept by {login.helper}, which is not asked."
            raise Refused(text, code=err.code) from None

    async def answer(self, ask: Ask) -> Answer:
        try:
            if ask.what in ("image-pull", "image-pull-state"):
                start = ask.what == "image-pull"
                pull = self._pull(msgspec.json.decode(ask.body, type=PullStart)) if start else self._pulls.get(ask.workload)
                if pull is None:
                    return Answer(id=ask.id)
                await asyncio.wait([pull.task], timeout=PATIENCE_S)
                return Answer(id=ask.id, data=msgspec.json.encode(pull.view))
            if ask.what == "image-remove":
                await asyncio.to_thread(self._remove, ask.workload)
                return Answer(id=ask.id)
            seen = await asyncio.to_thread(self._look)
        except (SteelyardError, msgspec.MsgspecError) as err:
            return Answer(id=ask.id, error=err.public if isinstance(err, SteelyardError) else str(err))
        return Answer(id=ask.id, data=msgspec.json.encode(seen))

    # -- pulls

    def _pull(self, wanted: PullStart) -> _Pull:
        self._containers.check()
        reference = parse_image(wanted.image)
        ids = choose_ids(wanted.owner, False, self._settings, os.geteuid())
        assert ids is not None  # else there are no containers
        for pull in self._pulls.values():
            if not pull.task.done() and (pull.view.image, pull.owner) == (reference.text, wanted.owner):
                return pull
        self._count += 1
        pull = _Pull(PullView(f"p{self._count}", reference.text), wanted.owner)
        pull.begin(lambda tell: self.bring(reference, wanted.owner, ids, wanted.login, tell))
        self._pulls[pull.view.id] = pull
        ended = [name for name, each in self._pulls.items() if each.task.done()]
        for name in ended[:-KEPT_MAX]:
            del self._pulls[name]
        return pull

    # -- what is here

    def _look(self) -> list[ContainerImageSeen]:
        return [
            ContainerImageSeen(each.image, each.references, each.used_at, tuple(self._containers.users(each.image.digest)))
            for each in self._containers.store.look()
        ]

    def _remove(self, digest: str) -> None:
        if self._containers.users(digest):
            raise Refused("Something runs on it. Nothing was removed.", code="image-used")
        if not self._containers.store.remove(digest):
            raise Refused("It is being unpacked at this moment. Nothing was removed.", code="image-used")


async def find_login(secrets: SecretKeeper, owner: Owner, uses: Sequence[SecretUse]) -> Login | None:
    """Of a secret that the work names for that, once its values are here. Raises SteelyardError."""
    for use in uses:
        if use.for_registry:
            return login_of_secret(use.name, (await secrets.wait(owner, (use,)))[use.name])
    return None


def _find_own_login(reference: ImageReference, owner: Owner) -> Login | None:
    """In the files of the owner, read with the owner's rights. Raises SteelyardError."""
    if reference.source is not ImageSource.REGISTRY:
        return None
    try:
        user = pwd.getpwuid(owner.uid)
    except KeyError:
        return None
    ids = (owner.uid, user.pw_gid)
    found = [(path, read_small(path, ids, FILE_MAX)) for path in user_files(owner.uid, user.pw_dir)]
    return choose_login([(path, content) for path, content in found if content is not None], reference.name)


def _seal(login: Login, reference: ImageReference, owner: Owner) -> RegistryLogin:
    """An image that came by it is this owner's, whichever of their logins it was."""
    return RegistryLogin(render_login(login, reference.name), str(owner.uid))


class _Pull:
    """`view` is what to tell of it at any moment."""

    task: asyncio.Task[None]

    def __init__(self, view: PullView, owner: Owner) -> None:
        self.view, self.owner = view, owner

    def begin(self, fetch: Callable[[Tell], Awaitable[Image]]) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run(fetch))

    async def _run(self, fetch: Callable[[Tell], Awaitable[Image]]) -> None:
        try:
            image = await fetch(self._tell)
        except SteelyardError as err:
            self._set(state=PullState.FAILED, detail=err.public, code=err.code)
        else:
            self._set(state=PullState.READY, digest=image.digest, size_bytes=image.bytes_on_disk)

    def _tell(self, fetched: int | None) -> None:
        """From the thread that fetches."""
        if fetched is None:
            self._set(state=PullState.UNPACKING)
        else:
            self._set(fetched_bytes=max(fetched, self.view.fetched_bytes))

    def _set(self, **fields: object) -> None:
        self.view = msgspec.structs.replace(self.view, **fields)
