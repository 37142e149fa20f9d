"""Is a revision's code on this machine? Fetches a bundle from the server, checks its digest and unpacks it once.

`<home>/code/<sha256>/` appears by rename, whole or not at all; it is readable by workloads and written by nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tarfile
from pathlib import Path

from steelyard.agent.server_files import open_answer
from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed
from steelyard.runtime.unpack import unpack

#: under way: the functions of one app want the same bundle at the same time
_fetching: dict[Path, asyncio.Future[None]] = {}


async def ensure_code(paths: Paths, settings: Settings, bundle: str) -> Path:
    """The folder with the bundle's files, fetched once however many ask at a time. Raises EdgeFailed (code bundle-unavailable)
    when it can't be had intact."""
    folder = paths.unpacked / bundle
    if folder.is_dir():
        return folder
    fetching = _fetching.get(folder)
    if fetching is None:
        fetching = _fetching[folder] = asyncio.ensure_future(asyncio.to_thread(_fetch, paths, settings, bundle, folder))
        fetching.add_done_callback(lambda _: _fetching.pop(folder))
    await asyncio.shield(fetching)  # who gives up does not end it for the others
    return folder


def _fetch(paths: Paths, settings: Settings, bundle: str, folder: Path) -> None:
    data = _download(paths, settings, bundle)
    if hashlib.sha256(data).hexdigest() != bundle:
        raise EdgeFailed(
            f"The code bundle {bundle[:12]} arrived damaged and was not unpacked. Deploy again.", code="bundle-unavailable"
        )
    temp = folder.with_name(f".{bundle}.{os.getpid()}.tmp")
    shutil.rmtree(temp, ignore_errors=True)
    try:
        temp.mkdir(parents=True, mode=0o755)
        unpack(data, temp)
        temp.chmod(0o755)
        os.rename(temp, folder)
    except (OSError, tarfile.TarError) as err:
        shutil.rmtree(temp, ignore_errors=True)
        if not folder.is_dir():  # somebody else may have finished it meanwhile
            raise EdgeFailed(f"The code bundle {bundle[:12]} could not be unpacked: {err}.", code="bundle-unavailable") from err


def _download(paths: Paths, settings: Settings, bundle: str) -> bytes:
    what = f"The code bundle {bundle[:12]}"
    with open_answer(paths, settings, f"/v1/bundles/{bundle}", what, "bundle-unavailable") as response:
        data = response.read()
    if response.status != 200:
        raise EdgeFailed(
            f"The server has no code bundle {bundle[:12]} (HTTP {response.status}). Deploy again.", code="bundle-unavailable"
        )
    return data
