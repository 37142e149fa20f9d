"""Which GPUs does `nvidia-smi -q` show, as XML (`-q -x`) or as text, and which links does `nvidia-smi nvlink --status`?

The facts are those of each GPU alone: PCI address, name, memory, MIG, its PCIe link. Which GPUs are near each other these screens
do not tell, so there are no pairs (`topo -m` has them). Tags moved between versions (DTD v9 to v13), so each fact is looked for
where any version has it. Serial numbers are not taken over; UUIDs are, because CUDA_VISIBLE_DEVICES takes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import msgspec

from steelyard.errors import Refused
from steelyard.host.topology.lines import split_lines
from steelyard.host.topology.mig import name_engines
from steelyard.host.topology.notation import GENERATIONS, read_pci, read_size, read_whole, told
from steelyard.host.topology.tree import pcie_gbps
from steelyard.host.topology.xml import parse_xml
from steelyard.model.topology import Gpu, MigInstance, Topology

_GPUS_MAX = 1024
_ON = {"Enabled": True, "Disabled": False}
_INSTANCES_MAX = 64


def read_nvidia_smi_xml(text: str, source: str) -> Topology:
    """`nvidia-smi -q -x`. Raises `Refused` for other XML, a GPU without a PCI address, or one listed twice."""
    root = parse_xml(text, source)
    if root.tag != "nvidia_smi_log":
        raise Refused(f"{source} is XML, but not of nvidia-smi -q -x: its root is <{root.tag[:40]}>.")
    elements = root.findall("gpu")
    _check_count(len(elements), source)
    attached = read_whole(_word(root, "attached_gpus"))
    # well-formed, so not cut off: nvidia-smi -i shows some GPUs and still counts all
    few = f"The machine has {attached} GPUs; this screen describes {len(elements)} of them."
    gpus = [_gpu_of_xml(element, index, source) for index, element in enumerate(elements)]
    return _finish(gpus, f"nvidia-smi -q -x ({source})", source, (few,) if attached and attached > len(elements) else ())


def _word(element: Element, *paths: str) -> str | None:
    """The first of these that tells something."""
    return next((word for path in paths if (word := told(element.findtext(path))) is not None), None)


def _gpu_of_xml(element: Element, index: int, source: str) -> Gpu:
    link = "pci/pci_gpu_link_info/"
    name = _word(element, "product_name") or ""
    memory = read_size(_word(element, "fb_memory_usage/total", "memory_usage/total"))
    instances = tuple(_instance_of_xml(mig, memory) for mig in element.findall("mig_devices/mig_device")[:_INSTANCES_MAX])
    return _make_gpu(
        source,
        index=index,
        address=_word(element, "pci/pci_bus_id") or element.get("id"),
        name=name,
        memory=memory,
        uuid=_word(element, "uuid"),
        numa_node=read_whole(_word(element, "numa_node", "pci/numa_node"), 4095),
        mig=_ON.get(_word(element, "mig_mode/current_mig") or ""),
        instances=instances,
        generation=_word(element, f"{link}pcie_gen/max_link_gen"),
        width=_word(element, f"{link}link_widths/current_link_width"),
        width_max=_word(element, f"{link}link_widths/max_link_width"),
    )


def _instance_of_xml(mig: Element, gpu_bytes: int | None) -> MigInstance:
    shared = "device_attributes/shared/"
    memory = read_size(_word(mig, "fb_memory_usage/total"))
    return MigInstance(
        uuid=_word(mig, "uuid"),
        profile=name_engines(
            gpu_bytes,
            memory,
            multiprocessors=read_whole(_word(mig, f"{shared}multiprocessor_count")),
            copy_engines=read_whole(_word(mig, f"{shared}copy_engine_count")),
            media_engines=read_whole(_word(mig, f"{shared}jpg_count")),
        ),
        memory_bytes=memory,
        gpu_instance=read_whole(_word(mig, "gpu_instance_id")),
        compute_instance=read_whole(_word(mig, "compute_instance_id")),
    )


def _make_gpu(
    source: str,
    *,
    index: int,
    address: str | None,
    name: str,
    memory: int | None,
    uuid: str | None,
    numa_node: int | None,
    mig: bool | None,
    instances: tuple[MigInstance, ...],
    generation: str | None,
    width: str | None,
    width_max: str | None,
) -> Gpu:
    pci = read_pci(address)
    if pci is None:
        raise Refused(
            f"{source}: the GPU at place {index} has no legal PCI address, so the file is cut or edited: record it again."
        )
    lanes = read_whole(width, 32) or None
    return Gpu(
        id=pci,
        name=name,
        vendor="NVIDIA",
        memory_bytes=memory,
        pci=pci,
        index=index,
        uuid=uuid if uuid and uuid.startswith("GPU-") else None,
        numa_node=numa_node,
        mig=mig,
        mig_instances=instances,
        pcie_gbps=pcie_gbps(GENERATIONS.get(read_whole(generation, 9) or 0), lanes),
        pcie_width=lanes,
        pcie_width_max=read_whole(width_max, 32) or None,
    )


def read_nvidia_smi_text(text: str, source: str) -> Topology:
    """Plain `nvidia-smi -q`: keys and values under indented headings. Raises `Refused` as its twin for XML does."""
    head, blocks = _read_blocks(text, source)
    attached = read_whole(head.get("Attached GPUs"))
    if attached is not None and attached != len(blocks):
        raise Refused(f"{source} names {attached} GPUs and describes {len(blocks)}: it is cut off, or shows some of them (-i).")
    _check_count(len(blocks), source)
    if not any(path.split("/")[0].endswith("Processes") for path in blocks[-1]):
        raise Refused(f"{source} is cut off in its last GPU, or shows some of the facts (-d): record all of nvidia-smi -q.")
    gpus = [_gpu_of_text(block, index, source) for index, block in enumerate(blocks)]
    return _finish(gpus, f"nvidia-smi -q ({source})", source)


def _read_blocks(text: str, source: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The lines before the first GPU, and one flat `heading/heading/key` -> value per GPU. The first of equal keys counts."""
    head: dict[str, str] = {}
    blocks: list[dict[str, str]] = []
    headings: list[tuple[int, str]] = []
    devices = 0
    for line in split_lines(text, source):
        if not line:
            continue
        depth = len(line) - len(line.lstrip())
        if not depth and (match := re.fullmatch(r"GPU ([0-9A-Fa-f:.]{7,16})", line)):
            blocks.append({"address": match[1]})
            headings, devices = [], 0
            if len(blocks) > _GPUS_MAX:
                raise Refused(f"{source} lists more than {_GPUS_MAX} GPUs, so it is no machine's.")
            continue
        while headings and headings[-1][0] >= depth:
            headings.pop()
        key, colon, value = line.partition(" : ")
        if colon and len(headings) < 8:
            path = "/".join([*(name for _, name in headings), key.strip()])
            (blocks[-1] if blocks else head).setdefault(path, value.strip())
        elif len(headings) < 8:
            name = line.strip().rstrip(":")[:64]
            if name == "MIG Device":  # the only heading that repeats
                devices += 1
                name = f"{name} {devices}"
            headings.append((depth, name))
    return head, blocks


