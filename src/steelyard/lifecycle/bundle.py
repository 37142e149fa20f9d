"""What is a container told to be? Pure: what was granted in, the OCI runtime configuration (config.json) out.

Follows https://github.com/opencontainers/runtime-spec (1.0.2). Cores, memory and the number of processes are held by the control
group that the container's processes are born in, so nothing of it stands here. Never: a capability (but for what
makes an image), a hook, a device that was not granted, a variable of the image in a process of root's.
"""

from __future__ import annotations

import msgspec

from steelyard.lifecycle.seccomp import make_seccomp
from steelyard.model.job import Terminal
from steelyard.model.mount import Bind, DeviceNode

#: (first id inside, first on the machine, how many)
IdMap = tuple[tuple[int, int, int], ...]
#: what a container has of its own in any case
NAMESPACES = ("cgroup", "ipc", "mount", "pid", "user", "uts")
NETWORK = "network"
#: of /proc and /sys, what tells of others or of the machine's secrets (as Docker and Podman mask them)
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
    "/sys/fs/cgroup", "/sys/kernel",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Container(msgspec.Struct, frozen=True):
    """Everything that was decided about one container."""

    #: the folder that becomes /
    root: str
    #: the machine's /sys without what is mounted below it
    sys: str
    #: the folder in which its device files were made, by their place in `devices`
    nodes: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    uids: IdMap
    gids: IdMap
    hostname: str
    #: what `uname -m` says
    machine: str
    #: a network of its own with nothing but loopback, instead of the machine's
    own_network: bool = False
    binds: tuple[Bind, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    terminal: Terminal | None = None
    #: of its own user namespace
    capabilities: tuple[str, ...] = ()


def namespaces(*, own_network: bool) -> tuple[str, ...]:
    return (*NAMESPACES, *((NETWORK,) if own_network else ()))


def make_bundle(container: Container) -> dict[str, object]:
    """The content of config.json."""
    env = [f"{name}={value}" for name, value in sorted(container.env.items())]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": container.uid, "gid": container.gid, "additionalGids": list(container.groups)},
            "args": list(container.argv),
            "cwd": container.cwd or "/",
            "capabilities": {
                kind: [] if kind in ("inheritable", "ambient") else list(container.capabilities)
                for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
            },
            "noNewPrivileges": True,
            **make_terminal(env, container.terminal),
        },
        "root": {"path": container.root, "readonly": False},
        "hostname": container.hostname,
        "mounts": [*_mounts(container), *_devices(container), *(_bind(each) for each in container.binds)],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces(own_network=container.own_network)],
            "uidMappings": [_id_map(line) for line in container.uids],
            "gidMappings": [_id_map(line) for line in container.gids],
            # no port of a network of its own is anybody else's
            **({"sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"}} if container.own_network else {}),
            "seccomp": make_seccomp(container.machine),
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
        },
    }


def make_terminal(env: list[str], terminal: Terminal | None) -> dict[str, object]:
    """What of a process depends on whether it gets one; `env`: its variables otherwise."""
    if terminal is None:
        return {"terminal": False, "env": env}
    kept = [line for line in env if not line.startswith("TERM=")]
    return {
        "terminal": True,
        "consoleSize": {"height": terminal.rows, "width": terminal.columns},
        "env": [*kept, f"TERM={terminal.kind}"],
    }


def _mounts(container: Container) -> list[dict[str, object]]:
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        # no size: it counts as the workload's memory, whose limit is the control group's
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "none", container.sys, "bind", "nosuid", "noexec", "nodev", "ro"),
    ]


def _devices(container: Container) -> list[dict[str, object]]:
    """Bound: in a user namespace nobody may make one. Read-only keeps the file as it is; what is behind it can be written."""
    return [
        _mount(each.path, "bind", f"{container.nodes}/{at}", "bind", "nosuid", "noexec", "ro")
        for at, each in enumerate(container.devices)
    ]


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, object]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _bind(each: Bind) -> dict[str, object]:
    return _mount(each.target, "bind", each.source, "rbind", "nosuid", "nodev", "ro" if each.read_only else "rw")


def _id_map(line: tuple[int, int, int]) -> dict[str, int]:
    inside, outside, count = line
    return {"containerID": inside, "hostID": outside, "size": count}
