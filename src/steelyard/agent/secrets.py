"""Which values do the secrets have that work here is given? Fetched from the server, kept in memory and on no disk.

The assignment says which secrets there are and in which version. What is missing here is asked for until it is there; while the
server is away, what is here goes on being given. After a restart of the agent nothing is here, and starts wait for the server.

Work that takes secrets as files has a folder of its own under the run directory, as long as anything of it runs. The folders are
ours, since root writes into them; the files are the work's to read. Files of a function are replaced in place when a secret
changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed, SteelyardError, StoreDamaged
from steelyard.lifecycle.environment import OWNED
from steelyard.lifecycle.redaction import Redactor
from steelyard.model.job import Owner
from steelyard.model.secret import PAST_MAX, SecretUse, make_variables
from steelyard.wire.agent import SecretVersion

log = logging.getLogger(__name__)

RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
#: a secret that a start needs is not there any more
GONE = "secret-gone"
WITHHELD = "What it said is not shown: it may hold values of its secrets, which are not known here until the server answers."

Key = tuple[str, str]
#: version and values
Fetch = Callable[[SecretVersion], tuple[str, Mapping[str, str]]]
Ids = tuple[int, int] | None


def _make_fetch(paths: Paths, settings: Settings) -> Fetch:
    def fetch(wanted: SecretVersion) -> tuple[str, Mapping[str, str]]:
        from urllib.parse import quote

        from steelyard.wire.api import SecretValues
        from steelyard.wire.http import ApiClient

        ca_file = Path(settings.tls_cert) if settings.tls_cert else None
        with ApiClient(settings.api_url, paths.agent_token.read_text().strip(), ca_file=ca_file) as client:
            path = f"/v1/secret-values/{quote(wanted.owner, safe='')}/{quote(wanted.name, safe='')}"
            found = client.fetch(SecretValues, "GET", path)
        return found.version, found.values

    return fetch


class SecretKeeper:
    """`changed` is called when what a start would be given is another than before. `fetch`: asks the server, and blocks."""

    def __init__(self, paths: Paths, settings: Settings, changed: Callable[[], None], fetch: Fetch | None = None) -> None:
        self._folder, self._changed = paths.secrets, changed
        self._fetch = fetch or _make_fetch(paths, settings)
        self._wanted: dict[Key, SecretVersion] = {}
        self._held: dict[Key, tuple[str, Mapping[str, str]]] = {}
        #: all that were held in this life, the newest first: what runs may have them still, and say them in its errors
        self._seen: dict[Key, deque[Mapping[str, str]]] = defaultdict(lambda: deque(maxlen=PAST_MAX + 1))
        #: why the server can't give one out
        self._refused: dict[Key, str] = {}
        self._fetching: dict[Key, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        #: names of folders that may be there
        self._folders: set[str] = set()

    def adopt(self, wanted: Iterable[SecretVersion]) -> None:
        """After a restart: what the newest assignment says, and the folders that an earlier agent made."""
        with contextlib.suppress(FileNotFoundError):
            self._folders = set(os.listdir(self._folder))
        self.reconcile(wanted)

    def reconcile(self, wanted: Iterable[SecretVersion]) -> None:
        """Level-triggered. What nothing names any more is forgotten."""
        before, self._wanted = self._wanted, {(each.owner, each.name): each for each in wanted}
        if self._wanted == before:
            return
        self._held = {key: held for key, held in self._held.items() if key in self._wanted}
        for key in before.keys() - self._wanted.keys():
            self._refused.pop(key, None)
            if (task := self._fetching.pop(key, None)) is not None:
                task.cancel()
        for key in self._wanted:
            if not self._has(key) and key not in self._fetching:
                task = asyncio.get_running_loop().create_task(self._keep_asking(key))
                self._fetching[key] = task
        self._tell()

    async def _keep_asking(self, key: Key) -> None:
        delay_s = RETRY_MIN_S
        while (wanted := self._wanted.get(key)) is not None and not self._has(key):
            try:
                version, values = await asyncio.to_thread(self._fetch, wanted)
            except (SteelyardError, OSError) as err:
                text = err.public if isinstance(err, SteelyardError) else str(err)
                if isinstance(err, StoreDamaged) and self._refused.get(key) != text:
                    log.error("the secret %s of %s: %s", wanted.name, wanted.owner, text)
                    self._refused[key] = text
                    self._tell()
                log.info("the secret %s is not here yet: %s", wanted.name, text)
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_MAX_S, delay_s * 2)
                continue
            self._refused.pop(key, None)
            self._held[key] = version, values
            self._seen[key].appendleft(values)
            if version != wanted.version:
                # newer than the assignment that we know: that of this version is on its way
                await asyncio.sleep(delay_s)
        self._fetching.pop(key, None)
        self._tell()

    def _has(self, key: Key) -> bool:
        return key in self._held and self._held[key][0] == self._wanted[key].version

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
        self._changed()

    # -- what a start is given

    async def wait(self, owner: Owner, uses: Sequence[SecretUse]) -> Mapping[str, Mapping[str, str]]:
        """Values by secret, as soon as all are here. Raises EdgeFailed when one is gone, or the server can't read it."""
        while True:
            missing = [use.name for use in uses if not self._is_here(owner, use)]
            if not missing:
                return {use.name: self._held[owner.user, use.name][1] for use in uses}
            news = self._news
            await news.wait()

    def _is_here(self, owner: Owner, use: SecretUse) -> bool:
        key = (owner.user, use.name)
        if key not in self._wanted:
            text = f"The secret {use.name} is gone. Create it again: `steelyard secrets create {use.name}`."
            raise EdgeFailed(text, code=GONE)
        if self._has(key):
            return True
        if key in self._refused:
            raise EdgeFailed(self._refused[key], code=GONE)
        return False

    def version(self, owner: Owner, uses: Sequence[SecretUse]) -> str:
        """Names what a start should be given now, without telling it; "" where that is nothing."""
        if not uses:
            return ""
        known = [self._wanted.get((owner.user, use.name)) for use in uses]
        told = repr([(use, each.version if each is not None else "") for use, each in zip(uses, known, strict=True)])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def explain_wait(self, owner: Owner, uses: Sequence[SecretUse]) -> str:
        """A sentence for whoever waits for a start; "" where nothing is missing."""
        missing = [use.name for use in uses if (key := (owner.user, use.name)) in self._wanted and not self._has(key)]
        if not missing:
            return ""
        what = f"the secret {missing[0]}" if len(missing) == 1 else f"the secrets {', '.join(missing)}"
        return f"It waits for {what}: this machine's agent is to get the values from the server, which it could not reach so far."

    # -- what is said of it

    def clean(self, owner: Owner, uses: Sequence[SecretUse], text: str) -> str:
        """A text of the work's own, for everybody to read."""
        if not uses or not text:
            return text
        keys = [(owner.user, use.name) for use in uses]
        if any(key in self._wanted and key not in self._seen for key in keys):
            return WITHHELD
        return Redactor((key[1], values) for key in keys for values in self._seen.get(key, ())).clean(text)

    # -- files

    def path(self, name: str) -> str:
        """Of the folder of one workload. It is there after `give`."""
        return str((self._folder / name).resolve())

    def give(self, name: str, uses: Sequence[SecretUse], values: Mapping[str, Mapping[str, str]], ids: Ids) -> dict[str, str]:
        """Write what a workload takes as files; the variables that it is told by. Raises EdgeFailed."""
        if any(use.as_files for use in uses):
            try:
                self._write(name, {use.name: values[use.name] for use in uses if use.as_files}, ids)
            except OSError as err:
                text = f"Its secrets could not be written to {self._folder} ({err.strerror}). Nothing was started."
                raise EdgeFailed(text, code="start-failed") from err
        return make_variables(uses, values, self.path(name))

    def _write(self, name: str, wanted: Mapping[str, Mapping[str, str]], ids: Ids) -> None:
        folder = self._folder / name
        self._folders.add(name)
        self._make_folder(folder, ids)
        for secret, values in wanted.items():
            self._make_folder(folder / secret, ids)
            for key, value in values.items():
                self._write_file(folder / secret / key, value, ids)
            for stale in set(os.listdir(folder / secret)) - values.keys():
                (folder / secret / stale).unlink()
        for stale in set(os.listdir(folder)) - wanted.keys():
            shutil.rmtree(folder / stale)

    @staticmethod
    def _make_folder(folder: Path, ids: Ids) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if ids is not None:
            # the group may go through; nobody but us may write
            os.chown(folder, -1, ids[1])
            folder.chmod(0o750)

    @staticmethod
    def _write_file(path: Path, value: str, ids: Ids) -> None:
        temp = path.with_name(f".{path.name}")
        temp.unlink(missing_ok=True)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
        with open(fd, "wb") as file:
            if ids is not None:
                os.fchown(fd, *ids)
            file.write(value.encode(errors="surrogateescape"))
        os.rename(temp, path)

    def drop(self, name: str) -> None:
        """Nothing of that workload runs any more."""
        if name in self._folders:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            self._folders.discard(name)

    def sweep(self, living: Callable[[], Collection[str]]) -> None:
        """Once a second: folders of all that has gone. `living`: names of workloads that have, or are about to have, one."""
        if self._folders:
            for name in self._folders - set(living()):
                self.drop(name)


