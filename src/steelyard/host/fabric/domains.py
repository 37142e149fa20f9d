"""Which hosts share an NVLink domain? A list of lines `host: cluster-uuid`, with the number of the clique where there is one.

What `nvidia-smi` calls ClusterUUID and CliqueId names the partition of NVLink switches that a machine is in.
"""

from __future__ import annotations

import re

from steelyard.errors import Refused
from steelyard.model.fabric import Fabric, FabricHost, HostGroup, name_key

LINE = re.compile(r"([\w.-]+)\s*:\s*([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?:[\s.]+(\d{1,10}))?")
_NONE = "00000000-0000-0000-0000-000000000000"


def read_domains(text: str, source: str) -> Fabric:
    groups: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise Refused(f"{source}: line {number} is not `host: cluster-uuid`: the file is cut off or another kind of file")
        host, domain = match[1], match[2].lower() + (f".{match[3]}" if match[3] else "")
        if seen.setdefault(host, domain) != domain:
            raise Refused(f"{source}: line {number} puts {host} into a second NVLink domain")
        if match[2] != _NONE and host not in groups.setdefault(domain, []):
            groups[domain].append(host)
    if not seen:
        raise Refused(f"{source}: this list has no hosts in it")
    return Fabric(
        sources=(f"NVLink domains ({source})",),
        hosts=tuple(FabricHost(host) for host in sorted(seen, key=name_key)),
        domains=tuple(HostGroup(domain, tuple(hosts)) for domain, hosts in groups.items()),
    )
