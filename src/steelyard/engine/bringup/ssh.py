"""How does a script run on another machine? Over SSH, as the user there or as root, with its output whole. An edge.

The script goes through standard input of a shell, so nothing of it (munge's key for one) stands in a list of processes. Host keys
are checked as `ssh` does: a host that known_hosts does not hold is not spoken to.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncssh
import msgspec

from steelyard.errors import EdgeFailed
from steelyard.model.cluster import HostEntry

CONNECT_S = 15.0
#: answers are some 100 KB; a large machine's tree is a few MB
OUTPUT_MAX = 64 << 20


class Said(msgspec.Struct, frozen=True):
    code: int
    out: str
    err: str


class Shell:
    """A connection to one host. Use as `async with`."""

    def __init__(self, entry: HostEntry, config: Path | None) -> None:
        """`config`: in the place of ~/.ssh/config."""
        self._entry = entry
        self._config = config
        self._connection: asyncssh.SSHClientConnection | None = None
        #: as it was reached; "" before
        self.address = ""

    async def __aenter__(self) -> Shell:
        entry = self._entry
        given = {"username": entry.user} if entry.user else {}
        try:
            self._connection = await asyncssh.connect(
                entry.address or entry.name,
                **({"port": entry.port} if entry.port != 22 else {}),
                **({"config": [str(self._config)]} if self._config else {}),
                **given,
                connect_timeout=CONNECT_S,
                keepalive_interval=10,
            )
        except (asyncssh.Error, OSError, TimeoutError) as err:
            raise EdgeFailed(_unreached(entry, err), code="host-unreachable") from err
        self.address = str(self._connection.get_extra_info("peername")[0])
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    async def run(self, script: str, *, as_root: bool = False, timeout_s: float = 120.0) -> Said:
        """Raises EdgeFailed (host-lost) when the connection ends before the script, and (too-slow) when it takes longer."""
        assert self._connection is not None
        command = '[ "$(id -u)" = 0 ] && exec sh -s; exec sudo -n sh -s' if as_root else "exec sh -s"
        try:
            done = await asyncio.wait_for(self._connection.run(command, input=script, errors="replace"), timeout_s)
        except TimeoutError as err:
            raise EdgeFailed(f"{self._entry.name} did not answer within {timeout_s:.0f} s", code="too-slow") from err
        except (asyncssh.Error, OSError) as err:
            raise EdgeFailed(f"the connection to {self._entry.name} was lost ({_say(err)})", code="host-lost") from err
        if done.exit_status is None or done.exit_status < 0:
            raise EdgeFailed(f"the connection to {self._entry.name} was lost in the middle of a command", code="host-lost")
        return Said(done.exit_status, str(done.stdout or "")[:OUTPUT_MAX], str(done.stderr or "")[:OUTPUT_MAX])


def _unreached(entry: HostEntry, err: Exception) -> str:
    """Why nobody could come in, and what to do about it; a sentence without its end."""
    whom = f"{entry.user}@{entry.address or entry.name}".removeprefix("@")
    if isinstance(err, asyncssh.HostKeyNotVerifiable):
        return f"its host key is not known here (`ssh {whom}` once, and look at the key)"
    if isinstance(err, asyncssh.PermissionDenied):
        return f"it lets nobody in with the keys that are here (ssh-copy-id {whom})"
    if isinstance(err, TimeoutError):
        return f"nobody answered at {entry.address or entry.name}:{entry.port} within {CONNECT_S:.0f} s"
    return f"it can't be reached at {entry.address or entry.name}:{entry.port} ({_say(err)})"


def _say(err: Exception) -> str:
    if isinstance(err, OSError) and (err.errno or 0) > 0:
        return os.strerror(err.errno or 0)  # the loop's own text has the address once more
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    return (str(err) or type(err).__name__).partition("\n")[0].rstrip(".")[:200]
