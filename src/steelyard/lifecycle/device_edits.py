"""What does a container get for the devices that its work was given? Pure: a plan, the machine's topology and what the machine
shows of device files, drivers and CDI specifications in, the edits of its bundle out, or the sentence why not.

1. A GPU that a CDI specification describes comes as that says. The device of the specification is found by the GPU's UUID, or by
   the device file that this GPU alone has; never by its number, which is each driver's own affair.
2. Where no specification speaks of this maker's GPUs, what the driver installed is brought in: device files, libraries, programs.
3. RDMA cards bring their `/dev/infiniband` files and the right to lock memory.
4. Whatever a specification says, a device file that belongs to a device which was not given is never inside: such a specification
   is out of date, and is refused.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import msgspec

from steelyard.lifecycle.cdi import Found, resolve
from steelyard.lifecycle.cdi_hooks import find_libraries, read_hooks
from steelyard.model.cdi import CdiEdits, CdiFacts, CdiNode, DeviceEdits, Number, OwnNode
from steelyard.model.image import IDS_MAX
from steelyard.model.job import Plan
from steelyard.model.mount import Bind, DeviceNode
from steelyard.model.topology import Gpu, MigInstance, Topology

MAKERS = {"NVIDIA": "nvidia.com", "AMD": "amd.com", "Intel": "intel.com"}
#: beside the GPU's own, in its maker's driver
SHARED = {"NVIDIA": ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"), "AMD": ("/dev/kfd",)}
RDMA_SHARED = ("/dev/infiniband/rdma_cm",)
UNVERIFIED = "NOT VERIFIED on real devices"
PROGRAMS = "/usr/bin"
ANEW = "Make it anew (nvidia-ctk cdi generate), or remove it"


class _Given(msgspec.Struct, frozen=True):
    """A GPU, or the part of it that MIG cut."""

    gpu: Gpu
    part: MigInstance | None = None

    @property
    def name(self) -> str:
        return (self.part.uuid if self.part is not None else None) or self.gpu.id


def grant_devices(plan: Plan, topology: Topology | None, facts: CdiFacts) -> DeviceEdits | str:
    """A str says why the work can't have its devices in a container, and what to do."""
    topology = topology or Topology()
    by_id = {gpu.id: gpu for gpu in topology.gpus}
    unknown = [each for each in plan.gpus if each not in by_id]
    if unknown:
        return f"{', '.join(unknown)}: this machine does not say which device files it has"
    given = _list_given(plan, [by_id[each] for each in dict.fromkeys(plan.gpus)])
    allowed = {node.number for each in given for node in _own(each, facts)}
    edits = DeviceEdits()
    for maker in dict.fromkeys(each.gpu.vendor for each in given):
        mine = [each for each in given if each.gpu.vendor == maker]
        found = _describe(mine, maker, facts)
        if isinstance(found, str):
            return found
        more = _from_files(found, facts) if found else _from_driver(mine, maker, plan, topology, facts)
        if isinstance(more, str):
            return more
        edits = _join(edits, more)
    edits = _join(edits, _cards(plan, topology, facts))
    allowed |= {node.number for nic in plan.nics for node in facts.own_nodes.get(_pci(nic, topology), ())}
    others = {own.number: own.path for nodes in facts.own_nodes.values() for own in nodes if own.number not in allowed}
    for node in edits.nodes:
        if (node.major, node.minor) in others:
            whose = others[node.major, node.minor]
            where = ", ".join(edits.sources)
            return f"{where} would bring in {node.path}, which is {whose}, of a device that this work was not given. {ANEW}"
    return msgspec.structs.replace(
        edits,
        binds=tuple(msgspec.structs.replace(each, source=facts.root + each.source) for each in edits.binds),
        libraries={name: facts.root + library for name, library in edits.libraries.items()},
    )


def _list_given(plan: Plan, gpus: Sequence[Gpu]) -> list[_Given]:
    given: list[_Given] = []
    for gpu in gpus:
        parts = [part for part in gpu.mig_instances if part.uuid is not None and part.uuid in plan.mig_instances]
        given += [_Given(gpu, part) for part in parts] or [_Given(gpu)]
    return given


def _own(given: _Given, facts: CdiFacts) -> list[OwnNode]:
    """The device files that come with it. A part needs those of the whole, its instance's and its own."""
    if "/" in given.gpu.id:
        return []  # a further partition of one card: which of its device files is whose, nobody says
    nodes = facts.own_nodes.get(given.gpu.pci or "", ())
    if given.part is None:
        return [node for node in nodes if node.part is None]
    parts = (None, (given.part.gpu_instance, None), (given.part.gpu_instance, given.part.compute_instance))
    return [node for node in nodes if node.part in parts]


