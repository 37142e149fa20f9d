"""How do the formats write an address, a list of CPUs, a size? One reading of each, for text that nobody vouches for.

Each function takes one word and returns its meaning, or None where it has none. None raises, guesses or makes more than
`CPUS_MAX` numbers of one word.
"""

from __future__ import annotations

import re

#: no machine has more; a longer list is a mistake or an attack
CPUS_MAX = 16384
#: what tools write where they do not know
_NOTHING = {"", "n/a", "na", "none", "-", "unknown", "unknown error", "not supported", "not available", "not found"}
_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-9a-f])")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?(B|KiB|MiB|GiB|TiB|KB|MB|GB)?")
#: nvidia-smi counts in powers of two, whichever way it writes the unit
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def told(text: str | None) -> str | None:
    """The word itself, or None where the tool says in one of many ways that it does not know."""
    word = (text or "").strip()
    return None if word.strip("[]").strip().lower() in _NOTHING else word


def read_pci(text: str | None) -> str | None:
    """`00000000:0F:00.0`, `0F:00.0` -> `0000:0f:00.0`."""
    match = _PCI.fullmatch((text or "").strip().lower())
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}"


def read_whole(text: str | None, largest: int = 2**31) -> int | None:
    """A whole number from 0 to `largest`. `16x` (a link width) too."""
    match = re.fullmatch(r"(\d{1,12})x?", (text or "").strip(), re.ASCII)
    return int(match[1]) if match and int(match[1]) <= largest else None


def read_size(text: str | None) -> int | None:
    """`81920 MiB` -> bytes."""
    match = _SIZE.fullmatch((text or "").strip())
    return int(float(match[1]) * _UNITS[match[2] or "B"]) if match else None


def read_cpus(text: str) -> tuple[int, ...] | None:
    """`0-17,36-53` -> its numbers in order. None for anything else, also for a backward range."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, re.ASCII)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= CPUS_MAX:
            return None
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def read_mask(text: str) -> tuple[int, ...] | None:
    """`0003ff,f0003fff` -> its CPUs: groups of 32 bits, the highest first, all but the first of 8 digits."""
    groups = text.strip().lower().replace("0x", "").split(",")
    if len(groups) * 32 > CPUS_MAX or not re.fullmatch(r"[0-9a-f]{1,8}", groups[0]):
        return None
    if not all(re.fullmatch(r"[0-9a-f]{8}", group) for group in groups[1:]):
        return None
    bits = int("".join(groups), 16)
    return tuple(cpu for cpu, bit in enumerate(reversed(f"{bits:b}")) if bit == "1")


def read_gigatransfers(text: str | None) -> float | None:
    """`16 GT/s`, `32.0 GT/s PCIe`, `8.0GT/s` -> 16.0, 32.0, 8.0."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?) ?GT/s(?: PCIe)?", (text or "").strip())
    return float(match[1]) if match else None


#: PCIe generation -> GT/s
GENERATIONS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}


#: CUDA compute capability x 10 -> one NVLink in one direction, Gbit/s. From NVIDIA's figures per GPU and number of links:
#: P100 80 GB/s over 4, V100 150 over 6, RTX 2080 Ti 50 over 2, A100 300 over 12, RTX 3090 56.25 over 4, H100 450 over 18,
#: B200 and B300 900 over 18.
NVLINK_GBPS = {"60": 160.0, "70": 200.0, "75": 200.0, "80": 200.0, "86": 112.5, "90": 200.0, "100": 400.0, "103": 400.0}

#: AMD's gfx number -> one xGMI link in one direction, Gbit/s. From AMD's data sheets, which state both directions together:
#: MI50, MI60 and MI100 92 GB/s per link, MI200 100 GB/s, MI300 128 GB/s, MI350 153.6 GB/s.
XGMI_GBPS = {
    "gfx906": 368.0,
    "gfx908": 368.0,
    "gfx90a": 400.0,
    "gfx940": 512.0,
    "gfx941": 512.0,
    "gfx942": 512.0,
    "gfx950": 614.4,
}
