"""How are Slurm's commands run? Here, or on a login host by ssh. Every call is one process and has an end.

Complaints are passed on in Slurm's own words, with what they mean for the caller in front. Never retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steelyard.engine.slurm.read import read_complaint
from steelyard.errors import EdgeFailed, Refused, SteelyardError, Unreachable
from steelyard.model.slurm import Attachment

#: Slurm's commands wait ten seconds for slurmctld, some of them three times
ANSWER_S = 45.0
#: that are waited for at a time
COMMANDS_MAX = 32
#: of shells and of ssh, for a command that isn't there
_NOT_FOUND = 127
_NO_CONNECTION = 255

#: what Slurm's commands say when slurmctld did not answer, whether it heard them or not
_SILENT = (
    "Unable to contact slurm controller", "Unable to contact slurmctld", "timed out", "Connection refused", "Zero Bytes were",
    "Communication connection failure", "Insane message length", "Unexpected message received", "Connection reset",
)  # fmt: skip

#: from whom Slurm's commands are to know their cluster
CARRIED = ("SLURM_CONF", "SLURM_CLUSTERS")
#: of a login host: what follows is told PATH, what leads to the cluster there, and what follows itself begins with
_BARE = 'exec env -i PATH="$PATH" ' + " ".join(f'${{{name}:+{name}="${name}"}}' for name in CARRIED) + ' "$@"'


class SlurmClient:
    def __init__(self, attachment: Attachment, environ: Mapping[str, str], ssh_config: Path | None = None) -> None:
        """`environ` is what the commands are given, without what Slurm told a job that we may be part of. `ssh_config`: in the
        place of ~/.ssh/config."""
        self._ssh = attachment.ssh
        self._ssh_words = ("-F", str(ssh_config)) if ssh_config is not None else ()
        kept = {name: value for name, value in environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        self._env = {**kept, **attachment.env}
        self._carried = attachment.env
        # its own: commands that wait for a silent slurmctld must keep no thread from whoever reads a file
        self._threads = ThreadPoolExecutor(COMMANDS_MAX, "slurm")

    async def ask(self, *words: str, input: str = "", uid: int | None = None, name: str = "", bare: bool = False) -> str:
        """What `words` print. `uid`: run as that user, where we are root and here. `name`: the program of Slurm's that is meant.
        `bare`: they are given PATH and what leads to the cluster, and nothing else of an environment.

        Unreachable: the login host or slurmctld does not answer. Refused: there is no Slurm, munge is down, or Slurm says no.
        """
        code, out, err = await self.run(*words, input=input, uid=uid, bare=bare)
        if code != 0:
            raise self._explain(name or words[0], code, err or out)
        return out

    async def run(self, *words: str, input: str = "", uid: int | None = None, bare: bool = False) -> tuple[int, str, str]:
        """(exit code, stdout, stderr). EdgeFailed when it does not end within ANSWER_S: whether it was done is not known then."""
        code, out, err = await self._run(words, input, uid, bare)
        return code, out.decode(errors="replace"), err.decode(errors="replace")

    async def read(self, *words: str, uid: int | None = None) -> bytes:
        """What `words` print, as it is. Unreachable where they fail."""
        code, out, err = await self._run(words, "", uid, False)
        if code != 0:
            raise Unreachable(f"{words[-1]} can't be read: {err.decode(errors='replace').strip()}")
        return out

    async def _run(self, words: Sequence[str], input: str, uid: int | None, bare: bool) -> tuple[int, bytes, bytes]:
        if self._ssh:
            argv, env = self._on_login_host(words, bare), self._env
        else:
            argv = [*_become(uid), *words] if uid is not None and os.geteuid() == 0 else list(words)
            env = {"PATH": self._env.get("PATH", os.defpath), **self._carried} if bare else self._env
        # a file and not a pipe: a command that ends early leaves nobody writing
        stdin = os.memfd_create("input", os.MFD_CLOEXEC)
        try:
            os.write(stdin, input.encode())
            os.lseek(stdin, 0, os.SEEK_SET)
            # shares our memory until it is the other program, since no other user is asked for. The event loop's own way forks,
            # and copies the tables of all that the server holds: 3 ms
            process = subprocess.Popen(
                argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd="/", start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            return _NOT_FOUND, b"", f"{argv[0]}: command not found".encode()
        finally:
            os.close(stdin)
        ended = False
        try:
            async with asyncio.timeout(ANSWER_S):
                out, err = await asyncio.get_running_loop().run_in_executor(self._threads, process.communicate)
            ended = True
        except TimeoutError:
            raise EdgeFailed(f"{words[0]} did not answer for {ANSWER_S:.0f} s", code="slurm-silent") from None
        finally:
            if not ended:
                # and whatever it began: the thread waits for all who may still write, and for its end
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, out, err

    def _on_login_host(self, words: Sequence[str], bare: bool) -> list[str]:
        told = [*(f"{name}={value}" for name, value in self._carried.items()), *words]
        if bare:
            told = ["sh", "-c", _BARE, "sh", *told]
        elif self._carried:
            told = ["env", *told]
        return ["ssh", *self._ssh_words, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", self._ssh, shlex.join(told)]

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
        if "Zero Bytes were" in text or "Protocol authentication error" in text:
            return Unreachable(
                f"slurmctld hangs up ({said}): most often munge's key on {where} is not the cluster's, or their "
                "clocks differ by minutes. Jobs that run go on."
            )
        if any(words in text for words in _SILENT):
            return Unreachable(f"slurmctld does not answer ({said}). Jobs that run go on; ask again when it is back.")
        return Refused(f"Slurm says: {said}", code="slurm-refused")


def _become(uid: int) -> list[str]:
    """What stands in front of a command that is that user's, with its groups where the machine knows it."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    groups = ",".join(map(str, os.getgrouplist(entry.pw_name, entry.pw_gid)))
    return ["setpriv", f"--reuid={uid}", f"--regid={entry.pw_gid}", f"--groups={groups}"]
