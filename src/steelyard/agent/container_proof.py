"""What is asked of a container, and what does the kernel say of the processes in it? For jobs and for functions' replicas."""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.host.device_nodes import observe_inside
from steelyard.host.proc import observe_root, observe_walls
from steelyard.host.timing import observe_memory_lock
from steelyard.lifecycle.bundle import namespaces
from steelyard.runtime.container import Made

#: kinds of namespaces, as /proc/<pid>/ns names them
_NAMES = {"mount": "mnt", "network": "net"}
OVERLAY = "overlay"


def asked_walls(made: Made) -> dict[str, object]:
    capabilities = {} if made.makes else {"capabilities": "none"}
    kinds = sorted(_NAMES.get(kind, kind) for kind in namespaces(own_network=made.own_network))
    told = {} if made.devices is None else {"device_files": list(made.devices)}
    locks = {"memory_lock_limit": "unlimited"} if made.lock_memory else {}
    walls = {"namespaces": kinds, "seccomp": "filter", "root": OVERLAY, **capabilities}
    return {"uid": made.uid, "image": made.image, **walls, **told, **locks}


def got_walls(made: Made, pids: Sequence[int]) -> dict[str, object]:
    told = {} if made.devices is None else {"device_files": observe_inside(pids)}
    locks = {"memory_lock_limit": observe_memory_lock(pids)} if made.lock_memory else {}
    return {"image": made.image, "root": observe_root(pids), **observe_walls(pids), **told, **locks}


def explain_container(made: Made) -> tuple[str, ...]:
    return f"runs in a container of {made.reference}, started by crun", *made.notes
