"""Which commands carry out a step on its host? Pure text for a root shell; each may run twice, or end anywhere, without harm.

Files are written beside their place, synced and renamed, so a connection that is lost leaves the old or the new one. A program
is started last, and what it was started with is noted only then, so the next plan starts it again where that did not happen.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.engine.bringup.seen import KEY, PID_FILES, STARTED, UNITS
from steelyard.engine.bringup.slurm_conf import LOGS, SPOOL, STATE
from steelyard.model.cluster import Step, StepKind

_HEAD = """set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"
cd /
put() { # TEMPORARY PLACE
    sync "$1"
    mv "$1" "$2"
    sync "$(dirname "$2")"
}
has_systemd() { [ -d /run/systemd/system ]; }
end() { # PROGRAM PID-FILE
    pid=$(cat "$2" 2>/dev/null) || return 0
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] || return 0
    kill "$pid"
    tries=0
    while [ -e "/proc/$pid" ] && [ $tries -lt 600 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    [ ! -e "/proc/$pid" ] || { echo "$1 does not end" >&2; exit 1; }
}
"""
#: a line of its own that no file of ours holds
_END = "STEELYARD-END-OF-FILE"

_BEFORE = {
    "munged": "install -d -o munge -g munge -m 755 /run/munge",
    "slurmctld": f"install -d -o slurm -g slurm -m 755 {STATE} {LOGS}",
    "slurmd": f"install -d -o slurm -g slurm -m 755 {LOGS}; install -d -m 755 {SPOOL}",
}
_COMMANDS = {
    "munged": "setpriv --reuid=munge --regid=munge --clear-groups -- munged",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
}
_LOG = {"munged": "/var/log/munge/munged.log", "slurmctld": f"{LOGS}/slurmctld.log", "slurmd": f"{LOGS}/slurmd.log"}

#: prints munge's key, made if there is none, as base64
SHOW_KEY = f"""{_HEAD}
if [ ! -e {KEY} ]; then
    umask 077
    head -c 1024 /dev/urandom >{KEY}.new
    chown munge:munge {KEY}.new
    put {KEY}.new {KEY}
fi
base64 -w 0 {KEY}
"""


def render_script(steps: Sequence[Step], key: str) -> str:
    """All steps of one host in their order. `key`: munge's key as base64."""
    return _HEAD + "\n".join(f"# {step.kind} {step.subject}\n{_render(step, key)}" for step in steps) + "\ntrue\n"


def _render(step: Step, key: str) -> str:
    match step.kind:
        case StepKind.INSTALL:
            return (
                f"apt-get update -qq >/dev/null 2>&1 || true\n"
                f"apt-get install -y -qq --no-install-recommends {step.subject} </dev/null >/dev/null"
            )
        case StepKind.KEY:
            return _render_key(key)
        case StepKind.WRITE:
            return _render_file(step.subject, step.content)
        case StepKind.REMOVE:
            return f"rm -f {step.subject}"
        case StepKind.START | StepKind.RESTART:
            return _render_start(step)
        case StepKind.STOP:
            return (
                f"if has_systemd; then systemctl disable --now {UNITS[step.subject]}; "
                f"else end {step.subject} {PID_FILES[step.subject]}; fi\nrm -f {STARTED}/{step.subject}"
            )


def _render_key(key: str) -> str:
    """The key that was there is kept beside it, once: something else may have used it."""
    return f"""[ ! -e {KEY} ] || [ -e {KEY}.before ] || cp -p {KEY} {KEY}.before
(umask 077; base64 -d >{KEY}.new <<'{_END}'
{key}
{_END}
)
chown munge:munge {KEY}.new
put {KEY}.new {KEY}"""


def _render_file(path: str, content: str) -> str:
    assert content.endswith("\n") and _END not in content
    mode = 755 if path.endswith(".sh") else 644
    return f"""mkdir -p {path.rpartition("/")[0]}
cat >{path}.new <<'{_END}'
{content}{_END}
chmod {mode} {path}.new
put {path}.new {path}"""


def _render_start(step: Step) -> str:
    program, unit = step.subject, UNITS[step.subject]
    digest = f"$(sha256sum {KEY} | cut -d' ' -f1)" if program == "munged" else step.content
    return f"""{_BEFORE[program]}
if has_systemd; then
    systemctl enable -q {unit}
    systemctl restart {unit}
else
    end {program} {PID_FILES[program]}
    {_COMMANDS[program]} </dev/null >/dev/null 2>&1 || {{ tail -n 3 {_LOG[program]} >&2; exit 1; }}
fi
mkdir -p {STARTED}
printf '%s\\n' "{digest}" >{STARTED}/{program}"""


def make_waiting(nodes: Sequence[str], wait_s: int) -> str:
    """Prints `NODE STATE` of each node once all take work, or after that time; no root is needed."""
    return f"""export LC_ALL=C
left={wait_s * 5}
while [ $left -gt 0 ]; do
    seen=$(sinfo -h -N -n {",".join(nodes)} -o '%N %t %E' 2>&1) && [ -n "$seen" ] &&
        [ -z "$(printf '%s\\n' "$seen" | awk '$2 !~ /^(idle|mix|alloc|comp|drain|drng)$/')" ] && break
    left=$((left - 1))
    sleep 0.2
done
printf '%s\\n' "$seen"
"""
