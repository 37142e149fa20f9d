"""How are Slurm's commands run? Here, or on a login host by ssh. Every call is one process and has an end.

Complaints are passed on in Slurm's own words, with what they mean for the caller in front. Never retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.engine.slurm.read import read_complaint
from steelyard.errors import EdgeFailed, Refused, SteelyardError, Unreachable
from steelyard.model.slurm import Attachment

#: Slurm's commands wait ten seconds for slurmctld, some of them three times
ANSWER_S = 45.0
#: of shells and of ssh, for a command that isn't there
_NOT_FOUND = 127
_NO_CONNECTION = 255

#: from whom Slurm's commands are to know their cluster
CARRIED = ("SLURM_CONF", "SLURM_CLUSTERS")


class SlurmClient:
    def __init__(self, attachment: Attachment, environ: Mapping[str, str]) -> None:
        """`environ` is what the commands are given, without what Slurm told a job that we may be part of."""
        self._ssh = attachment.ssh
        kept = {name: value for name, value in environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        self._env = {**kept, **attachment.env}
        self._carried = attachment.env

    async def ask(self, *words: str, input: str = "", uid: int | None = None) -> str:
        """What `words` print. `uid`: run as that user, where we are root and here.

        Unreachable: the login host or slurmctld does not answer. Refused: there is no Slurm, munge is down, or Slurm says no.
        """
        code, out, err = await self.run(*words, input=input, uid=uid)
        if code != 0:
            raise self._explain(words[0], code, err or out)
        return out

    async def run(self, *words: str, input: str = "", uid: int | None = None) -> tuple[int, str, str]:
        """(exit code, stdout, stderr). EdgeFailed when it does not end within ANSWER_S: whether it was done is not known then."""
        argv = self._on_login_host(words) if self._ssh else list(words)
        more = _identity(uid) if uid is not None and os.geteuid() == 0 and not self._ssh else {}
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=self._env, cwd="/", start_new_session=True, **more,
            )  # fmt: skip
        except FileNotFoundError:
            return _NOT_FOUND, "", f"{argv[0]}: command not found"
        try:
            async with asyncio.timeout(ANSWER_S):
                out, err = await process.communicate(input.encode())
        except TimeoutError:
            raise EdgeFailed(f"{words[0]} did not answer for {ANSWER_S:.0f} s", code="slurm-silent") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")

    def _on_login_host(self, words: Sequence[str]) -> list[str]:
        variables = [f"{name}={value}" for name, value in self._carried.items()]
        command = shlex.join(["env", *variables, *words] if variables else words)
        return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", self._ssh, command]

    def _explain(self, program: str, code: int, text: str) -> SteelyardError:
        said = read_complaint(text)
        where = self._ssh or "this machine"
        if self._ssh and code == _NO_CONNECTION:
            return Unreachable(
                f"{self._ssh} is not reached by ssh: {said}. Try `ssh {self._ssh} true` until it asks for nothing."
            )
        if code == _NOT_FOUND:
            return Refused(
                f"There is no {program} on {where}, so there is no Slurm that could be asked. Install its client "
                "(slurm-client), or name a login host with --ssh.",
                code="slurm-missing",
            )
        if "unge" in text:
            return Refused(
                f"munge on {where} does not sign for us, and Slurm believes nobody without ({said}). "
                "Start it (systemctl start munge) and see that the cluster's key is there.",
                code="munge-down",
            )
        if "Unable to contact slurm controller" in text or "Unable to contact slurmctld" in text:
            return Unreachable(f"slurmctld does not answer ({said}). Jobs that run go on; ask again when it is back.")
        return Refused(f"Slurm says: {said}", code="slurm-refused")


def _identity(uid: int) -> dict[str, Any]:
    """What makes a child that user, with its groups where the machine knows it."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return {"user": uid, "group": uid, "extra_groups": ()}
    return {"user": uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(entry.pw_name, entry.pw_gid)}
