"""`steelyard node prolog|epilog|health`: what Slurm's daemons call on a machine that `steelyard cluster up` brought up.

Not for people, so `--help` does not list them. Jobs do not wait for this: the scripts that Slurm starts call `prolog` only after
the health program has found something CRITICAL, and `epilog` only when the job had GPUs. A failing prolog has Slurm drain the
machine and queue the job again; a failing epilog has it drain the machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steelyard.errors import EdgeFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steelyard.model.health import Health

#: how long what a job left on a GPU may take to go
RELEASE_S = 15.0


@click.group(hidden=True, help="What Slurm's daemons call on a machine.")
def node() -> None: ...


@node.command(hidden=True, help="Refuse a job while this machine has something CRITICAL.")
def prolog() -> None:
    from steelyard.engine.bringup.slurm_conf import VERDICT

    try:
        reason = Path(VERDICT).read_text().strip()
    except FileNotFoundError:
        return
    click.echo(f"steelyard: no job starts here: {reason}", err=True)
    sys.exit(1)


@node.command(hidden=True, help="Refuse to give GPUs back that somebody still holds.")
def epilog() -> None:
    from steelyard.engine.bringup.slurm_conf import FOLDER
    from steelyard.host.sysfs import read_text

    uid = os.environ.get("SLURM_JOB_UID", "")
    files = find_gpu_files(read_text(f"{FOLDER}/gres.conf") or "", _node_name(), os.environ.get("SLURM_JOB_GPUS", ""))
    if uid.isdigit() and (held := wait_released(files, int(uid), RELEASE_S)):
        click.echo(f"steelyard: job {os.environ.get('SLURM_JOB_ID', '')} is over, and {held}", err=True)
        sys.exit(1)


@node.command(hidden=True, help="Look at this machine; drain it when something is CRITICAL.")
def health() -> None:
    from steelyard.config import write_file
    from steelyard.engine.bringup.slurm_conf import FORGIVEN, VERDICT
    from steelyard.host.health.ask import ask
    from steelyard.host.health.observe import observe_health
    from steelyard.host.sysfs import read_text
    from steelyard.lifecycle.health import judge_health

    reason = find_reason(judge_health(observe_health()))
    file = Path(VERDICT)
    if not reason or reason == read_text(FORGIVEN):
        file.unlink(missing_ok=True)
        return
    # told once; the prolog refuses jobs as long as it stands
    if read_text(file) == reason:
        return
    file.parent.mkdir(mode=0o755, exist_ok=True)
    write_file(file, reason.encode(), 0o644)
    told = ask(["scontrol", "update", f"NodeName={_node_name()}", "State=DRAIN", f"Reason=steelyard: {reason}"])
    if told.error or told.missing:
        file.unlink()
        raise EdgeFailed(f"This machine could not be drained: {told.error or 'there is no scontrol'}", code="not-drained")


def find_reason(health: Health) -> str:
    """What is CRITICAL, in one line for `sinfo -R`; "" for nothing. Slurm can't leave out a single GPU, so all of it counts."""
    critical = [finding for finding in health.findings if finding.blocking]
    more = f" (and {len(critical) - 1} more)" if len(critical) > 1 else ""
    return f"{critical[0].check}: {critical[0].sentence}{more}".replace("\n", " ")[:300] if critical else ""


def find_gpu_files(gres_conf: str, name: str, job_gpus: str) -> tuple[str, ...]:
    """The device files of a job's GPUs. `job_gpus`: as SLURM_JOB_GPUS has it, by the number in the file's name."""
    wanted = {int(number) for number in job_gpus.split(",") if number.isdigit()}
    files = re.findall(rf"^NodeName={re.escape(name)} Name=gpu .*?File=(\S+)", gres_conf, re.MULTILINE)
    return tuple(file for file in files if (match := re.search(r"(\d+)$", file)) and int(match[1]) in wanted)


def wait_released(files: Sequence[str], uid: int, wait_s: float) -> str:
    """Which processes of that user still hold these device files after that time, as the end of a sentence; "" for none. Daemons
    of the machine may hold a GPU for ever."""
    held = _find_holders(files, uid)
    if held:
        _wait_ended(list(held), wait_s)
        held = _find_holders(files, uid)
    names = ", ".join(f"{command} (pid {pid})" for pid, command in sorted(held.items())[:5])
    return f"{names} still holds one of {', '.join(files)}." if held else ""


def _find_holders(files: Sequence[str], uid: int) -> dict[int, str]:
    from steelyard.host.device_users import observe_users

    users = observe_users({file: (file,) for file in files}).holders if files else {}
    return {holder.pid: holder.command for of in users.values() for holder in of if _uid_of(holder.pid) == uid}


def _uid_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _wait_ended(pids: Sequence[int], wait_s: float) -> None:
    """Until all have ended, or that long."""
    from steelyard.clock import SystemClock

    clock = SystemClock()
    until_ns = clock.mono_ns() + int(wait_s * 1e9)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                select.select([fd], [], [], max(0.0, (until_ns - clock.mono_ns()) / 1e9))
            finally:
                os.close(fd)


def _node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
