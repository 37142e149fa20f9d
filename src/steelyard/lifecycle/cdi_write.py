"""What would a CDI specification of this machine's GPUs say? Pure: topology and what the machine shows in, one file out.

For container runtimes beside ours, which needs none: what we bring into containers without a specification is what it says.
Devices are named as NVIDIA's toolkit names them: by number, by UUID, and `all`. No hook stands in it: libraries are mounted under
all the names that they have on the machine, in the folder where they are there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

import msgspec

from steelyard.lifecycle.device_edits import MAKERS, PROGRAMS, SHARED
from steelyard.model.cdi import CdiDevice, CdiEdits, CdiFacts, CdiMount, CdiNode, Number, OwnNode, Specification
from steelyard.model.topology import Gpu, Topology

#: the oldest that has all that is said here
VERSION = "0.5.0"
ALL = "all"
#: of the toolkit's own runtime, which then stays out of it
_OWN_HOOK = "NVIDIA_VISIBLE_DEVICES=void"


def make_specification(maker: str, topology: Topology | None, facts: CdiFacts) -> Specification | str:
    """Of all GPUs of one maker (a key of `MAKERS`). A str says why there can be none."""
    gpus = [gpu for gpu in (topology or Topology()).gpus if gpu.vendor == maker and "/" not in gpu.id]
    if not gpus:
        return f"This machine shows no GPU of {maker}"
    devices: list[CdiDevice] = []
    for at, gpu in enumerate(gpus):
        own = [
            node for node in facts.own_nodes.get(gpu.pci or "", ()) if maker != "NVIDIA" or node.path.startswith("/dev/nvidia")
        ]
        whole = [node for node in own if node.part is None]
        if not whole:
            return f"{gpu.id}: its driver shows no device file of it. Load the driver, and look at: steelyard check"
        number = gpu.index if gpu.index is not None else at
        devices += _name((str(number), gpu.uuid), whole)
        devices += _parts(gpu, number, whole, own)
    every = {node.path: node for device in devices for node in device.container_edits.device_nodes or ()}
    devices.append(CdiDevice(ALL, container_edits=CdiEdits(device_nodes=tuple(every.values()))))
    shared = [_node(name, facts.shared_nodes[name]) for name in SHARED.get(maker, ()) if name in facts.shared_nodes]
    edits = CdiEdits(device_nodes=tuple(shared) or None)
    if maker == "NVIDIA":
        if facts.driver is None:
            return "The libraries of NVIDIA's driver (libcuda.so, libnvidia-ml.so) were not found. Install it, and try again"
        edits = CdiEdits(env=(_OWN_HOOK,), device_nodes=tuple(shared) or None, mounts=tuple(_mounts(facts)))
    return Specification(VERSION, f"{MAKERS[maker]}/gpu", tuple(devices), container_edits=edits)


def render_specification(made: Specification) -> str:
    """As it stands in a file."""
    return msgspec.json.format(msgspec.json.encode(made), indent=2).decode()


def _parts(gpu: Gpu, number: int, whole: Sequence[OwnNode], own: Sequence[OwnNode]) -> list[CdiDevice]:
    """What MIG cut: named `0:1`, by GPU and instance, and by UUID."""
    found: list[CdiDevice] = []
    for at, part in enumerate(gpu.mig_instances):
        keys = ((part.gpu_instance, None), (part.gpu_instance, part.compute_instance))
        nodes = [node for node in own if node.part in keys]
        if nodes:
            found += _name((f"{number}:{at}", part.uuid), [*whole, *nodes])
    return found


def _name(names: Iterable[str | None], nodes: Sequence[OwnNode]) -> list[CdiDevice]:
    edits = CdiEdits(device_nodes=tuple(_node(node.path, node.number) for node in nodes))
    return [CdiDevice(name, container_edits=edits) for name in names if name]


def _node(path: str, number: Number) -> CdiNode:
    return CdiNode(path, type="c", major=number[0], minor=number[1])


def _mounts(facts: CdiFacts) -> Iterable[CdiMount]:
    driver = facts.driver
    assert driver is not None
    for library in driver.libraries:
        for name in (posixpath.basename(library), *facts.aliases.get(library, ())):
            yield _mount(library, posixpath.join(posixpath.dirname(library), name))
    for program in driver.programs:
        yield _mount(program, posixpath.join(PROGRAMS, posixpath.basename(program)))
    if driver.persistenced:
        yield _mount(driver.persistenced, driver.persistenced, "noexec")


def _mount(source: str, target: str, *more: str) -> CdiMount:
    return CdiMount(source, target, options=("ro", "nosuid", "nodev", "rbind", "rprivate", *more))