# -- by specification


def _describe(given: Sequence[_Given], maker: str, facts: CdiFacts) -> list[Found] | str:
    """The devices of specifications that are meant. Empty: none speaks of this maker's GPUs."""
    kind = f"{MAKERS.get(maker, maker)}/gpu"
    devices, conflicts = resolve(facts.files)
    problems = [f"{each.path}: {each.text}" for each in (*facts.problems, *conflicts)]
    speaking = [file.path for file in facts.files if file.specification.kind == kind]
    if not speaking:
        # one that can't be read may be the one that would have spoken
        return f"A CDI specification can't be used: {'; '.join(problems)}. Mend or remove it" if problems else []
    found: list[Found] = []
    for each in given:
        matching = [device for device in devices if device.file.specification.kind == kind and _is_meant(device, each, facts)]
        if not matching:
            why = f" ({'; '.join(problems)})" if problems else ""
            return f"{each.name} is described by no CDI specification, though {', '.join(speaking)} describes GPUs{why}. {ANEW}"
        uuid = each.part.uuid if each.part is not None else each.gpu.uuid
        found.append(min(matching, key=lambda device: (device.device.name != uuid, device.device.name)))
    return found


def _is_meant(found: Found, given: _Given, facts: CdiFacts) -> bool:
    """By UUID; else it has the device files of this one, and of no other device."""
    if found.device.name == (given.part.uuid if given.part is not None else given.gpu.uuid):
        return True
    numbers = {number for node in found.device.container_edits.device_nodes or () if (number := _number(node, facts)) is not None}
    mine = {node.number for node in _own(given, facts)}
    theirs = {node.number for nodes in facts.own_nodes.values() for node in nodes} - mine
    needed = mine if given.part is not None else mine & numbers
    return bool(needed) and needed <= numbers and not numbers & theirs


def _number(node: CdiNode, facts: CdiFacts) -> Number | None:
    if node.major is not None and node.minor is not None:
        return node.major, node.minor
    seen = facts.numbers.get(node.source)
    if seen is not None:
        return seen.major, seen.minor
    # one that its driver knows, and that nobody has made yet
    own = {each.path: each.number for nodes in facts.own_nodes.values() for each in nodes}
    return facts.shared_nodes.get(node.source, own.get(node.source))


def _from_files(found: Sequence[Found], facts: CdiFacts) -> DeviceEdits | str:
    """What is for all devices of a file comes once, before what is for each."""
    edits = DeviceEdits()
    for file in {each.file.path: each.file for each in found}.values():
        devices = [each.device for each in found if each.file.path == file.path]
        parts = [file.specification.container_edits, *(each.container_edits for each in devices)]
        names = ", ".join(f"{file.specification.kind}={each.name}" for each in devices)
        more = _from_file(file.path, names, parts, facts)
        if isinstance(more, str):
            return more
        edits = _join(edits, more)
    return edits


def _from_file(path: str, names: str, parts: Sequence[CdiEdits], facts: CdiFacts) -> DeviceEdits | str:
    nodes: list[DeviceNode] = []
    for node in (node for part in parts for node in part.device_nodes or ()):
        seen, number = facts.numbers.get(node.source), _number(node, facts)
        kind = {"u": "c"}.get(node.type, node.type) or (seen.kind if seen is not None else "c")
        if number is None or kind not in ("b", "c"):
            return f"{path} names the device file {node.source}, which is not there. {ANEW}"
        nodes.append(DeviceNode(node.path, kind, *number))
    mounts = [mount for part in parts for mount in part.mounts or ()]
    gone = [mount.host_path for mount in mounts if mount.host_path in facts.missing]
    if gone:
        return f"{path} names {gone[0]}, which is not there: the driver has changed since. {ANEW}"
    effects = read_hooks(hook for part in parts for hook in part.hooks or ())
    libraries, links = find_libraries(effects, mounts, facts.aliases)
    notes = [f"{names} by {path}: {UNVERIFIED}"]
    if effects.done or effects.not_done:
        left = [path for path in effects.links if path not in links and path not in {mount.container_path for mount in mounts}]
        had = f"; had without them: {', '.join(effects.done)}" if effects.done else ""
        lacking = f"; not done: {', '.join((*effects.not_done, *left))}" if effects.not_done or left else ""
        notes.append(f"no hook of {path} ran{had}{lacking}")
    if any(part.intel_rdt for part in parts):
        notes.append(f"intelRdt of {path} is left out: caches are divided by Steelyard")
    return DeviceEdits(
        env={name: value for part in parts for name, _, value in (each.partition("=") for each in part.env or ())},
        nodes=tuple(nodes),
        binds=(
            *(Bind(mount.host_path, mount.container_path, mount.read_only) for mount in mounts),
            *(Bind(source, target, True) for target, source in links.items()),
        ),
        libraries=libraries,
        groups=tuple(gid for part in parts for gid in part.additional_gids or () if gid < IDS_MAX),
        sources=(path,),
        notes=tuple(notes),
    )


