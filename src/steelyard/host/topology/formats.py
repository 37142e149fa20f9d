"""Which format is this text in? By content, never by the name of the file.

Pure. What is recognised but describes no machine (a fabric, a log, a BMC's answers) is refused with one sentence that says what
it looks like and which command takes it; so is what is not recognised at all.
"""

from __future__ import annotations

import re
from enum import StrEnum

from steelyard.errors import Refused
from steelyard.host.topology.lines import drop_escapes
from steelyard.host.topology.nvidia_matrix import is_matrix_header

#: enough to tell every format; logs and tables show themselves at once
_HEAD = 64 * 1024
_LINE_MAX = 4096


class Format(StrEnum):
    HWLOC_XML = "hwloc XML"
    NCCL_XML = "NCCL topology XML"
    NVIDIA_SMI_XML = "nvidia-smi -q -x"
    NVIDIA_SMI_TEXT = "nvidia-smi -q"
    NVIDIA_MATRIX = "nvidia-smi topo -m"
    NVLINK_STATUS = "nvidia-smi nvlink --status"
    ROCM_TOPO = "rocm-smi --showtopo"
    ROCM_JSON = "rocm-smi -a --json"
    PACKED = "packed /sys files"


_ROOTS = {
    "topology": Format.HWLOC_XML,
    "system": Format.NCCL_XML,
    "graphs": Format.NCCL_XML,  # its reader says why it does not take them
    "nvidia_smi_log": Format.NVIDIA_SMI_XML,
}
_FABRIC = "describes a fabric, not a machine: give it with --fabric."
_HEALTH = "tells how a machine feels, not how it is wired: steelyard check reads it."
_SMI = "does not tell enough: give nvidia-smi -q -x, and nvidia-smi topo -m for the paths."

#: What else people have at hand: a pattern that a line of it matches, and the rest of the sentence about it.
_OTHERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE | re.ASCII), sentence)
    for pattern, sentence in (
        (r"^\| NVIDIA-SMI \d", f"is the plain screen of nvidia-smi, which {_SMI}"),
        (r"^GPU \d+: .* \(UUID: ", f"is the list of nvidia-smi -L, which {_SMI}"),
        (r"^# Topology file: generated|^vendid=0x|^(CA|SW) +\d+ +\d+ 0x[0-9a-f]{16}", f"looks like ibnetdiscover and {_FABRIC}"),
        (r"^#? ?(SwitchName|BlockName|BlockSizes)=", f"looks like Slurm's topology.conf and {_FABRIC}"),
        (r"^(- topology:|(switches|blocks|capacity_blocks|racks|nvlink_domains):)", f"looks like topology.yaml and {_FABRIC}"),
        (r"^ClusterUUID \+ CliqueID|^block \d+ +: # of Nodes", f"looks like a picture of Slurm blocks and {_FABRIC}"),
        (r"^[ \t]*(<\d+>)?\[ *\d+\.\d{6}\] |^\d+,\d+,\d+,-;|^kern +:", f"looks like a kernel log, which {_HEALTH}"),
        (
            r"^\[[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ [\d:]+ \d{4}\] |NVRM: |^\d{4}-\d\d-\d\dT\S+ nvidia",
            f"looks like a kernel log, which {_HEALTH}",
        ),
        (r"^\[[A-Z][a-z]{2} \d\d \d{4} [\d:]+\] \[[A-Z]+\] \[tid ", f"looks like a log of the fabric manager, which {_HEALTH}"),
        (r"^ *[0-9a-f]+ \| [\d/]{8,10} \| ", f"looks like a BMC's event log, which {_HEALTH}"),
        (
            r"^# (Port extended counters|PortRcvErrorDetails)|^CA '[\w.-]+'|^Infiniband device '",
            f"looks like perfquery or ibstat, which {_HEALTH}",
        ),
        (r"^(part|serial) number +\| ", f"looks like ibswinfo of a switch, which {_HEALTH}"),
        (r"^# dmidecode|^SMBIOS \d", "looks like dmidecode, which names parts and not their wiring: give lstopo --of xml."),
        (
            r"^([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7] ",
            "looks like lspci, which tells no links or NUMA nodes: give lstopo --of xml.",
        ),
    )
)
_JSONS: tuple[tuple[str, str], ...] = (
    (
        r'"@odata\.|"/redfish/',
        "looks like the Redfish answers of a BMC, which do not tell how devices are wired: give lstopo --of xml.",
    ),
    (r'^\s*\{\s*"lldp"', f"looks like lldpcli and {_FABRIC}"),
    (r'^\s*\{\s*"blockdevices"', "looks like lsblk --json, which shows disks only: give lstopo --of xml."),
    (
        r'^\s*\{\s*"(pci|intf_status|dmi)"',
        "looks like the expected parts of a health check, not like a machine: give lstopo --of xml.",
    ),
)


