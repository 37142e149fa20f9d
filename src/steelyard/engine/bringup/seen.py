"""What does a machine answer when it is asked what it is? A script for its shell, and what its answer means. Pure.

The script needs only what every Debian has (sh, find, awk), changes nothing, and sends the files of /proc and /sys as one ttar
archive: read there, understood here by the readers that read this machine. So nothing of ours is installed to look at a machine.
"""

from __future__ import annotations

import re

import msgspec

from steelyard.engine.bringup.slurm_conf import EPILOG, FOLDER, HEALTH, PROLOG
from steelyard.model.cluster import SeenHost

#: what a controller and a node need, Debian's and Ubuntu's names
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
#: files of ours, whether they are wanted or not
PATHS = (
    f"{FOLDER}/slurm.conf",
    f"{FOLDER}/gres.conf",
    f"{FOLDER}/topology.conf",
    f"{FOLDER}/cgroup.conf",
    PROLOG,
    EPILOG,
    HEALTH,
)
KEY = "/etc/munge/munge.key"
PID_FILES = {"munged": "/run/munge/munged.pid", "slurmctld": "/run/slurmctld.pid", "slurmd": "/run/slurmd.pid"}
UNITS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd"}
#: what each program was last started with by us; gone with a restart of the machine
STARTED = "/run/steelyard-cluster"
_MARK = "=== steelyard "

_HEAD = f"""
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
section() {{ printf '\\n{_MARK}%s\\n' "$1"; }}
asroot() {{ if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }}
"""

_TREE = r"""
section tree
{
find /sys/bus/pci/devices /sys/class/infiniband /sys/class/net /sys/class/nvme /sys/class/block /sys/class/kfd \
    -mindepth 1 -maxdepth 1 -type l -printf 'Path: %p\nSymlinkTo: %l\n'
find /sys/class/net/*/ /sys/class/infiniband/*/ -mindepth 1 -maxdepth 1 -name device -type l -printf 'Path: %p\nSymlinkTo: %l\n'
{
printf '%s\n' /proc/cpuinfo /proc/meminfo /proc/mounts /proc/version
find /sys/devices/system/cpu /sys/devices/system/node /sys/devices/pci* /sys/devices/platform /sys/devices/virtual/kfd \
    -type f \( -name online -o -name '*_list' -o -name thread_siblings -o -name physical_package_id -o -name level -o -name type \
    -o -name size -o -name shared_cpu_map -o -name cpulist -o -name cpumap -o -name distance -o -name meminfo -o -name class \
    -o -name vendor -o -name device -o -name numa_node -o -name local_cpulist -o -name local_cpus -o -name '*_link_speed' \
    -o -name '*_link_width' -o -name speed -o -name operstate -o -name rate -o -name state -o -name link_layer \
    -o -name properties -o -name mem_info_vram_total -o -name numa_status \) \
    ! -path '*/power/*' ! -path '*/cpuidle/*' ! -path '*/thermal*'
find /proc/driver/nvidia/gpus -name information -o -name numa_status
} | awk '{
    file = $0; count = 0; text = ""
    while ((getline line < file) > 0) { text = text line "\n"; count++ }
    close(file)
    printf "Path: %s\nLines: %d\n%s", file, count, text
}'
} 2>/dev/null
"""


def make_script(steelyard: str) -> str:
    """`steelyard`: where it should be on that host."""
    files = "\n".join(f"[ -e {path} ] && {{ section file:{path}; cat {path}; }}" for path in PATHS)
    alive = "\n".join(
        f'pid=$(cat {file} 2>/dev/null); [ "$(cat /proc/$pid/comm 2>/dev/null)" = {name} ] && echo {name}'
        for name, file in PID_FILES.items()
    )
    units = "\n".join(f"systemctl is-active --quiet {unit} 2>/dev/null && echo {name}" for name, unit in UNITS.items())
    return f"""{_HEAD}
section clock; date +%s.%N
section uid; id -u
section root; asroot true 2>&1 && echo yes
section release; cat /etc/os-release
section systemd; [ -d /run/systemd/system ] && echo yes
section name; hostname -s
section address; getent ahosts "$(hostname -s)" | awk 'NR == 1 {{ print $1 }}'
section installed; dpkg-query -W -f '${{Package}} ${{Version}} ${{db:Status-Status}}\\n' {" ".join(PACKAGES)} 2>/dev/null
section candidate; apt-cache policy slurmd 2>/dev/null | awk '/Candidate:/ {{ print $2 }}'
section key; asroot sha256sum {KEY} 2>/dev/null
section running; if [ -d /run/systemd/system ]; then
{units}
else
{alive}
fi
section started; for file in {STARTED}/*; do [ -e "$file" ] && echo "${{file##*/}} $(cat "$file")"; done
{files}
section steelyard; for each in "$(command -v steelyard)" {_quote(steelyard)}; do
    [ -n "$each" ] && "$each" --version >/dev/null 2>&1 && {{ echo "$each"; break; }}
done
section gpus; for file in /proc/driver/nvidia/gpus/*/information; do
    [ -e "$file" ] && awk -v at="$(basename "$(dirname "$file")")" '/Device Minor/ {{ print "/dev/nvidia" $NF, at }}' "$file"
done
for each in /sys/class/drm/renderD*; do
    [ -e "$each" ] && echo "/dev/dri/${{each##*/}} $(basename "$(readlink -f "$each/device")")"
done
section nvidia; command -v nvidia-smi >/dev/null && timeout 30 nvidia-smi -q -x
section matrix; command -v nvidia-smi >/dev/null && timeout 30 nvidia-smi topo -m
{_TREE}
section end
true
"""