def _gpu_of_text(block: Mapping[str, str], index: int, source: str) -> Gpu:
    def word(*paths: str) -> str | None:
        return next((known for path in paths if (known := told(block.get(path))) is not None), None)

    link = "PCI/GPU Link Info/"
    memory = read_size(word("FB Memory Usage/Total", "Memory Usage/Total"))
    prefixes = dict.fromkeys(path.split("/")[0] for path in block if path.startswith("MIG Device "))
    return _make_gpu(
        source,
        index=index,
        address=word("PCI/Bus Id", "address"),
        name=word("Product Name") or "",
        memory=memory,
        uuid=word("GPU UUID", "UUID"),
        numa_node=read_whole(word("NUMA Node", "PCI/NUMA Node"), 4095),
        mig=_ON.get(word("MIG Mode/Current") or ""),
        instances=tuple(_instance_of_text(block, prefix, memory) for prefix in list(prefixes)[:_INSTANCES_MAX]),
        generation=word(f"{link}PCIe Generation/Max"),
        width=word(f"{link}Link Width/Current"),
        width_max=word(f"{link}Link Width/Max"),
    )


def _instance_of_text(block: Mapping[str, str], prefix: str, gpu_bytes: int | None) -> MigInstance:
    def word(path: str) -> str | None:
        return told(block.get(f"{prefix}/{path}"))

    shared = "Device Attributes/Shared/"
    memory = read_size(word("FB Memory Usage/Total"))
    return MigInstance(
        uuid=word("MIG UUID") or word("UUID"),
        profile=name_engines(
            gpu_bytes,
            memory,
            multiprocessors=read_whole(word(f"{shared}Multiprocessor count")),
            copy_engines=read_whole(word(f"{shared}Copy Engine count")),
            media_engines=read_whole(word(f"{shared}JPG count")),
        ),
        memory_bytes=memory,
        gpu_instance=read_whole(word("GPU Instance ID")),
        compute_instance=read_whole(word("Compute Instance ID")),
    )