# -- by what the driver installed


def _from_driver(given: Sequence[_Given], maker: str, plan: Plan, topology: Topology, facts: CdiFacts) -> DeviceEdits | str:
    nodes: list[DeviceNode] = []
    for each in given:
        # NVIDIA's GPUs have files for drawing, too, which computing does not need
        own = [node for node in _own(each, facts) if maker != "NVIDIA" or node.path.startswith("/dev/nvidia")]
        if not own:
            return f"{each.name}: its driver shows no device file of it. Load the driver, and look at: steelyard check"
        nodes += [DeviceNode(node.path, "c", *node.number) for node in own]
    shared = [name for name in SHARED.get(maker, ()) if name in facts.shared_nodes]
    nodes += [DeviceNode(name, "c", *facts.shared_nodes[name]) for name in shared]
    whose = ", ".join(each.name for each in given)
    if maker != "NVIDIA":
        # whose libraries are part of the image
        source = f"the device files of {maker}'s driver"
        return DeviceEdits(nodes=tuple(nodes), sources=(source,), notes=(f"{whose} by {source}: {UNVERIFIED}",))
    driver = facts.driver
    if driver is None:
        return (
            f"{whose} can't be brought into a container: there is neither a CDI specification in /etc/cdi or /var/run/cdi nor a "
            "driver whose libraries (libcuda.so, libnvidia-ml.so) were found. Install NVIDIA's driver, or make a specification: "
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        )
    binds = [Bind(program, posixpath.join(PROGRAMS, posixpath.basename(program)), True) for program in driver.programs]
    if driver.persistenced:
        binds.append(Bind(driver.persistenced, driver.persistenced))
    if driver.fabricmanager and {gpu.id for gpu in topology.gpus} <= set(plan.gpus) and not plan.mig_instances:
        binds.append(Bind(driver.fabricmanager, driver.fabricmanager))  # it divides the fabric of all of them
    if driver.mps and plan.gpu_fraction < 1 and not plan.mig_instances:
        binds.append(Bind(driver.mps, driver.mps))
    libraries = {
        name: library for library in driver.libraries for name in (posixpath.basename(library), *facts.aliases.get(library, ()))
    }
    source = f"the files of NVIDIA's driver {driver.version}"
    notes = (f"{whose} by {source}: {UNVERIFIED}",)
    return DeviceEdits(nodes=tuple(nodes), binds=tuple(binds), libraries=libraries, sources=(source,), notes=notes)


# -- network cards


def _cards(plan: Plan, topology: Topology, facts: CdiFacts) -> DeviceEdits:
    edits = DeviceEdits()
    for nic in plan.nics:
        own = facts.own_nodes.get(_pci(nic, topology), ())
        if not own:
            continue  # it can't do RDMA: its interface is the machine's, and needs no device file
        shared = [(name, facts.shared_nodes[name]) for name in RDMA_SHARED if name in facts.shared_nodes]
        nodes = [*((node.path, node.number) for node in own), *shared]
        more = DeviceEdits(
            nodes=tuple(DeviceNode(path, "c", *number) for path, number in nodes),
            lock_memory=True,
            notes=(f"{nic} by its files in /dev/infiniband: {UNVERIFIED}",),
        )
        edits = _join(edits, more)
    return edits


def _pci(nic: str, topology: Topology) -> str:
    return next((each.pci or "" for each in topology.nics if each.id == nic), "")


def _join(first: DeviceEdits, more: DeviceEdits) -> DeviceEdits:
    """Of two that speak of one path, the later counts."""
    return DeviceEdits(
        env=first.env | more.env,
        nodes=tuple({node.path: node for node in (*first.nodes, *more.nodes)}.values()),
        binds=tuple({bind.target: bind for bind in (*first.binds, *more.binds)}.values()),
        libraries=first.libraries | more.libraries,
        groups=tuple(dict.fromkeys((*first.groups, *more.groups))),
        lock_memory=first.lock_memory or more.lock_memory,
        sources=tuple(dict.fromkeys((*first.sources, *more.sources))),
        notes=(*first.notes, *more.notes),
    )