class Answer(msgspec.Struct, frozen=True):
    """The answer in parts: facts, and texts for the readers of topology."""

    seen: SeenHost
    #: the ttar archive, nvidia-smi's XML and matrix; "" for what there is none of
    tree: str
    nvidia: str
    matrix: str


def read_answer(text: str, name: str, address: str, asked_at_s: float, answered_at_s: float) -> Answer | str:
    """What it says, or in one sentence why it is no answer. The times are ours, before and after."""
    parts = _split(text)
    if "end" not in parts:
        return "its answer was cut off"
    clock = _number(parts.get("clock", ""))
    if clock is None:
        return "it does not tell the time (date +%s)"
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', parts.get("release", ""), re.MULTILINE))
    installed = {
        words[0]: words[1] for line in parts.get("installed", "").splitlines() if (words := line.split())[2:] == ["installed"]
    }
    cgroups, controllers = _cgroups(parts.get("tree", ""))
    nvidia = parts.get("nvidia", "")
    seen = SeenHost(
        name=name,
        hostname=parts.get("name", "").strip(),
        address=address,
        uid=int(_number(parts.get("uid", "")) or 0),
        root="yes" in parts.get("root", "").split(),
        distribution=f"{release.get('ID', 'unknown')} {release.get('VERSION_ID', '')}".strip(),
        # the answer to `date` came between the two; who is nearer than that is on time
        clock_ahead_s=round(max(0.0, clock - answered_at_s) - max(0.0, asked_at_s - clock), 3),
        systemd="yes" in parts.get("systemd", ""),
        missing=tuple(package for package in PACKAGES if package not in installed),
        slurm=_version(installed.get("slurmd") or parts.get("candidate", "").strip()),
        files={part.removeprefix("file:"): content for part, content in parts.items() if part.startswith("file:")},
        key=_first(parts.get("key", "")),
        running=frozenset(parts.get("running", "").split()) & PID_FILES.keys(),
        started=dict(line.split(" ", 1) for line in parts.get("started", "").splitlines() if " " in line),
        name_is_public=_is_public(_first(parts.get("address", ""))),
        cgroups=cgroups,
        controllers=controllers,
        gpu_files=_gpu_files(parts.get("gpus", "")),
        domain=_domain(nvidia),
        steelyard=_first(parts.get("steelyard", "")),
    )
    return Answer(seen, parts.get("tree", ""), nvidia if "<nvidia_smi_log>" in nvidia else "", parts.get("matrix", "").strip())


def _split(text: str) -> dict[str, str]:
    """Name of a section -> its text, byte for byte but for the mark's own line break. The first of a name counts."""
    pieces = re.split(rf"(?:\A|\n){_MARK}([^\n]*)\n", text)
    found: dict[str, str] = {}
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        found.setdefault(name, content)
    return found


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _first(text: str) -> str:
    words = text.split()
    return words[0] if words else ""


def _number(text: str) -> float | None:
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)N?\s*", text)
    return float(match[1]) if match else None


def _version(text: str) -> tuple[int, int]:
    """`22.05.8-4+deb12u3` -> (22, 5); (0, 0) for what is no version."""
    match = re.match(r"(?:\d+:)?(\d{2})\.(\d{2})\b", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _is_public(address: str) -> bool:
    return bool(address) and not address.startswith("127.") and address != "::1"


def _gpu_files(text: str) -> dict[str, str]:
    """PCI address -> file. AMD's render node; NVIDIA's own file, not the render node that it has too."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", words[1].lower()):
            found.setdefault(words[1].lower()[-12:], words[0])
    return found


def _cgroups(tree: str) -> tuple[str, frozenset[str]]:
    """By what is mounted: "v2" where that is all, "v1" where the old ones are, too."""
    mounts = re.search(r"^Path: /proc/mounts\nLines: \d+\n((?:(?!Path: ).*\n)*)", tree, re.MULTILINE)
    lines = [line.split() for line in (mounts[1] if mounts else "").splitlines()]
    old = {option for line in lines if len(line) > 3 and line[2] == "cgroup" for option in line[3].split(",")}
    if old:
        return "v1", frozenset(old & {"cpuset", "memory", "devices", "freezer", "cpu", "cpuacct"})
    return ("v2", frozenset()) if any(len(line) > 3 and line[2] == "cgroup2" for line in lines) else ("none", frozenset())


def _domain(nvidia: str) -> str:
    """The NVLink domain that the driver names (machines with an NVLink switch system)."""
    cluster = re.search(r"<cluster_uuid>\s*([0-9a-fA-F-]{36})\s*</cluster_uuid>", nvidia)
    clique = re.search(r"<clique_id>\s*(\d{1,10})\s*</clique_id>", nvidia)
    if cluster is None or not cluster[1].strip("0-"):
        return ""
    return cluster[1].lower() + (f".{clique[1]}" if clique else "")