def _check_count(found: int, source: str) -> None:
    if found > _GPUS_MAX:
        raise Refused(f"{source} lists more than {_GPUS_MAX} GPUs, so it is no machine's.")
    if not found:
        raise Refused(f"{source} describes no GPU: nvidia-smi found none, or the file is cut off.")


def _finish(gpus: Sequence[Gpu], title: str, source: str, notes: tuple[str, ...] = ()) -> Topology:
    if len({gpu.id for gpu in gpus}) < len(gpus):
        raise Refused(f"{source} describes one GPU twice, so it is not one screen of one machine.")
    for gpu in gpus:
        ids = [(mig.gpu_instance, mig.compute_instance) for mig in gpu.mig_instances if mig.gpu_instance is not None]
        if len(set(ids)) < len(ids):
            raise Refused(f"{source} describes one MIG instance of {gpu.id} twice, so it is not one screen of one machine.")
    return Topology(sources=(title,), smt_known=False, gpus=tuple(gpus), notes=notes)


def read_nvlink_status(text: str, source: str) -> Topology:
    """`nvidia-smi nvlink --status`: how many links of each GPU are up. GPUs are `GPU0`, `GPU1`; where links lead is not told."""
    gpus: list[Gpu] = []
    for line in split_lines(text, source):
        if match := re.fullmatch(r"GPU (\d{1,4}): (.*?)(?: \(UUID: (GPU-[0-9a-fA-F-]{36})\))?", line, re.ASCII):
            if len(gpus) > _GPUS_MAX:
                raise Refused(f"{source} lists more than {_GPUS_MAX} GPUs, so it is no machine's.")
            index = int(match[1])
            gpus.append(Gpu(f"GPU{index}", name=match[2][:100], vendor="NVIDIA", index=index, uuid=match[3], links=0))
        elif gpus and re.match(r"\s+Link \d{1,3}: \d{1,4}(?:\.\d{1,4})? GB/s$", line):
            gpus[-1] = msgspec.structs.replace(gpus[-1], links=(gpus[-1].links or 0) + 1)
        elif gpus and re.match(r"\s+Link \d{1,3}: <?inactive>?$", line):
            continue
        elif gpus and re.match(r"\s+(Unable to retrieve|NVML:)", line):
            gpus[-1] = msgspec.structs.replace(gpus[-1], links=None)
        elif line.strip():
            raise Refused(f"{source}: this line is not of nvidia-smi nvlink --status: {line.strip()[:60]!r}.")
    if not gpus or len({gpu.id for gpu in gpus}) < len(gpus):
        raise Refused(f"{source} does not describe each GPU once, so it is not one screen of nvidia-smi nvlink --status.")
    return Topology(sources=(f"nvidia-smi nvlink --status ({source})",), smt_known=False, gpus=tuple(gpus))