class WorkSecrets:
    """Those that one job's process or one revision is given. `folder` names the folder of its files."""

    def __init__(self, keeper: SecretKeeper, owner: Owner, uses: Sequence[SecretUse], folder: str, ids: Ids) -> None:
        self._keeper, self._owner, self._uses, self._ids = keeper, owner, uses, ids
        self.folder = folder

    def __bool__(self) -> bool:
        return bool(self._uses)

    @property
    def path(self) -> str:
        """Of its files, once there are variables; "" where it takes none."""
        return self._keeper.path(self.folder) if any(use.as_files for use in self._uses) else ""

    @property
    def version(self) -> str:
        """Of what a start should be given now; "" where that is nothing."""
        return self._keeper.version(self._owner, self._uses)

    async def variables(self) -> dict[str, str]:
        """As soon as the values are here, with the files in place; nothing is awaited once those are. Raises EdgeFailed."""
        if not self._uses:
            return {}
        values = await self._keeper.wait(self._owner, self._uses)
        given = self._keeper.give(self.folder, self._uses, values, self._ids)
        return {name: value for name, value in given.items() if name not in OWNED}

    def explain_wait(self) -> str:
        """A sentence about what is not here yet; "" where nothing is missing."""
        return self._keeper.explain_wait(self._owner, self._uses)

    def clean(self, text: str) -> str:
        """A text of the work's own, for everybody to read."""
        return self._keeper.clean(self._owner, self._uses, text)