def find_format(text: str, source: str) -> Format:
    """The format. Raises `Refused` for anything that no reader takes."""
    head = drop_escapes(text[:_HEAD]).lstrip("\ufeff \t\r\n")
    if not head:
        raise Refused(f"{source} is empty.")
    if head.startswith("<") and not re.match(r"<\d+>", head):
        return _find_xml(text, source)
    if head[0] in "{[" and re.match(r"[{\[]\s*([\"{\[\]}]|$)", head):
        return _find_json(head, source)
    return _find_text(head, source)


def _find_xml(text: str, source: str) -> Format:
    """By the root's name, behind comments, a declaration and a DOCTYPE."""
    place = text.find("<")
    while place >= 0:
        opening = text[place : place + 80]
        if opening.startswith("<!--"):
            end = text.find("-->", place)
        elif opening.startswith(("<?", "<!")):
            end = text.find(">", place)
        else:
            break
        place = text.find("<", end) if end >= 0 else -1
    name = re.match(r"<([A-Za-z_][\w.-]*)(?=[\s/>])", text[place : place + 80]) if place >= 0 else None
    if name is None:
        raise Refused(f"{source} looks like XML, but its first element is cut off or malformed: record it again.")
    if name[1] not in _ROOTS:
        raise Refused(f"{source} is XML of no kind that describes a machine: its root is <{name[1]}>.")
    return _ROOTS[name[1]]


def _find_json(head: str, source: str) -> Format:
    for pattern, sentence in _JSONS:
        if re.search(pattern, head):
            raise Refused(f"{source} {sentence}")
    if re.match(r'\{\s*"card\d+"\s*:|\{\s*"system"\s*:\s*\{\s*"Driver', head):
        return Format.ROCM_JSON
    if re.match(r'\{\s*"(?=[^"]{0,300}\b(sys|proc)\b)[^"]{0,300}/[^"]{0,300}"\s*:\s*"', head):
        return Format.PACKED
    raise Refused(f"{source} is JSON of no kind that describes a machine: give lstopo --of xml, or nvidia-smi -q -x.")


def _find_text(head: str, source: str) -> Format:
    lines = [line[:_LINE_MAX] for line in head.splitlines()]
    if any(line.startswith("# ttar -") for line in lines) or re.match(r"(Directory|Path): \S+\n(Mode|Lines|SymlinkTo): ", head):
        return Format.PACKED
    if any("ROCm System Management Interface" in line or "Link Type between two GPUs" in line for line in lines):
        return Format.ROCM_TOPO
    if any(re.match(r"=+NVSMI LOG=+", line) for line in lines):
        return Format.NVIDIA_SMI_TEXT
    if any(re.match(r"GPU \d+: ", line) for line in lines) and any(re.match(r"\s+Link \d+: ", line) for line in lines):
        return Format.NVLINK_STATUS
    if any(is_matrix_header(line) for line in lines):
        return Format.NVIDIA_MATRIX
    shown = "\n".join(lines)
    for pattern, sentence in _OTHERS:
        if pattern.search(shown):
            raise Refused(f"{source} {sentence}")
    filled = [line for line in lines if line.strip()]
    if len(filled) > 1 and all(line.count(",") >= 2 for line in filled[:4]):
        raise Refused(f"{source} looks like CSV, a format in which no tool describes a machine's wiring: give lstopo --of xml.")
    raise Refused(
        f"{source} is none of the formats that describe a machine: {', '.join(Format)}, or a folder or tar of /sys and /proc."
    )
